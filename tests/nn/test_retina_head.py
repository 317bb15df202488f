"""The shared head: its prior, the order of its rows, and its statistics per level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.retina_head import RetinaHead, apply_head, init_head
from fpnlab.types import Mode

SIZES = {3: (4, 3), 4: (2, 2)}


@pytest.fixture
def pyramid(key):
    return {
        level: (level - 2.0) * jax.random.normal(jax.random.fold_in(key, level), (2, *size, 4))
        for level, size in SIZES.items()
    }


def make(key, norm, **options):
    head = RetinaHead(depth=1, norm=norm, anchors_per_cell=3, classes=5, **options)
    return head, *init_head(key, head, channels=4, levels=2)


def test_every_anchor_starts_with_the_prior_probability(pyramid, key):
    head, params, state = make(key, BatchNorm(), prior=0.02)
    output, _ = apply_head(head, params, state, pyramid, Mode.TRAIN)
    logits, deltas = output.logits, output.deltas
    assert logits.shape == (2, (4 * 3 + 2 * 2) * 3, 5)
    assert deltas.shape == (2, (4 * 3 + 2 * 2) * 3, 4)
    np.testing.assert_allclose(jax.nn.sigmoid(logits).mean(), 0.02, atol=0.003)
    assert jnp.abs(deltas).max() < 0.5


def test_head_rows_are_ordered_by_level_row_column_anchor(pyramid, key):
    head = RetinaHead(depth=0, anchors_per_cell=3, classes=5)
    params, state = init_head(key, head, channels=4, levels=2)
    row, column = 1, 2

    def one_logit(feature):
        maps = {**pyramid, 3: feature}
        output, _ = apply_head(head, params, state, maps, Mode.TRAIN)
        return output.logits[0, (row * SIZES[3][1] + column) * 3 + 1].sum()

    seen = jnp.abs(jax.grad(one_logit)(pyramid[3])).sum(-1) > 0
    # A 3x3 predictor at row 1, column 2 sees rows 0 to 2 and columns 1 to 2 of image 0.
    expected = np.zeros((2, 4, 3), bool)
    expected[0, 0:3, 1:3] = True
    np.testing.assert_array_equal(seen, expected)


def test_levels_keep_their_own_statistics_under_shared_weights(pyramid, key):
    head, params, state = make(key, BatchNorm())
    _, new = apply_head(head, params, state, pyramid, Mode.TRAIN)
    mean = new.class_tower[0].mean
    assert mean.shape == (2, 4)
    alone = {}
    for i, level in enumerate(sorted(pyramid)):
        changed = {**pyramid, level: pyramid[level] + 1.0}
        alone[i] = apply_head(head, params, state, changed, Mode.TRAIN)[1].class_tower[0].mean
    assert (alone[0][0] != mean[0]).any()
    np.testing.assert_array_equal(alone[0][1], mean[1])
    np.testing.assert_array_equal(alone[1][0], mean[0])


def test_evaluation_reproduces_training_once_the_statistics_are_known(pyramid, key):
    # One batch norm shared over levels could not do this: the levels' deviations are 1 and 2.
    head, params, state = make(key, BatchNorm(decay=0.0))
    trained, new = apply_head(head, params, state, pyramid, Mode.TRAIN)
    evaluated, _ = apply_head(head, params, new, pyramid, Mode.EVAL)
    np.testing.assert_allclose(evaluated.logits, trained.logits, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 1.0}, "prior is 1.0; it must be above 0 and below 1"),
        ({"depth": -1}, "depth is -1"),
    ],
)
def test_invalid_heads_raise(options, message):
    with pytest.raises(ValueError, match=message):
        RetinaHead(**options)


def test_joint_statistics_equal_those_of_the_values_of_all_levels(pyramid, key):
    head, params, state = make(key, BatchNorm(decay=0.0), level_statistics="joint")
    _, new = apply_head(head, params, state, pyramid, Mode.TRAIN)
    found = new.class_tower[0]
    separate, params, state = make(key, BatchNorm(decay=0.0))
    parts = apply_head(separate, params, state, pyramid, Mode.TRAIN)[1].class_tower[0]
    weight = parts.count / parts.count.sum()
    np.testing.assert_allclose(found.mean, weight @ parts.mean, rtol=1e-4, atol=1e-5)
    var = weight @ (parts.var + (parts.mean - found.mean) ** 2)
    np.testing.assert_allclose(found.var, var, rtol=1e-4)
    assert found.count == parts.count.sum()


@pytest.mark.parametrize("statistics", ["separate", "shared", "joint"])
@pytest.mark.parametrize("affine", ["shared", "separate"])
def test_separate_parameters_of_a_level_change_only_that_level(statistics, affine, pyramid, key):
    head, params, state = make(key, BatchNorm(), level_statistics=statistics, level_affine=affine)
    assert params.class_tower[0].norm.scale.shape == ((2, 4) if affine == "separate" else (4,))
    assert state.class_tower[0].mean.shape == ((2, 4) if statistics == "separate" else (4,))

    def of_level(params, rows):
        return (apply_head(head, params, state, pyramid, Mode.TRAIN)[0].logits[:, rows] ** 2).sum()

    fine = slice(0, 4 * 3 * 3)
    gradient = jax.grad(of_level)(params, fine).class_tower[0].norm.bias
    if affine == "separate":
        assert jnp.abs(gradient[0]).max() > 0
        assert jnp.abs(gradient[1]).max() == 0
    else:
        assert jnp.abs(gradient).max() > 0


def test_only_batch_norm_can_take_levels_together():
    with pytest.raises(ValueError, match="level_statistics is 'joint' and norm 'none'"):
        RetinaHead(level_statistics="joint")


@pytest.mark.parametrize("statistics", ["separate", "shared", "joint"])
def test_each_norm_counts_the_mask_of_its_level(statistics, pyramid, key):
    head, params, state = make(key, BatchNorm(), level_statistics=statistics)
    mask = np.random.default_rng(0).random((2, 32, 24)) < 0.6
    fine, coarse = (mask[:, ::step, ::step].sum() for step in (8, 16))
    assert fine != coarse
    expected = [fine, coarse] if statistics == "separate" else fine + coarse
    _, new = apply_head(head, params, state, pyramid, Mode.MOMENTS, mask=jnp.asarray(mask))
    for tower in (new.class_tower, new.box_tower):
        np.testing.assert_array_equal(tower[0].count, expected)


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
def test_the_bias_of_the_class_predictor_is_the_logit_of_the_prior(prior, key):
    _, params, _ = make(key, BatchNorm(), prior=prior)
    np.testing.assert_allclose(jax.nn.sigmoid(params.class_predictor.bias), prior, rtol=1e-5)
    np.testing.assert_array_equal(params.box_predictor.bias, 0)
