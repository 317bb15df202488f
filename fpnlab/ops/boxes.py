"""Box geometry: areas, IoU and GIoU, and encoding of boxes as offsets from anchors.

Integers and floats narrower than float32 are converted to float32 first, and results have that
dtype: an area of 300 x 300 pixels overflows float16.

Boxes are ``xyxy`` in pixels. A box with ``x2 <= x1`` or ``y2 <= y1`` is empty: its area is 0, and
so is its overlap with any box.
Values and gradients are finite for every finite box, the zeros of padding included.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

MAX_LOG_SCALE = math.log(1000 / 16)
"""``decode`` lets a box be at most ``exp(MAX_LOG_SCALE)`` = 62.5 times its anchor's side."""

TIE = 1e-6
"""Overlaps that differ by less count as equal: which one is larger after rounding depends on how
a program was compiled."""

# A smaller side or area counts as zero. Above, the gradients of a log (1 / side) and of a quotient
# (1 / area**2) still fit into float32.
_MIN_SIDE = 1e-6
_MIN_AREA = 1e-12


def area(boxes_xyxy: Num[Array | np.ndarray, "*b 4"]) -> Float[Array, "*b"]:
    """Returns the area of each box in square pixels; 0 for an empty one."""
    (boxes_xyxy,) = _wide(boxes_xyxy)
    sides = jnp.maximum(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(
    a: Num[Array | np.ndarray, "*#b n 4"], b: Num[Array | np.ndarray, "*#b m 4"]
) -> Float[Array, "*#b n m"]:
    """Returns the intersection over union of every box of ``a`` with every box of ``b``.

    Coordinates are continuous: the sides of a box are ``x2 - x1`` and ``y2 - y1``, without the
    ``+ 1`` of Pascal VOC's tools. Two empty boxes have the overlap 0.
    """
    a, b = _wide(a, b)
    intersection, union = _intersection_and_union(a[..., :, None, :], b[..., None, :, :])
    return _ratio(intersection, union)


def giou_pairs(
    a: Num[Array | np.ndarray, "*#b 4"], b: Num[Array | np.ndarray, "*#b 4"]
) -> Float[Array, "*#b"]:
    """Returns the generalized overlap, -1 to 1, of each box of ``a`` with its partner in ``b``.

    See "Generalized Intersection over Union", Rezatofighi et al. 2019, arXiv:1902.09630,
    algorithm 1: the IoU, less the share of the smallest enclosing box that the union leaves
    empty. Unlike the IoU it has a gradient where the boxes are apart. It pairs row with row,
    where ``iou`` crosses all rows.
    """
    a, b = _wide(a, b)
    intersection, union = _intersection_and_union(a, b)
    top_left = jnp.minimum(a[..., :2], b[..., :2])
    hull = area(jnp.concatenate([top_left, jnp.maximum(a[..., 2:], b[..., 2:])], -1))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def encode(
    boxes_xyxy: Num[Array | np.ndarray, "*#b 4"], anchors_xyxy: Num[Array | np.ndarray, "*#b 4"]
) -> Float[Array, "*#b 4"]:
    """Returns the offsets ``(dx, dy, dw, dh)`` that lead from the anchors to the boxes.

    See "Rich feature hierarchies", Girshick et al. 2014, arXiv:1311.2524, appendix C, eqs. 6-9:
    centers move in units of the anchor's sides, sides scale by ``exp``. As in RetinaNet, no
    further weights or standard deviations are applied. Sides shorter than a millionth of a
    pixel count as that long, so that padding has finite offsets.
    """
    boxes_xyxy, anchors_xyxy = _wide(boxes_xyxy, anchors_xyxy)
    box_center, box_side = _center_and_side(boxes_xyxy)
    anchor_center, anchor_side = _center_and_side(anchors_xyxy)
    box_side = jnp.maximum(box_side, _MIN_SIDE)
    anchor_side = jnp.maximum(anchor_side, _MIN_SIDE)
    move = (box_center - anchor_center) / anchor_side
    return jnp.concatenate([move, jnp.log(box_side) - jnp.log(anchor_side)], -1)


def decode(
    deltas: Num[Array | np.ndarray, "*#b 4"], anchors_xyxy: Num[Array | np.ndarray, "*#b 4"]
) -> Float[Array, "*#b 4"]:
    """Returns the boxes to which the offsets lead from the anchors: the inverse of ``encode``.

    See arXiv:1311.2524, appendix C, eqs. 1-4. ``dw`` and ``dh`` are cut at ``MAX_LOG_SCALE``
    (as detectron does), because ``exp`` of an untrained head's outputs overflows; beyond it
    their gradient is zero.
    """
    deltas, anchors_xyxy = _wide(deltas, anchors_xyxy)
    anchor_center, anchor_side = _center_and_side(anchors_xyxy)
    center = anchor_center + deltas[..., :2] * anchor_side
    half = 0.5 * anchor_side * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return jnp.concatenate([center - half, center + half], -1)


def clip(
    boxes_xyxy: Num[Array | np.ndarray, "*b n 4"], extent_hw: Num[Array | np.ndarray, "*b 2"]
) -> Float[Array, "*b n 4"]:
    """Returns the parts of the boxes inside a picture of height and width ``extent_hw``, pixels.

    A box entirely outside becomes an empty one on the edge of the picture.
    """
    boxes_xyxy, extent_hw = _wide(boxes_xyxy, extent_hw)
    height, width = extent_hw[..., 0], extent_hw[..., 1]
    limit = jnp.stack([width, height, width, height], -1)[..., None, :]
    return jnp.clip(boxes_xyxy, 0, limit)


def _wide(*arrays: Array | np.ndarray) -> list[Array]:
    """Returns the arrays in a common floating dtype, float32 or wider.

    Raises:
      TypeError: An array is neither of integers nor of real floating-point numbers.
    """
    for array in arrays:
        if not jnp.issubdtype(array.dtype, jnp.floating) and (
            not jnp.issubdtype(array.dtype, jnp.integer)
        ):
            raise TypeError(f"boxes: an array is {array.dtype}; give integers or floats, in pixels")
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = functools.reduce(np.promote_types, floats, np.dtype(np.float32))
    return [jnp.asarray(array).astype(dtype) for array in arrays]


def _center_and_side(
    boxes_xyxy: Float[Array, "*b 4"],
) -> tuple[Float[Array, "*b 2"], Float[Array, "*b 2"]]:
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return 0.5 * (top_left + bottom_right), bottom_right - top_left


def _intersection_and_union(
    a: Float[Array, "*#b 4"], b: Float[Array, "*#b 4"]
) -> tuple[Float[Array, "*#b"], Float[Array, "*#b"]]:
    top_left = jnp.maximum(a[..., :2], b[..., :2])
    bottom_right = jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = area(jnp.concatenate([top_left, bottom_right], -1))
    return intersection, area(a) + area(b) - intersection


def _ratio(part: Float[Array, "*b"], whole: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns ``part / whole``, and 0 with gradient 0 where ``whole`` is 0.

    The denominator is replaced inside, too: the gradient of a division by 0 is NaN, and NaN times
    the 0 of the outer ``where`` would still be NaN.
    """
    some = whole > _MIN_AREA
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)
