"""ConvNeXt: stages of depthwise 7x7 convolutions and dense layers at each pixel."""

import functools
import math
from typing import Annotated, Literal

from fpnlab.nn.block import Block, BranchScale
from fpnlab.nn.conv_norm import ConvNorm, Kernel
from fpnlab.nn.layout import Downsample, Layout, Repeat, check_stages, drop_rates
from fpnlab.nn.norm_specs import Norm
from fpnlab.spec import Bounds, Fraction, spec


@spec
class ConvNeXt:
    """A ConvNeXt of any depth and width (arXiv:2201.03545), with any norm, or its plain twin.

    As published, `norm` is a layer norm over channels with an eps of 1e-6, and the classifier has a
    `pooled_norm`. In a detector the maps of the levels are as they leave the last block, unless
    `output_norm` is set.
    """

    kind: Literal["convnext"] = "convnext"
    depths: Annotated[tuple[int, ...], Bounds(least=1.0, most=10_000.0)]
    """Blocks in each stage."""
    widths: Annotated[tuple[int, ...], Bounds(least=1.0, most=1e5)]
    """Channels of each stage."""
    patch: Literal[1, 2, 4] = 4
    """Size and stride of the stem's convolution, pixels."""
    norm: Norm
    """After the depthwise convolution of each block, and elsewhere unless overridden below."""
    stem_norm: Norm | None = None
    """After the convolution of the stem; none: `norm`."""
    downsample_norm: Norm | None = None
    """Before the 2x2 convolution between two stages; none: `norm`."""
    output_norm: Norm | None = None
    """Of the map of each level that is used; none: no norm."""
    skip: bool = True
    """If false, the plain twin of the network: the same layers with the same initial kernels,
    without shortcuts, branch scales and stochastic depth."""
    branch_scale: BranchScale | None = None
    """Initial scale of the residual branches; none: `layer_scale`."""
    layer_scale: float = 1e-6
    """Initial value of the scales of `layer_scale`."""
    kernel: Kernel = "free"
    """Parametrization of all convolution kernels."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Stochastic depth: share of dropped branches in the last block, rising from 0 at the first."""
    repeat: Repeat = "unrolled"
    """Compilation of equal consecutive blocks: `unrolled`, or `scanned` as one loop."""
    rematerialize: bool = False
    """If true, the backward pass computes the inside of each block again instead of storing it."""
    frozen_stages: Annotated[int | None, Bounds(least=0.0, most=16.0)] = None
    """Stages that are not trained: 0: the stem, k: the stem and the first k stages; none: all are
    trained."""
    frozen_statistics: bool = True
    """If true, the batch norms of frozen stages use their running statistics, and keep them."""

    def __post_init__(self) -> None:
        check_stages("ConvNeXt", self.depths, self.widths, self.frozen_stages)
        _layout(self)  # Its blocks check how their fields fit together.

    @property
    def layout(self) -> Layout:
        """The layers in order."""
        return _layout(self)

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position: ``stem``, ``branch``, ``downsample``, ``final``."""
        found = {"stem": self.stem_norm or self.norm, "branch": self.norm}
        if len(self.depths) > 1:
            found["downsample"] = self.downsample_norm or self.norm
        if self.output_norm is not None:
            found["final"] = self.output_norm
        return found

    @property
    def first_level(self) -> int:
        """Level of the first stage: the stem's stride is ``2**first_level``."""
        return int(math.log2(self.patch))

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level's map."""
        return self.layout.channels


@functools.lru_cache(maxsize=256)
def _layout(net: ConvNeXt) -> Layout:
    patches = functools.partial(ConvNorm, kernel=net.kernel, bias=True, deviation=0.02)
    rates, stages, downsamples = drop_rates(net.drop_path, net.depths), {}, {}
    for i, (depth, width) in enumerate(zip(net.depths, net.widths)):
        level = net.first_level + i
        if i > 0:
            conv = patches(size=2, stride=2, inputs=net.widths[i - 1], outputs=width, norm=None)
            downsamples[level] = Downsample(norm=net.downsample_norm or net.norm, conv=conv)
        stages[level] = tuple(
            Block(
                kind="convnext",
                inputs=width,
                width=width,
                stride=1,
                norm=net.norm,
                last_norm=net.norm,
                shortcut_norm=None,
                skip=net.skip,
                branch_scale=net.branch_scale,
                layer_scale=net.layer_scale,
                kernel=net.kernel,
                drop_path=next(rates),
            )
            for _ in range(depth)
        )
    size = net.patch
    norm = net.stem_norm or net.norm
    stem = patches(size=size, stride=size, inputs=3, outputs=net.widths[0], norm=norm)
    return Layout(
        stem=(stem,),
        stem_activation=False,
        stages=stages,
        downsamples=downsamples,
        output_norm=net.output_norm,
        output_activation=False,
        repeat=net.repeat,
        rematerialize=net.rematerialize,
        frozen_stages=net.frozen_stages,
        frozen_statistics=net.frozen_statistics,
    )
