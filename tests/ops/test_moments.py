"""One-pass moments: as exact as two passes, with derivative rules that equal autodiff."""

import functools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fpnlab.ops import moments
from fpnlab.ops.moments import local_moments, mean_square, merge_moments, merge_over, rescale
from fpnlab.types import Moments

AXES = [(1, 2), (3,), (1, 2, 3)]
SHAPE = (2, 5, 3, 4)


def mask_of(key):
    return jax.random.bernoulli(key, 0.6, SHAPE[:3]).at[0].set(False)


def exact_moments(x, axes, mask=None):
    """Mean and variance in float64 of the values that count."""
    values = np.asarray(x, np.float64)
    weight = np.ones(values.shape, bool)
    if mask is not None and 1 in axes:
        weight = np.broadcast_to(np.asarray(mask)[..., None], values.shape)
    count = np.maximum(weight.sum(axes, keepdims=True), 1)
    mean = np.where(weight, values, 0).sum(axes, keepdims=True) / count
    var = np.where(weight, (values - mean) ** 2, 0).sum(axes, keepdims=True) / count
    return mean, var


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_agree_with_float64_however_large_the_mean(axes, masked, offset, key):
    x = jax.random.normal(key, SHAPE) + offset
    mask = mask_of(key) if masked else None
    found, shift, _ = local_moments(x, axes, mask)
    mean, var = exact_moments(x, axes, mask)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.var, var, rtol=1e-5, atol=1e-7)
    assert shift.shape == found.mean.shape == found.var.shape
    size = np.prod([SHAPE[a] for a in axes])
    if not (masked and 1 in axes):
        assert found.count.tolist() == [[[[size]]]] * 2
    else:
        pixels = np.asarray(mask).sum((1, 2)) * (4 if 3 in axes else 1)
        assert found.count[:, 0, 0, 0].tolist() == pixels.tolist()


# Rounding grows by 17 at most. A sum of 100 squares, one after another, errs by several eps.
BOUND = 17 * 7 * np.finfo(np.float32).eps


def check_digits(shift, mean, square, x, axes):
    """Checks either choice of the shift: that for CPU and that for accelerators."""
    exact, var = exact_moments(x, axes)
    found = np.maximum(square - np.square(mean), 0)
    np.testing.assert_allclose(found, var, rtol=BOUND, atol=1e-12)
    np.testing.assert_allclose(shift + mean, exact, atol=BOUND * float(np.sqrt(var).max()) + 1e-12)


WAYS = [moments._shift_by_part, moments._shift_if_far]


@pytest.mark.parametrize("way", WAYS)
@hypothesis.given(st.integers(1, 50), st.floats(-1e6, 1e6), st.integers(0, 99))
@hypothesis.settings(max_examples=20, deadline=None)
def test_moments_are_exact_with_a_first_row_far_from_the_others(way, h, far, seed):
    # The worst case for a shift that is the mean of the first rows.
    x = np.random.default_rng(seed).normal(size=(1, h, 2, 1)).astype(np.float32)
    x[:, : (h + 15) // 16] += np.float32(far)
    check_digits(*way((1, 2), jnp.asarray(x)), x, (1, 2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("deviations", [0.0, 2.0, 3.1, 3.3, 30.0, 1e4])
def test_moments_are_exact_for_means_of_any_size(way, axes, deviations, key):
    x = jax.random.normal(key, (2, 16, 9, 8))
    # One of the sets of values lies apart from the others, which need no shift.
    x = x.at[1:, 3:4, 2:3].add(jnp.float32(deviations)) if axes == (3,) else x
    x = x if axes == (3,) else (x + deviations).at[0].add(-deviations)
    check_digits(*way(axes, x), x, axes)


def test_the_part_that_gives_a_shift_is_the_first_sixteenth_of_the_rows(key):
    x = jax.random.normal(key, (2, 31, 50, 3))
    shift, *_ = moments._shift_by_part((1, 2), x)
    np.testing.assert_allclose(shift, x[:, :2].mean((1, 2), keepdims=True), rtol=1e-4, atol=1e-6)
    shift, *_ = moments._shift_by_part((1, 2), jnp.concatenate([x, x], 1))
    np.testing.assert_allclose(shift, x[:, :4].mean((1, 2), keepdims=True), rtol=1e-4, atol=1e-6)


def test_equal_values_under_a_mask_have_no_negative_variance():
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    x = jnp.broadcast_to(values[:, None, None, None], (500, 37, 3, 5))
    mask = jnp.broadcast_to(jnp.arange(37)[:, None] < 29, (500, 37, 3))
    for axes in ((1, 2), (1, 2, 3)):
        found, *_ = local_moments(x, axes, mask)
        assert (found.var >= 0).all()


def test_a_shift_is_taken_only_where_the_mean_is_far(key):
    x = jax.random.normal(key, (2, 16, 9, 8))
    shift, *_ = moments._shift_if_far((1, 2), x)
    assert not shift.any()
    shift, *_ = moments._shift_if_far((1, 2), x.at[1, ..., 3].add(7.0))
    np.testing.assert_allclose(shift[1, 0, 0, 3], 7.0, atol=0.5)


def test_the_variance_is_right_where_squares_overflow(key):
    x = 3e19 + 1e18 * jax.random.normal(key, (1, 16, 9, 8))
    found, *_ = local_moments(x, (1, 2))
    _, var = exact_moments(x, (1, 2))
    np.testing.assert_allclose(found.var, var, rtol=1e-4)


def test_equal_values_have_no_variance_and_never_a_negative_one():
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    values[:4] = 0.0, 7.0, -1e4, 3.3e-5
    x = jnp.broadcast_to(values[:, None, None, None], (500, 37, 3, 5))
    for axes in AXES:
        found, *_ = local_moments(x, axes)
        mean, var = (np.asarray(a).reshape(500, -1) for a in (found.mean, found.var))
        np.testing.assert_allclose(mean, np.broadcast_to(values[:, None], mean.shape), rtol=1e-6)
        assert (var >= 0).all()
        assert (var <= (4e-7 * values[:, None]) ** 2).all()


def normalized(x, gain, bias, axes, mask):
    moments, shift, offset = local_moments(x, axes, mask)
    gain, bias = gain[None, None, None], bias[None, None, None]
    return rescale(x, shift, offset, gain * jax.lax.rsqrt(moments.var + 1e-3), bias)


def plain(x, gain, bias, axes, mask):
    """The same by its definition, for autodiff."""
    weight = jnp.ones(x.shape) if mask is None or 1 not in axes else mask[..., None] * jnp.ones(4)
    count = jnp.maximum(weight.sum(axes, keepdims=True), 1)
    mean = (weight * x).sum(axes, keepdims=True) / count
    var = (weight * jnp.square(x - mean)).sum(axes, keepdims=True) / count
    return (x - mean) * gain * jax.lax.rsqrt(var + 1e-3) + bias


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("masked", [False, True])
def test_custom_derivative_rules_equal_autodiff(axes, masked, key):
    keys = jax.random.split(key, 4)
    x, direction, weights = (jax.random.normal(k, SHAPE) for k in keys[:3])
    mask = mask_of(key) if masked else None
    gain, bias = jnp.linspace(0.5, 2.0, 4), jnp.linspace(-1.0, 1.0, 4)

    def derivatives(run):
        run = functools.partial(run, axes=axes, mask=mask)
        loss = lambda *a: (run(*a) * weights + jnp.square(run(*a))).sum()
        backward = jax.grad(loss, (0, 1, 2))(x, gain, bias)
        along = lambda t: jax.grad(loss)(x + t * direction, gain, bias)
        second = jax.jvp(along, (0.0,), (1.0,))[1]
        return (
            run(x, gain, bias),
            jax.jvp(lambda x: run(x, gain, bias), (x,), (direction,))[1],
            backward,
            second,
        )

    found, expected = jax.jit(derivatives, static_argnums=0)(normalized), derivatives(plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_moments_themselves_have_a_gradient(key):
    x = jax.random.normal(key, SHAPE) + 3.0
    both = lambda m: m.mean.sum() + jnp.square(m.var).sum()
    found = jax.grad(lambda x: both(local_moments(x, (1, 2))[0]))(x)
    expected = jax.grad(
        lambda x: x.mean((1, 2)).sum() + jnp.square(x.var((1, 2))).sum(),
    )(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_mean_square_equals_its_definition(axes, masked, key):
    x, mask = jax.random.normal(key, SHAPE), mask_of(key) if masked else None
    mean, var = exact_moments(x, axes, mask)
    np.testing.assert_allclose(mean_square(x, axes, mask), mean**2 + var, rtol=1e-5, atol=1e-7)


@hypothesis.given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 999))
@hypothesis.example([0, 1], 0)
@hypothesis.settings(max_examples=20, deadline=None)
def test_merged_moments_equal_those_of_all_values(sizes, seed):
    draw = np.random.default_rng(seed)
    parts = [draw.normal(draw.normal() * 10, 1, (n, 2)) for n in sizes]
    fill = lambda part: part if len(part) else np.zeros((1, 2))
    moments = Moments(
        count=jnp.array([float(n) for n in sizes]),
        mean=jnp.array([fill(p).mean(0) for p in parts], jnp.float32),
        var=jnp.array([fill(p).var(0) for p in parts], jnp.float32),
    )
    values = fill(np.concatenate(parts))
    over = jax.vmap(lambda part: merge_over(part, "d"), axis_name="d")(moments)
    for merged in (merge_moments(moments), jax.tree.map(lambda leaf: leaf[-1], over)):
        assert merged.count == sum(sizes)
        np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(merged.var, values.var(0), rtol=1e-4, atol=1e-4)


def test_moments_of_several_norms_are_merged_at_once(key):
    x = jax.random.normal(key, (3, 7, 2, 4))  # parts, values, norms, channels
    parts = Moments(count=jnp.full((3, 2), 7.0), mean=x.mean(1), var=x.var(1))
    merged = merge_moments(parts)
    assert merged.count.tolist() == [21, 21]
    np.testing.assert_allclose(merged.mean, x.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(merged.var, x.var((0, 1)), rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about fusions of XLA:CPU")
def test_shifted_maps_are_never_written_to_memory_on_cpu():
    # The programs write no map but their results: differences are fused into their consumers.
    shape = (4, 32, 16, 64)
    x, gain = jnp.ones(shape), jnp.ones(64)
    run = functools.partial(normalized, axes=(1, 2), mask=None)
    both = lambda x, gain, bias: (run(x, gain, bias), jax.vjp(run, x, gain, bias)[1](x))
    for function, maps in ((run, 1), (both, 2)):
        text = jax.jit(function).lower(x, gain, gain).compile().as_text()
        entry = text[text.index("ENTRY") :]
        written = re.findall(r"= f32\[4,32,16,64\]\S* (?!parameter)(\w+)", entry)
        assert written == ["fusion"] * maps
