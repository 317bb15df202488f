"""Stochastic depth: the rate of dropped branches and the scale of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops.residual import drop_path

IMAGES = 4096


@pytest.mark.parametrize("rate", [0.125, 0.5, 0.75])
def test_the_share_of_dropped_branches_is_the_rate(rate, key):
    y = drop_path(key, jnp.ones((IMAGES, 1, 1, 1)), rate=rate)
    # Within four standard deviations of a binomial share.
    spread = np.sqrt(rate * (1 - rate) / IMAGES)
    assert abs(float((y == 0).mean()) - rate) < 4 * spread


@pytest.mark.parametrize("rate", [0.125, 0.5, 0.75])
def test_a_kept_branch_is_divided_by_the_share_that_is_kept(rate, key):
    branch = jax.random.normal(key, (64, 2, 3, 2))
    y = np.asarray(drop_path(key, branch, rate=rate))
    kept = (y != 0).any((1, 2, 3))
    assert 0 < kept.sum() < 64
    np.testing.assert_array_equal(y[~kept], 0)
    np.testing.assert_allclose(y[kept], np.asarray(branch)[kept] / (1 - rate), rtol=1e-6)


def test_drop_path_of_rate_0_is_the_identity(key):
    branch = jax.random.normal(key, (8, 2, 2, 1))
    np.testing.assert_array_equal(drop_path(key, branch, rate=0.0), branch)


def test_the_key_draws_the_images_and_the_dtype_stays(key):
    branch = jnp.ones((64, 1, 1, 1), jnp.bfloat16)
    one, again, other = (drop_path(k, branch, rate=0.5) for k in (key, key, jax.random.key(1)))
    assert one.dtype == jnp.bfloat16
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_dropped_branch_has_no_gradient_even_where_it_is_infinite(key):
    branch = jnp.full((64, 1, 1, 1), jnp.inf)
    y = drop_path(key, branch, rate=0.5)
    assert set(np.unique(y)) == {0.0, np.inf}
    gradient = jax.grad(lambda branch: drop_path(key, branch, rate=0.5).sum())(branch)
    np.testing.assert_array_equal(gradient, jnp.where(y == 0, 0, 2))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_rejects_rates_outside_0_to_1(rate, key):
    with pytest.raises(ValueError, match=f"rate is {rate}; it must be at least 0 and below 1"):
        drop_path(key, jnp.ones((2, 1, 1, 1)), rate=rate)
