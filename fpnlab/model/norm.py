"""Norms as organs: which norm (a spec), its affine parameters, its running statistics."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.ops import norm as ops
from fpnlab.types import Mode, spec, tree


@spec
class BatchNorm:
    """Statistics over n, h, w of the batch (arXiv:1502.03167)."""

    kind: Literal["batch_norm"] = "batch_norm"
    norm_batch: int | None = None
    """Images in a statistics group, whatever the batch or the devices; none: the batch."""
    decay: float = 0.9
    """Share of the old running value that is kept per step at `reference_batch`.

    A step of b images keeps ``decay ** (b / reference_batch)``, so that all batch sizes
    average over the same number of images. At b = reference_batch it is Flax's `momentum`, and
    one minus PyTorch's.
    """
    reference_batch: int = 32
    """Images in the step to which `decay` refers."""
    unbiased: bool = False
    """Whether the running variance is the unbiased one (PyTorch) or the biased one (Flax)."""
    eps: float = 1e-5
    """Added to the variance."""

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 and below 1")
        if self.norm_batch is not None and self.norm_batch < 1:
            raise ValueError(f"norm_batch is {self.norm_batch}; it must be 1 or more, or absent")


@spec
class LayerNorm:
    """Statistics of each image alone (arXiv:1607.06450)."""

    kind: Literal["layer_norm"] = "layer_norm"
    axes: Literal["hwc", "c"]
    """`hwc`: all units of the layer, the paper's definition; `c`: the channels at each pixel."""
    eps: float = 1e-5
    """Added to the variance."""


@spec
class GroupNorm:
    """Statistics over space and a group of channels of each image (arXiv:1803.08494)."""

    kind: Literal["group_norm"] = "group_norm"
    groups: int
    """Groups of channels; must divide every width it meets."""
    eps: float = 1e-5
    """Added to the variance."""


@spec
class NoNorm:
    """No statistics: a bias a channel, and a scale where a branch must start at zero."""

    kind: Literal["none"] = "none"


Norm = BatchNorm | LayerNorm | GroupNorm | NoNorm


@tree
class NormParams:
    """The affine map after the normalization."""

    scale: Float[Array, " c"] | None
    """gamma; None for a `NoNorm` that has none."""
    bias: Float[Array, " c"]
    """beta."""


@tree
class NormState:
    """Running statistics of a batch norm; with a leading level axis where levels share it."""

    mean: Float[Array, "*l c"]
    """Running mean."""
    var: Float[Array, "*l c"]
    """Running variance."""
    count: Float[Array, "*l"]
    """Values per channel in one statistics group of the last update; 0 before the first."""


def init_norm(
    norm: Norm, channels: int, *, scale: float = 1.0, levels: int | None = None
) -> tuple[NormParams, NormState | None]:
    """Returns the affine parameters and, for a batch norm, running mean 0 and variance 1.

    Args:
      norm: which one.
      channels: width of the maps.
      scale: first value of gamma; 0 at the end of a residual branch.
      levels: number of pyramid levels that share the norm; each keeps its own statistics.

    Raises:
      ValueError: the channels do not split into the groups of a `GroupNorm`.
    """
    if isinstance(norm, GroupNorm):
        ops.check_groups(channels, norm.groups)
    has_scale = not isinstance(norm, NoNorm) or scale != 1.0
    params = NormParams(
        scale=jnp.full((channels,), scale, jnp.float32) if has_scale else None,
        bias=jnp.zeros((channels,)),
    )
    if not isinstance(norm, BatchNorm):
        return params, None
    lead = () if levels is None else (levels,)
    return params, NormState(
        mean=jnp.zeros((*lead, channels)), var=jnp.ones((*lead, channels)), count=jnp.zeros(lead)
    )


def apply_norm(
    norm: Norm,
    params: NormParams,
    state: NormState | None,
    x: Float[Array, "b h w c"],
    mode: Mode,
    *,
    level: int | None = None,
) -> tuple[Float[Array, "b h w c"], NormState | None]:
    """Returns the normalized maps and the new state (that of a stateless norm is None).

    Args:
      norm: which one.
      params: its affine parameters.
      state: its running statistics.
      x: maps of a batch.
      mode: the source of a batch norm's statistics, and whether they are updated.
      level: position on the level axis of ``state``, where several levels share the norm.

    Raises:
      ValueError: a batch norm over one value per channel, or groups that do not divide.
    """
    scale, bias = params.scale, params.bias
    if isinstance(norm, NoNorm):
        y = x if scale is None else x * scale.astype(x.dtype)
        return y + bias.astype(x.dtype), state
    assert scale is not None
    match norm:
        case BatchNorm():
            assert state is not None
            return _apply_batch_norm(norm, params, state, x, mode, level)
        case LayerNorm():
            return ops.layer_norm(x, scale, bias, axes=norm.axes, eps=norm.eps), state
        case GroupNorm():
            return ops.group_norm(x, scale, bias, groups=norm.groups, eps=norm.eps), state


def _apply_batch_norm(norm, params, state, x, mode, level):
    at = ... if level is None else level
    affine = (params.scale, params.bias)
    if mode.stats == "running" and not mode.update:
        y = ops.batch_norm_eval(x, state.mean[at], state.var[at], *affine, eps=norm.eps)
        return y, state
    y, batch = ops.batch_norm_train(x, *affine, eps=norm.eps, norm_batch=norm.norm_batch)
    if mode.stats == "running":
        y = ops.batch_norm_eval(x, state.mean[at], state.var[at], *affine, eps=norm.eps)
    if not mode.update:
        return y, state
    keep = norm.decay ** (x.shape[0] / norm.reference_batch)
    var = batch.var * (batch.count / (batch.count - 1)) if norm.unbiased else batch.var
    group = batch.count * (norm.norm_batch or x.shape[0]) / x.shape[0]
    return y, dataclasses.replace(
        state,
        mean=state.mean.at[at].set(keep * state.mean[at] + (1 - keep) * batch.mean),
        var=state.var.at[at].set(keep * state.var[at] + (1 - keep) * var),
        count=state.count.at[at].set(group),
    )
