"""Structure of norms: influence between values, equal norms, and transformations by JAX."""

import dataclasses
import functools

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
    Renorm,
    RmsNorm,
)

from .norm_cases import (
    ARMS,
    COMPUTED,
    EPS,
    FAST_COMPILE,
    MASKED,
    SHAPE,
    Arm,
    C,
    assert_close,
    batch,
    compute,
    compute_once,
    exactly,
    fill,
    maps,
    over_axis,
    run,
    sets,
    some_pixels,
    weights_of,
    with_gradients,
)


def named(tree):
    """Returns the leaves of parameters or state, by name."""
    return {name: leaf for name, leaf in vars(tree).items() if leaf is not None} if tree else {}


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def jacobians(arm, params, state, x, mask=None):
    """Returns the derivative of every output by every input: ``{output: {input: ...}}``."""

    def outputs(params_, state_, x):
        new = lambda tree, leaves: tree and dataclasses.replace(tree, **leaves)
        y, after = run(arm, new(params, params_), new(state, state_), x, mask)
        return {"y": y} | ({} if after is None else {"mean": after.mean, "var": after.var})

    by = jax.jacrev(outputs, (0, 1, 2))(named(params), named(state), x)
    return {output: params | state | {"x": x} for output, (params, state, x) in by.items()}


def declared(arm, mask):
    """Returns which inputs may influence which outputs, in the shapes of the Jacobians."""
    equal = np.equal.outer
    number, value = sets(arm.sees, SHAPE), np.arange(np.prod(SHAPE)).reshape(SHAPE)
    channel, each = np.indices(SHAPE)[3], np.arange(C)
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
    frozen = isinstance(arm.norm, FrozenBatchNorm)
    if frozen and not arm.norm.affine:
        del allowed["y", "scale"], allowed["y", "bias"]
    if frozen or isinstance(arm.norm, BatchNorm):
        allowed |= {(moment, moment): equal(each, each) for moment in ("mean", "var")}
        if frozen or arm.mode.stats == "running":
            allowed |= {("y", moment): own for moment in ("mean", "var")}
        if not frozen and arm.mode.update != "none":
            allowed |= {(moment, "x"): equal(each, channel) & counts for moment in ("mean", "var")}
        if not frozen and arm.mode.update == "moments":  # Merged by count and distance of means.
            allowed |= {("var", "mean"): equal(each, each)}
            allowed |= {(moment, "count"): np.ones(C, bool) for moment in ("mean", "var")}
    return allowed


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_the_influence_of_values_on_each_other_in_norms_is_as_declared(name, masked):
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


def test_a_threshold_of_filter_response_norm_learns_where_it_cuts_and_takes_the_gradient():
    arm, x = ARMS["filter_response_norm"], maps()
    params, state = fill(arm)
    y, _ = run(arm, params, state, x)
    cut = np.asarray(y == params.threshold)
    assert cut.any()
    assert not cut.all()
    by = jacobians(arm, params, state, x)["y"]
    channel, number = np.indices(SHAPE)[3], sets("nc", SHAPE)
    own = np.equal.outer(channel, np.arange(C))
    np.testing.assert_array_equal(by["threshold"], own & cut[..., None])
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(np.asarray(by[name] != 0), own & ~cut[..., None])
    passes = np.equal.outer(number, number) & ~cut[..., None, None, None, None]
    np.testing.assert_array_equal(np.asarray(by["x"] != 0), passes)


def test_a_threshold_of_filter_response_norm_learns_where_it_equals_the_value():
    arm = ARMS["filter_response_norm"]
    params, _ = fill(arm)
    params = dataclasses.replace(params, threshold=params.bias)
    _, _, gradient, _ = compute(arm, params, None, np.zeros(SHAPE, np.float32), (1.0,))
    np.testing.assert_array_equal(gradient.bias, 0)
    np.testing.assert_array_equal(gradient.threshold, np.prod(SHAPE[:3]))


def test_within_its_limits_a_renorm_sees_no_other_example_but_its_gradient_does():
    arm = batch(renorm=Renorm(r_max=1e6, d_max=1e6, start=0, r_full=1, d_full=1))
    params, state = fill(arm)
    x = maps()
    other = np.concatenate([x[:1], 3 * x[1:] + 1])
    y, again = (jax.jit(run, static_argnums=0)(arm, params, state, a)[0] for a in (x, other))
    np.testing.assert_allclose(again[0], y[0], rtol=1e-5, atol=1e-5)
    by_maps = jacobians(arm, params, state, x)["y"]["x"]
    assert (jnp.abs(by_maps[0, 0, 0, 0, 1:, :, :, 0]) > 1e-6).all()
    evaluated, _ = run(ARMS["batch_norm_eval"], params, state, x)
    np.testing.assert_allclose(y, evaluated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARMS)
def test_jit_changes_no_norm(name):
    arm = ARMS[name]
    given = arm, *fill(arm), maps()
    assert_close(jax.jit(run, static_argnums=0)(*given), run(*given), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", COMPUTED)
def test_norms_of_packed_seeds_are_those_of_single_seeds(name, shared):
    """Each seed has parameters and state of its own; maps and masks too, or they share maps."""
    arm, seeds = ARMS[name], range(3)
    trees = [jax.tree.map(lambda leaf: leaf * (1 + 0.2 * seed), fill(arm)) for seed in seeds]
    stack = lambda parts: jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    params, state = stack(trees)
    x = maps() if shared else np.stack([maps(seed=seed) for seed in seeds])
    mask = None if shared else np.stack([some_pixels(), ~some_pixels(), some_pixels()])
    axes = (0, 0, None if shared else 0, None, None if shared else 0)
    mapped = jax.vmap(functools.partial(with_gradients, arm), in_axes=axes)
    packed = jax.jit(mapped, compiler_options=FAST_COMPILE)(params, state, x, weights_of(), mask)
    for seed in seeds:
        its = (x, weights_of(), None) if shared else (x[seed], weights_of(), mask[seed])
        expected = compute_once(arm, *trees[seed], *its)
        found = jax.tree.map(lambda leaf: leaf[seed], packed)
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


SHARDS = [(name, None) for name in ("batch_norm_moments", "batch_norm_no_update", "renorm")]


@pytest.mark.parametrize(
    ("name", "norm_batch"), [*(("batch_norm", size) for size in (None, 1, 2, 4, 8)), *SHARDS]
)
def test_shards_of_a_named_axis_are_one_batch_of_batch_norm(name, norm_batch):
    """A group has images of one shard, one shard, or of two or all of four."""
    arm = ARMS[name]
    arm = dataclasses.replace(arm, norm=dataclasses.replace(arm.norm, norm_batch=norm_batch))
    params, state = fill(arm)
    x = maps((8, 3, 2, C)) + np.arange(8.0, dtype=np.float32).reshape(8, 1, 1, 1)
    mask, (weight, *rest) = some_pixels(x.shape), weights_of(x.shape)
    split = lambda a: jnp.asarray(a).reshape(4, 2, *a.shape[1:])

    def sharded(params, x, weight):
        one = functools.partial(run, over_axis(arm), params, state)
        y, new = jax.vmap(one, axis_name="d")(split(x), split(mask))
        first = jax.tree.map(lambda leaf: leaf[0], new)
        loss = (y * split(weight)).sum() + sum(
            (m * w).sum() for m, w in zip((first.mean, first.var), rest)
        )
        return loss, (y.reshape(x.shape), new)

    derive = jax.grad(sharded, (0, 1), has_aux=True)
    (of_params, of_x), (y, new) = jax.jit(derive, compiler_options=FAST_COMPILE)(params, x, weight)
    expected, after, *gradients = compute_once(arm, params, state, x, (weight, *rest), mask)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for shard in range(4):
        assert_close(jax.tree.map(lambda leaf: leaf[shard], new), after, rtol=1e-5)
    assert_close((of_params, of_x), gradients, rtol=1e-4, atol=1e-5)


WHOLE, PIXEL, ONE = (4, 3, 2, 6), (4, 1, 1, 6), (1, 3, 2, 6)
LN, LN_C = LayerNorm(axes="hwc", eps=EPS), LayerNorm(axes="c", eps=EPS)
IN = InstanceNorm(eps=EPS)
RMS, RMS_C = RmsNorm(axes="hwc", eps=EPS), RmsNorm(axes="c", eps=EPS)
BN, group = batch().norm, functools.partial(GroupNorm, eps=EPS)
ghost = lambda **fields: batch(**fields).norm
WITHOUT_ROOM = Renorm(r_max=1.0, d_max=0.0, start=0, r_full=1, d_full=1)
IDENTITIES = {
    "layer norm over hwc is group norm with one group": (LN, group(groups=1), WHOLE),
    "instance norm is group norm with a group a channel": (IN, group(groups=6), WHOLE),
    "instance norm is batch norm in ghosts of one image": (IN, ghost(norm_batch=1), WHOLE),
    "instance norm is batch norm of one image": (IN, BN, ONE),
    "batch norm in a ghost of all images is batch norm": (BN, ghost(norm_batch=4), WHOLE),
    "layer norm over c is that over hwc on one pixel": (LN_C, LN, PIXEL),
    "rms norm over c is that over hwc on one pixel": (RMS_C, RMS, PIXEL),
    "renorm without room is batch norm": (BN, ghost(renorm=WITHOUT_ROOM), WHOLE),
}


def filled(norm, x, weights, mask=None, bias=None):
    """Returns maps, state and gradients of a norm in training, in float64."""
    arm = Arm(norm, "")
    params, state = fill(arm, x.shape[-1])
    if bias is not None and params.bias is not None:
        params = dataclasses.replace(params, bias=jnp.full_like(params.bias, bias))
    return exactly(arm, params, state, x, weights, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_norms_are_equal_where_their_sets_of_statistics_are(identity, masked):
    *norms, shape = IDENTITIES[identity]
    x = maps(shape, dtype=np.float64)
    # A norm of each pixel by itself ignores a mask.
    mask = (some_pixels(shape) | (shape == PIXEL)) if masked else None
    stateful = all(isinstance(norm, BatchNorm) for norm in norms)
    weights = weights_of(shape)[: 3 if stateful else 1]
    (y, new, *slopes), (z, other, *gradients) = (filled(n, x, weights, mask) for n in norms)
    assert_close((y, slopes), (z, gradients), rtol=1e-10, atol=1e-10)
    if stateful:
        assert_close(new, other, rtol=1e-10)


@pytest.mark.parametrize("axes", ["hwc", "c"])
def test_rms_norm_of_mean_zero_is_layer_norm_and_its_gradient_that_before_centering(axes):
    over = (1, 2, 3) if axes == "hwc" else (3,)
    x = maps(WHOLE, dtype=np.float64)
    x = x - x.mean(over, keepdims=True)
    pair = RmsNorm(axes=axes, eps=EPS), LayerNorm(axes=axes, eps=EPS)
    (y, _, params, rms), (z, _, others, layer) = (
        filled(norm, x, weights_of(WHOLE)[:1], bias=0.0) for norm in pair
    )
    np.testing.assert_allclose(y, z, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(params.scale, others.scale, rtol=1e-11)
    # Layer norm centers first, and the transpose of centering is centering.
    np.testing.assert_allclose(layer, rms - rms.mean(over, keepdims=True), rtol=1e-10, atol=1e-11)


def test_frozen_statistics_are_evaluation_with_gradients():
    frozen, evaluated = (
        exactly(ARMS[name], *fill(ARMS[name]), maps(), weights_of())
        for name in ("frozen_affine", "batch_norm_eval")
    )
    jax.tree.map(np.testing.assert_array_equal, frozen, evaluated)


@pytest.mark.parametrize("name", COMPUTED)
def test_microbatches_of_norms_are_the_full_batch_where_no_set_spans_two_of_them(name):
    arm, x, weight = ARMS[name], maps(), weights_of()[0]
    compute_part = lambda part: exactly(
        arm, *fill(arm), x[part], (weight[part],), some_pixels()[part]
    )
    whole, _, params, slope = compute_part(slice(0, 4))
    halves = [compute_part(part) for part in (slice(0, 2), slice(2, 4))]
    y, joined = (np.concatenate([half[i] for half in halves]) for i in (0, 3))
    summed = jax.tree.map(np.add, *(half[2] for half in halves))
    number = sets(arm.sees, SHAPE)
    if np.intersect1d(number[:2], number[2:]).size:
        assert np.abs(y - whole).max() > 0.1
        assert np.abs(joined - slope).max() > 0.1
        return
    assert_close((y, joined, summed), (whole, slope, params), rtol=1e-12, atol=1e-12)
