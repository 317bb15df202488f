"""Assign anchors to ground-truth boxes by IoU."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.ops import boxes as box_ops
from fpnlab.types import tree


@tree
class Matches:
    """Training target of each anchor."""

    index: Int[Array, "*b a"]
    """The box the anchor overlaps most or, for a forced match, the box that forced it."""
    label: Int[Array, "*b a"]
    """1: positive, for box ``index``; 0: negative; -1: ignored."""


def match_max_iou(
    anchors: Num[Array | np.ndarray, "a 4"],
    boxes: Num[Array | np.ndarray, "m 4"],
    valid: Bool[Array | np.ndarray, " m"],
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    force: bool = True,
) -> Matches:
    """Returns each anchor's box and label, for one image; ``vmap`` it over a batch.

    Overlaps that differ by less than ``boxes.TIE`` = 1e-6 count as equal, and thresholds have the
    same tolerance, so that the matches do not depend on how the program was compiled.

    See "Focal Loss for Dense Object Detection", Lin et al. 2017, arXiv:1708.02002, sec. 4. An
    anchor takes the valid box it overlaps most (of equals, the first). It is positive from the
    IoU ``positive`` on, negative below ``negative``, and ignored in between. Without a valid
    box all anchors are negative.

    With ``force``, each valid box claims the anchor it overlaps most (of equals, the first), and
    that anchor becomes positive for this box whatever the thresholds say, also if it overlaps
    another box more. Where boxes claim the same anchor, the one with the largest IoU gets it (of
    equals, the first), and the others keep only what the thresholds gave them. A box that
    overlaps no anchor claims none. (Detectron2 forces all of several equally good anchors, and
    lets a forced anchor keep the box that it overlaps most.)

    Args:
      anchors: Boxes ``xyxy`` in pixels.
      boxes: Boxes ``xyxy`` in pixels; without any, all anchors are negative.
      valid: True for rows of ``boxes`` that are boxes, false for padding.
      positive: IoU from which an anchor is positive.
      negative: IoU below which an anchor is negative.
      force: If true, boxes claim their best anchors.

    Raises:
      ValueError: ``negative`` is greater than ``positive``.
    """
    if negative > positive:
        raise ValueError(
            f"match_max_iou: negative {negative} is greater than positive {positive}; an anchor "
            "between them would be both"
        )
    if len(boxes) == 0 or len(anchors) == 0:
        nothing = jnp.zeros(len(anchors), jnp.int32)
        return Matches(index=nothing, label=nothing)
    overlaps = jnp.where(valid[:, None], box_ops.iou(boxes, anchors), -1)
    best, index = _best_box(overlaps)
    reached = best + box_ops.TIE
    label = jnp.where(reached >= positive, 1, jnp.where(reached < negative, 0, -1))
    if force:
        claimed, box = _claims(overlaps), jnp.arange(len(boxes), dtype=index.dtype)
        index = index.at[claimed].set(box, mode="drop")
        label = label.at[claimed].set(1, mode="drop")
    return Matches(index=index.astype(jnp.int32), label=label.astype(jnp.int32))


def _best_box(overlaps: Float[Array, "m a"]) -> tuple[Float[Array, " a"], Int[Array, " a"]]:
    """Returns each anchor's largest overlap (-1 or more), and the first box that attains it."""
    boxes, anchors = overlaps.shape

    # One whole row at a time: on a CPU five times faster than argmax over the leading axis.
    largest = lambda box, best: jnp.maximum(best, overlaps[box])
    best = jax.lax.fori_loop(0, boxes, largest, jnp.full(anchors, -1.0, overlaps.dtype))

    def first(turn: int | Int[Array, ""], index: Int[Array, " a"]) -> Int[Array, " a"]:
        box = boxes - 1 - turn
        return jnp.where(overlaps[box] >= best - box_ops.TIE, box, index)

    return best, jax.lax.fori_loop(0, boxes, first, jnp.zeros(anchors, jnp.int32))


def _claims(overlaps: Float[Array, "m a"]) -> Int[Array, " m"]:
    """Returns the anchor that each box is forced to, each a different one; ``a`` for none."""
    boxes, anchors = overlaps.shape
    # `top_k` and `argmax` are no faster, and XLA runs `top_k` on all images of all devices.
    bid = overlaps.max(1)
    equal = overlaps >= bid[:, None] - box_ops.TIE
    anchor = anchors - jnp.where(equal, anchors - jnp.arange(anchors), 0).max(1)
    same = anchor == anchor[:, None]
    highest = jnp.where(same, bid, -1).max(1)
    among = bid >= highest - box_ops.TIE
    number = jnp.arange(boxes)
    won = among & ~(same & among & (number < number[:, None])).any(1)
    return jnp.where((bid > box_ops.TIE) & won, anchor, anchors)
