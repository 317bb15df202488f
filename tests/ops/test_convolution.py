"""Convolution against PyTorch and XLA's derivatives: plain, vmapped and exported."""

import functools
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fpnlab.ops.convolution import UNROLLED, conv

SHAPES = [(1, 1, None), (1, 2, None), (3, 1, None), (3, 2, None), (7, 2, None), (2, 2, 0)]
AXES = [(0, 0), (0, None), (None, 0)]


def operands(key, k=3, maps=()):
    """Images and kernels with the leading axes ``maps``; sizes are odd and unequal."""
    x, w = jax.random.split(key)
    x = jax.random.normal(x, (*maps, 2, 9, 7, 4))
    return x, jax.random.normal(w, (*maps, k, k, 4, 3)) / k


def directions(key, *args, **kwargs):
    """Tangents of the operands."""
    return operands(jax.random.fold_in(key, 1), *args, **kwargs)


def xla(x, w, stride=1, padding=1):
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def loss(f, x, w):
    """A scalar whose derivative by the output depends on the output."""
    return jnp.sum(jnp.sin(f(x, w)))


@pytest.mark.parametrize(("k", "stride", "padding"), SHAPES)
def test_convolution_and_both_gradients_equal_pytorch(k, stride, padding, key):
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


def test_second_derivatives_equal_xla(key):
    def penalty(f, x, w):
        dx, dw = jax.grad(loss, (1, 2))(f, x, w)
        return jnp.sum(dx**2) + jnp.sum(dw**3)

    x, w = operands(key)
    mine = jax.jit(jax.grad(functools.partial(penalty, conv), (0, 1)))(x, w)
    theirs = jax.jit(jax.grad(functools.partial(penalty, xla), (0, 1)))(x, w)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_forward_mode_equals_the_difference_quotient(k, stride, key):
    with jax.enable_x64(True):
        x, w, dx, dw = (a.astype(jnp.float64) for a in (*operands(key, k), *directions(key, k)))
        f = functools.partial(conv, stride=stride)
        y, tangent = jax.jvp(f, (x, w), (dx, dw))
        at = lambda t: xla(x + t * dx, w + t * dw, stride, k // 2)
        # Bilinear: the central difference is exact whatever the step.
        np.testing.assert_allclose(y, at(0.0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(tangent, at(0.5) - at(-0.5), rtol=1e-11, atol=1e-11)
        plain = functools.partial(xla, stride=stride, padding=k // 2)
        for dx_, dw_ in ((dx, 0 * dw), (0 * dx, dw)):
            mine, theirs = (jax.jvp(g, (x, w), (dx_, dw_))[1] for g in (f, plain))
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_linearized_convolution_is_its_jvp_and_transposes_to_its_vjp(k, stride, key):
    x, w = operands(key, k)
    dx, dw = directions(key, k)
    f = functools.partial(conv, stride=stride)
    y, tangent = jax.jvp(f, (x, w), (dx, dw))
    linear_y, linear = jax.linearize(f, x, w)
    _, pull = jax.vjp(f, x, w)
    np.testing.assert_array_equal(linear_y, y)
    np.testing.assert_allclose(linear(dx, dw), tangent, rtol=1e-6, atol=1e-6)
    transposed = jax.linear_transpose(linear, x, w)(y)
    chex.assert_trees_all_close(transposed, pull(y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_hessian_products_are_the_same_in_every_order_of_differentiation(k, stride, key):
    at, along = operands(key, k), directions(key, k)
    ours = functools.partial(conv, stride=stride)
    plain = functools.partial(xla, stride=stride, padding=k // 2)
    inner = lambda a, b: sum(jnp.vdot(p, q) for p, q in zip(a, b))

    @functools.partial(jax.jit, static_argnums=0)
    def products(f, at, along):
        f = functools.partial(loss, f)
        gradient = jax.grad(f, (0, 1))
        forward = lambda x, w: jax.jvp(f, (x, w), along)[1]
        return {
            "forward over reverse": jax.jvp(gradient, at, along)[1],
            "reverse over reverse": jax.grad(lambda at: inner(gradient(*at), along))(at),
            "reverse over forward": jax.grad(forward, (0, 1))(*at),
            "linearized": jax.linearize(gradient, *at)[1](*along),
        }

    theirs = products(plain, at, along)["reverse over reverse"]
    for mine in products(ours, at, along).values():
        chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_third_derivatives_equal_xla(key):
    at, along = operands(key), directions(key)

    def third(f, modes):
        g = functools.partial(loss, f)
        for mode in modes:
            if mode == "f":
                g = lambda x, w, g=g: jax.jvp(g, (x, w), along)[1]
            else:
                g = lambda x, w, g=g: sum(map(jnp.vdot, jax.grad(g, (0, 1))(x, w), along))
        return jax.jit(g)(*at)

    theirs = third(xla, "fff")
    for modes in ("fff", "ffr", "frf", "rff", "rrf", "rfr", "frr", "rrr"):
        np.testing.assert_allclose(third(conv, modes), theirs, rtol=1e-4)


def test_the_hessian_equals_xla(key):
    x, w = operands(key)
    x, w = x[:1, :3, :4, :2], w[:, :, :2, :2]
    mine, theirs = (
        jax.jit(jax.hessian(functools.partial(loss, f), (0, 1)))(x, w) for f in (conv, xla)
    )
    chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_axes", AXES)
@pytest.mark.parametrize("stride", [1, 2])
def test_forward_mode_of_a_vmapped_convolution_equals_a_loop(stride, in_axes, key):
    f = functools.partial(conv, stride=stride)
    at, along = operands(key, maps=(3,)), directions(key, maps=(3,))
    at = tuple(a if m == 0 else a[0] for a, m in zip(at, in_axes))
    along = tuple(a if m == 0 else a[0] for a, m in zip(along, in_axes))
    jvp = lambda x, w, dx, dw: jax.jvp(f, (x, w), (dx, dw))
    hvp = lambda x, w, dx, dw: jax.jvp(
        jax.grad(functools.partial(loss, f), (0, 1)), (x, w), (dx, dw)
    )
    for each in (jvp, hvp):
        mapped = jax.jit(jax.vmap(each, in_axes=2 * in_axes))(*at, *along)
        pick = lambda i: [a if m is None else a[i] for a, m in zip((*at, *along), 2 * in_axes)]
        loop = jax.tree.map(lambda *a: jnp.stack(a), *[each(*pick(i)) for i in range(3)])
        chex.assert_trees_all_close(mapped, loop, rtol=1e-5, atol=2e-5)
    # The other order: derivatives of the mapped function, whose axis is not the first.
    axes = tuple(None if m is None else 2 for m in in_axes)
    moved = lambda trees: tuple(
        a if m is None else jnp.moveaxis(a, 0, 2) for a, m in zip(trees, in_axes)
    )
    out = jax.jit(lambda at, along: jax.jvp(jax.vmap(f, in_axes=axes), at, along))(
        moved(at), moved(along)
    )
    expected = jax.vmap(jvp, in_axes=2 * in_axes)(*at, *along)
    chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-5)


def test_forward_mode_maps_over_directions_alone(key):
    # As jax.jacfwd does: the tangents of one operand are mapped, and nothing else.
    x, w = operands(key)
    dx, dw = directions(key, maps=(3,))
    along_x = jax.vmap(lambda dx: jax.jvp(lambda x: conv(x, w), (x,), (dx,))[1])(dx)
    along_w = jax.vmap(lambda dw: jax.jvp(lambda w: conv(x, w), (w,), (dw,))[1])(dw)
    for i in range(3):
        np.testing.assert_allclose(along_x[i], xla(dx[i], w), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(along_w[i], xla(x, dw[i]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", ["shared", "sharded"])
def test_derivatives_inside_shard_map_equal_those_outside(kernels, key):
    # With check_vma, JAX's default. One device will do: the types are those of several.
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    over_kernels = PartitionSpec("d") if kernels == "sharded" else PartitionSpec()
    at, along = (tuple(t) for t in (operands(key), directions(key)))
    inside = jax.shard_map(
        lambda x, w: jax.lax.psum(loss(conv, x, w), "d"),
        mesh=mesh,
        in_specs=(PartitionSpec("d"), over_kernels),
        out_specs=PartitionSpec(),
    )
    for order in (jax.grad, lambda f, n: lambda *at: jax.jvp(jax.grad(f, n), at, along)):
        mine = jax.jit(order(inside, (0, 1)))(*at)
        theirs = jax.jit(order(functools.partial(loss, xla), (0, 1)))(*at)
        chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-4)


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
def test_vmap_of_convolution_equals_a_loop(in_axes, key):
    x, w = operands(key, maps=(3,))
    x, w = (a if m == 0 else a[0] for a, m in zip((x, w), in_axes))
    at = lambda i: [a if m is None else a[i] for a, m in zip((x, w), in_axes)]
    step = jax.value_and_grad(functools.partial(loss, conv), (0, 1))
    mapped = jax.jit(jax.vmap(step, in_axes=in_axes))(x, w)
    loop = jax.tree.map(lambda *a: jnp.stack(a), *[step(*at(i)) for i in range(3)])
    chex.assert_trees_all_close(mapped, loop, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_axes", AXES)
def test_the_gradient_of_a_vmapped_convolution_equals_xla(in_axes, key):
    def total(f, x, w):
        return loss(jax.vmap(f, in_axes=in_axes), x, w)

    x, w = operands(key, maps=(3,))
    x, w = (a if m == 0 else a[0] for a, m in zip((x, w), in_axes))
    mine = jax.jit(jax.grad(functools.partial(total, conv), (0, 1)))(x, w)
    theirs = jax.grad(functools.partial(total, xla), (0, 1))(x, w)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=2e-5)


def test_vmaps_nest_and_long_ones_are_not_unrolled(key):
    x, w = operands(key, maps=(2, UNROLLED + 1))
    mine = jax.jit(jax.vmap(jax.vmap(conv)))(x, w)
    np.testing.assert_allclose(mine, jax.vmap(jax.vmap(xla))(x, w), rtol=1e-5, atol=1e-5)


def test_vmapped_kernels_are_separate_convolutions_on_cpu_only(key):
    x, w = operands(key, maps=(3,))

    def convolutions(platform, w, in_axes=(0, 0)):
        mapped = jax.jit(jax.vmap(conv, in_axes=in_axes))
        exported = jax.export.export(mapped, platforms=(platform,))(x, w)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu", w) == 3
    assert convolutions("cuda", w) == convolutions("tpu", w) == 1
    assert convolutions("cpu", w[0], in_axes=(0, None)) == 1  # the mapped axis is more images


@pytest.mark.parametrize("mode", ["gradient", "tangent", "Hessian product"])
def test_derivatives_export_for_three_platforms_and_run_on_this_one(mode, key):
    of_loss = functools.partial(loss, conv)
    step = {
        "gradient": jax.grad(of_loss, (0, 1)),
        "tangent": lambda x, w: jax.jvp(of_loss, (x, w), (x, w)),
        "Hessian product": lambda x, w: jax.jvp(jax.grad(of_loss, (0, 1)), (x, w), (x, w)),
    }[mode]
    x, w = operands(key, maps=(2,))
    step = jax.jit(jax.vmap(step))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(x, w)
    chex.assert_trees_all_close(exported.call(x, w), step(x, w), rtol=1e-6)


def test_the_kernel_gradient_is_not_fused_with_its_operands_on_cpu(key):
    # It is fast on CPU because the transpositions are calls that XLA does not inline.
    x, w = operands(key)
    if jax.default_backend() != "cpu":
        pytest.skip("arranged for CPUs only")
    step = jax.jit(jax.grad(lambda w, x: loss(conv, jax.nn.relu(3 * x + 1), w)))
    program = step.lower(w, x).compile().as_text()
    assert len(re.findall(r' call\(.*inlineable="false"', program)) == 2


def test_conv_rejects_operands_of_different_dtypes():
    with pytest.raises(TypeError, match=r"x is bfloat16 and w is float32; cast"):
        conv(jnp.zeros((1, 4, 4, 2), jnp.bfloat16), jnp.zeros((3, 3, 2, 2)))


@pytest.mark.parametrize("size", [(2, 2), (3, 5)])
def test_conv_requires_padding_for_even_or_rectangular_kernels(size):
    with pytest.raises(ValueError, match=f"kernel of {size[0]}x{size[1]} needs an explicit"):
        conv(jnp.zeros((1, 6, 6, 2)), jnp.zeros((*size, 2, 2)))
