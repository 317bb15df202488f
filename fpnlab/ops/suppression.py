"""Non-maximum suppression (NMS) of overlapping detections."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.ops import boxes as box_ops
from fpnlab.types import Detections


def nms(
    boxes: Num[Array, "n 4"],
    scores: Float[Array, " n"],
    classes: Int[Array, " n"],
    *,
    iou_threshold: float,
    score_threshold: float,
    pre_nms: int,
    max_detections: int,
) -> Detections:
    """Returns the candidates that no better one of their class overlaps; for one image.

    Exact greedy suppression: from the best score down, a candidate is kept unless its IoU with
    a kept one of the same class is above ``iou_threshold`` (by more than ``boxes.TIE``). Of
    equal scores the earlier candidate counts as the better. Candidates that are not finite are
    never kept. All shapes are fixed, so that it can be jitted, and mapped over a batch. Without
    candidates, all rows are invalid. For suppression across classes give all candidates one class.

    Args:
      boxes: ``xyxy`` in pixels.
      scores: Higher is better; must be positive.
      classes: 0 to k - 1. A box with several likely classes is given once for each of them.
      iou_threshold: IoU above which the worse of two candidates is dropped.
      score_threshold: Candidates must have a score above it.
      pre_nms: Number of best candidates, over all classes, that are considered. Time and memory
        grow with its square.
      max_detections: Number of rows of the result.

    Raises:
      ValueError: ``pre_nms`` or ``max_detections`` is negative.
    """
    index, valid = nms_indices(
        boxes,
        scores,
        classes,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        pre_nms=pre_nms,
        max_detections=max_detections,
    )
    if len(scores) == 0:  # Nothing can be gathered from empty arrays.
        boxes, classes = jnp.zeros((1, 4), boxes.dtype), jnp.zeros(1, classes.dtype)
        scores = jnp.zeros(1, scores.dtype)
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[index], 0),
        scores=jnp.where(valid, scores[index], 0),
        classes=jnp.where(valid, classes[index], -1),
        valid=valid,
    )


def nms_indices(
    boxes: Num[Array, "n 4"],
    scores: Float[Array, " n"],
    classes: Int[Array, " n"],
    *,
    iou_threshold: float,
    score_threshold: float,
    pre_nms: int,
    max_detections: int,
) -> tuple[Int[Array, " d"], Bool[Array, " d"]]:
    """Returns the indices of the candidates that ``nms`` keeps, best first, and ``valid``.

    Where ``valid`` is false the index is 0. Use the indices to gather other properties of the
    candidates (masks, features). The arguments are those of ``nms``.

    Raises:
      ValueError: ``pre_nms`` or ``max_detections`` is negative.
    """
    if pre_nms < 0 or max_detections < 0:
        raise ValueError(
            f"nms: pre_nms is {pre_nms} and max_detections {max_detections}; they must be 0 or more"
        )
    if pre_nms == 0 or len(scores) == 0:
        # One candidate that cannot be kept: nothing is gathered from empty arrays.
        boxes, classes = jnp.zeros((1, 4), boxes.dtype), jnp.zeros(1, classes.dtype)
        scores, pre_nms = jnp.full(1, -jnp.inf, scores.dtype), 1
    finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores)
    scores = jnp.where(finite & (scores > score_threshold), scores, -jnp.inf)
    scores, order = jax.lax.top_k(scores, min(pre_nms, len(scores)))
    boxes, classes, first = boxes[order], classes[order], order

    # A matrix of overlaps and one cheap row per step: on a CPU faster, at 200 to 1000
    # candidates, than repeating all rows until nothing changes, and than packing rows in bits.
    overlapping = box_ops.iou(boxes, boxes) > iou_threshold + box_ops.TIE
    rivals = overlapping & (classes[:, None] == classes)
    ranks = jnp.arange(len(scores))

    def suppress(i: int | Int[Array, ""], keep: Bool[Array, " n"]) -> Bool[Array, " n"]:
        return keep & ~(rivals[i] & (ranks > i) & keep[i])

    keep = jax.lax.fori_loop(0, len(scores), suppress, jnp.isfinite(scores))

    rows = min(max_detections, len(scores))
    scores, order = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), rows)
    scores = jnp.pad(scores, (0, max_detections - rows), constant_values=-jnp.inf)
    order = jnp.pad(order, (0, max_detections - rows))
    valid = jnp.isfinite(scores)
    return jnp.where(valid, first[order], 0), valid
