"""Population statistics: the moments of all batches, as float64 NumPy finds them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.evaluate.population import forgetful, has_batch_norm, population_state
from fpnlab.model.norm import (
    BatchNorm,
    GroupNorm,
    LayerNorm,
    NoNorm,
    apply_norm,
    at_level,
    grouped,
    init_norm,
    put_level,
)
from fpnlab.types import Mode

EPS = 1e-5
NORM = BatchNorm(eps=EPS)


@pytest.fixture
def batches(key):
    """Five batches of four 3x3 maps of two channels, each batch with its own mean and spread."""
    keys = jax.random.split(key, 5)
    return [
        (i + 1) * jax.random.normal(k, (4, 3, 3, 2)) + jnp.array([10.0 * i, -i])
        for i, k in enumerate(keys)
    ]


def collector(norm, level=None):
    """What one batch leaves behind in a lone norm; from a state that must not matter."""
    params, state = init_norm(norm, 2, state_levels=None if level is None else 3)
    state = jax.tree.map(lambda leaf: leaf + 7.0, state)
    norm = forgetful(norm)

    def collect(x):
        _, one = apply_norm(norm, params, at_level(state, level), x, Mode.TRAIN)
        return put_level(state, one, level)

    return state, collect


def moments64(images):
    x = np.concatenate([np.asarray(batch, np.float64) for batch in images])
    return x.mean((0, 1, 2)), x.var((0, 1, 2))


@pytest.mark.parametrize("norm_batch", [None, 4, 2, 1])
def test_statistics_are_the_moments_of_all_images_together(norm_batch, batches):
    state, collect = collector(dataclasses.replace(NORM, norm_batch=norm_batch, unbiased=True))
    found = population_state(collect, batches, state)
    mean, var = moments64(batches)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
    # The spread of the batches' means is most of it: averaging variances would not find it.
    assert (np.mean([np.var(b, (0, 1, 2)) for b in batches], 0) < 0.5 * var)[0]


def test_two_constant_batches_have_the_variance_of_a_coin():
    state, collect = collector(NORM)
    found = population_state(collect, [jnp.full((2, 3, 3, 2), v) for v in (1.0, 5.0)], state)
    np.testing.assert_allclose(found.mean, 3.0)
    np.testing.assert_allclose(found.var, 4.0)


def test_the_order_of_batches_does_not_matter_and_one_batch_is_itself(batches):
    state, collect = collector(NORM)
    chex.assert_trees_all_close(
        population_state(collect, batches, state),
        population_state(collect, batches[::-1], state),
        rtol=1e-5,
    )
    alone = population_state(collect, batches[:1], state)
    np.testing.assert_allclose(alone.var, moments64(batches[:1])[1], rtol=1e-5)


def test_the_count_of_training_is_kept(batches):
    state, collect = collector(NORM)
    assert population_state(collect, batches, state).count == state.count


def test_levels_that_share_a_norm_keep_their_own_statistics(batches):
    state, collect = collector(NORM, level=1)
    found = population_state(collect, batches, state)
    mean, var = moments64(batches)
    np.testing.assert_allclose(found.mean[1], mean, rtol=1e-5)
    np.testing.assert_allclose(found.var[1], var, rtol=1e-5)
    # The levels that saw nothing are as they were, merging included.
    for level in (0, 2):
        np.testing.assert_allclose(found.mean[level], state.mean[level], rtol=1e-6)
        np.testing.assert_allclose(found.var[level], state.var[level], rtol=1e-6)


def test_a_second_layer_sees_batches_normalized_by_their_own_statistics(batches):
    first, second = (init_norm(NORM, 2) for _ in range(2))
    quiet = forgetful(NORM)

    @jax.jit
    def collect(x):
        x, one = apply_norm(quiet, first[0], first[1], x, Mode.TRAIN)
        _, two = apply_norm(quiet, second[0], second[1], jax.nn.relu(x), Mode.TRAIN)
        return {"one": one, "two": (two, None)}

    found = population_state(collect, batches, {"one": first[1], "two": (second[1], None)})

    def normalized(batch):
        x = np.asarray(batch, np.float64)
        return np.maximum((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPS), 0)

    for state, images in (
        (found["one"], batches),
        (found["two"][0], [normalized(batch) for batch in batches]),
    ):
        mean, var = moments64(images)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(state.var, var, rtol=1e-5)
    assert found["two"][1] is None


def test_no_batches_are_refused():
    state, collect = collector(NORM)
    with pytest.raises(ValueError, match="no batches; give at least one"):
        population_state(collect, iter(()), state)


def norms(detector):
    return detector.backbone.norm, detector.neck.norm, detector.head.norm


def test_grouped_fills_in_the_training_groups_where_a_norm_leaves_them_open(make_detector):
    detector = make_detector(BatchNorm(decay=0.5))
    head = dataclasses.replace(detector.head, norm=BatchNorm(norm_batch=2))
    found = norms(grouped(dataclasses.replace(detector, head=head), 8))
    assert found == (BatchNorm(decay=0.5, norm_batch=8),) * 2 + (BatchNorm(norm_batch=2),)


def test_forgetful_keeps_one_batch_only_and_changes_nothing_else(make_detector):
    norm = BatchNorm(unbiased=True, norm_batch=4, eps=0.1)
    found = forgetful(make_detector(norm))
    assert found == make_detector(dataclasses.replace(norm, decay=0.0, unbiased=False))


@pytest.mark.parametrize("norm", [LayerNorm(axes="c"), GroupNorm(groups=2), NoNorm()])
def test_specs_without_batch_norm_are_left_alone(norm, make_detector):
    detector = make_detector(norm)
    assert not has_batch_norm(detector)
    assert grouped(detector, 8) == forgetful(detector) == detector


def test_one_batch_norm_anywhere_is_found(make_detector):
    detector = make_detector(LayerNorm(axes="hwc"))
    head = dataclasses.replace(detector.head, norm=BatchNorm())
    assert has_batch_norm(dataclasses.replace(detector, head=head))
    assert has_batch_norm(BatchNorm())
