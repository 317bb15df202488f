"""ResNet: a stem and stages of residual blocks, with one feature map per level."""

import functools
import itertools
import math
from typing import Annotated, Literal

from fpnlab.nn.block import Block, BranchScale, Shortcut
from fpnlab.nn.conv_norm import ConvNorm, Kernel
from fpnlab.nn.layout import Layout, Repeat, check_stages, drop_rates
from fpnlab.nn.norm_specs import Norm
from fpnlab.spec import Bounds, Count, Fraction, spec


@spec
class Stem:
    """The layers before the first block."""

    size: Annotated[int, Bounds(least=1.0, most=99.0)] = 7
    """Kernel size of each convolution, pixels; odd."""
    stride: Literal[1, 2, 4] = 2
    """Stride of the first convolution."""
    layers: Literal[1, 3] = 1
    """Convolutions; 3: all but the last have half as many channels (ResNet-C and ResNet-D,
    arXiv:1812.01187, figure 2b; with a size of 3)."""
    pool: bool = True
    """If true, a 3x3 max pooling of stride 2 follows."""

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size is {self.size}; it must be odd, so that the padding is even")


@spec
class ResNet:
    """A residual network of any depth and width (arXiv:1512.03385), or its plain twin."""

    kind: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"] = "basic"
    """Kind of residual block."""
    depths: Annotated[tuple[int, ...], Bounds(least=1.0, most=10_000.0)]
    """Blocks in each stage; every stage except the first halves the map."""
    widths: Annotated[tuple[int, ...], Bounds(least=1.0, most=1e5)]
    """Channels inside the blocks of each stage; a bottleneck's maps are four times wider."""
    stem: Stem = Stem()
    """The layers before the first block."""
    stem_width: Annotated[int | None, Count] = None
    """Channels of the stem; none: those of the first stage's `widths`."""
    preactivation: bool = False
    """If true, norm and ReLU precede each convolution of a block, and follow the last block
    (arXiv:1603.05027); the stem is a convolution alone."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a bottleneck with the stride: the 3x3 (PyTorch), or the first 1x1 (paper)."""
    groups: Annotated[int, Count] = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt, arXiv:1611.05431)."""
    width_per_group: Annotated[int, Count] = 64
    """Channels of each group for 64 of `widths`: the 3x3 convolution of a bottleneck has
    ``widths * groups * width_per_group / 64`` channels (as in PyTorch)."""
    norm: Norm
    """After each convolution, unless overridden below."""
    stem_norm: Norm | None = None
    """After each convolution of the stem; none: `norm`."""
    last_norm: Norm | None = None
    """The last norm of each residual branch; none: `norm`."""
    shortcut_norm: Norm | None = None
    """After the convolution of a shortcut; none: `norm`, and no norm with `preactivation`."""
    output_norm: Norm | None = None
    """After the last block of each level that is used, with `preactivation`; none: `norm`."""
    skip: bool = True
    """If false, the plain twin of the network: the same layers with the same initial kernels,
    without shortcuts, branch scales and stochastic depth."""
    shortcut: Shortcut = "projection"
    """Shortcut of the blocks: `pad` (option A), `projection` (B), `projection_all` (C), or
    `pooled_projection` (ResNet-D)."""
    branch_scale: BranchScale | None = None
    """Initial scale of residual branches; none: `one` with `preactivation`, else `zero_last`."""
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
        check_stages("ResNet", self.depths, self.widths, self.frozen_stages)
        if self.stem_norm is not None and self.preactivation:
            raise ValueError(
                "stem_norm is given, but the stem of a pre-activation network is a convolution "
                "alone; leave it out"
            )
        if self.output_norm is not None and not self.preactivation:
            raise ValueError(
                "output_norm is given, but only a pre-activation network has one; leave it out, or "
                "set preactivation = true"
            )
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                f"groups is {self.groups} and width_per_group {self.width_per_group}, but a basic "
                "block has neither; use block = 'bottleneck', or widths"
            )
        for width in self.widths:
            if width * self.groups * self.width_per_group % 64:
                raise ValueError(
                    f"widths has {width}: {width} * {self.groups} groups * {self.width_per_group} "
                    "/ 64 channels is not a whole number; change widths, groups or width_per_group"
                )
        _layout(self)  # Its blocks check how their fields fit together.

    @property
    def layout(self) -> Layout:
        """The layers in order."""
        return _layout(self)

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position.

        ``stem``, ``branch`` (all norms of a residual branch except the last), ``last`` and, where
        there are any, ``shortcut`` and ``final`` (after the last block).
        """
        found = {"branch": self.norm, "last": self.last_norm or self.norm}
        if not self.preactivation:
            found = {"stem": self.stem_norm or self.norm, **found}
        norm = self._shortcut_norm
        if norm is not None and any(block.projection for block in self.layout.blocks):
            found["shortcut"] = norm
        if self.preactivation:
            found["final"] = self.output_norm or self.norm
        return found

    @property
    def first_level(self) -> int:
        """Level of the first stage: the stem's stride is ``2**first_level``."""
        return int(math.log2(self.stem.stride)) + self.stem.pool

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level's map."""
        return self.layout.channels

    @property
    def _shortcut_norm(self) -> Norm | None:
        return self.shortcut_norm or (None if self.preactivation else self.norm)


@functools.lru_cache(maxsize=256)
def _layout(resnet: ResNet) -> Layout:
    stages, inputs = {}, resnet.stem_width or resnet.widths[0]
    rates = drop_rates(resnet.drop_path, resnet.depths)
    for i, (depth, width) in enumerate(zip(resnet.depths, resnet.widths)):
        blocks = []
        for j in range(depth):
            inner = width * resnet.groups * resnet.width_per_group // 64
            block = Block(
                kind=resnet.block,
                inputs=inputs,
                width=width,
                stride=2 if i > 0 and j == 0 else 1,
                norm=resnet.norm,
                last_norm=resnet.last_norm or resnet.norm,
                shortcut_norm=resnet._shortcut_norm,
                preactivation=resnet.preactivation,
                stride_in=resnet.stride_in,
                inner=None if inner == width else inner,
                groups=resnet.groups,
                skip=resnet.skip,
                shortcut=resnet.shortcut,
                branch_scale=resnet.branch_scale,
                layer_scale=resnet.layer_scale,
                kernel=resnet.kernel,
                drop_path=next(rates),
            )
            blocks.append(block)
            inputs = block.outputs
        stages[resnet.first_level + i] = tuple(blocks)
    return Layout(
        stem=_stem_layers(resnet),
        stem_activation=not resnet.preactivation,
        pool=resnet.stem.pool,
        stages=stages,
        output_norm=(resnet.output_norm or resnet.norm) if resnet.preactivation else None,
        repeat=resnet.repeat,
        rematerialize=resnet.rematerialize,
        frozen_stages=resnet.frozen_stages,
        frozen_statistics=resnet.frozen_statistics,
    )


def _stem_layers(resnet: ResNet) -> tuple[ConvNorm, ...]:
    stem, width = resnet.stem, resnet.stem_width or resnet.widths[0]
    norm = None if resnet.preactivation else resnet.stem_norm or resnet.norm
    widths = [3, *[max(width // 2, 1)] * (stem.layers - 1), width]
    return tuple(
        ConvNorm(
            size=stem.size,
            inputs=inputs,
            outputs=outputs,
            stride=1 if i else stem.stride,
            norm=norm,
            kernel=resnet.kernel,
        )
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths))
    )
