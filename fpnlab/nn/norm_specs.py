"""Specs of normalization layers; `Norm` is the union of all of them."""

from typing import Annotated, Literal

from fpnlab.ops import norm as ops
from fpnlab.spec import Bounds, Count, Fraction, NonNegative, Positive, spec


@spec
class Renorm:
    """Limits of the correction of batch renormalization (arXiv:1702.03275, section 3).

    The defaults are the paper's, in examples: its batches had 32 images.
    """

    r_max: Annotated[float, Bounds(least=1.0)] = 3.0
    """Largest factor between batch and running deviation; it rises from 1."""
    d_max: Annotated[float, NonNegative] = 5.0
    """Largest shift, in running deviations; it rises from 0."""
    start: Annotated[int, NonNegative] = 160_000
    """Examples of plain batch norm before both limits rise."""
    r_full: int = 1_280_000
    """Examples at which `r_max` is reached."""
    d_full: int = 800_000
    """Examples at which `d_max` is reached."""

    def __post_init__(self) -> None:
        if not self.start < min(self.r_full, self.d_full):
            raise ValueError(f"start is {self.start}; it must be before r_full and d_full")


@spec
class BatchNorm:
    """Statistics over n, h, w of the batch (arXiv:1502.03167)."""

    kind: Literal["batch_norm"] = "batch_norm"
    norm_batch: Annotated[int | None, Count] = None
    """Images in a statistics group, for any batch size and number of devices; none: the batch."""
    decay: Annotated[float, Fraction] = 0.9
    """Share of the old running value that is kept per step at `reference_batch`.

    A step of b images keeps ``decay ** (b / reference_batch)``, so that all batch sizes
    average over the same number of images. At b = reference_batch it equals Flax's `momentum`,
    and one minus PyTorch's.
    """
    reference_batch: Annotated[int, Count] = 32
    """Images in the step to which `decay` refers."""
    unbiased: bool = False
    """If true, the running variance is unbiased (PyTorch); if false, biased (Flax)."""
    renorm: Renorm | None = None
    """Batch renormalization: correction toward the running statistics; none: plain batch norm."""
    axis_name: str | None = None
    """Mapped axis (vmap, shard_map) over which the batch extends; none: only the local images."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""


@spec
class FrozenBatchNorm:
    """Batch norm with fixed statistics, an affine map per channel; created by `freeze`."""

    kind: Literal["frozen_batch_norm"] = "frozen_batch_norm"
    affine: bool = False
    """If true, scale and bias are still trained."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""


@spec
class LayerNorm:
    """Statistics of each image alone (arXiv:1607.06450)."""

    kind: Literal["layer_norm"] = "layer_norm"
    axes: Literal["hwc", "c"]
    """`hwc`: all units of the layer, the paper's definition; `c`: the channels at each pixel."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""


@spec
class GroupNorm:
    """Statistics over space and a group of channels of each image (arXiv:1803.08494)."""

    kind: Literal["group_norm"] = "group_norm"
    groups: Annotated[int | None, Count] = None
    """Groups of channels; none: by `group_channels`, or else chosen for each number of channels."""
    group_channels: Annotated[int | None, Count] = None
    """Channels in a group; none: by `groups`."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        if self.groups is not None and self.group_channels is not None:
            raise ValueError("groups and group_channels are both given; give one")

    def groups_of(self, channels: int) -> int:
        """Returns the number of groups for a map with ``channels`` channels.

        By default it is the largest number up to 32 (the paper's) that divides the channels into
        groups of two or more, because a group of one channel is instance norm.

        Raises:
          ValueError: The channels do not split into such groups.
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


@spec
class RmsNorm:
    """Division by the root mean square of each image, without centering (arXiv:1910.07467)."""

    kind: Literal["rms_norm"] = "rms_norm"
    axes: Literal["hwc", "c"]
    """As for `LayerNorm`."""
    eps: Annotated[float, Positive] = 1e-5
    """Added to the mean square."""


@spec
class FilterResponseNorm:
    """Mean square of each channel, and a learned threshold as activation (arXiv:1911.09737)."""

    kind: Literal["filter_response_norm"] = "filter_response_norm"
    eps: Annotated[float, Positive] = 1e-6
    """Added to the mean square."""


@spec
class DynamicTanh:
    """Tanh with a learned factor instead of statistics (arXiv:2503.10622)."""

    kind: Literal["dynamic_tanh"] = "dynamic_tanh"
    alpha: float = 0.5
    """Initial value of the factor inside the tanh."""


@spec
class NoNorm:
    """No statistics: a bias per channel, and a scale if a branch must start at zero.

    With that scale it is SkipInit (arXiv:2002.10444, section 3.1), with one number per channel.
    """

    kind: Literal["none"] = "none"


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
