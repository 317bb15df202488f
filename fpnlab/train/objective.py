"""Loss functions of detectors and classifiers."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fpnlab.nn.retina_head import HeadOutput
from fpnlab.ops import boxes as box_ops
from fpnlab.ops.losses import giou_loss, sigmoid_focal_loss, smooth_l1
from fpnlab.ops.match import match_max_iou
from fpnlab.spec import Fraction, Inside, NonNegative, Positive, Share, spec
from fpnlab.types import Batch, LabeledBatch


@spec
class CrossEntropy:
    """Cross-entropy of a classifier's classes."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Fraction] = 0.0
    """Share of every target spread evenly over all classes (arXiv:1512.00567, section 7)."""


@spec
class Objective:
    """Focal loss for classes plus a loss for boxes (arXiv:1708.02002, section 4)."""

    kind: Literal["detection"] = "detection"
    positive_iou: Annotated[float, Share] = 0.5
    """IoU with a box from which an anchor is positive, i.e. trained to predict it."""
    negative_iou: Annotated[float, Share] = 0.4
    """IoU below which an anchor is background; anchors in between are ignored."""
    focal_alpha: Annotated[float, Inside] = 0.25
    """Weight of positives against negatives."""
    focal_gamma: Annotated[float, NonNegative] = 2.0
    """Exponent that discounts well-classified anchors."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """Loss of positive anchors' boxes: on offsets, or on overlap (arXiv:1902.09630)."""
    smooth_l1_beta: Annotated[float, Positive] = 0.11
    """Offset at which smooth L1 turns from quadratic to linear."""
    box_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the box loss against the class loss."""

    def __post_init__(self) -> None:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou is {self.negative_iou} and positive_iou {self.positive_iou}; "
                "the negative one must not be above the positive"
            )


def detection_loss(
    objective: Objective,
    output: HeadOutput,
    anchors: Float[Array | np.ndarray, "a 4"],
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of a batch, and the logs ``loss``, ``loss_class``, ``loss_box``, ``count``.

    Losses are sums divided by ``count``, the number of positive anchors in the batch (at least 1).
    Anchors with their center in the padding around a picture are ignored.

    Args:
      objective: Thresholds and weights.
      output: Logits and deltas, one row per anchor.
      anchors: ``xyxy`` in pixels.
      batch: Images with their boxes.
    """
    match = jax.vmap(
        lambda boxes, valid: match_max_iou(
            anchors,
            boxes,
            valid,
            positive=objective.positive_iou,
            negative=objective.negative_iou,
        )
    )(batch.boxes, batch.valid)
    center_yx = 0.5 * (anchors[:, [1, 0]] + anchors[:, [3, 2]])
    inside = (center_yx < batch.extent[:, None]).all(-1)
    positive = (match.label == 1) & inside
    counted = (match.label >= 0) & inside
    total = jnp.maximum(positive.sum(), 1).astype(jnp.float32)

    cls = jnp.take_along_axis(batch.classes, match.index, 1)
    targets = positive[..., None] & (cls[..., None] == jnp.arange(output.logits.shape[-1]))
    focal = sigmoid_focal_loss(
        output.logits,
        targets.astype(jnp.float32),
        alpha=objective.focal_alpha,
        gamma=objective.focal_gamma,
    )
    loss_class = (focal * counted[..., None]).sum() / total

    boxes = jnp.take_along_axis(batch.boxes, match.index[..., None], 1)
    if objective.box_loss == "giou":
        wrong = giou_loss(box_ops.decode(output.deltas, anchors), boxes)
    else:
        error = output.deltas - box_ops.encode(boxes, anchors)
        wrong = smooth_l1(error, beta=objective.smooth_l1_beta).sum(-1)
    loss_box = jnp.where(positive, wrong, 0.0).sum() / total

    loss = loss_class + objective.box_weight * loss_box
    logs = {"loss": loss, "loss_class": loss_class, "loss_box": loss_box}
    return loss, {**logs, "count": positive.sum().astype(jnp.float32)}


def classification_loss(
    objective: CrossEntropy, logits: Float[Array, "b k"], batch: LabeledBatch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean cross-entropy in nats, and the logs ``loss``, ``accuracy`` and ``count``.

    Args:
      objective: Label smoothing.
      logits: One row per image.
      batch: Images with their labels: class indices or class probabilities. A prediction counts as
        correct if it is the most probable class.
    """
    targets = jnp.asarray(batch.labels)
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    right = (logits.argmax(-1) == targets.argmax(-1)).mean()
    targets = optax.losses.smooth_labels(targets, objective.label_smoothing)
    loss = optax.losses.softmax_cross_entropy(logits, targets).mean()
    return loss, {"loss": loss, "accuracy": right, "count": jnp.float32(len(logits))}
