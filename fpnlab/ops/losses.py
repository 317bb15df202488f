"""Element-wise losses of detectors; the caller masks, sums and normalizes them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.ops import boxes as box_ops


def sigmoid_focal_loss(
    logits: Float[Array, "*s"],
    targets: Float[Array, "*s"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*s"]:
    """Returns the focal loss of each logit, in nats.

    See "Focal Loss for Dense Object Detection", Lin et al. 2017, arXiv:1708.02002, eq. 5:
    ``-alpha_t (1 - p_t)**gamma log(p_t)``. With ``gamma`` 0 and ``alpha`` 0.5 it is half of the
    sigmoid cross-entropy. Both factors are written with ``softplus``, so that value and
    gradient stay finite and exact for logits of any size and for every ``gamma >= 0``.

    Args:
      logits: Scores before the sigmoid.
      targets: 1 where the class is present, else 0; no values in between.
      alpha: Weight of positive targets; negative ones have ``1 - alpha``.
      gamma: Focusing exponent that discounts well-classified targets.
    """
    margin = jnp.where(targets > 0, logits, -logits)  # p_t = sigmoid(margin)
    weight = jnp.where(targets > 0, alpha, 1 - alpha)
    return weight * jnp.exp(-gamma * jax.nn.softplus(margin)) * jax.nn.softplus(-margin)


def smooth_l1(error: Float[Array, "*s"], *, beta: float) -> Float[Array, "*s"]:
    """Returns ``error**2 / (2 beta)`` where ``|error| < beta``, and ``|error| - beta/2`` beyond.

    See "Fast R-CNN", Girshick 2015, arXiv:1504.08083, eq. 3, which has ``beta`` 1. It is the
    Huber loss divided by ``beta``: its slope in the linear part is 1 for every ``beta``.

    Raises:
      ValueError: ``beta`` is not positive.
    """
    if beta <= 0:
        raise ValueError(f"smooth_l1: beta must be positive, got {beta}; for plain L1 use jnp.abs")
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * error * error / beta, size - 0.5 * beta)


def giou_loss(
    boxes_xyxy: Float[Array, "*#b 4"], targets_xyxy: Float[Array, "*#b 4"]
) -> Float[Array, "*#b"]:
    """Returns one minus the generalized IoU of each pair, 0 to 2; see arXiv:1902.09630."""
    return 1 - box_ops.giou_pairs(boxes_xyxy, targets_xyxy)
