"""Normalization layers: parameters, running statistics, and their application by spec."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fpnlab.nn.norm_specs import (
    BatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoNorm,
    Norm,
    Renorm,
    RmsNorm,
)
from fpnlab.ops import norm as ops
from fpnlab.ops.moments import merge_moments
from fpnlab.types import Mode, Moments, tree

T = TypeVar("T")


@tree
class NormParams:
    """Learned parameters of a norm; None for parameters that it does not have."""

    scale: Float[Array, "*l c"] | None
    """gamma; None for a `NoNorm` without one."""
    bias: Float[Array, "*l c"] | None
    """beta; None for an `RmsNorm`."""
    threshold: Float[Array, "*l c"] | None = None
    """tau of a `FilterResponseNorm`."""
    alpha: Float[Array, "*l"] | None = None
    """alpha of a `DynamicTanh`."""


@tree
class NormState:
    """Running statistics of a batch norm, with a leading axis for the levels of a pyramid."""

    mean: Float[Array, "*l c"]
    """Running mean."""
    var: Float[Array, "*l c"]
    """Running variance."""
    count: Float[Array, "*l"]
    """Values per channel in one statistics group of the last update, or, for merged moments, in all
    of them; 0 before the first update."""
    seen: Float[Array, "*l"]
    """Images in all updates so far; 0 for statistics that were never collected."""


def init_norm(
    norm: Norm,
    channels: int,
    *,
    scale: float = 1.0,
    affine_levels: int | None = None,
    state_levels: int | None = None,
) -> tuple[NormParams, NormState | None]:
    """Returns the parameters and, for a batch norm, running mean 0 and variance 1.

    Args:
      norm: The norm.
      channels: Channels of the maps.
      scale: Initial value of gamma; 0 at the end of a residual branch.
      affine_levels: Number of pyramid levels with separate parameters; None for a single set.
      state_levels: Number of pyramid levels with separate statistics; None for a single set.

    Raises:
      ValueError: The channels do not split into the groups of a `GroupNorm`, or the norm is a
        `FrozenBatchNorm`, which has no initial statistics.
    """
    if isinstance(norm, FrozenBatchNorm):
        raise ValueError(
            "frozen batch norm: there are no statistics to freeze in a fresh network; train one "
            "with batch_norm or load one, and then use freeze(spec, state)"
        )
    if isinstance(norm, GroupNorm):
        norm.groups_of(channels)
    lead = () if affine_levels is None else (affine_levels,)
    full = lambda value: jnp.full((*lead, channels), value, jnp.float32)
    has_scale = not isinstance(norm, NoNorm) or scale != 1.0
    params = NormParams(
        scale=full(scale) if has_scale else None,
        bias=None if isinstance(norm, RmsNorm) else full(0),
        threshold=full(0) if isinstance(norm, FilterResponseNorm) else None,
        alpha=jnp.full(lead, norm.alpha, jnp.float32) if isinstance(norm, DynamicTanh) else None,
    )
    if not isinstance(norm, BatchNorm):
        return params, None
    lead = () if state_levels is None else (state_levels,)
    return params, NormState(
        mean=jnp.zeros((*lead, channels), jnp.float32),
        var=jnp.ones((*lead, channels), jnp.float32),
        count=jnp.zeros(lead, jnp.float32),
        seen=jnp.zeros(lead, jnp.float32),
    )


def apply_norm(
    norm: Norm,
    params: NormParams,
    state: NormState | None,
    x: Float[Array, "b *space c"],
    mode: Mode,
    *,
    mask: Bool[Array, "b *space"] | None = None,
) -> tuple[Float[Array, "b *space c"], NormState | None]:
    """Returns the normalized maps and the new state (None for a stateless norm).

    Args:
      norm: The norm.
      params: Its parameters.
      state: Its running statistics; None for a stateless norm.
      x: Maps of a batch.
      mode: Source of a batch norm's statistics, and whether they are updated.
      mask: Pixels that enter statistics; None for all of them.

    Raises:
      ValueError: A batch norm over one value per channel, or groups that do not divide.
    """
    p: PyTree = params  # Each norm knows which of its fields are None.
    scale, bias = p.scale, p.bias
    match norm:
        case BatchNorm():
            assert state is not None
            return _apply_batch_norm(norm, params, state, x, mode, mask)
        case FrozenBatchNorm():
            assert state is not None
            hold = (lambda leaf: leaf) if norm.affine else jax.lax.stop_gradient
            mean, var = state.mean, state.var
            return ops.batch_norm_eval(x, mean, var, hold(scale), hold(bias), eps=norm.eps), state
        case LayerNorm():
            y = ops.layer_norm(x, scale, bias, axes=norm.axes, eps=norm.eps, mask=mask)
        case GroupNorm():
            groups = norm.groups_of(x.shape[-1])
            y = ops.group_norm(x, scale, bias, groups=groups, eps=norm.eps, mask=mask)
        case InstanceNorm():
            y = ops.instance_norm(x, scale, bias, eps=norm.eps, mask=mask)
        case RmsNorm():
            y = ops.rms_norm(x, scale, axes=norm.axes, eps=norm.eps, mask=mask)
        case FilterResponseNorm():
            y = ops.filter_response_norm(x, scale, bias, p.threshold, eps=norm.eps, mask=mask)
        case DynamicTanh():
            y = ops.dynamic_tanh(x, p.alpha, scale, bias)
        case NoNorm():
            y = ops.affine(x, scale, bias)
    return y, state


def activate(norm: Norm, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
    """Returns the ReLU after a norm; a `FilterResponseNorm` contains its own threshold."""
    return x if isinstance(norm, FilterResponseNorm) else jax.nn.relu(x)


def at_level(container: T, level: int | None) -> T:
    """Returns one level's slice of parameters or state; all of it if ``level`` is None."""
    return container if level is None else jax.tree.map(lambda leaf: leaf[level], container)


def put_level(container: T, part: T, level: int | None) -> T:
    """Returns ``container`` with one level's slice replaced; ``part`` if ``level`` is None."""
    if level is None:
        return part
    return jax.tree.map(lambda leaf, new: leaf.at[level].set(new), container, part)


def _apply_batch_norm(
    norm: BatchNorm,
    params: NormParams,
    state: NormState,
    x: Float[Array, "b *space c"],
    mode: Mode,
    mask: Bool[Array, "b *space"] | None,
) -> tuple[Float[Array, "b *space c"], NormState]:
    assert params.scale is not None
    assert params.bias is not None
    affine = (params.scale, params.bias)
    evaluated = lambda: ops.batch_norm_eval(x, state.mean, state.var, *affine, eps=norm.eps)
    if mode.stats == "running" and mode.update == "none":
        return evaluated(), state
    group = {"norm_batch": norm.norm_batch, "mask": mask, "axis_name": norm.axis_name}
    if norm.renorm and mode.update == "running":
        limits = _renorm_limits(norm.renorm, state.seen)
        y, batch = ops.batch_renorm_train(
            x, state.mean, state.var, *affine, eps=norm.eps, **limits, **group
        )
    else:
        y, batch = ops.batch_norm_train(x, *affine, eps=norm.eps, **group)
    if mode.stats == "running":
        y = evaluated()
    if mode.update == "none":
        return y, state
    images = x.shape[0] * (jax.lax.axis_size(norm.axis_name) if norm.axis_name else 1)
    if mode.update == "moments":
        return y, _with_moments(state, batch, jnp.asarray(state.seen) + images)
    # A batch without a single valid pixel has no statistics: keep the running ones.
    keep = jnp.where(batch.count > 0, norm.decay ** (images / norm.reference_batch), 1.0)
    var = batch.var
    if norm.unbiased:
        var = var * (batch.count / jnp.maximum(batch.count - 1, 1))
    after = NormState(
        mean=keep * state.mean + (1 - keep) * batch.mean,
        var=keep * state.var + (1 - keep) * var,
        count=batch.count * (norm.norm_batch or images) / images,
        seen=state.seen + images,
    )
    return y, _as_before(state, after)


def _with_moments(state: NormState, batch: Moments, seen: Array) -> NormState:
    """Returns the state with the moments of a batch merged into those of all values so far."""
    both = jax.tree.map(
        lambda *parts: jnp.stack(parts),
        Moments(count=state.count, mean=state.mean, var=state.var),
        batch,
    )
    whole = merge_moments(both)
    after = NormState(mean=whole.mean, var=whole.var, count=whole.count, seen=seen)
    return _as_before(state, after)


def _as_before(state: NormState, after: NormState) -> NormState:
    """Returns ``after`` in the dtypes of ``state`` for any dtype of the map, as scans need."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), after, state)


def _renorm_limits(renorm: Renorm, seen: Array | np.ndarray | float) -> dict[str, Array]:
    """Returns r_max and d_max after ``seen`` examples."""
    share = lambda full: jnp.clip((seen - renorm.start) / (full - renorm.start), 0, 1)
    return {
        "r_max": 1 + (renorm.r_max - 1) * share(renorm.r_full),
        "d_max": renorm.d_max * share(renorm.d_full),
    }
