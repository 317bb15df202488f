"""Norms at the limits of floating point: large means, equal values, overflow, underflow, NaN."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fpnlab.nn.norm_specs import FilterResponseNorm, RmsNorm

from .norm_cases import (
    ARMS,
    CENTERED,
    EPS,
    SHAPE,
    TAKES_MASK,
    C,
    assert_close,
    compute,
    define,
    distance,
    double,
    exactly,
    far_maps,
    fill,
    maps,
    run,
    sets,
    some_pixels,
    weights_of,
    without_bias,
)

COTANGENT = (weights_of()[0].astype(np.float32),)


def defined(arm, params, state, x, mask=None):
    """Returns the maps of the definition."""
    return define(arm, *double((params, state, x)), mask)[0]


GIVEN = ["batch_norm_eval", "batch_norm_running", "frozen"]


@pytest.mark.parametrize("deviations", [0.0, 3.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", [*GIVEN, *(n for n in CENTERED if not ARMS[n].renormalizes)])
def test_large_means_cost_norms_no_digits_besides_those_of_the_map_itself(name, deviations):
    arm, x = ARMS[name], maps((4, 9, 9, C)) / 2 + np.float32(deviations)
    # Channels differ, in all norms that do not average over them.
    x = x + np.float32([0, 3, -2, 1]) * (name != "layer_norm_c")
    params, state = fill(arm)
    params = dataclasses.replace(params, scale=jnp.ones(C), bias=jnp.zeros(C))
    if state is not None:
        state = dataclasses.replace(state, mean=state.mean + np.float32(deviations))
    exact = defined(arm, params, state, x)
    error = np.abs(double(run(arm, params, state, x)[0]) - exact).max()
    assert error <= 64 * 2.0**-24 * np.abs(exact).max()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CENTERED)
def test_a_mean_of_ten_thousand_deviations_leaves_three_digits_of_gradients(name, masked):
    arm, mask = ARMS[name], some_pixels() if masked else None
    params, state = fill(arm)
    state = state and dataclasses.replace(state, mean=state.mean + 1e4)
    given = (arm, params, state, far_maps(), COTANGENT, mask)
    y, new, *gradients = compute(*given)
    exact, right, *slopes = exactly(*given)
    assert distance(without_bias(params, y), without_bias(params, exact)) < 1e-3
    if new is not None:
        np.testing.assert_allclose(new.mean, right.mean, rtol=1e-6)
        np.testing.assert_allclose(new.var, right.var, rtol=1e-3)
    for gradient, slope in zip(jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True):
        assert distance(gradient, slope) < 1e-3


ABOUT_ZERO = [n for n, arm in ARMS.items() if isinstance(arm.norm, RmsNorm | FilterResponseNorm)]


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([*CENTERED, *ABOUT_ZERO]))
@hypothesis.settings(max_examples=20, deadline=None)
def test_norms_ignore_scale_and_where_they_center_shift_of_their_input(seed, name):
    arm, draw = ARMS[name], np.random.default_rng(seed)
    factor, shift = draw.uniform(1, 8), draw.uniform(-3, 3) * arm.centers
    x, (params, state) = maps(seed=seed), fill(arm)
    # eps is compared with the variance, so that it scales with it; a renorm without its correction.
    plain, scaled = (
        dataclasses.replace(norm, renorm=None) if arm.renormalizes else norm
        for norm in (arm.norm, dataclasses.replace(arm.norm, eps=EPS * factor**2))
    )
    (y, _), (expected, _) = (
        run(dataclasses.replace(arm, norm=norm), params, state, values.astype(np.float32))
        for norm, values in ((scaled, factor * x + shift), (plain, x))
    )
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("value", [0.0, 1e-20, 3.3e-5, 7.0, 1e4, -12345.678])
def test_norms_of_equal_values_are_as_defined_and_their_slope_is_that_of_eps(value):
    x, (cotangent,) = np.full(SHAPE, value, np.float32), COTANGENT
    for name, arm in ARMS.items():
        params, state = fill(arm, threshold=-9.0)
        y, _, _, gradient = compute(arm, params, state, x, COTANGENT)
        exact = defined(arm, params, state, x)
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6, err_msg=name)
        assert jnp.isfinite(gradient).all()
        if arm.centers and not arm.renormalizes:
            np.testing.assert_allclose(exact, np.broadcast_to(params.bias, SHAPE), atol=1e-6)
            number, through = sets(arm.sees, SHAPE), cotangent * np.asarray(params.scale)
            mean = np.bincount(number.ravel(), through.ravel()) / np.bincount(number.ravel())
            slope = (through - mean[number]) / np.sqrt(EPS)
            np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", [n for n in ARMS if "ghost" not in n])
def test_a_norm_of_one_pixel_of_one_image_is_an_error_or_as_defined(name):
    arm, x = ARMS[name], maps((1, 1, 1, C))
    params, state = fill(arm)
    if arm.rejects(x.shape):
        with pytest.raises(ValueError, match="one value"):
            compute(arm, params, state, x, (1.0,))
        return
    y, _, _, gradient = compute(arm, params, state, x, (weights_of(x.shape)[0],))
    np.testing.assert_allclose(y, defined(arm, params, state, x), rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(gradient).all()
    assert gradient.any()
    assert without_bias(params, y).any()


@pytest.mark.parametrize("valid", [0, 1])
@pytest.mark.parametrize("name", TAKES_MASK)
def test_norms_of_one_valid_pixel_or_none_are_finite_and_as_defined(name, valid):
    arm, x = ARMS[name], maps()
    params, state = fill(arm)
    mask = np.zeros(SHAPE[:3], bool)
    mask[1, 0, 1] = valid
    y, new, *gradients = compute(arm, params, state, x, weights_of(), mask)
    exact, after = define(arm, *double((params, state, x)), mask)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4)
    assert_close(new, after, rtol=1e-5)
    if new is not None and not valid:
        assert_close((new.mean, new.var), (state.mean, state.var), rtol=0)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()


RANGES = [
    ("float16", 300, 60000),  # float16 does not hold their squares
    ("float16", 59000, 60000),  # nor their sums
    ("bfloat16", 300, 60000),
    ("bfloat16", 1e14, 1e15),
    ("float32", 1e14, 1e15),
]
# Running moments as `fill` gives would scale such maps up.
OWN = [name for name, arm in ARMS.items() if name not in (*GIVEN, "frozen_affine")]
OWN = [name for name in OWN if ARMS[name].mode.stats == "batch"]


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [(name, *given) for name in OWN for given in RANGES],
)
def test_squares_and_sums_beyond_a_half_float_cost_norms_one_rounding(name, dtype, low, high):
    arm, random = ARMS[name], np.random.default_rng(0)
    params, state = fill(arm)
    # A NoNorm shrinks nothing: times its largest scale, 1.5, its maps must still be numbers.
    half = 2 if name == "none" else 1
    x = jnp.asarray(random.uniform(low / half, high / half, SHAPE), dtype)
    # The sums of these overflow float16 as well.
    cotangent = jnp.asarray(random.uniform(1500, 3000, SHAPE), dtype)
    y, _, found, slope = compute(arm, params, state, x, (cotangent,))
    exact = defined(arm, params, state, x)
    assert (y.dtype, slope.dtype) == (dtype, dtype)
    np.testing.assert_allclose(
        double(y), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-4, err_msg="y"
    )
    assert np.isfinite(double(slope)).all()
    # The gradients are sums of cotangents, and of cotangents times maps without scale and bias.
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
        ("float32", 1e-20),  # float32 does not hold their squares
        ("float32", 1e-39),  # subnormal: zero in the float32 of many processors
        ("bfloat16", 1e-20),
        ("bfloat16", 1e-39),
        ("float16", 1e-7),  # subnormal in float16, not in the float32 of the statistics
    ],
)
def test_norms_divide_values_with_squares_of_zero_by_eps_alone(dtype, size):
    x = jnp.asarray(size * maps(), dtype)
    unit = max(1e-6, float(jnp.finfo(dtype).eps))
    # The smallest number that the dtype of the maps can tell from zero.
    least = {"float32": 1e-36, "bfloat16": 1e-36, "float16": 2.0**-24}[dtype]
    for name, arm in ARMS.items():
        params, state = fill(arm, threshold=-9.0)
        if params.bias is not None:
            params = dataclasses.replace(params, bias=jnp.zeros(C))
        if state is not None:
            state = dataclasses.replace(state, mean=jnp.zeros(C))
        y, _, *gradients = compute(arm, params, state, x, (x,))
        exact = defined(arm, params, state, x)
        atol = max(least, 1e-6 * np.abs(exact).max())
        np.testing.assert_allclose(double(y), exact, rtol=unit, atol=atol, err_msg=name)
        assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ARMS)
def test_one_bad_value_changes_exactly_the_set_in_which_it_is_averaged(name, bad):
    arm, at = ARMS[name], (1, 0, 1, 2)
    params, state = fill(arm, threshold=-9.0)
    x = maps()
    clean, after_clean, *_ = compute(arm, params, state, x, COTANGENT)
    # Not in place: the first call may still be reading its maps.
    y, after, *_ = compute(arm, params, state, jnp.asarray(x).at[at].set(bad), COTANGENT)
    number = sets(arm.sees, SHAPE)
    changed = number == number[at]
    np.testing.assert_array_equal(np.asarray(y != clean), changed)
    if np.isnan(bad):
        np.testing.assert_array_equal(np.isnan(y), changed)
    # Only a tanh has an end. (A norm about zero divides the others by infinity.)
    assert not jnp.isfinite(y[at]) or name == "dynamic_tanh"
    if state is not None:
        updates = arm.takes_batch_statistics and arm.mode.update != "none"
        for moment in ("mean", "var"):
            differs = np.asarray(getattr(after, moment) != getattr(after_clean, moment))
            np.testing.assert_array_equal(differs, (np.arange(C) == at[3]) & updates)
        assert (after.count, after.seen) == (after_clean.count, after_clean.seen)


@pytest.mark.parametrize("name", TAKES_MASK)
def test_a_bad_value_outside_the_mask_changes_itself_alone(name):
    arm, at = ARMS[name], (1, 0, 1, 2)
    params, state = fill(arm, threshold=-9.0)
    x, mask = maps(), np.ones(SHAPE[:3], bool)
    mask[at[:3]] = False
    clean, after_clean, *_ = compute(arm, params, state, x, COTANGENT, mask)
    bad = jnp.asarray(x).at[at].set(jnp.nan)
    y, after, *_ = compute(arm, params, state, bad, COTANGENT, mask)
    np.testing.assert_array_equal(np.argwhere(y != clean), [at])
    assert_close(after, after_clean, rtol=0)
