"""Convolution in groups: depthwise, of a few channels each, and of patches."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fpnlab.ops.convolution import UNROLLED, conv

SHAPES = {
    # images, outputs, groups, kernel, stride, padding
    "depthwise 3x3": ((9, 7, 6), 6, 6, (3, 3), 1, 1),
    "depthwise 7x7": ((9, 7, 6), 6, 6, (7, 7), 1, 3),
    "depthwise with stride 2": ((9, 8, 6), 6, 6, (3, 3), 2, 1),
    "depthwise, kernel larger than the map": ((2, 1, 6), 6, 6, (7, 7), 1, 3),
    "depthwise on wide maps": ((3, 37, 4), 4, 4, (7, 5), 1, 3),
    "depthwise on wide maps with stride 3": ((5, 61, 4), 4, 4, (5, 3), 3, 0),
    "depthwise without overlap": ((9, 11, 4), 4, 4, (2, 2), 4, 0),
    "depthwise with padding beyond the kernel": ((1, 2, 4), 4, 4, (1, 1), 4, 2),
    "depthwise, even kernel": ((5, 4, 4), 4, 4, (2, 2), 1, 0),
    "two outputs per input": ((9, 7, 6), 12, 6, (3, 3), 2, 1),
    "one block": ((9, 8, 8), 12, 4, (3, 3), 1, 1),
    "two groups in a block": ((9, 7, 32), 48, 4, (3, 3), 2, 1),
    "a block for each group": ((5, 6, 64), 32, 4, (3, 1), 2, 0),
    "more groups than blocks": ((3, 3, 1024), 64, 64, (1, 1), 1, 0),
    "patches 4x4": ((9, 11, 3), 5, 1, (4, 4), 4, 0),
    "patches 2x2": ((9, 8, 3), 5, 1, (2, 2), 2, 0),
}
CASES = ["depthwise 7x7", "depthwise with stride 2", "two groups in a block"]
AXES = [(0, 0), (0, None), (None, 0)]


def operands(key, case, maps=(), dtype=jnp.float32):
    """Images and kernels with the leading axes ``maps``."""
    images, outputs, groups, kernel, _, _ = SHAPES[case]
    x, w = jax.random.split(key)
    x = jax.random.normal(x, (*maps, 2, *images), dtype)
    return x, jax.random.normal(w, (*maps, *kernel, images[-1] // groups, outputs), dtype)


def directions(key, *args, **kwargs):
    """Tangents of the operands."""
    return operands(jax.random.fold_in(key, 1), *args, **kwargs)


def ours(case):
    _, _, groups, _, stride, padding = SHAPES[case]
    return functools.partial(conv, stride=stride, padding=padding, groups=groups)


def xla(case):
    _, _, groups, _, stride, padding = SHAPES[case]
    return functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def loss(f, x, w):
    """A scalar whose derivative by the output depends on the output."""
    return jnp.sum(jnp.sin(f(x, w)))


@pytest.mark.parametrize("case", SHAPES)
def test_grouped_convolution_and_both_gradients_equal_pytorch(case, key):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    _, _, groups, _, stride, padding = SHAPES[case]
    with jax.enable_x64(True):
        x, w = operands(key, case, dtype=jnp.float64)
        y, pull = jax.vjp(ours(case), x, w)
        dy = jnp.cos(y)
        mine = (y, *pull(dy))
    tx, tw = (torch.tensor(np.asarray(a), requires_grad=True) for a in (x, w))
    images, kernels = tx.permute(0, 3, 1, 2), tw.permute(3, 2, 0, 1)
    ty = torch.nn.functional.conv2d(images, kernels, stride=stride, padding=padding, groups=groups)
    ty.backward(torch.tensor(np.asarray(dy)).permute(0, 3, 1, 2))
    theirs = [t.detach().numpy() for t in (ty.permute(0, 2, 3, 1), tx.grad, tw.grad)]
    for found, oracle in zip(mine, theirs):
        np.testing.assert_allclose(found, oracle, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_hessian_products_of_grouped_convolutions_equal_xla_in_every_order(case, key):
    inner = lambda a, b: sum(jnp.vdot(p, q) for p, q in zip(a, b))

    @functools.partial(jax.jit, static_argnums=0)
    def products(f, at, along):
        f = functools.partial(loss, f)
        gradient = jax.grad(f, (0, 1))
        return {
            "forward over reverse": jax.jvp(gradient, at, along)[1],
            "reverse over reverse": jax.grad(lambda at: inner(gradient(*at), along))(at),
            "reverse over forward": jax.grad(lambda at: jax.jvp(f, at, along)[1])(at),
        }

    with jax.enable_x64(True):
        at, along = (draw(key, case, dtype=jnp.float64) for draw in (operands, directions))
        theirs = products(xla(case), at, along)["reverse over reverse"]
        for mine in products(ours(case), at, along).values():
            chex.assert_trees_all_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_tangent_of_a_grouped_convolution_is_the_difference_quotient(case, key):
    with jax.enable_x64(True):
        (x, w), (dx, dw) = (draw(key, case, dtype=jnp.float64) for draw in (operands, directions))
        tangent = jax.jvp(ours(case), (x, w), (dx, dw))[1]
        at = lambda t: xla(case)(x + t * dx, w + t * dw)
        # Bilinear: the central difference is exact whatever the step.
        np.testing.assert_allclose(tangent, at(0.5) - at(-0.5), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_axes", AXES)
@pytest.mark.parametrize("case", CASES)
def test_vmapped_grouped_convolutions_equal_a_loop(case, in_axes, key):
    at, along = operands(key, case, maps=(3,)), directions(key, case, maps=(3,))
    args = [a if m == 0 else a[0] for a, m in zip((*at, *along), 2 * in_axes)]
    of_loss = functools.partial(loss, ours(case))

    def derivatives(x, w, dx, dw):
        gradient = jax.grad(of_loss, (0, 1))
        return jax.jvp(gradient, (x, w), (dx, dw))

    mapped = jax.jit(jax.vmap(derivatives, in_axes=2 * in_axes))(*args)
    pick = lambda i: [a if m is None else a[i] for a, m in zip(args, 2 * in_axes)]
    one = jax.jit(derivatives)
    loop = jax.tree.map(lambda *a: jnp.stack(a), *[one(*pick(i)) for i in range(3)])
    chex.assert_trees_all_close(mapped, loop, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["depthwise 3x3", "two groups in a block"])
def test_long_vmaps_of_grouped_convolutions_equal_xla(case, key):
    x, w = operands(key, case, maps=(UNROLLED + 1,))
    of_all = lambda f: jax.jit(jax.vmap(jax.grad(functools.partial(loss, f), (0, 1))))
    mine, theirs = of_all(ours(case))(x, w), of_all(xla(case))(x, w)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_compiled_grouped_convolutions_equal_eager_ones(case, key):
    step = jax.value_and_grad(functools.partial(loss, ours(case)), (0, 1))
    at = operands(key, case)
    chex.assert_trees_all_close(jax.jit(step)(*at), step(*at), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", [*CASES, "patches 2x2"])
def test_grouped_derivatives_inside_shard_map_equal_those_outside(case, key):
    # With check_vma, JAX's default. One device will do: the types are those of several.
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    inside = jax.shard_map(
        lambda x, w: jax.lax.psum(loss(ours(case), x, w), "d"),
        mesh=mesh,
        in_specs=(PartitionSpec("d"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    at = operands(key, case)
    mine = jax.jit(jax.grad(inside, (0, 1)))(*at)
    theirs = jax.jit(jax.grad(functools.partial(loss, xla(case)), (0, 1)))(*at)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", [*CASES, "patches 2x2"])
def test_grouped_convolutions_of_sharded_images_stay_sharded(case, key):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    x, w = operands(key, case)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec("d")))
        kernel = jax.device_put(w, jax.NamedSharding(mesh, PartitionSpec()))
        y = jax.jit(ours(case))(sharded, kernel)
        assert jax.typeof(y).sharding.spec[0] == "d"
        np.testing.assert_allclose(y, xla(case)(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_kernel_gradients_of_bfloat16_add_in_float32(case, key):
    # 16 bits count ones up to 256 only.
    x, w = operands(key, case)
    x = jnp.ones((64, *x.shape[1:]))
    y, pull = jax.vjp(functools.partial(ours(case), x.astype(jnp.bfloat16)), w.astype(jnp.bfloat16))
    found = pull(jnp.ones_like(y))[0]
    exact = jax.vjp(functools.partial(xla(case), x), w)[1](jnp.ones(y.shape))[0]
    assert found.dtype == jnp.bfloat16
    assert exact.max() > 500
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8)


def test_depthwise_sums_of_bfloat16_are_rounded_once(key):
    x, w = (a.astype(jnp.bfloat16) for a in operands(key, "depthwise 7x7"))
    y, pull = jax.vjp(ours("depthwise 7x7"), x, w)
    wide = [a.astype(jnp.float32) for a in (x, w)]
    exact, exact_pull = jax.vjp(xla("depthwise 7x7"), *wide)
    found, oracle = (y, *pull(y)), (exact, *exact_pull(y.astype(jnp.float32)))
    for a, b in zip(found, oracle):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)


def test_depthwise_convolutions_are_sums_on_cpu_only(key):
    x, w = operands(key, "depthwise 7x7", maps=(3,))
    step = jax.jit(jax.vmap(jax.grad(functools.partial(loss, ours("depthwise 7x7")), (0, 1))))

    def convolutions(platform):
        exported = jax.export.export(step, platforms=(platform,))(x, w)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions("cpu") == 0
    assert convolutions("cuda") == convolutions("tpu") == 3


@pytest.mark.parametrize("case", CASES)
def test_grouped_derivatives_export_for_three_platforms_and_run_on_this_one(case, key):
    x, w = operands(key, case)
    step = jax.jit(jax.grad(functools.partial(loss, ours(case)), (0, 1)))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(x, w)
    chex.assert_trees_all_close(exported.call(x, w), step(x, w), rtol=1e-6)


def test_patches_without_overlap_are_matrix_products(key):
    x, w = operands(key, "patches 4x4")
    step = jax.jit(jax.grad(functools.partial(loss, ours("patches 4x4")), (0, 1)))
    program = step.lower(x, w).as_text()
    assert "stablehlo.convolution" not in program
    assert program.count("stablehlo.dot_general") == 3


@pytest.mark.parametrize(
    ("images", "kernel", "groups", "message"),
    [
        (12, (3, 3, 2, 16), 8, "12 input and 16 output .* into 8 groups; these do: 1, 2, 4"),
        (16, (3, 3, 2, 12), 8, "16 input and 12 output .* into 8 groups; these do: 1, 2, 4"),
        (12, (3, 3, 12, 16), 0, "do not split into 0 groups"),
        (12, (3, 3, 12, 16), 4, r"12 channels in 4 groups, and w takes 12 .* \[kh, kw, 3, o\]"),
        (12, (3, 3, 3, 16), 1, r"12 channels in 1 groups, and w takes 3 .* \[kh, kw, 12, o\]"),
        (12, (7, 7, 12, 16), 1, "4x4 with padding 1 are smaller than the kernel of 7x7"),
    ],
)
def test_conv_rejects_channels_and_sizes_that_do_not_fit(images, kernel, groups, message):
    with pytest.raises(ValueError, match=message):
        conv(jnp.zeros((1, 4, 4, images)), jnp.zeros(kernel), padding=1, groups=groups)
