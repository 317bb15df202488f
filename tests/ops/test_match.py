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
TIE = 1e-6


@functools.partial(jax.jit, static_argnames=("positive", "negative", "force"))
def run(boxes, valid, anchors=ANCHORS, **options):
    return match.match_max_iou(anchors, boxes, valid, **options)


def oracle_match(overlaps, valid, positive, negative, force):
    """The docstring, anchor by anchor and box by box; ``overlaps`` is ``[m, a]``."""
    boxes, n = np.flatnonzero(valid), overlaps.shape[1]
    index, label = np.zeros(n, int), np.zeros(n, int)
    for a in range(n):
        best = max((overlaps[m, a] for m in boxes), default=None)
        if best is not None:
            index[a] = next(m for m in boxes if overlaps[m, a] >= best - TIE)
            label[a] = 1 if best >= positive - TIE else -int(best >= negative - TIE)
    if force:
        bids = {m: overlaps[m].max() for m in boxes}
        wanted = {m: np.flatnonzero(overlaps[m] >= bids[m] - TIE)[0] for m in boxes}
        for a in set(wanted.values()):
            rivals = [m for m in boxes if wanted[m] == a]
            highest = max(bids[m] for m in rivals)
            winner = next(m for m in rivals if bids[m] >= highest - TIE)
            if bids[winner] > TIE:
                index[a], label[a] = winner, 1
    return index, label


def exact_overlaps(boxes, anchors):
    """The IoU of every pair, in float64 NumPy."""
    a, b = np.asarray(boxes, np.float64)[:, None], np.asarray(anchors, np.float64)
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    inside = sides.prod(-1)
    area = lambda boxes: (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return inside / (area(a) + area(b) - inside)


def unrolled(f):
    """The same in a scan whose steps are written out one by one, another way to compile it."""
    return lambda *batch: jax.lax.scan(lambda _, one: (None, f(*one)), None, batch, unroll=True)[1]


WAYS = {
    "eager": lambda f: (
        lambda *batch: jax.tree.map(
            lambda *rows: jnp.stack(rows), *[f(*one) for one in zip(*batch)]
        )
    ),
    "vmap": jax.vmap,
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "unrolled scan": lambda f: jax.jit(unrolled(f)),
}


@pytest.mark.parametrize("way", WAYS)
def test_of_equal_anchors_the_first_is_matched_however_it_is_compiled(way):
    # Boxes centered between anchors, so that two or four of them overlap each alike.
    rng = np.random.default_rng(0)
    anchors = np.asarray(anchor_ops.level_anchors((12, 12), 3, scale=3.0, octaves=3))
    center = rng.integers(1, 11, (64, 4, 2)) * 8 + rng.choice([0, 4], (64, 4, 2))
    half = rng.uniform(6, 20, (64, 4, 1))
    boxes = np.concatenate([center - half, center + half], -1).astype(np.float32)
    valid = np.ones((64, 4), bool)
    found = WAYS[way](lambda b, v: match.match_max_iou(anchors, b, v))(
        jnp.asarray(boxes), jnp.asarray(valid)
    )
    for i in range(64):
        index, label = oracle_match(exact_overlaps(boxes[i], anchors), valid[i], 0.5, 0.4, True)
        np.testing.assert_array_equal(found.index[i], index)
        np.testing.assert_array_equal(found.label[i], label)


def test_overlaps_tied_only_with_their_neighbors_have_one_winner():
    # 0.8e-6 apart: the second ties with both others, which do not tie.
    side = lambda overlap: (0.0, 0.0, 10.0, 10.0 * overlap)
    anchors = np.array([[0.0, 0.0, 10.0, 10.0]], np.float32)
    boxes = np.array([side(0.9 + 8e-7 * i) for i in range(3)], np.float32)
    found = match.match_max_iou(anchors, boxes, np.ones(3, bool), positive=0.95)
    assert found.label.tolist() == [1]


@pytest.mark.parametrize(("boxes", "anchors"), [(0, 3), (2, 0), (0, 0)])
def test_without_boxes_or_anchors_nothing_is_positive(boxes, anchors):
    of = lambda n: np.tile(np.array([[0.0, 0.0, 4.0, 4.0]], np.float32), (n, 1))
    found = match.match_max_iou(of(anchors), of(boxes), np.ones(boxes, bool))
    assert found.index.shape == found.label.shape == (anchors,)
    assert not found.label.any()


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.integers(0, 10**6), st.lists(st.booleans(), min_size=5, max_size=5), st.booleans()
)
def test_matches_equal_a_plain_loop_over_anchors_and_boxes(seed, valid, force):
    rng = np.random.default_rng(seed)
    corner = rng.integers(-8, 32, (5, 2))  # whole pixels: ties do occur
    boxes = np.concatenate([corner, corner + rng.integers(0, 20, (5, 2))], 1).astype(np.float32)
    got = run(boxes, np.array(valid), positive=0.5, negative=0.3, force=force)
    index, label = oracle_match(exact_overlaps(boxes, ANCHORS), np.array(valid), 0.5, 0.3, force)
    np.testing.assert_array_equal(got.label, label)
    np.testing.assert_array_equal(
        np.where(label == 1, got.index, -1), np.where(label == 1, index, -1)
    )


def test_an_image_without_boxes_is_all_negative():
    got = run(np.full((3, 4), np.inf, np.float32), ~ALL)
    np.testing.assert_array_equal(got.label, 0)
    assert got.label.dtype == got.index.dtype == jnp.int32


def test_an_anchor_between_the_thresholds_is_ignored():
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


def test_match_rejects_a_negative_threshold_above_the_positive_one():
    with pytest.raises(ValueError, match=r"negative 0.6 is greater than positive 0.5"):
        run(np.zeros((3, 4), np.float32), ALL, negative=0.6)
