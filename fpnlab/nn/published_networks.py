"""Published residual networks as specs, with any norm."""

import functools
from collections.abc import Callable
from typing import Literal

from fpnlab.nn.backbone import Backbone
from fpnlab.nn.block import Shortcut
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, Norm
from fpnlab.nn.resnet import ResNet, Stem

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
    shortcut: Shortcut = "pad",
) -> ResNet:
    """Returns the CIFAR ResNet of ``6n + 2`` layers (arXiv:1512.03385, section 4.2).

    A 3x3 convolution, three stages of n basic blocks, and the classifier, which is the last
    layer. The paper's networks have 20, 32, 44, 56 and 110 layers and parameter-free shortcuts.

    Args:
      depth: Number of layers: 8, 14, 20, ...
      norm: Norm after each convolution.
      width: Channels of the first stage; the others have two and four times as many.
      shortcut: Shortcut of the blocks; ``pad`` (option A) as published.

    Raises:
      ValueError: Another number of layers.
    """
    blocks = _blocks(depth, 6, "CIFAR ResNet")
    return ResNet(
        depths=(blocks,) * 3,
        widths=(width, 2 * width, 4 * width),
        stem=Stem(size=3, stride=1, pool=False),
        norm=norm,
        shortcut=shortcut,
    )


def preactivation_resnet(depth: int, *, norm: Norm, bottleneck: bool, width: int = 16) -> ResNet:
    """Returns the pre-activation CIFAR ResNet (arXiv:1603.05027, tables 3 and 4).

    A 3x3 convolution, three stages of n blocks, norm and ReLU, and the classifier. The paper's
    networks have 110 layers with basic blocks (``6n + 2``), and 164 and 1001 layers with
    bottlenecks (``9n + 2``).

    Args:
      depth: Number of layers, that of the classifier included.
      norm: Norm before each convolution of a block.
      bottleneck: If true, bottlenecks; if false, basic blocks.
      width: Channels inside the blocks of the first stage; the others have two and four times as
        many.

    Raises:
      ValueError: Another number of layers.
    """
    blocks = _blocks(depth, 9 if bottleneck else 6, "pre-activation ResNet")
    return ResNet(
        block="bottleneck" if bottleneck else "basic",
        depths=(blocks,) * 3,
        widths=(width, 2 * width, 4 * width),
        stem=Stem(size=3, stride=1, pool=False),
        stem_width=width,
        preactivation=True,
        norm=norm,
        shortcut="projection" if bottleneck else "pad",
    )


def resnext50_32x4d(norm: Norm) -> ResNet:
    """Returns ResNeXt-50 with 32 groups of 4 channels (arXiv:1611.05431, table 1)."""
    return ResNet(
        block="bottleneck",
        depths=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        groups=32,
        width_per_group=4,
        norm=norm,
    )


def wide_resnet50_2(norm: Norm) -> ResNet:
    """Returns ResNet-50 with twice as many channels in the 3x3 convolutions (arXiv:1605.07146)."""
    return ResNet(
        block="bottleneck",
        depths=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        width_per_group=128,
        norm=norm,
    )


def resnet50_d(norm: Norm) -> ResNet:
    """Returns ResNet-50-D: three convolutions in the stem, and average-pooled projections.

    See arXiv:1812.01187, figure 2.
    """
    return ResNet(
        block="bottleneck",
        depths=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        stem=Stem(size=3, layers=3),
        shortcut="pooled_projection",
        norm=norm,
    )


CONVNEXT_NORM = LayerNorm(axes="c", eps=1e-6)
"""The norm of ConvNeXt as published."""


def convnext_tiny(norm: Norm = CONVNEXT_NORM) -> ConvNeXt:
    """Returns ConvNeXt-T (arXiv:2201.03545, section 3), with the published norm by default.

    The published classifier has a ``pooled_norm`` of the same kind, which is not part of the
    backbone.
    """
    return ConvNeXt(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), norm=norm)


def convnext_small(norm: Norm = CONVNEXT_NORM) -> ConvNeXt:
    """Returns ConvNeXt-S, see ``convnext_tiny``."""
    return ConvNeXt(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), norm=norm)


def _blocks(depth: int, layers: int, name: str) -> int:
    """Returns the blocks in each of three stages of a network of ``layers * n + 2`` layers."""
    blocks, rest = divmod(depth - 2, layers)
    if rest or blocks < 1:
        near = [layers * n + 2 for n in (blocks, blocks + 1) if n > 0] or [layers + 2]
        raise ValueError(
            f"no {name} has {depth} layers: they have {layers}n + 2; the nearest: "
            + " and ".join(map(str, near))
        )
    return blocks


PRESETS: dict[str, Callable[[], Backbone]] = {
    **{f"resnet{layers}": functools.partial(resnet, layers, BatchNorm()) for layers in STANDARD},
    "resnet50_d": functools.partial(resnet50_d, BatchNorm()),
    "resnext50_32x4d": functools.partial(resnext50_32x4d, BatchNorm()),
    "wide_resnet50_2": functools.partial(wide_resnet50_2, BatchNorm()),
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    **{
        f"cifar_resnet{depth}": functools.partial(cifar_resnet, depth, norm=BatchNorm())
        for depth in (8, 14, 20, 32, 44, 56, 110, 1202)
    },
    **{
        f"preactivation_resnet{depth}": functools.partial(
            preactivation_resnet, depth, norm=BatchNorm(), bottleneck=depth > 110
        )
        for depth in (110, 164, 1001)
    },
}
"""Published backbones by name, with their published norm."""
