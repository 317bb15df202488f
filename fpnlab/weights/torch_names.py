"""Names of the layers of torchvision and timm, by the places of their parameters here.

A place is the path of a leaf in ``{"params": params, "state": state}``, joined by dots, such as
``params.backbone.stages.0.1.branch.0.kernel``, which torchvision calls ``layer1.1.conv1.weight``.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from fpnlab.nn.backbone import Backbone
from fpnlab.nn.block import Block
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.norm_specs import BatchNorm, Norm
from fpnlab.nn.resnet import ResNet

Scheme = Literal["torchvision", "timm", "cifar"]
"""Names of torchvision; of timm, which differ for ConvNeXt; and of the ResNets of CIFAR by
Y. Idelbayev (github.com/akamaster/pytorch_resnet_cifar10), whose dense layer is `linear`."""
Storing = Literal["kernel", "pixel", "matrix", "scale", "vector", "batches", "count"]
"""Form of an array in PyTorch, by that here:

* `kernel`: [o, i, h, w] of [h, w, i, o];
* `pixel`: [o, i] (or [o, i, 1, 1]) of [1, 1, i, o];
* `matrix`: [o, i] of [i, o];
* `scale`: [c, 1, 1] (or [c]) of [c];
* `vector`: the same;
* `batches`: the number of training batches, of the number of images;
* `count`: not stored.
"""
DENSE_NAMES = ("fc.", "linear.", "classifier.2.", "head.fc.")
"""Prefixes of the names of the dense layer."""
HEADS = ("fc.", "linear.", "classifier.", "head.")
"""Prefixes of the layers after the backbone."""


@dataclasses.dataclass(frozen=True)
class TorchName:
    """The name and the form of an array in PyTorch."""

    name: str
    """Its name in a state_dict."""
    storing: Storing
    """Its form."""
    batch: int = 1
    """Images in a training batch, for `batches`."""
    inputs: tuple[int, ...] | None = None
    """The number in PyTorch of each input channel; None for the same."""
    outputs: tuple[int, ...] | None = None
    """The number in PyTorch of each output channel, or channel of a vector; None for the same."""


def torch_names(spec: Classifier | Backbone, scheme: Scheme) -> dict[str, TorchName]:
    """Returns the names of PyTorch by place, those of layers that the spec does not have, too.

    Args:
      spec: The network.
      scheme: Whose names they are.

    Raises:
      TypeError: They have no such network: it is an `Mlp`, pre-activated, or a detector.
    """
    backbone = spec.backbone if isinstance(spec, Classifier) else spec
    inner = "backbone." if isinstance(spec, Classifier) else ""
    match backbone:
        case ResNet():
            rows = [*_resnet(backbone, inner, "linear" if scheme == "cifar" else "fc")]
        case ConvNeXt():
            timm = scheme == "timm"
            rows = [*(_convnext_timm if timm else _convnext)(backbone, inner)]
            rows += _dense("head.fc" if timm else "classifier.2")
            if isinstance(spec, Classifier) and spec.pooled_norm is not None:
                name = "head.norm" if timm else "classifier.0"
                rows += _norm("params.pooled_norm", "state.pooled_norm", name, spec.pooled_norm)
        case _:
            raise TypeError(
                f"weights: torchvision and timm have nothing like a {type(backbone).__name__}; "
                "expected a ResNet or ConvNeXt, or a Classifier with one; of a detector give the "
                "backbone"
            )
    return dict(rows)


Rows = Iterator[tuple[str, TorchName]]


def _resnet(net: ResNet, inner: str, dense: str) -> Rows:
    """Yields the names of torchvision's ResNet, and those of timm's ResNet-C and -D."""
    order: tuple[int, ...] | None = None
    deep = len(net.layout.stem) - 1
    for i, layer in enumerate(net.layout.stem[:-1]):
        names = f"conv1.{3 * i}", f"conv1.{3 * i + 1}"
        yield from _conv_norm(f"{inner}deep_stem.{i}", *names, layer.norm)
    stem = f"conv1.{3 * deep}" if deep else "conv1"
    yield from _conv_norm(f"{inner}stem", stem, "bn1", net.layout.stem[-1].norm)
    pooled = net.shortcut == "pooled_projection"  # Whose pooling is number 0.
    for i, blocks in enumerate(net.layout.stages.values()):
        for j, block in enumerate(blocks):
            place, name = f"{inner}stages.{i}.{j}", f"layer{i + 1}.{j}"
            if block.preactivation:
                raise TypeError(
                    "weights: torchvision and timm have no ResNet with preactivation = true; "
                    "expected one without"
                )
            before, order = order, _order_after(block, order)
            for k, layer in enumerate(block.branch):
                names = f"{name}.conv{k + 1}", f"{name}.bn{k + 1}"
                for leaf, row in _conv_norm(f"{place}.branch.{k}", *names, layer.norm):
                    inputs = before if k == 0 and row.storing == "kernel" else None
                    outputs = order if k == len(block.branch) - 1 else None
                    yield leaf, dataclasses.replace(row, inputs=inputs, outputs=outputs)
            names = f"{name}.downsample.{0 + pooled}", f"{name}.downsample.{1 + pooled}"
            yield from _conv_norm(f"{place}.shortcut", *names, block.shortcut_norm)
    for leaf, row in _dense(dense):
        yield leaf, dataclasses.replace(row, inputs=order if row.storing == "matrix" else None)


def _order_after(block: Block, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Returns the order of channels after a block, of which ``order`` is that before it.

    A padded shortcut has all its zeros after the channels here. In PyTorch's networks of CIFAR half
    of them come before: the same network with its channels in another order.
    """
    if not (block.skip and block.shortcut == "pad" and block.outputs > block.inputs):
        return order
    before = (block.outputs - block.inputs) // 2
    kept = [before + channel for channel in order or range(block.inputs)]
    return (*kept, *range(before), *range(before + block.inputs, block.outputs))


def _convnext(net: ConvNeXt, inner: str) -> Rows:
    """Yields the names of torchvision's ConvNeXt."""
    yield from _conv_norm(f"{inner}stem", "features.0.0", "features.0.1", net.layout.stem[0].norm)
    for i, (level, blocks) in enumerate(net.layout.stages.items()):
        if level in net.layout.downsamples:
            names = f"features.{2 * i}.0", f"features.{2 * i}.1"
            yield from _downsample(net, inner, level, *names)
        for j, block in enumerate(blocks):
            place, name = f"{inner}stages.{i}.{j}", f"features.{2 * i + 1}.{j}"
            names = f"{name}.block.0", f"{name}.block.2"
            yield from _conv_norm(f"{place}.branch.0", *names, block.norm)
            yield from _conv(f"{place}.branch.1", f"{name}.block.3", "pixel")
            yield from _conv(f"{place}.branch.2", f"{name}.block.5", "pixel")
            yield f"params.{place}.scale", TorchName(f"{name}.layer_scale", "scale")


def _convnext_timm(net: ConvNeXt, inner: str) -> Rows:
    """Yields the names of timm's ConvNeXt."""
    yield from _conv_norm(f"{inner}stem", "stem.0", "stem.1", net.layout.stem[0].norm)
    for i, (level, blocks) in enumerate(net.layout.stages.items()):
        if level in net.layout.downsamples:
            names = f"stages.{i}.downsample.0", f"stages.{i}.downsample.1"
            yield from _downsample(net, inner, level, *names)
        for j, block in enumerate(blocks):
            place, name = f"{inner}stages.{i}.{j}", f"stages.{i}.blocks.{j}"
            names = f"{name}.conv_dw", f"{name}.norm"
            yield from _conv_norm(f"{place}.branch.0", *names, block.norm)
            yield from _conv(f"{place}.branch.1", f"{name}.mlp.fc1", "pixel")
            yield from _conv(f"{place}.branch.2", f"{name}.mlp.fc2", "pixel")
            yield f"params.{place}.scale", TorchName(f"{name}.gamma", "vector")


def _downsample(net: ConvNeXt, inner: str, level: int, norm: str, conv: str) -> Rows:
    place = f"{inner}downsamples.{level}"
    spec = net.layout.downsamples[level].norm
    yield from _norm(f"params.{place}.norm", f"state.{place}", norm, spec)
    yield from _conv(f"{place}.conv", conv, "kernel")


def _conv_norm(place: str, conv: str, norm: str, spec: Norm | None) -> Rows:
    yield from _conv(place, conv, "kernel")
    yield from _norm(f"params.{place}.norm", f"state.{place}", norm, spec)


def _conv(place: str, name: str, storing: Storing) -> Rows:
    yield f"params.{place}.kernel", TorchName(f"{name}.weight", storing)
    yield f"params.{place}.bias", TorchName(f"{name}.bias", "vector")


def _dense(name: str) -> Rows:
    yield "params.dense.kernel", TorchName(f"{name}.weight", "matrix")
    yield "params.dense.bias", TorchName(f"{name}.bias", "vector")


def _norm(params: str, state: str, name: str, spec: Norm | None) -> Rows:
    yield f"{params}.scale", TorchName(f"{name}.weight", "vector")
    yield f"{params}.bias", TorchName(f"{name}.bias", "vector")
    yield f"{state}.mean", TorchName(f"{name}.running_mean", "vector")
    yield f"{state}.var", TorchName(f"{name}.running_var", "vector")
    batch = spec.reference_batch if isinstance(spec, BatchNorm) else 1
    yield f"{state}.seen", TorchName(f"{name}.num_batches_tracked", "batches", batch)
    yield f"{state}.count", TorchName(f"{name}.count", "count")
