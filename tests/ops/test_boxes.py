import inspect

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops import boxes

SETTINGS = hypothesis.settings(max_examples=20, deadline=None)
COORDINATES = st.floats(0, 512, width=32).map(lambda x: round(x * 4) / 4)
CORNERS = hnp.arrays(np.float32, (5, 4), elements=COORDINATES)
SIDES = hnp.arrays(np.float32, (5, 2), elements=st.floats(0.25, 256, width=32))

# Everything a batch may contain besides proper boxes: padding, a point, a line, a flipped box.
DEGENERATE = np.array(
    [[0, 0, 0, 0], [5, 5, 5, 5], [2, 3, 2, 9], [9, 9, 4, 4], [1, 2, 6, 8], [1, 2, 6, 8]],
    np.float32,
)


def oracle_iou(a, b):
    """Plain loops in float64."""
    out = np.zeros((len(a), len(b)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.astype(np.float64)):
        for j, (bx1, by1, bx2, by2) in enumerate(b.astype(np.float64)):
            width = max(min(ax2, bx2) - max(ax1, bx1), 0)
            height = max(min(ay2, by2) - max(ay1, by1), 0)
            area_a = max(ax2 - ax1, 0) * max(ay2 - ay1, 0)
            area_b = max(bx2 - bx1, 0) * max(by2 - by1, 0)
            union = area_a + area_b - width * height
            out[i, j] = width * height / union if union else 0
    return out


def from_corners(corners):
    return np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )


def with_sides(corners, sides):
    return np.concatenate([corners[:, :2], corners[:, :2] + sides], 1)


def test_area_is_width_times_height_and_zero_for_empty_boxes():
    given = np.array([[1, 2, 4, 7], [0, 0, 0, 0], [4, 4, 2, 2], [0, 3, 5, 1]], np.float32)
    np.testing.assert_array_equal(boxes.area(given), [15, 0, 0, 0])


@SETTINGS
@hypothesis.given(CORNERS, CORNERS)
def test_iou_equals_plain_float64_loops(a, b):
    a = from_corners(a)  # b keeps its flipped, hence empty, boxes
    np.testing.assert_allclose(boxes.iou(a, b), oracle_iou(a, b), rtol=1e-5, atol=1e-7)


@SETTINGS
@hypothesis.given(CORNERS, CORNERS)
def test_iou_is_symmetric_and_at_most_one(a, b):
    a, b = from_corners(a), from_corners(b)
    forth, back = np.asarray(boxes.iou(a, b)), np.asarray(boxes.iou(b, a))
    np.testing.assert_allclose(forth, back.T, rtol=1e-6)
    assert (forth >= 0).all()
    assert (forth <= 1 + 1e-6).all()


def test_iou_takes_leading_axes_and_broadcasts_them():
    a = jnp.array(with_sides(np.full((5, 4), 3.0), np.arange(1.0, 11).reshape(5, 2)), jnp.float32)
    batch = jnp.stack([a, a + 1, 2 * a])
    overlaps = boxes.iou(batch, a[:2])
    assert overlaps.shape == (3, 5, 2)
    np.testing.assert_allclose(overlaps[1], boxes.iou(a + 1, a[:2]), rtol=1e-6)
    np.testing.assert_allclose(
        overlaps, jax.jit(jax.vmap(boxes.iou, (0, None)))(batch, a[:2]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),  # hull 9, union 7
        ([0, 0, 1, 1], [3, 0, 4, 1], -2 / 4),  # a gap of two boxes between two boxes
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
    ],
)
def test_giou_of_hand_worked_boxes(a, b, expected):
    got = boxes.giou_pairs(jnp.array(a, jnp.float32), jnp.array(b, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@SETTINGS
@hypothesis.given(CORNERS, CORNERS, SIDES, SIDES)
def test_giou_is_at_most_the_iou_and_at_least_minus_one(a, b, sides_a, sides_b):
    a, b = with_sides(a, sides_a), with_sides(b, sides_b)
    giou = np.asarray(boxes.giou_pairs(a, b))
    assert (giou <= np.diagonal(boxes.iou(a, b)) + 1e-6).all()
    assert (giou >= -1 - 1e-6).all()


def test_giou_has_a_gradient_where_boxes_are_apart_and_iou_has_none():
    a, b = jnp.array([0.0, 0, 1, 1]), jnp.array([3.0, 0, 4, 1])
    assert jax.grad(boxes.giou_pairs)(a, b)[2] > 0  # moving the right edge closer helps
    iou_gradient = jax.grad(lambda a: boxes.iou(a[None], b[None])[0, 0])(a)
    np.testing.assert_array_equal(iou_gradient, 0)


@pytest.mark.parametrize(
    "f",
    [
        boxes.iou,
        boxes.giou_pairs,
        lambda a, b: boxes.giou_pairs(a, b[::-1]),
        lambda a, b: boxes.encode(a, b[::-1]),
        boxes.decode,
    ],
    ids=["iou", "giou of equals", "giou", "encode", "decode"],
)
def test_degenerate_boxes_have_finite_values_and_gradients(f):
    value_and_grad = jax.jit(jax.value_and_grad(lambda a, b: f(a, b).sum(), (0, 1)))
    for side in (1e-18, 1e-9, 1e-6, 1.0, 1e4):
        value, gradients = value_and_grad(DEGENERATE * side, DEGENERATE * side)
        assert np.isfinite(value)
        assert np.isfinite(gradients).all()


@SETTINGS
@hypothesis.given(CORNERS, CORNERS, SIDES, SIDES)
def test_decode_inverts_encode(corners, anchors, sides, anchor_sides):
    given, anchors = with_sides(corners, sides), with_sides(anchors, np.maximum(anchor_sides, 8))
    deltas = boxes.encode(given, anchors)
    # Coordinates up to 800 px in float32: the centers carry errors of about 1e-4 px.
    np.testing.assert_allclose(boxes.decode(deltas, anchors), given, atol=2e-3)


def test_encode_of_a_hand_worked_box():
    anchor = np.array([10.0, 20, 30, 60], np.float32)  # center (20, 40), 20 x 40
    box = np.array([15.0, 40, 35, 60], np.float32)  # center (25, 50), 20 x 20
    np.testing.assert_allclose(
        boxes.encode(box, anchor), [5 / 20, 10 / 40, 0, -np.log(2)], rtol=1e-6, atol=1e-7
    )


def test_decode_cuts_the_size_and_its_gradient_at_the_largest_scale():
    anchor = jnp.array([0.0, 0, 16, 16])

    def width(dw):
        box = boxes.decode(jnp.array([0.0, 0, dw, 0]), anchor)
        return box[2] - box[0]

    np.testing.assert_allclose(width(1e4), 1000, rtol=1e-5)
    np.testing.assert_allclose(width(-1e4), 0)
    assert jax.grad(width)(1e4) == 0
    assert jax.grad(width)(1.0) > 0


def test_clip_keeps_each_box_inside_its_own_picture():
    given = np.array([[-5.0, 3, 50, 90], [70, 80, 90, 99]], np.float32)
    clipped = boxes.clip(np.stack([given, given]), np.array([[40.0, 60], [200, 200]], np.float32))
    np.testing.assert_array_equal(clipped[0], [[0, 3, 50, 40], [60, 40, 60, 40]])
    np.testing.assert_array_equal(clipped[1], [[0, 3, 50, 90], [70, 80, 90, 99]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int8", "int32", "uint32"])
def test_iou_of_narrow_dtypes_equals_float64(dtype):
    # Whole numbers that every type holds; their products are beyond most of the types.
    a = np.array([[0, 0, 100, 100], [10, 20, 90, 120], [64, 64, 96, 96]])
    b = np.array([[0, 0, 100, 100], [0, 0, 50, 50], [100, 100, 120, 120]])
    narrow = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    np.testing.assert_allclose(boxes.iou(*narrow), oracle_iou(a, b), rtol=1e-6)
    wide = boxes.giou_pairs(a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_allclose(boxes.giou_pairs(*narrow), wide, rtol=1e-6)
    np.testing.assert_allclose(boxes.decode(boxes.encode(*narrow), narrow[1]), a, atol=1e-3)


def test_areas_that_overflow_the_input_dtype_are_right():
    large = jnp.asarray([[0, 0, 300, 300]], "float16")
    assert boxes.area(large)[0] == 90_000
    assert boxes.iou(large, large)[0, 0] == 1.0
    assert boxes.giou_pairs(large, large)[0] == 1.0
    whole, third = ([[0, 0, 60_000, side]] for side in (60_000, 20_000))
    found = boxes.iou(jnp.asarray(whole, "int32"), jnp.asarray(third, "int32"))
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)


def test_boxes_of_complex_numbers_raise_a_type_error():
    with pytest.raises(TypeError, match="boxes: an array is complex64"):
        inspect.unwrap(boxes.area)(jnp.ones((1, 4), "complex64"))
