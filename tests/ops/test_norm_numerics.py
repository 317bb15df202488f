"""Norms where floating point ends: large means, equal values, overflow, underflow, NaN."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_specs import BatchNorm, InstanceNorm

from .norm_cases import ARMS, EPS, define, double, fill, maps, run, sets, some_pixels

# One shape for all tests, and one function, because compiling is nearly all that they cost.
SHAPE = (4, 5, 3, 4)


@functools.partial(jax.jit, static_argnums=0)
def compute(arm, params, state, x, cotangent, mask=None):
    """Returns maps, new state, and the gradients of parameters and maps."""
    outputs = lambda params, x: run(arm, params, state, x, mask)
    y, pullback, new = jax.vjp(outputs, params, x, has_aux=True)
    return y, new, *pullback(cotangent)


def exactly(arm, params, state, x, cotangent, mask=None):
    """Returns the same in float64 (which `test_norm_oracles` holds against the definition)."""
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, double((params, state, x, cotangent)))
        return double(compute(arm, *wide, mask))


def defined(arm, params, state, x, mask=None):
    """Returns the maps of the definition."""
    return define(arm, *double((params, state, x)), mask)[0]


def cotangents(shape=SHAPE):
    """Returns numbers of mean 0."""
    return maps(shape, seed=1) - 1


def without_bias(params, y):
    """Returns maps without the bias, which would hide how wrong they are."""
    return np.asarray(y, np.float64) - (0 if params.bias is None else np.asarray(params.bias))


def distance(found, exact):
    """Returns how far an array is from the exact one, in lengths of that."""
    return np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)


def far_maps():
    """Returns maps whose mean is ten thousand deviations, whatever the set."""
    # Neighbors along every axis lie on either side of the mean, so that no set is nearly constant.
    size = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)
    return np.float32(1e4) + (size * (-1.0) ** np.indices(SHAPE).sum(0)).astype(np.float32)


CENTRED = ["batch_norm", "ghost_of_two", "ghost_of_one", "renorm", "renorm_ghost"]
CENTRED += ["layer_norm_hwc", "layer_norm_c", "group_norm", "instance_norm"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CENTRED)
def test_a_mean_of_ten_thousand_deviations_leaves_three_digits(name, masked):
    arm, mask = ARMS[name], some_pixels(SHAPE) if masked else None
    params, state = fill(arm)
    state = state and dataclasses.replace(state, mean=state.mean + 1e4)
    given = (arm, params, state, far_maps(), cotangents(), mask)
    y, new, *gradients = compute(*given)
    exact, right, *slopes = exactly(*given)
    assert distance(without_bias(params, y), without_bias(params, exact)) < 1e-3
    if new is not None:
        np.testing.assert_allclose(new.mean, right.mean, rtol=1e-6)
        np.testing.assert_allclose(new.var, right.var, rtol=1e-3)
    for gradient, slope in zip(jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True):
        assert distance(gradient, slope) < 1e-3


@pytest.mark.parametrize("name", ["batch_norm_eval", "batch_norm_running", "frozen"])
def test_a_running_mean_of_ten_thousand_deviations_leaves_three_digits(name):
    arm, x = ARMS[name], far_maps()
    params, state = fill(arm)
    state = dataclasses.replace(state, mean=state.mean + 1e4)
    y = compute(arm, params, state, x, cotangents())[0]
    exact = defined(arm, params, state, x)
    assert distance(without_bias(params, y), without_bias(params, exact)) < 1e-3


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("batch_norm", nn.BatchNorm(use_running_average=False, epsilon=EPS)),
        ("layer_norm_hwc", nn.LayerNorm(epsilon=EPS, reduction_axes=(1, 2, 3), feature_axes=-1)),
        ("layer_norm_c", nn.LayerNorm(epsilon=EPS)),
        ("group_norm", nn.GroupNorm(num_groups=2, epsilon=EPS)),
        ("instance_norm", nn.InstanceNorm(epsilon=EPS)),
    ],
)
def test_a_fast_variance_leaves_none_of_them(name, theirs):
    params, state = fill(ARMS[name])
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    variables = {"params": {"scale": params.scale, "bias": params.bias}, "batch_stats": stats}
    y, _ = jax.jit(functools.partial(theirs.apply, mutable=["batch_stats"]))(variables, far_maps())
    exact = defined(ARMS[name], params, state, far_maps())
    assert not distance(without_bias(params, y), without_bias(params, exact)) < 0.1


@pytest.mark.parametrize("value", [0.0, 1e-20, 3.3e-5, 7.0, 1e4, -12345.678])
def test_equal_values_are_mapped_as_defined_and_their_slope_is_that_of_eps(value):
    x, cotangent = np.full(SHAPE, value, np.float32), cotangents()
    for name, arm in ARMS.items():
        params, state = fill(arm, threshold=-9.0)
        y, _, _, gradient = compute(arm, params, state, x, cotangent)
        exact = defined(arm, params, state, x)
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6, err_msg=name)
        assert jnp.isfinite(gradient).all()
        if name in CENTRED and not name.startswith("renorm"):
            np.testing.assert_allclose(exact, np.broadcast_to(params.bias, SHAPE), atol=1e-6)
            number, through = sets(arm.sees, SHAPE), cotangent * np.asarray(params.scale)
            mean = np.bincount(number.ravel(), through.ravel()) / np.bincount(number.ravel())
            slope = (through - mean[number]) / np.sqrt(EPS)
            np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ARMS)
def test_one_pixel_of_one_image_is_refused_by_batch_statistics_and_defined_elsewhere(name):
    arm = ARMS[name]
    params, state = fill(arm)
    x = maps((1, 1, 1, 4))
    if isinstance(arm.norm, BatchNorm) and (arm.mode.update != "none" or arm.mode.stats == "batch"):
        norm = dataclasses.replace(arm.norm, norm_batch=None)
        with pytest.raises(ValueError, match="one value per channel"):
            compute(dataclasses.replace(arm, norm=norm), params, state, x, x)
        return
    if isinstance(arm.norm, InstanceNorm):
        with pytest.raises(ValueError, match=r"\(1, 1, 1, 4\) has one value in each set"):
            compute(arm, params, state, x, x)
        return
    y, _, _, gradient = compute(arm, params, state, x, cotangents(x.shape))
    exact = defined(arm, params, state, x)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(gradient).all()
    assert gradient.any()
    assert without_bias(params, y).any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer_norm_hwc", (2, 1, 1, 1)),
        ("layer_norm_hwc", (2, 1)),
        ("layer_norm_c", (2, 3, 3, 1)),
        ("group_norm", (2, 1, 1, 4)),
        ("group_norm", (2, 4)),
        ("instance_norm", (2, 1, 1, 4)),
        ("instance_norm", (2, 4)),
    ],
)
def test_one_value_in_each_set_of_statistics_is_an_error_that_offers_what_works(name, shape):
    arm = ARMS[name]
    if name == "group_norm":
        arm = dataclasses.replace(arm, norm=dataclasses.replace(arm.norm, group_channels=1))
    with pytest.raises(ValueError, match=r"one value in each set of statistics.*; use "):
        run(arm, *fill(arm, shape[-1]), jnp.full(shape, 3.0))


def test_ghosts_of_one_pixel_are_refused_in_any_batch():
    arm = ARMS["ghost_of_one"]
    with pytest.raises(ValueError, match=r"one value per channel.*norm_batch=1 on a 1x1 map"):
        run(arm, *fill(arm), jnp.asarray(maps((4, 1, 1, 4))))


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.takes_mask])
def test_a_single_valid_value_a_channel_is_finite_and_as_defined(name):
    arm = ARMS[name]
    params, state = fill(arm)
    mask, x = np.zeros(SHAPE[:3], bool), maps(SHAPE)
    mask[1, 0, 1] = True
    y, _, *gradients = compute(arm, params, state, x, cotangents(), mask)
    np.testing.assert_allclose(y, defined(arm, params, state, x, mask), rtol=1e-5, atol=1e-4)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()


RANGES = [
    ("float16", 300, 60000),  # whose squares float16 does not hold
    ("float16", 59000, 60000),  # nor their sums
    ("bfloat16", 300, 60000),
    ("bfloat16", 1e14, 1e15),
    ("float32", 1e14, 1e15),
]
# Running moments as `fill` gives would scale such maps up.
BATCH = [name for name, arm in ARMS.items() if arm.mode.stats == "batch" and name != "frozen"]


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [(name, *given) for name in BATCH for given in RANGES],
)
def test_squares_and_sums_that_a_half_cannot_hold_cost_one_rounding(name, dtype, low, high):
    arm, random = ARMS[name], np.random.default_rng(0)
    params, state = fill(arm)
    # A NoNorm shrinks nothing: times its largest scale, 1.5, its maps must still be numbers.
    half = 2 if name == "none" else 1
    x = jnp.asarray(random.uniform(low / half, high / half, SHAPE), dtype)
    # The sums of these overflow float16 as well.
    cotangent = jnp.asarray(random.uniform(1500, 3000, SHAPE), dtype)
    y, _, found, slope = compute(arm, params, state, x, cotangent)
    exact = defined(arm, params, state, x)
    assert (y.dtype, slope.dtype) == (dtype, dtype)
    np.testing.assert_allclose(
        double(y), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-4, err_msg="y"
    )
    assert np.isfinite(double(slope)).all()
    # What stays of the map when scale and bias are taken out is what meets the cotangents.
    if params.bias is not None:
        total = double(cotangent).sum((0, 1, 2))
        cut = 0 if params.threshold is None else double(found.threshold)
        np.testing.assert_allclose(found.bias, total - cut, rtol=1e-5)
    if params.scale is not None:
        through = np.where(exact == double(params).threshold, 0, double(cotangent))
        total = (without_bias(params, exact) / double(params).scale * through).sum((0, 1, 2))
        np.testing.assert_allclose(found.scale, total, rtol=1e-3, atol=10)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e-20),  # whose squares float32 does not hold
        ("float32", 1e-39),  # subnormal: many processors' float32 is then zero
        ("bfloat16", 1e-20),
        ("bfloat16", 1e-39),
        ("float16", 1e-7),  # subnormal in float16, not in the float32 of the statistics
    ],
)
def test_values_whose_squares_vanish_are_divided_by_eps_alone(dtype, size):
    x = jnp.asarray(size * maps(SHAPE), dtype)
    unit = max(1e-6, float(jnp.finfo(dtype).eps))
    # What the type of the maps cannot tell from zero.
    least = {"float32": 1e-36, "bfloat16": 1e-36, "float16": 2.0**-24}[dtype]
    for name, arm in ARMS.items():
        params, state = fill(arm, threshold=-9.0)
        if params.bias is not None:
            params = dataclasses.replace(params, bias=jnp.zeros(4))
        if state is not None:
            state = dataclasses.replace(state, mean=jnp.zeros(4))
        y, _, *gradients = compute(arm, params, state, x, x)
        exact = defined(arm, params, state, x)
        atol = max(least, 1e-6 * np.abs(exact).max())
        np.testing.assert_allclose(double(y), exact, rtol=unit, atol=atol, err_msg=name)
        assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ARMS)
def test_one_bad_value_touches_exactly_the_set_it_is_averaged_in(name, bad):
    arm, at = ARMS[name], (1, 0, 1, 2)
    params, state = fill(arm, threshold=-9.0)
    x = maps(SHAPE)
    clean, after_clean, *_ = compute(arm, params, state, x, cotangents())
    # Not in place: the first call may still be reading its maps.
    y, after, *_ = compute(arm, params, state, jnp.asarray(x).at[at].set(bad), cotangents())
    number = sets(arm.sees, SHAPE)
    touched = number == number[at]
    np.testing.assert_array_equal(np.asarray(y != clean), touched)
    if np.isnan(bad):
        np.testing.assert_array_equal(np.isnan(y), touched)
    # Only a tanh has an end. (A norm about zero divides the others by infinity.)
    assert not jnp.isfinite(y[at]) or name == "dynamic_tanh"
    if state is not None:
        updated = (np.arange(4) == at[3]) & (name != "frozen" and arm.mode.update != "none")
        for moment in ("mean", "var"):
            changed = np.asarray(getattr(after, moment) != getattr(after_clean, moment))
            np.testing.assert_array_equal(changed, updated)
        assert (after.count, after.seen) == (after_clean.count, after_clean.seen)


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.takes_mask])
def test_a_bad_value_outside_the_mask_touches_itself_alone(name):
    arm, at = ARMS[name], (1, 0, 1, 2)
    params, state = fill(arm, threshold=-9.0)
    x, mask = maps(SHAPE), np.ones(SHAPE[:3], bool)
    mask[at[:3]] = False
    clean, after_clean, *_ = compute(arm, params, state, x, cotangents(), mask)
    y, after, *_ = compute(
        arm, params, state, jnp.asarray(x).at[at].set(jnp.nan), cotangents(), mask
    )
    np.testing.assert_array_equal(np.argwhere(y != clean), [at])
    for leaf, other in zip(jax.tree.leaves(after), jax.tree.leaves(after_clean)):
        np.testing.assert_array_equal(leaf, other)
