"""The layers of a backbone in order, which `fpnlab.nn.backbone` initializes and applies."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from fpnlab.nn.block import Block
from fpnlab.nn.conv_norm import ConvNorm
from fpnlab.nn.norm_specs import Norm
from fpnlab.spec import SpecError

Repeat = Literal["unrolled", "scanned"]
"""Compilation of equal consecutive blocks: each on its own, or all as one ``lax.scan``. A scan
compiles faster, and its convolutions run many times slower on CPU (docs/performance.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downsample:
    """The layers between two stages of a ConvNeXt (arXiv:2201.03545, section 2.6)."""

    norm: Norm
    """Norm before the convolution."""
    conv: ConvNorm
    """A 2x2 convolution of stride 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The layers of a backbone in order; every kind of backbone has one."""

    flatten: bool = False
    """If true, an image becomes a map of one pixel, with a channel for each of its values."""
    stem: tuple[ConvNorm, ...]
    """The convolutions before the first block."""
    stem_activation: bool
    """If true, a ReLU follows each convolution of the stem."""
    pool: bool = False
    """If true, a 3x3 max pooling of stride 2 follows the stem."""
    stages: dict[int, tuple[Block, ...]]
    """The blocks of each level."""
    downsamples: dict[int, Downsample] = dataclasses.field(default_factory=dict)
    """The layers before the blocks of a level."""
    output_norm: Norm | None = None
    """Norm of the map of each level that is used."""
    output_activation: bool = True
    """If true, a ReLU follows the output norm."""
    repeat: Repeat
    """Compilation of equal consecutive blocks."""
    rematerialize: bool
    """If true, the backward pass computes the inside of each block again."""
    frozen_stages: int | None
    """Stages that are not trained, the stem with them; None: all are trained."""
    frozen_statistics: bool
    """If true, the batch norms of frozen stages use their running statistics, and keep them."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all stages, in order of depth."""
        return tuple(itertools.chain.from_iterable(self.stages.values()))

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level's map."""
        return {level: blocks[-1].outputs for level, blocks in self.stages.items()}

    @property
    def block_names(self) -> tuple[str, ...]:
        """The name of each block: ``stage 0 block 0``."""
        return tuple(
            f"stage {i} block {j}"
            for i, blocks in enumerate(self.stages.values())
            for j in range(len(blocks))
        )


def check_stages(
    owner: str, depths: Sequence[int], widths: Sequence[int], frozen: int | None
) -> None:
    """Checks that there are as many depths as widths, for 1 to 16 stages.

    Args:
      owner: Name of the spec's class, for the message.
      depths: Blocks of each stage.
      widths: Channels of each stage.
      frozen: Stages that are not trained, if any.

    Raises:
      ValueError: There are not, or fewer stages than frozen ones.
    """
    if len(depths) != len(widths):
        raise ValueError(
            f"depths has {len(depths)} stages and widths {len(widths)}; "
            "give one number a stage in both"
        )
    if not 1 <= len(depths) <= 16:
        wrong = f"has {len(depths)} stages; it must have 1 to 16"
        raise SpecError(owner, [("depths", wrong)])
    if frozen is not None and frozen > len(depths):
        wrong = f"is {frozen}; the network has {len(depths)} stages"
        raise SpecError(owner, [("frozen_stages", wrong)])


def drop_rates(last: float, depths: Sequence[int]) -> Iterator[float]:
    """Yields the drop rate of each block: from 0 at the first to ``last`` at the last.

    See arXiv:1603.09382, section 3 (linear decay).
    """
    count = sum(depths)
    return (last * i / max(count - 1, 1) for i in range(count))
