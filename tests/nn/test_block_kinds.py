"""Blocks against their definitions in float64 NumPy, their shortcuts, scales and errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from fpnlab.nn.block import Block, Gate, apply_block, init_block
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, NoNorm
from fpnlab.types import Mode

NORM = BatchNorm(eps=1e-3)


def make(key, **fields):
    norms = {"norm": NORM, "last_norm": NORM, "shortcut_norm": NORM}
    block = Block(**{"inputs": 4, "width": 4, "stride": 1} | norms | fields)
    return block, *randomized(key, *init_block(key, block))


def randomized(key, params, state):
    """Random values in place of the ones and zeros of scales, biases and statistics."""

    def draw(path, leaf, low, high):
        name = jax.tree_util.keystr(path)
        number = sum(map(ord, name))
        if "kernel" in name:
            return leaf
        return jax.random.uniform(
            jax.random.fold_in(key, number), leaf.shape, minval=low, maxval=high
        )

    vary = jax.tree_util.tree_map_with_path
    return (
        vary(lambda p, leaf: draw(p, leaf, 0.5, 1.5), params),
        vary(lambda p, leaf: draw(p, leaf, 0.2, 1.2), state),
    )


def convolved(x, params, stride=1):
    """The cross-correlation in float64, of depthwise kernels too."""
    kernel = np.asarray(params.kernel, np.float64)
    size, pad = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    depthwise = kernel.shape[2] == 1 and x.shape[-1] > 1
    y = 0
    for i in range(size):
        for j in range(size):
            part = padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride]
            y = y + (part * kernel[i, j, 0] if depthwise else part @ kernel[i, j])
    return y if params.bias is None else y + np.asarray(params.bias, np.float64)


def normed(x, params, state):
    f = lambda leaf: np.asarray(leaf, np.float64)
    return (x - f(state.mean)) / np.sqrt(f(state.var) + 1e-3) * f(params.scale) + f(params.bias)


def relu(x):
    return np.maximum(x, 0)


def check(block, params, state, x, expected):
    y, _ = apply_block(block, params, state, x, Mode.EVAL)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (2, 5, 6, 4))


def wide(x):
    return np.asarray(x, np.float64)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_a_preactivation_normalizes_before_each_convolution(kind, key, x):
    """arXiv:1603.05027, figure 4e; the projection takes the pre-activated input."""
    block, p, s = make(key, kind=kind, preactivation=True, stride=2, shortcut_norm=None)
    h = relu(normed(wide(x), p.input_norm, s.input_norm))
    y, strides = h, [2, 1] if kind == "basic" else [1, 2, 1]
    for i, stride in enumerate(strides):
        y = convolved(y, p.branch[i], stride)
        if i < len(strides) - 1:
            y = relu(normed(y, p.branch[i].norm, s.branch[i]))
    assert p.branch[-1].norm is None
    check(block, p, s, x, y + convolved(h, p.shortcut, 2))


def test_the_identity_of_a_preactivation_is_its_input(key, x):
    block, p, s = make(key, kind="basic", preactivation=True)
    h = relu(normed(wide(x), p.input_norm, s.input_norm))
    y = relu(normed(convolved(h, p.branch[0]), p.branch[0].norm, s.branch[0]))
    check(block, p, s, x, wide(x) + convolved(y, p.branch[1]))


def test_the_first_convolution_of_a_paper_bottleneck_has_the_stride(key, x):
    block, p, s = make(key, kind="bottleneck", stride=2, stride_in="1x1", width=2)
    y = wide(x)
    for i, stride in enumerate([2, 1, 1]):
        y = normed(convolved(y, p.branch[i], stride), p.branch[i].norm, s.branch[i])
        y = relu(y) if i < 2 else y
    short = normed(convolved(wide(x), p.shortcut, 2), p.shortcut.norm, s.shortcut)
    check(block, p, s, x, relu(y + short))


def test_a_pooled_projection_averages_cells_before_its_convolution(key, x):
    """arXiv:1812.01187, figure 2c; the last row of cells has one row of pixels."""
    block, p, s = make(key, kind="basic", stride=2, shortcut="pooled_projection")
    y = relu(normed(convolved(wide(x), p.branch[0], 2), p.branch[0].norm, s.branch[0]))
    y = normed(convolved(y, p.branch[1]), p.branch[1].norm, s.branch[1])
    rows = [wide(x)[:, i : i + 2].mean(1) for i in (0, 2, 4)]
    pooled = np.stack([np.stack([r[:, j : j + 2].mean(1) for j in (0, 2, 4)], 1) for r in rows], 1)
    short = normed(convolved(pooled, p.shortcut), p.shortcut.norm, s.shortcut)
    check(block, p, s, x, relu(y + short))


def test_a_convnext_block_has_one_norm_and_one_gelu(key, x):
    """arXiv:2201.03545, figure 4."""
    block, p, s = make(key, kind="convnext", branch_scale="layer_scale")
    y = normed(convolved(wide(x), p.branch[0]), p.branch[0].norm, s.branch[0])
    y = convolved(y, p.branch[1])
    y = convolved(y * (1 + erf(y / np.sqrt(2))) / 2, p.branch[2])
    check(block, p, s, x, wide(x) + wide(p.scale) * y)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)], ids=["vectors", "sequences", "maps"])
def test_a_dense_block_takes_any_number_of_space_axes(shape, key):
    block, p, s = make(key, kind="dense", width=6, layers=3, shortcut_norm=None)
    x = jax.random.normal(key, (*shape, 4))
    y = wide(x)
    for i in range(3):
        y = normed(y @ wide(p.branch[i].kernel)[0, 0], p.branch[i].norm, s.branch[i])
        y = relu(y) if i < 2 else y
    check(block, p, s, x, relu(y + wide(x) @ wide(p.shortcut.kernel)[0, 0]))


@pytest.mark.parametrize("shortcut", ["pad", "projection", "projection_all", "pooled_projection"])
@pytest.mark.parametrize("changes", [False, True], ids=["same shape", "other shape"])
def test_shortcuts_have_a_convolution_where_their_option_has_one(shortcut, changes, key):
    """arXiv:1512.03385, section 4.1: A none, B where the shape changes, C everywhere."""
    block, p, _ = make(key, kind="basic", shortcut=shortcut, width=8 if changes else 4)
    expected = shortcut == "projection_all" or (changes and shortcut != "pad")
    assert (p.shortcut is not None) == expected == (block.projection is not None)


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "dense", "convnext"])
@pytest.mark.parametrize("scale", ["zero_last", "skip_init", "layer_scale", "one"])
@pytest.mark.parametrize("norm", [NORM, LayerNorm(axes="c"), NoNorm()], ids=lambda n: n.kind)
def test_a_fresh_branch_has_its_initial_scale(kind, scale, norm, key):
    if kind == "convnext" and scale == "zero_last":
        pytest.skip("the branch does not end in a norm")
    channels = 8 if kind == "bottleneck" else 4
    width = channels // 4 if kind == "bottleneck" else channels
    norms = {"norm": norm, "last_norm": norm, "shortcut_norm": norm}
    fields = {"kind": kind, "inputs": channels, "width": width, "stride": 1, **norms}
    block = Block(**fields, branch_scale=scale, layer_scale=0.5)
    params, state = init_block(key, block)
    unscaled = dataclasses.replace(block, branch_scale="one")
    x = jnp.abs(jax.random.normal(key, (2, 3, 3, channels)))
    out = lambda block, params: apply_block(block, params, state, x, Mode.BATCH_EVAL)[0]
    full = out(unscaled, init_block(key, unscaled)[0])
    factor = {"zero_last": 0, "skip_init": 0, "layer_scale": 0.5, "one": 1}[scale]
    found = out(block, params)
    if factor in (0, 1) or kind == "convnext":
        np.testing.assert_allclose(found, x + factor * (full - x), rtol=1e-5, atol=1e-5)
    if scale in ("skip_init", "layer_scale"):
        assert params.scale.shape == (() if scale == "skip_init" else (channels,))
    else:
        assert params.scale is None


@pytest.mark.parametrize("scale", ["skip_init", "layer_scale"])
def test_scales_of_branches_are_trained(scale, key, x):
    block, params, state = make(key, kind="basic", branch_scale=scale)
    loss = lambda params: apply_block(block, params, state, x, Mode.TRAIN)[0].var()
    assert (jnp.abs(jax.grad(loss)(params).scale) > 0).all()


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "dense", "convnext"])
def test_a_plain_block_is_its_branch_with_the_same_kernels(kind, key):
    width = 1 if kind == "bottleneck" else 4
    norms = {"norm": NORM, "last_norm": NORM, "shortcut_norm": NORM}
    residual = Block(kind=kind, inputs=4, width=width, stride=1, **norms, branch_scale="one")
    plain = dataclasses.replace(residual, skip=False)
    x = jax.random.normal(key, (2, 3, 3, 4))
    (params, state), (twin, _) = init_block(key, residual), init_block(key, plain)
    assert twin.shortcut is None
    assert twin.scale is None
    jax.tree.map(np.testing.assert_array_equal, params.branch, twin.branch)
    y, _ = apply_block(plain, twin, state, x, Mode.TRAIN)
    gate = Gate(branch=1.0, skip=0.0, branch_gradient=1.0, skip_gradient=1.0)
    gate = jax.tree.map(jnp.asarray, gate)
    branch, _ = apply_block(residual, params, state, x, Mode.TRAIN, gate=gate)
    np.testing.assert_allclose(y, branch, rtol=1e-6)
    assert jnp.abs(y).max() > 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"groups": 2},
            "groups and the inner width are those of a bottleneck, and the block is basic",
        ),
        ({"kind": "bottleneck", "groups": 3}, "do not split into 3 groups; these do: 1, 2, 4"),
        ({"kind": "convnext", "stride": 2}, "a convnext block has stride 1, not 2"),
        ({"kind": "dense", "stride": 2}, "a dense block has stride 1, not 2"),
        ({"kind": "convnext", "width": 8}, "keeps its 4 channels"),
        ({"shortcut": "pad", "width": 2}, "cannot reduce 4 channels to 2"),
        ({"preactivation": True, "branch_scale": "zero_last"}, "use branch_scale = 'skip_init'"),
        ({"kind": "convnext", "branch_scale": "zero_last"}, "use branch_scale = 'skip_init'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_fields_of_a_block_that_do_not_fit_are_an_error(fields, says):
    norms = {"norm": NORM, "last_norm": NORM, "shortcut_norm": NORM}
    with pytest.raises(ValueError, match=says):
        Block(**{"kind": "basic", "inputs": 4, "width": 4, "stride": 1} | norms | fields)
