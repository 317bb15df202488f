import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops import anchors as anchor_ops
from fpnlab.ops import boxes as box_ops
from fpnlab.ops import match

ANCHORS = anchor_ops.level_anchors((3, 4), 3, scale=2.0, octaves=1)
ALL = np.ones(3, bool)


@functools.partial(jax.jit, static_argnames=("positive", "negative", "force"))
def run(boxes, valid, anchors=ANCHORS, **options):
    return match.match_max_iou(anchors, boxes, valid, **options)


def oracle_match(overlaps, valid, positive, negative, force):
    """The docstring, anchor by anchor and box by box; ``overlaps`` is ``[m, a]``."""
    boxes, n = np.flatnonzero(valid), overlaps.shape[1]
    index, label = np.zeros(n, int), np.zeros(n, int)
    for a in range(n):
        best = max(boxes, key=lambda m: (overlaps[m, a], -m), default=None)
        if best is not None:
            index[a] = best
            label[a] = 1 if overlaps[best, a] >= positive else -int(overlaps[best, a] >= negative)
    if force:
        claims = [(overlaps[m].max(), -m, overlaps[m].argmax()) for m in boxes]
        for value, minus_m, a in sorted(claims):  # the best claim is written last
            if value > 0:
                index[a], label[a] = -minus_m, 1
    return index, label


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.integers(0, 10**6), st.lists(st.booleans(), min_size=5, max_size=5), st.booleans()
)
def test_matches_equal_a_plain_loop_over_anchors_and_boxes(seed, valid, force):
    rng = np.random.default_rng(seed)
    corner = rng.integers(-8, 32, (5, 2))  # whole pixels: ties do occur
    boxes = np.concatenate([corner, corner + rng.integers(0, 20, (5, 2))], 1).astype(np.float32)
    got = run(boxes, np.array(valid), positive=0.5, negative=0.3, force=force)
    overlaps = np.asarray(jax.jit(box_ops.iou)(boxes, ANCHORS))
    index, label = oracle_match(overlaps, np.array(valid), 0.5, 0.3, force)
    np.testing.assert_array_equal(got.label, label)
    np.testing.assert_array_equal(
        np.where(label == 1, got.index, -1), np.where(label == 1, index, -1)
    )


def test_an_image_without_boxes_is_all_negative():
    got = run(np.full((3, 4), np.inf, np.float32), ~ALL)
    np.testing.assert_array_equal(got.label, 0)
    assert got.label.dtype == got.index.dtype == jnp.int32


def test_an_anchor_between_the_thresholds_takes_no_part():
    square = np.array([[0.0, 0, 10, 10]], np.float32)
    shifted = np.array([[0.0, 0, 10, s] for s in (10, 5, 4.5, 4, 3.9)], np.float32)
    got = run(square, np.ones(1, bool), shifted, force=False)
    np.testing.assert_array_equal(got.label, [1, 1, -1, -1, 0])


def test_a_poor_box_claims_its_best_anchor_only_if_forced():
    boxes = np.array([[9.0, 9, 12, 12], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    valid = np.array([True, False, False])
    assert (run(boxes, valid, force=False).label == 1).sum() == 0
    forced = run(boxes, valid, force=True)
    assert (forced.label == 1).sum() == 1
    best = box_ops.iou(boxes[:1], ANCHORS)[0].argmax()
    assert forced.label[best] == 1


def test_of_equal_boxes_the_first_gets_the_anchors():
    boxes = np.tile(ANCHORS[:1], (3, 1))
    got = run(boxes, np.array([False, True, True]), force=False)
    assert (got.label[0], got.index[0]) == (1, 1)


def test_the_best_overlap_wins_a_contested_anchor_and_of_equals_the_first():
    anchors = np.array([[0.0, 0, 10, 10], [100, 0, 110, 10]], np.float32)
    boxes = np.array([[0.0, 0, 3, 10], [0, 0, 4, 10], [6, 0, 10, 10]], np.float32)
    got = run(boxes, ALL, anchors)
    np.testing.assert_array_equal(got.index[0], 1)
    np.testing.assert_array_equal(got.label, [1, 0])


def test_a_box_takes_its_best_anchor_from_a_box_that_has_a_better_one():
    anchors = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]], np.float32)
    boxes = np.array([[0.0, 0, 10, 10], [9, 0, 12, 10], [0, 0, 0, 0]], np.float32)
    valid = np.array([True, True, False])
    np.testing.assert_array_equal(run(boxes, valid, anchors).index, [0, 1])
    unforced = run(boxes, valid, anchors, force=False)
    np.testing.assert_array_equal(unforced.index, [0, 0])


def test_a_box_that_overlaps_no_anchor_claims_none():
    boxes = np.array([[500.0, 500, 520, 520], [7, 7, 7, 7], [0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(run(boxes, ALL).label, 0)


def test_jitted_equals_eager():
    boxes = np.array([[1.0, 2, 15, 17], [20, 3, 29, 23], [9, 9, 12, 12]], np.float32)
    eager = match.match_max_iou(ANCHORS, boxes, ALL)
    chex.assert_trees_all_equal(run(boxes, ALL), eager)


def test_mapped_over_a_batch_equals_image_by_image(key):
    corner = jax.random.uniform(key, (4, 3, 2), maxval=24)
    boxes = jnp.concatenate([corner, corner + 12], -1)
    valid = jnp.arange(3) < jnp.arange(4)[:, None]
    got = jax.vmap(run)(boxes, valid)
    for i in range(4):
        alone = run(boxes[i], valid[i])
        np.testing.assert_array_equal(got.index[i], alone.index)
        np.testing.assert_array_equal(got.label[i], alone.label)


def test_thresholds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"negative 0.6 is greater than positive 0.5"):
        run(np.zeros((3, 4), np.float32), ALL, negative=0.6)
