"""Convolution against PyTorch and XLA's own derivatives, alone, mapped and exported."""

import functools
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops.conv import UNROLLED, conv

SHAPES = [(1, 1, None), (1, 2, None), (3, 1, None), (3, 2, None), (7, 2, None), (2, 2, 0)]
AXES = [(0, 0), (0, None), (None, 0)]


def operands(key, k=3, maps=()):
    """Images and kernels with the leading axes ``maps``; sizes are odd and unequal."""
    x, w = jax.random.split(key)
    x = jax.random.normal(x, (*maps, 2, 9, 7, 4))
    return x, jax.random.normal(w, (*maps, k, k, 4, 3)) / k


def xla(x, w, stride=1, padding=1):
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def loss(f, x, w):
    """A scalar whose derivative by the output depends on the output."""
    return jnp.sum(jnp.sin(f(x, w)))


@pytest.mark.parametrize(("k", "stride", "padding"), SHAPES)
def test_convolution_and_both_gradients_are_those_of_torch(k, stride, padding, key):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x, w = operands(key, k)
    y, pull = jax.vjp(functools.partial(conv, stride=stride, padding=padding), x, w)
    dy = jnp.cos(y)
    tx, tw = (torch.tensor(np.asarray(a), dtype=torch.float64, requires_grad=True) for a in (x, w))
    images, kernels = tx.permute(0, 3, 1, 2), tw.permute(3, 2, 0, 1)
    pad = k // 2 if padding is None else padding
    ty = torch.nn.functional.conv2d(images, kernels, stride=stride, padding=pad)
    ty.backward(torch.tensor(np.asarray(dy), dtype=torch.float64).permute(0, 3, 1, 2))
    theirs = [t.detach().numpy() for t in (ty.permute(0, 2, 3, 1), tx.grad, tw.grad)]
    for mine, oracle in zip((y, *pull(dy)), theirs):
        np.testing.assert_allclose(mine, oracle, rtol=1e-5, atol=1e-5 * np.abs(oracle).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_an_odd_kernel_gives_the_size_divided_by_the_stride_and_rounded_up(stride):
    for k in (1, 3, 7):
        x, w = jnp.zeros((1, 9, 8, 2)), jnp.zeros((k, k, 2, 3))
        out = jax.eval_shape(functools.partial(conv, stride=stride), x, w)
        assert out.shape == (1, -(-9 // stride), -(-8 // stride), 3)


def test_second_derivatives_are_those_of_xla(key):
    def penalty(f, x, w):
        dx, dw = jax.grad(loss, (1, 2))(f, x, w)
        return jnp.sum(dx**2) + jnp.sum(dw**3)

    x, w = operands(key)
    mine = jax.jit(jax.grad(functools.partial(penalty, conv), (0, 1)))(x, w)
    theirs = jax.jit(jax.grad(functools.partial(penalty, xla), (0, 1)))(x, w)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_forward_mode_is_refused_and_works_for_pointwise_kernels(key):
    x, w = operands(key)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(conv, (x, w), (x, w))
    x, w = operands(key, k=1)
    _, tangent = jax.jvp(conv, (x, w), (x, w))
    np.testing.assert_allclose(tangent, 2 * conv(x, w), rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_bfloat16_in_both_gradients(key):
    x, w = operands(key)
    exact = jax.grad(lambda x, w: conv(x, w).sum(), (0, 1))(x, w)
    low = jax.grad(lambda x, w: conv(x, w).astype(jnp.float32).sum(), (0, 1))(
        x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    )
    for a, b in zip(low, exact):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.03, atol=0.03 * abs(b).max())


@pytest.mark.parametrize("in_axes", AXES)
def test_a_mapped_convolution_is_a_loop(in_axes, key):
    x, w = operands(key, maps=(3,))
    x, w = (a if m == 0 else a[0] for a, m in zip((x, w), in_axes))
    at = lambda i: [a if m is None else a[i] for a, m in zip((x, w), in_axes)]
    step = jax.value_and_grad(functools.partial(loss, conv), (0, 1))
    mapped = jax.jit(jax.vmap(step, in_axes=in_axes))(x, w)
    loop = jax.tree.map(lambda *a: jnp.stack(a), *[step(*at(i)) for i in range(3)])
    chex.assert_trees_all_close(mapped, loop, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_axes", AXES)
def test_the_gradient_of_a_mapped_convolution_is_that_of_xla(in_axes, key):
    def total(f, x, w):
        return loss(jax.vmap(f, in_axes=in_axes), x, w)

    x, w = operands(key, maps=(3,))
    x, w = (a if m == 0 else a[0] for a, m in zip((x, w), in_axes))
    mine = jax.jit(jax.grad(functools.partial(total, conv), (0, 1)))(x, w)
    theirs = jax.grad(functools.partial(total, xla), (0, 1))(x, w)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=2e-5)


def test_maps_nest_and_a_long_one_is_left_to_xla(key):
    x, w = operands(key, maps=(2, UNROLLED + 1))
    mine = jax.jit(jax.vmap(jax.vmap(conv)))(x, w)
    np.testing.assert_allclose(mine, jax.vmap(jax.vmap(xla))(x, w), rtol=1e-5, atol=1e-5)


def test_mapped_kernels_are_separate_convolutions_on_a_cpu_and_one_elsewhere(key):
    x, w = operands(key, maps=(3,))

    def convolutions(platform, w, in_axes=(0, 0)):
        mapped = jax.jit(jax.vmap(conv, in_axes=in_axes))
        exported = jax.export.export(mapped, platforms=(platform,))(x, w)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu", w) == 3
    assert convolutions("cuda", w) == convolutions("tpu", w) == 1
    assert convolutions("cpu", w[0], in_axes=(0, None)) == 1  # the mapped axis is more images


def test_a_training_step_exports_for_three_platforms_and_runs_on_this_one(key):
    x, w = operands(key, maps=(2,))
    step = jax.jit(jax.vmap(jax.grad(functools.partial(loss, conv), (0, 1))))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(x, w)
    chex.assert_trees_all_close(exported.call(x, w), step(x, w), rtol=1e-6)


def test_the_kernel_gradient_repeats_nothing_that_computed_its_operands(key):
    # What makes it fast on a CPU: the transpositions are calls that XLA does not inline.
    x, w = operands(key)
    if jax.default_backend() != "cpu":
        pytest.skip("arranged for CPUs only")
    step = jax.jit(jax.grad(lambda w, x: loss(conv, jax.nn.relu(3 * x + 1), w)))
    program = step.lower(w, x).compile().as_text()
    assert len(re.findall(r' call\(.*inlineable="false"', program)) == 2


def test_dtypes_that_differ_are_refused():
    with pytest.raises(TypeError, match=r"x is bfloat16 and w is float32; cast"):
        conv(jnp.zeros((1, 4, 4, 2), jnp.bfloat16), jnp.zeros((3, 3, 2, 2)))


@pytest.mark.parametrize("size", [(2, 2), (3, 5)])
def test_kernels_without_a_default_padding_are_refused(size):
    with pytest.raises(ValueError, match=f"kernel of {size[0]}x{size[1]} needs an explicit"):
        conv(jnp.zeros((1, 6, 6, 2)), jnp.zeros((*size, 2, 2)))
