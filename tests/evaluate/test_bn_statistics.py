"""Population statistics against the moments of all batches in float64 NumPy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.evaluate.bn_statistics import has_batch_norm, population_state
from fpnlab.nn.norm_edit import fill_norm_batch
from fpnlab.nn.norm_layer import apply_norm, at_level, init_norm, put_level
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, LayerNorm, NoNorm
from fpnlab.nn.retina_head import RetinaHead, apply_head, init_head
from fpnlab.ops.convolution import conv
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

    def collect(state, x):
        _, one = apply_norm(norm, params, at_level(state, level), x, Mode.MOMENTS)
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

    @jax.jit
    def collect(state, x):
        x, one = apply_norm(NORM, first[0], state["one"], x, Mode.MOMENTS)
        _, two = apply_norm(NORM, second[0], state["two"][0], jax.nn.relu(x), Mode.MOMENTS)
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


def test_population_state_rejects_an_empty_list_of_batches():
    state, collect = collector(NORM)
    with pytest.raises(ValueError, match="no batches; give at least one"):
        population_state(collect, iter(()), state)


def norms(detector):
    return detector.backbone.norm, detector.neck.norm, detector.head.norm


def test_grouped_fills_in_the_training_groups_where_a_norm_leaves_them_open(make_detector):
    detector = make_detector(BatchNorm(decay=0.5))
    head = dataclasses.replace(detector.head, norm=BatchNorm(norm_batch=2))
    found = norms(fill_norm_batch(dataclasses.replace(detector, head=head), 8))
    assert found == (BatchNorm(decay=0.5, norm_batch=8),) * 2 + (BatchNorm(norm_batch=2),)


@pytest.mark.parametrize("norm", [LayerNorm(axes="c"), GroupNorm(groups=2), NoNorm()])
def test_specs_without_batch_norm_are_unchanged(norm, make_detector):
    detector = make_detector(norm)
    assert not has_batch_norm(detector)
    assert fill_norm_batch(detector, 8) == detector


def test_one_batch_norm_anywhere_is_found(make_detector):
    detector = make_detector(LayerNorm(axes="hwc"))
    head = dataclasses.replace(detector.head, norm=BatchNorm())
    assert has_batch_norm(dataclasses.replace(detector, head=head))
    assert has_batch_norm(BatchNorm(norm_batch=3))


@pytest.mark.parametrize("affine", ["shared", "separate"])
@pytest.mark.parametrize("statistics", ["separate", "shared", "joint"])
def test_precise_statistics_of_a_head_are_the_moments_of_its_levels(statistics, affine, key):
    head = RetinaHead(
        depth=1,
        norm=NORM,
        level_statistics=statistics,
        level_affine=affine,
        anchors_per_cell=1,
        classes=2,
    )
    params, state = init_head(key, head, channels=2, levels=3)
    sides = {3: 8, 4: 4, 5: 2}
    random = np.random.default_rng(0)
    draw = lambda i, level: jnp.asarray(
        random.normal(10 * i, level, (2, sides[level], sides[level], 2)), jnp.float32
    )
    batches = [{level: draw(i, level) for level in sides} for i in range(3)]
    collect = lambda state, pyramid: apply_head(head, params, state, pyramid, Mode.MOMENTS)[-1]
    found = population_state(jax.jit(collect), batches, state)

    kernel = params.class_tower[0].kernel
    values = lambda x: np.asarray(conv(x, kernel), np.float64).reshape(-1, 2)
    levels = [np.concatenate([values(batch[level]) for batch in batches]) for level in sides]
    sets = levels if statistics == "separate" else [np.concatenate(levels)]
    own = found.class_tower[0]
    np.testing.assert_allclose(np.atleast_2d(own.mean), [x.mean(0) for x in sets], rtol=1e-4)
    np.testing.assert_allclose(np.atleast_2d(own.var), [x.var(0) for x in sets], rtol=1e-4)


def test_moments_of_no_value_leave_the_running_statistics():
    state, _ = collector(NORM)
    found = population_state(lambda state, batch: dataclasses.replace(state), [None], state)
    chex.assert_trees_all_equal(found, state)
