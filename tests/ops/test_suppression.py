import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops import boxes as box_ops
from fpnlab.ops.suppression import nms, nms_indices

OPTIONS = dict(iou_threshold=0.5, score_threshold=0.1, pre_nms=16, max_detections=8)


@functools.partial(jax.jit, static_argnames=tuple(OPTIONS))
def run(boxes, scores, classes, **options):
    return nms(boxes, scores, classes, **(OPTIONS | options))


def candidates(seed, n=24):
    """Crowded boxes of three classes; the scores may tie, also across a threshold."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (n, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 20, n).astype(np.float32) / 20
    return jnp.array(boxes), jnp.array(scores), jnp.array(rng.integers(0, 3, n))


def oracle_nms(boxes, scores, classes, iou_threshold, score_threshold, pre_nms, max_detections):
    """Plain greedy suppression; returns the numbers of the kept candidates, best first."""
    overlaps = np.asarray(jax.jit(box_ops.iou)(boxes, boxes))
    scores, classes = np.asarray(scores), np.asarray(classes)
    queue = [i for i in np.argsort(-scores, kind="stable") if scores[i] > score_threshold]
    kept = []
    for i in queue[:pre_nms]:
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(overlaps[i, j] <= iou_threshold + 1e-6 for j in rivals):
            kept.append(i)
    return kept[:max_detections]


@pytest.mark.parametrize("iou_threshold", [0.1, 0.5])
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_nms_equals_plain_greedy_suppression(iou_threshold, seed):
    given = candidates(seed)
    options = OPTIONS | {"iou_threshold": iou_threshold}
    kept = oracle_nms(*given, **options)
    got = run(*given, **options)
    assert int(got.valid.sum()) == len(kept)
    for value, source in zip((got.boxes, got.scores, got.classes), given):
        np.testing.assert_array_equal(value[: len(kept)], np.asarray(source)[kept])


@pytest.mark.parametrize("options", [{}, {"pre_nms": 0}, {"max_detections": 40}])
def test_nms_indices_gather_the_result_of_nms(options):
    given, options = candidates(3), OPTIONS | options
    found = nms(*given, **options)
    places, valid = nms_indices(*given, **options)
    np.testing.assert_array_equal(valid, found.valid)
    np.testing.assert_array_equal(places[~valid], 0)
    for values, kept in zip(given, (found.boxes, found.scores, found.classes)):
        np.testing.assert_array_equal(values[places][valid], kept[valid])


def test_rows_without_a_detection_are_padding():
    boxes, _, classes = candidates(0)
    got = run(boxes, jnp.zeros(24).at[5].set(0.9), classes)
    np.testing.assert_array_equal(got.valid, [True] + 7 * [False])
    np.testing.assert_array_equal(got.boxes[1:], 0)
    np.testing.assert_array_equal(got.scores[1:], 0)
    np.testing.assert_array_equal(got.classes[1:], -1)


def test_more_rows_than_candidates_are_filled_up():
    given = candidates(1)
    got = run(*given, iou_threshold=1.0, score_threshold=0.0, pre_nms=100, max_detections=40)
    assert got.boxes.shape == (40, 4)
    assert int(got.valid.sum()) == int((given[1] > 0).sum())


def test_a_chain_of_overlaps_is_resolved_from_the_best_down():
    """b overlaps a and c, a and c do not touch: greedy keeps a, drops b, hence keeps c."""
    boxes = jnp.array([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
    got = run(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.zeros(3, int), iou_threshold=0.4)
    np.testing.assert_allclose(got.scores[:3], [0.9, 0.7, 0])


def test_only_boxes_of_the_same_class_suppress_each_other():
    boxes = jnp.tile(jnp.array([[0.0, 0, 10, 10]]), (4, 1))
    got = run(boxes, jnp.array([0.6, 0.9, 0.8, 0.7]), jnp.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(got.classes[:3], [1, 0, -1])
    np.testing.assert_allclose(got.scores[:3], [0.9, 0.8, 0])


def test_of_equal_scores_the_earlier_candidate_stays():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    got = run(boxes, jnp.full(2, 0.5), jnp.zeros(2, int))
    np.testing.assert_array_equal(got.boxes[:2], [[0, 0, 10, 10], [0, 0, 0, 0]])


def test_candidates_that_are_not_finite_are_never_kept():
    boxes = jnp.array([[0.0, 0, 10, 10], [jnp.nan, 0, 10, 10], [0, 0, jnp.inf, 10], [9, 9, 19, 19]])
    got = run(boxes, jnp.array([jnp.nan, 0.9, 0.8, 0.7]), jnp.zeros(4, int))
    np.testing.assert_array_equal(got.valid[:2], [True, False])
    np.testing.assert_array_equal(got.boxes[0], [9, 9, 19, 19])


def test_jitted_equals_eager():
    given = candidates(2)
    chex.assert_trees_all_equal(run(*given), nms(*given, **OPTIONS))


def test_mapped_over_a_batch_equals_image_by_image():
    batch = [jnp.stack(x) for x in zip(*map(candidates, range(3)))]
    got = jax.vmap(run)(*batch)
    for i in range(3):
        alone = run(*(x[i] for x in batch))
        chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], got), alone)


NOTHING = [{"pre_nms": 0}, {"max_detections": 0}, {"score_threshold": 2.0}]


@pytest.mark.parametrize("options", NOTHING)
@pytest.mark.parametrize("n", [0, 3])
def test_without_candidates_all_rows_are_padding(n, options):
    options = OPTIONS | options
    found = nms(jnp.ones((n, 4)), jnp.ones(n), jnp.zeros(n, jnp.int32), **options)
    assert found.boxes.shape == (options["max_detections"], 4)
    assert not found.valid.any()
    assert (found.classes == -1).all()
    assert not found.scores.any()


def test_nms_rejects_negative_numbers_of_candidates():
    with pytest.raises(ValueError, match="pre_nms is -1 and max_detections 8; they must be 0 or"):
        nms(jnp.ones((1, 4)), jnp.ones(1), jnp.zeros(1, jnp.int32), **OPTIONS | {"pre_nms": -1})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int32"])
def test_twins_in_narrow_types_are_suppressed(dtype):
    side = 200 if dtype == "uint8" else 300
    boxes = jnp.tile(jnp.asarray([[0, 0, side, side]], dtype), (3, 1))
    scores = jnp.asarray([0.9, 0.8, 0.7], "float32")
    found = nms(boxes, scores, jnp.zeros(3, jnp.int32), **OPTIONS)
    assert found.valid.sum() == 1
