"""ResNet: a stem and stages of residual blocks, with one feature map per level."""

import collections
import math
from typing import Annotated, Literal

from jaxtyping import Array, Bool, Float

from fpnlab.nn.block import Block, BlockParams, BlockState, apply_block, init_block
from fpnlab.nn.conv_norm import (
    ConvNorm,
    ConvNormParams,
    Kernel,
    apply_conv_norm,
    downsample_mask,
    init_conv_norm,
)
from fpnlab.nn.norm_layer import NormState, activate
from fpnlab.nn.norm_specs import Norm
from fpnlab.ops.pooling import max_pool
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, Fraction, SpecError, spec
from fpnlab.types import Features, Intermediates, Key, Mode, tree


@spec
class Stem:
    """The layers before the first block."""

    size: Annotated[int, Bounds(least=1.0, most=99.0)] = 7
    """Kernel size of the convolution, pixels; odd."""
    stride: Literal[1, 2, 4] = 2
    """Stride of the convolution."""
    pool: bool = True
    """If true, a 3x3 max pooling of stride 2 follows."""

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size is {self.size}; it must be odd, so that the padding is even")


@spec
class ResNet:
    """A residual network of any depth and width (arXiv:1512.03385)."""

    block: Literal["basic", "bottleneck"] = "basic"
    """Kind of residual block."""
    depths: Annotated[tuple[int, ...], Bounds(least=1.0, most=10_000.0)]
    """Blocks in each stage; every stage except the first halves the map."""
    widths: Annotated[tuple[int, ...], Bounds(least=1.0, most=1e5)]
    """Channels inside the blocks of each stage; a bottleneck's maps are four times wider."""
    stem: Stem = Stem()
    """The layers before the first block; as wide as the first stage's `widths`."""
    norm: Norm
    """After each convolution, unless overridden below."""
    stem_norm: Norm | None = None
    """After the stem's convolution; none: `norm`."""
    last_norm: Norm | None = None
    """After the last convolution of each residual branch; none: `norm`."""
    shortcut_norm: Norm | None = None
    """After the convolution of a shortcut; none: `norm`."""
    shortcut: Literal["projection", "pad"] = "projection"
    """Shortcut of a block that changes the shape: a 1x1 convolution (option B), or the input
    subsampled and padded with channels of zeros (option A)."""
    kernel: Kernel = "free"
    """Parametrization of all convolution kernels."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Stochastic depth: share of dropped branches in the last block, rising from 0 at the first."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths has {len(self.depths)} stages and widths {len(self.widths)}; "
                "give one number a stage in both"
            )
        if not 1 <= len(self.depths) <= 16:
            wrong = f"has {len(self.depths)} stages; it must have 1 to 16"
            raise SpecError("ResNet", [("depths", wrong)])

    @property
    def stem_layer(self) -> ConvNorm:
        """The convolution of the stem."""
        return ConvNorm(
            size=self.stem.size,
            inputs=3,
            outputs=self.widths[0],
            stride=self.stem.stride,
            norm=self.stem_norm or self.norm,
            kernel=self.kernel,
        )

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position.

        ``stem``, ``branch`` (all convolutions of a residual branch except the last), ``last`` and,
        if there are projections, ``shortcut``.
        """
        found = {
            "stem": self.stem_norm or self.norm,
            "branch": self.norm,
            "last": self.last_norm or self.norm,
        }
        if self.shortcut == "projection":
            found["shortcut"] = self.shortcut_norm or self.norm
        return found

    @property
    def first_level(self) -> int:
        """Level of the first stage: the stem's stride is ``2**first_level``."""
        return int(math.log2(self.stem.stride)) + self.stem.pool

    @property
    def stages(self) -> dict[int, list[Block]]:
        """The blocks of each level."""
        stages, inputs = {}, self.widths[0]
        made, last = 0, max(sum(self.depths) - 1, 1)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths)):
            stages[self.first_level + i] = blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                block = Block(
                    kind=self.block,
                    inputs=inputs,
                    width=width,
                    stride=stride,
                    norm=self.norm,
                    last_norm=self.last_norm or self.norm,
                    shortcut_norm=self.shortcut_norm or self.norm,
                    shortcut=self.shortcut,
                    kernel=self.kernel,
                    drop_path=self.drop_path * made / last,
                )
                blocks.append(block)
                made, inputs = made + 1, block.outputs
        return stages

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level's map."""
        return {level: blocks[-1].outputs for level, blocks in self.stages.items()}


STANDARD: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Block kind and depths of the networks in arXiv:1512.03385, table 1, by number of layers."""


def resnet(layers: int, norm: Norm) -> ResNet:
    """Returns the standard ResNet of 18, 34, 50, 101 or 152 layers (arXiv:1512.03385, table 1).

    The 3x3 convolution of a downsampling bottleneck has the stride (as in PyTorch).

    Raises:
      ValueError: Another number of layers.
    """
    if layers not in STANDARD:
        raise ValueError(f"no standard ResNet has {layers} layers; these do: {list(STANDARD)}")
    block, depths = STANDARD[layers]
    return ResNet(block=block, depths=depths, widths=(64, 128, 256, 512), norm=norm)


def cifar_resnet(
    depth: int,
    *,
    norm: Norm,
    width: int = 16,
    shortcut: Literal["projection", "pad"] = "pad",
) -> ResNet:
    """Returns the CIFAR ResNet of ``6n + 2`` layers (arXiv:1512.03385, section 4.2).

    A 3x3 convolution, three stages of n basic blocks, and the classifier, which is the last
    layer. The paper's networks have 20, 32, 44, 56 and 110 layers and parameter-free shortcuts.

    Args:
      depth: Number of layers: 8, 14, 20, ...
      norm: Norm after each convolution.
      width: Channels of the first stage; the others have two and four times as many.
      shortcut: Shortcut if the shape changes: ``pad`` (option A, as published) or ``projection``
        (option B).

    Raises:
      ValueError: Another number of layers.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        near = [6 * n + 2 for n in (blocks, blocks + 1) if n > 0] or [8]
        raise ValueError(
            f"no CIFAR ResNet has {depth} layers: they have 6n + 2; the nearest: "
            + " and ".join(map(str, near))
        )
    return ResNet(
        depths=(blocks,) * 3,
        widths=(width, 2 * width, 4 * width),
        stem=Stem(size=3, stride=1, pool=False),
        norm=norm,
        shortcut=shortcut,
    )


@tree
class ResNetParams:
    """Parameters of the stem, and of the blocks of each stage."""

    stem: ConvNormParams
    stages: tuple[tuple[BlockParams, ...], ...]


@tree
class ResNetState:
    """The running statistics of the stem's norm, and of each block."""

    stem: NormState | None
    stages: tuple[tuple[BlockState, ...], ...]


def init_resnet(key: Key, resnet: ResNet) -> tuple[ResNetParams, ResNetState]:
    """Returns initial parameters and state of a network for RGB images."""
    stem, stem_state = init_conv_norm(named_key(key, "stem"), resnet.stem_layer)
    made = [
        [init_block(named_key(key, "stage", i, j), block) for j, block in enumerate(blocks)]
        for i, blocks in enumerate(resnet.stages.values())
    ]
    params = ResNetParams(stem=stem, stages=tuple(tuple(p for p, _ in stage) for stage in made))
    state = ResNetState(stem=stem_state, stages=tuple(tuple(s for _, s in stage) for stage in made))
    return params, state


def apply_resnet(
    resnet: ResNet,
    params: ResNetParams,
    state: ResNetState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    key: Key | None = None,
) -> tuple[Features, ResNetState]:
    """Returns the last map of each level (C2 to C5 for the standard networks), and the state.

    Computes in the dtype of ``images``; the statistics of the norms stay in float32.

    Args:
      resnet: The layer.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      mode: Source and update of statistics, and whether stochastic layers are active.
      mask: Pixels that enter statistics; None for all of them.
      key: Draws the branches to drop; needed where ``drop_path`` is above 0 and the mode
        stochastic.
    """
    features, state, _ = capture_resnet(resnet, params, state, images, mode, mask=mask, key=key)
    return features, state


def capture_resnet(
    resnet: ResNet,
    params: ResNetParams,
    state: ResNetState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    key: Key | None = None,
) -> tuple[Features, ResNetState, Intermediates]:
    """Returns the outputs of ``apply_resnet``, and those of the stem and of each block."""
    stem, stride = resnet.stem_layer, resnet.stem.stride
    x, stem_state = apply_conv_norm(
        stem, params.stem, state.stem, images, mode, mask=downsample_mask(mask, stride)
    )
    x = activate(stem.norm, x)
    outputs: Intermediates = collections.OrderedDict(stem=x)
    if resnet.stem.pool:
        x = max_pool(x)
    features, states = {}, []
    for i, (level, blocks) in enumerate(resnet.stages.items()):
        new = []
        for j, block in enumerate(blocks):
            x, block_state = apply_block(
                block,
                params.stages[i][j],
                state.stages[i][j],
                x,
                mode,
                mask=downsample_mask(mask, 2**level // block.stride),
                key=None if key is None else named_key(key, "drop", i, j),
            )
            new.append(block_state)
            outputs[f"stage {i} block {j}"] = x
        features[level] = x
        states.append(tuple(new))
    return features, ResNetState(stem=stem_state, stages=tuple(states)), outputs
