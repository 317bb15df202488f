"""What may influence what in every norm and mode, and which norms are the same in which case."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_specs import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Norm,
    Renorm,
    RmsNorm,
)
from fpnlab.types import Mode

from .norm_cases import (
    ARMS,
    EPS,
    FAST_COMPILE,
    SHAPE,
    Arm,
    double,
    fill,
    maps,
    run,
    sets,
    some_pixels,
)

# What is computed where nothing is updated is computed where something is.
COMPUTED = [name for name in ARMS if not name.endswith("no_update")]
MASKED = [(name, masked) for name, arm in ARMS.items() for masked in {False, arm.takes_mask}]


def test_the_table_has_every_norm():
    """What is not in `ARMS` has no test of structure, definition or numerics."""
    assert {type(arm.norm) for arm in ARMS.values()} == set(typing.get_args(Norm))


@pytest.mark.parametrize("norm", typing.get_args(Norm), ids=lambda norm: norm.__name__)
def test_the_table_has_every_choice_of_a_norm(norm):
    hints = typing.get_type_hints(norm)
    literals = {name: typing.get_args(hint) for name, hint in hints.items()}
    choices = {name: set(values) for name, values in literals.items() if _all_text(values)}
    tested = {
        name: {getattr(arm.norm, name) for arm in ARMS.values() if isinstance(arm.norm, norm)}
        for name in choices
    }
    assert tested == choices


def _all_text(values):
    return bool(values) and all(isinstance(value, str) for value in values)


def outputs_of(arm, params, state, x, mask=None):
    """Returns the maps and the new mean and variance, by name."""
    y, new = run(arm, params, state, x, mask)
    return {"y": y} | ({} if new is None else {"mean": new.mean, "var": new.var})


def named(tree):
    """Returns the leaves of parameters or state, by name."""
    return {name: leaf for name, leaf in vars(tree).items() if leaf is not None} if tree else {}


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def jacobians(arm, params, state, x, mask=None):
    """Returns the derivative of every output by every input: ``{output: {input: ...}}``."""

    def outputs(params_, state_, x):
        new = lambda tree, leaves: tree and dataclasses.replace(tree, **leaves)
        return outputs_of(arm, new(params, params_), new(state, state_), x, mask)

    by = jax.jacrev(outputs, (0, 1, 2))(named(params), named(state), x)
    return {output: params | state | {"x": x} for output, (params, state, x) in by.items()}


def declared(arm, mask):
    """Returns which inputs may influence which outputs, in the shapes of the Jacobians."""
    equal = np.equal.outer
    number, value = sets(arm.sees, SHAPE), np.arange(np.prod(SHAPE)).reshape(SHAPE)
    channel, each = np.indices(SHAPE)[3], np.arange(SHAPE[3])
    counts = np.ones(SHAPE, bool)
    if mask is not None and arm.takes_mask:
        counts = np.broadcast_to(mask[..., None], SHAPE)
    own = equal(channel, each)
    allowed = {
        ("y", "x"): equal(number, number) & counts | equal(value, value),
        ("y", "scale"): own,
        ("y", "bias"): own,
        ("y", "alpha"): np.ones(SHAPE, bool),
    }
    if isinstance(arm.norm, BatchNorm | FrozenBatchNorm):
        allowed |= {(moment, moment): equal(each, each) for moment in ("mean", "var")}
        if arm.mode.stats == "running" or isinstance(arm.norm, FrozenBatchNorm):
            allowed |= {("y", moment): own for moment in ("mean", "var")}
        if arm.mode.update != "none" and isinstance(arm.norm, BatchNorm):
            allowed |= {(moment, "x"): equal(each, channel) & counts for moment in ("mean", "var")}
    return allowed


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_what_influences_what_is_as_declared(name, masked):
    arm, mask = ARMS[name], some_pixels() if masked else None
    # No value lies below the threshold, so that it has no influence and takes away none.
    params, state = fill(arm, threshold=-9.0)
    allowed = declared(arm, mask)
    for output, by in jacobians(arm, params, state, maps(), mask).items():
        for given, jacobian in by.items():
            expected = allowed.get((output, given), np.zeros(jacobian.shape, bool))
            np.testing.assert_array_equal(
                np.abs(jacobian) > 0, expected, err_msg=f"{output} by {given}"
            )
            # Influence is no rounding error.
            assert np.abs(np.asarray(jacobian)[expected]).min(initial=1.0) > 1e-6


def test_a_threshold_learns_where_it_cuts_and_nothing_passes_there():
    arm, x = ARMS["filter_response_norm"], maps()
    params, state = fill(arm)
    y, _ = run(arm, params, state, jnp.asarray(x))
    cut = np.asarray(y == params.threshold)
    assert cut.any()
    assert not cut.all()
    by = jacobians(arm, params, state, x)["y"]
    channel, number = np.indices(SHAPE)[3], sets("nc", SHAPE)
    own = np.equal.outer(channel, np.arange(4))
    np.testing.assert_array_equal(by["threshold"], own & cut[..., None])
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(np.asarray(by[name] != 0), own & ~cut[..., None])
    passes = np.equal.outer(number, number) & ~cut[..., None, None, None, None]
    np.testing.assert_array_equal(np.asarray(by["x"] != 0), passes)


def test_within_its_limits_a_renorm_sees_no_other_example_but_its_gradient_does():
    wide = Renorm(r_max=1e6, d_max=1e6, start=0, r_full=1, d_full=1)
    arm = dataclasses.replace(
        ARMS["renorm"], norm=dataclasses.replace(ARMS["renorm"].norm, renorm=wide)
    )
    params, state = fill(arm)
    x = maps()
    other = np.concatenate([x[:1], 3 * x[1:] + 1])
    y, again = (jax.jit(run, static_argnums=0)(arm, params, state, a)[0] for a in (x, other))
    np.testing.assert_allclose(again[0], y[0], rtol=1e-5, atol=1e-5)
    by_maps = jacobians(arm, params, state, x)["y"]["x"]
    assert (jnp.abs(by_maps[0, 0, 0, 0, 1:, :, :, 0]) > 1e-6).all()


def with_gradients(arm, params, state, x, weights, mask=None):
    """Returns outputs, and the gradients of parameters and maps of their weighted sum."""

    def loss(params, x):
        outputs = outputs_of(arm, params, state, x, mask)
        weighted = [outputs[name] * weights[name] for name in outputs if name in weights]
        return sum(part.sum() for part in weighted), outputs

    gradients, outputs = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return outputs, gradients


def weights_like(shape, names=("y", "mean", "var")):
    """Returns weights of the outputs so named."""
    random = np.random.default_rng(3)
    return {name: random.normal(size=shape if name == "y" else shape[-1:]) for name in names}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", COMPUTED)
def test_packed_seeds_are_single_seeds(name, shared):
    """Each seed has parameters and state of its own; maps and masks too, or they share maps."""
    arm, seeds = ARMS[name], range(3)
    trees = [jax.tree.map(lambda leaf: leaf * (1 + 0.2 * seed), fill(arm)) for seed in seeds]
    stack = lambda parts: jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    params, state = stack(trees)
    x = maps() if shared else np.stack([maps(seed=seed) for seed in seeds])
    mask = None if shared else np.stack([some_pixels(), ~some_pixels(), some_pixels()])
    axes = (0, 0, None if shared else 0, None, None if shared else 0)
    one = functools.partial(with_gradients, arm)
    single, mapped = (
        jax.jit(run, compiler_options=FAST_COMPILE) for run in (one, jax.vmap(one, in_axes=axes))
    )
    weights = weights_like(SHAPE)
    packed = mapped(params, state, x, weights, mask)
    for seed in seeds:
        its = (x, weights, None) if shared else (x[seed], weights, mask[seed])
        expected = single(*trees[seed], *its)
        found = jax.tree.map(lambda leaf: leaf[seed], packed)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


compiled = jax.jit(with_gradients, static_argnums=0, compiler_options=FAST_COMPILE)


def exactly(arm, x, weights, mask=None, bias=None):
    """Returns them in float64, where what is equal is so to the last digits."""
    with jax.enable_x64(True):
        params, state = fill(arm, x.shape[-1], dtype=jnp.float64)
        if bias is not None and params.bias is not None:
            params = dataclasses.replace(params, bias=jnp.full_like(params.bias, bias))
        return double(compiled(arm, params, state, jnp.asarray(x), weights, mask))


WHOLE, PIXEL, ONE = (4, 3, 2, 6), (4, 1, 1, 6), (1, 3, 2, 6)
BN, LN = BatchNorm(eps=EPS), LayerNorm(axes="hwc", eps=EPS)
LN_C, IN = LayerNorm(axes="c", eps=EPS), InstanceNorm(eps=EPS)
RMS, RMS_C = RmsNorm(axes="hwc", eps=EPS), RmsNorm(axes="c", eps=EPS)
ROOMLESS = Renorm(r_max=1.0, d_max=0.0, start=0, r_full=1, d_full=1)
ghost = functools.partial(dataclasses.replace, BN)
IDENTITIES = {
    "layer norm over hwc is group norm with one group": (LN, GroupNorm(groups=1, eps=EPS), WHOLE),
    "instance norm is group norm with a group a channel": (IN, GroupNorm(groups=6, eps=EPS), WHOLE),
    "instance norm is batch norm in ghosts of one image": (IN, ghost(norm_batch=1), WHOLE),
    "instance norm is batch norm of one image": (IN, BN, ONE),
    "batch norm in a ghost of all images is batch norm": (BN, ghost(norm_batch=4), WHOLE),
    "layer norm over c is that over hwc on one pixel": (LN_C, LN, PIXEL),
    "rms norm over c is that over hwc on one pixel": (RMS_C, RMS, PIXEL),
    "renorm without room is batch norm": (BN, ghost(renorm=ROOMLESS), WHOLE),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_norms_are_the_same_where_their_sets_are(identity, masked):
    *norms, shape = IDENTITIES[identity]
    one, other = (Arm(norm, Mode.TRAIN, "") for norm in norms)
    x = maps(shape, dtype=np.float64)
    # A norm of each pixel by itself has no use for a mask.
    mask = (some_pixels(shape) | (shape == PIXEL)) if masked else None
    stateful = all(isinstance(norm, BatchNorm) for norm in norms)
    weights = weights_like(shape, ("y", "mean", "var") if stateful else ("y",))
    (found, slopes), (right, gradients) = (exactly(arm, x, weights, mask) for arm in (one, other))
    for name in found.keys() & right.keys():
        np.testing.assert_allclose(found[name], right[name], rtol=1e-10, atol=1e-10)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", ["hwc", "c"])
def test_rms_norm_of_mean_zero_is_layer_norm_whose_gradient_is_centered(axes):
    over = (1, 2, 3) if axes == "hwc" else (3,)
    x = maps(WHOLE, dtype=np.float64)
    x = x - x.mean(over, keepdims=True)
    weights = weights_like(WHOLE, ("y",))
    pair = RmsNorm(axes=axes, eps=EPS), LayerNorm(axes=axes, eps=EPS)
    (y, (params, rms)), (z, (others, layer)) = (
        exactly(Arm(norm, Mode.TRAIN, ""), x, weights, bias=0.0) for norm in pair
    )
    np.testing.assert_allclose(y["y"], z["y"], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(params.scale, others.scale, rtol=1e-11)
    # Layer norm centers first, and the transpose of centering is centering.
    np.testing.assert_allclose(layer, rms - rms.mean(over, keepdims=True), rtol=1e-10, atol=1e-11)


def test_frozen_statistics_are_evaluation_with_gradients():
    frozen, evaluated = (
        exactly(ARMS[name], maps(dtype=np.float64), weights_like(SHAPE))
        for name in ("frozen", "batch_norm_eval")
    )
    jax.tree.map(np.testing.assert_array_equal, frozen, evaluated)


@pytest.mark.parametrize("name", COMPUTED)
def test_accumulation_is_the_full_batch_where_no_set_spans_two_chunks(name):
    arm, x, weights = ARMS[name], maps(dtype=np.float64), weights_like(SHAPE, ("y",))
    whole, (params, slope) = exactly(arm, x, weights, some_pixels())
    halves = [
        exactly(arm, x[part], {"y": weights["y"][part]}, some_pixels()[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    y = np.concatenate([outputs["y"] for outputs, _ in halves])
    joined = np.concatenate([gradients[1] for _, gradients in halves])
    summed = jax.tree.map(np.add, *(gradients[0] for _, gradients in halves))
    number = sets(arm.sees, SHAPE)
    if np.intersect1d(number[:2], number[2:]).size:
        assert np.abs(y - whole["y"]).max() > 0.1
        assert np.abs(joined - slope).max() > 0.1
        return
    np.testing.assert_allclose(y, whole["y"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(joined, slope, rtol=1e-12, atol=1e-12)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
