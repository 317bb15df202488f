"""Mlp: a feed-forward network of dense layers, plain or residual, as a backbone of classifiers."""

import functools
from typing import Annotated, Literal

from fpnlab.nn.block import Block, BranchScale
from fpnlab.nn.conv_norm import ConvNorm, Kernel
from fpnlab.nn.layout import Layout, Repeat, check_stages, drop_rates
from fpnlab.nn.norm_specs import Norm
from fpnlab.spec import Bounds, Count, Fraction, spec


@spec
class Mlp:
    """A network of dense blocks on flattened images: ``F(x) + x``, ``F(x) + Wx`` or ``F(x)``.

    A dense layer from the pixels to the first width, then the blocks. Its only map has one pixel.
    Where the widths of two stages differ, ``W`` is the matrix of the shortcut.
    """

    kind: Literal["mlp"] = "mlp"
    inputs: Annotated[int, Count]
    """Values of an image: height x width x 3."""
    depths: Annotated[tuple[int, ...], Bounds(least=1.0, most=10_000.0)]
    """Blocks in each stage."""
    widths: Annotated[tuple[int, ...], Bounds(least=1.0, most=1e5)]
    """Units of each layer, by stage."""
    layers: Annotated[int, Bounds(least=1.0, most=100.0)] = 2
    """Dense layers of each block."""
    preactivation: bool = False
    """If true, norm and ReLU precede each layer of a block, and follow the last block."""
    norm: Norm
    """After each layer, unless overridden below."""
    stem_norm: Norm | None = None
    """After the first layer; none: `norm`."""
    last_norm: Norm | None = None
    """The last norm of each residual branch; none: `norm`."""
    shortcut_norm: Norm | None = None
    """After the matrix of a shortcut; none: no norm."""
    output_norm: Norm | None = None
    """After the last block, with `preactivation`; none: `norm`."""
    skip: bool = True
    """If false, the plain feed-forward twin: the same layers with the same initial matrices,
    without shortcuts, branch scales and stochastic depth."""
    shortcut: Literal["projection", "pad", "projection_all"] = "projection"
    """Shortcut of the blocks: `projection` (``Wx`` where the width changes), `pad` (zeros there),
    or `projection_all` (``Wx`` in each block)."""
    branch_scale: BranchScale | None = None
    """Initial scale of residual branches; none: `one` with `preactivation`, else `zero_last`."""
    layer_scale: float = 1e-6
    """Initial value of the scales of `layer_scale`."""
    kernel: Kernel = "free"
    """Parametrization of all matrices."""
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
        check_stages("Mlp", self.depths, self.widths, self.frozen_stages)
        if self.output_norm is not None and not self.preactivation:
            raise ValueError(
                "output_norm is given, but only a pre-activation network has one; leave it out, or "
                "set preactivation = true"
            )
        _layout(self)  # Its blocks check how their fields fit together.

    @property
    def layout(self) -> Layout:
        """The layers in order."""
        return _layout(self)

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position, see `ResNet`."""
        found = {"branch": self.norm, "last": self.last_norm or self.norm}
        if not self.preactivation:
            found = {"stem": self.stem_norm or self.norm, **found}
        if self.shortcut_norm and any(block.projection for block in self.layout.blocks):
            found["shortcut"] = self.shortcut_norm
        if self.preactivation:
            found["final"] = self.output_norm or self.norm
        return found

    @property
    def first_level(self) -> int:
        """Level of the only map, 0."""
        return 0

    @property
    def channels(self) -> dict[int, int]:
        """Units of the last layer, as the channels of level 0."""
        return self.layout.channels


@functools.lru_cache(maxsize=256)
def _layout(mlp: Mlp) -> Layout:
    blocks, inputs = [], mlp.widths[0]
    rates = drop_rates(mlp.drop_path, mlp.depths)
    for depth, width in zip(mlp.depths, mlp.widths):
        for _ in range(depth):
            block = Block(
                kind="dense",
                inputs=inputs,
                width=width,
                stride=1,
                norm=mlp.norm,
                last_norm=mlp.last_norm or mlp.norm,
                shortcut_norm=mlp.shortcut_norm,
                preactivation=mlp.preactivation,
                layers=mlp.layers,
                skip=mlp.skip,
                shortcut=mlp.shortcut,
                branch_scale=mlp.branch_scale,
                layer_scale=mlp.layer_scale,
                kernel=mlp.kernel,
                drop_path=next(rates),
            )
            blocks.append(block)
            inputs = block.outputs
    norm = None if mlp.preactivation else mlp.stem_norm or mlp.norm
    stem = ConvNorm(size=1, inputs=mlp.inputs, outputs=mlp.widths[0], norm=norm, kernel=mlp.kernel)
    return Layout(
        flatten=True,
        stem=(stem,),
        stem_activation=not mlp.preactivation,
        stages={0: tuple(blocks)},
        output_norm=(mlp.output_norm or mlp.norm) if mlp.preactivation else None,
        repeat=mlp.repeat,
        rematerialize=mlp.rematerialize,
        frozen_stages=mlp.frozen_stages,
        frozen_statistics=mlp.frozen_statistics,
    )
