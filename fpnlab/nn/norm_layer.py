"""Norms as organs: which norm (a spec), its affine parameters, its running statistics."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.ops import norm as ops
from fpnlab.ops.moments import merge_moments
from fpnlab.spec import Bounds, Count, Fraction, NonNegative, Positive, spec
from fpnlab.types import Mode, Moments, tree

T = TypeVar("T")

Kernel = Literal["free", "standardized", "scaled"]


@spec
class Renorm:
    """How far batch statistics may differ from running ones (arXiv:1702.03275, section 3).

    The defaults are the paper's, in examples: its batches had 32 images.
    """

    r_max: Annotated[float, Bounds(least=1.0)] = 3.0
    """Largest factor between batch and running deviation; it rises from 1."""
    d_max: Annotated[float, NonNegative] = 5.0
    """Largest shift, in running deviations; it rises from 0."""
    start: Annotated[int, NonNegative] = 160_000
    """Examples of plain batch norm before either rises."""
    r_full: int = 1_280_000
    """Examples at which `r_max` is reached."""
    d_full: int = 800_000
    """Examples at which `d_max` is reached."""

    def __post_init__(self):
        if not self.start < min(self.r_full, self.d_full):
            raise ValueError(f"start is {self.start}; it must be before r_full and d_full")


@spec
class BatchNorm:
    """Statistics over n, h, w of the batch (arXiv:1502.03167)."""

    kind: Literal["batch_norm"] = "batch_norm"
    norm_batch: Annotated[int | None, Count] = None
    """Images in a statistics group, whatever the batch or the devices; none: the batch."""
    decay: Annotated[float, Fraction] = 0.9
    """Share of the old running value that is kept per step at `reference_batch`.

    A step of b images keeps ``decay ** (b / reference_batch)``, so that all batch sizes
    average over the same number of images. At b = reference_batch it is Flax's `momentum`, and
    one minus PyTorch's.
    """
    reference_batch: Annotated[int, Count] = 32
    """Images in the step to which `decay` refers."""
    unbiased: bool = False
    """Whether the running variance is the unbiased one (PyTorch) or the biased one (Flax)."""
    renorm: Renorm | None = None
    """Batch renormalization: training moved towards the running statistics; none: plain."""
    axis_name: str | None = None
    """Mapped axis (vmap, shard_map) over which the batch spans; none: the images at hand."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized (arXiv:1903.10520) or scaled (arXiv:2101.08692)."""


@spec
class FrozenBatchNorm:
    """Collected statistics that never change: an affine map a channel; made by `freeze`."""

    kind: Literal["frozen_batch_norm"] = "frozen_batch_norm"
    affine: bool = False
    """Whether scale and bias go on learning."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class LayerNorm:
    """Statistics of each image alone (arXiv:1607.06450)."""

    kind: Literal["layer_norm"] = "layer_norm"
    axes: Literal["hwc", "c"]
    """`hwc`: all units of the layer, the paper's definition; `c`: the channels at each pixel."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class GroupNorm:
    """Statistics over space and a group of channels of each image (arXiv:1803.08494)."""

    kind: Literal["group_norm"] = "group_norm"
    groups: Annotated[int | None, Count] = None
    """Groups of channels; none: by `group_channels`, or else chosen for each width it meets."""
    group_channels: Annotated[int | None, Count] = None
    """Channels in a group; none: by `groups`."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""

    def __post_init__(self):
        if self.groups is not None and self.group_channels is not None:
            raise ValueError("groups and group_channels are both given; give one")

    def groups_of(self, channels: int) -> int:
        """Returns the groups of a map of so many channels.

        Left open, they are the most up to 32 (the paper's number) that divide the channels
        into groups of two or more, because a group of one channel is instance norm.

        Raises:
          ValueError: the channels do not split as asked.
        """
        if self.groups is not None:
            ops.check_groups(channels, self.groups)
            return self.groups
        if self.group_channels is not None:
            if channels % self.group_channels:
                fits = [g for g in range(1, channels + 1) if channels % g == 0]
                raise ValueError(
                    f"group norm: {channels} channels do not split into groups of "
                    f"{self.group_channels} channels; these do: {', '.join(map(str, fits))}"
                )
            return channels // self.group_channels
        return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 2 * g))


@spec
class InstanceNorm:
    """Statistics over space of each channel of each image (arXiv:1607.08022)."""

    kind: Literal["instance_norm"] = "instance_norm"
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class RmsNorm:
    """The mean square of each image, without centring or shift (arXiv:1910.07467)."""

    kind: Literal["rms_norm"] = "rms_norm"
    axes: Literal["hwc", "c"]
    """As of the layer norm."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the mean square."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class FilterResponseNorm:
    """The mean square of each channel, and a learnt threshold for rectifier (arXiv:1911.09737)."""

    kind: Literal["filter_response_norm"] = "filter_response_norm"
    eps: Annotated[float, Positive] = 1e-6
    """Added to the mean square."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class DynamicTanh:
    """A tanh of learnt width in place of statistics (arXiv:2503.10622)."""

    kind: Literal["dynamic_tanh"] = "dynamic_tanh"
    alpha: float = 0.5
    """First value of the factor inside the tanh."""
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


@spec
class NoNorm:
    """No statistics: a bias a channel, and a scale where a branch must start at zero.

    With that scale it is SkipInit (arXiv:2002.10444, section 3.1), one number a channel.
    """

    kind: Literal["none"] = "none"
    kernel: Kernel = "free"
    """The kernel before it: free, standardized or scaled."""


Norm = (
    BatchNorm
    | FrozenBatchNorm
    | LayerNorm
    | GroupNorm
    | InstanceNorm
    | RmsNorm
    | FilterResponseNorm
    | DynamicTanh
    | NoNorm
)


@tree
class NormParams:
    """What training learns of a norm; None for what it does not have."""

    scale: Float[Array, "*l c"] | None
    """gamma; None for a `NoNorm` that has none."""
    bias: Float[Array, "*l c"] | None
    """beta; None for an `RmsNorm`."""
    threshold: Float[Array, "*l c"] | None = None
    """tau of a `FilterResponseNorm`."""
    alpha: Float[Array, "*l"] | None = None
    """alpha of a `DynamicTanh`."""


@tree
class NormState:
    """Running statistics of a batch norm; with a leading level axis where levels share it."""

    mean: Float[Array, "*l c"]
    """Running mean."""
    var: Float[Array, "*l c"]
    """Running variance."""
    count: Float[Array, "*l"]
    """Values per channel in one statistics group of the last update, or, of moments, in all; 0
    before the first."""
    seen: Float[Array, "*l"]
    """Images taken in by all updates; 0 for statistics that nobody collected."""


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
      norm: which one.
      channels: width of the maps.
      scale: first value of gamma; 0 at the end of a residual branch.
      affine_levels: pyramid levels that have parameters of their own; None: one set.
      state_levels: pyramid levels that have statistics of their own; None: one set.

    Raises:
      ValueError: the channels do not split into the groups of a `GroupNorm`, or the norm is a
        `FrozenBatchNorm`, which has no statistics to begin with.
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
    """Returns the normalized maps and the new state (that of a stateless norm is None).

    Args:
      norm: which one.
      params: its parameters.
      state: its running statistics.
      x: maps of a batch.
      mode: the source of a batch norm's statistics, and whether they are updated.
      mask: pixels that enter statistics; None for all of them.

    Raises:
      ValueError: a batch norm over one value per channel, or groups that do not divide.
    """
    p: Any = params  # Which of its fields are None is the norm's affair.
    scale, bias = p.scale, p.bias
    match norm:
        case BatchNorm():
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
    """Returns the rectified map after a norm; a `FilterResponseNorm` has rectified it already."""
    return x if isinstance(norm, FilterResponseNorm) else jax.nn.relu(x)


def at_level(container: T, level: int | None) -> T:
    """Returns one level's slice of parameters or state; all of it where ``level`` is None."""
    return container if level is None else jax.tree.map(lambda leaf: leaf[level], container)


def put_level(container: T, part: T, level: int | None) -> T:
    """Returns ``container`` with one level's slice replaced; ``part`` where ``level`` is None."""
    if level is None:
        return part
    return jax.tree.map(lambda leaf, new: leaf.at[level].set(new), container, part)


def freeze(spec: T, state: Any) -> T:
    """Returns ``spec`` with every batch norm frozen over the statistics in ``state``.

    Use it with the parameters and the state at hand.

    Raises:
      ValueError: statistics that nobody collected or loaded.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_state)
    empty = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in paths
        if _is_state(leaf) and not (leaf.seen > 0).all()
    ]
    if empty:
        raise ValueError(
            f"freeze: the statistics of {len(empty)} norms were never collected or loaded, e.g. of "
            f"{empty[0]}; train, load, or compute population statistics first"
        )
    return replace_batch_norms(spec, lambda norm: FrozenBatchNorm(eps=norm.eps, kernel=norm.kernel))


def replace_batch_norms(spec: Any, change: Callable[[BatchNorm], Any]) -> Any:
    """Returns ``spec`` with ``change`` applied to every batch norm anywhere in it."""
    if isinstance(spec, BatchNorm):
        return change(spec)
    if dataclasses.is_dataclass(spec):
        fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        return dataclasses.replace(
            spec, **{name: replace_batch_norms(part, change) for name, part in fields.items()}
        )
    return spec


def grouped(spec: T, norm_batch: int) -> T:
    """Returns ``spec`` with every batch norm over groups of ``norm_batch`` images, where unset.

    So that in a pass of any number of images a network has the statistics groups of its training.
    """
    return replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, norm_batch=norm.norm_batch or norm_batch)
    )


def _is_state(node):
    return isinstance(node, NormState)


def _apply_batch_norm(norm, params, state, x, mode, mask):
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
        return y, _with_moments(state, batch, images)
    # A batch without a single valid pixel teaches nothing.
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


def _with_moments(state, batch, images):
    """Returns the state as the moments of all values so far, those of a batch merged in."""
    both = jax.tree.map(
        lambda *parts: jnp.stack(parts),
        Moments(count=state.count, mean=state.mean, var=state.var),
        batch,
    )
    whole = merge_moments(both)
    seen = state.seen + images
    after = NormState(mean=whole.mean, var=whole.var, count=whole.count, seen=seen)
    return _as_before(state, after)


def _as_before(state, after):
    """Returns ``after`` in the dtypes of ``state``, whatever the map's: steps can be scanned."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), after, state)


def _renorm_limits(renorm, seen):
    """Returns r_max and d_max after so many examples."""
    share = lambda full: jnp.clip((seen - renorm.start) / (full - renorm.start), 0, 1)
    return {
        "r_max": 1 + (renorm.r_max - 1) * share(renorm.r_full),
        "d_max": renorm.d_max * share(renorm.d_full),
    }
