"""fpnlab's networks with BatchNorm, built in PyTorch from the same specs."""

import torch
from torch import nn
from torch.nn import functional as F

from fpnlab.nn.block import Block
from fpnlab.nn.detector import Detector
from fpnlab.nn.resnet import ResNet


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class TorchBlock(nn.Module):
    def __init__(self, block: Block):
        super().__init__()
        self.stride, self.more = block.stride, block.outputs - block.inputs
        layers, inputs = [], block.inputs
        for size, outputs, stride, _ in block.branch:
            layers += [conv_norm(inputs, outputs, size, stride), nn.ReLU(inplace=True)]
            inputs = outputs
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = (
            conv_norm(block.inputs, block.outputs, 1, block.stride) if block.projects else None
        )

    def forward(self, x):
        return F.relu(self.branch(x) + self.short(x), inplace=True)

    def short(self, x):
        if self.shortcut is not None:
            return self.shortcut(x)
        if self.stride == 1 and not self.more:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class TorchResNet(nn.Module):
    def __init__(self, spec: ResNet):
        super().__init__()
        stem = [conv_norm(3, spec.widths[0], spec.stem.size, spec.stem.stride)]
        stem.append(nn.ReLU(inplace=True))
        if spec.stem.pool:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        self.levels = list(spec.layout.stages)
        self.stages = nn.ModuleList(
            nn.Sequential(*map(TorchBlock, blocks)) for blocks in spec.layout.stages.values()
        )

    def forward(self, x):
        x, features = self.stem(x), {}
        for level, stage in zip(self.levels, self.stages):
            x = features[level] = stage(x)
        return features


class TorchClassifier(nn.Module):
    def __init__(self, spec: ResNet, classes: int):
        super().__init__()
        self.backbone = TorchResNet(spec)
        self.linear = nn.Linear(spec.channels[max(spec.layout.stages)], classes)

    def forward(self, x):
        features = self.backbone(x)
        return self.linear(features[max(features)].mean((2, 3)))


class TorchDetector(nn.Module):
    """Backbone, pyramid and head; logits and deltas come out, finest level first."""

    def __init__(self, spec: Detector):
        super().__init__()
        width = spec.neck.channels
        self.spec = spec
        self.backbone = TorchResNet(spec.backbone)
        channels = spec.backbone.channels
        self.lateral = nn.ModuleDict(
            {str(l): conv_norm(channels[l], width, 1) for l in spec.neck.levels if l in channels}
        )
        from_c = max(channels) + 1 if spec.neck.extra_from == "c" else None
        self.output = nn.ModuleDict(
            {
                str(l): conv_norm(
                    channels[l - 1] if l == from_c else width, width, 3, 1 if l in channels else 2
                )
                for l in spec.neck.levels
            }
        )
        per_cell = spec.anchors.per_cell
        self.sides = nn.ModuleList(
            nn.Sequential(
                *[
                    layer
                    for _ in range(spec.head.depth)
                    for layer in (conv_norm(width, width, 3), nn.ReLU(inplace=True))
                ],
                nn.Conv2d(width, per_cell * outputs, 3, 1, 1),
            )
            for outputs in (spec.classes, 4)
        )

    def forward(self, images):
        x = (images - self.spec.pixel_mean) / self.spec.pixel_deviation
        features = self.backbone(x)
        merged, pyramid, above = {}, {}, None
        for level in sorted(map(int, self.lateral), reverse=True):
            lateral = self.lateral[str(level)](features[level])
            above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2)
            merged[level] = above
        top = max(features)
        for level in self.spec.neck.levels:
            if level <= top:
                x = merged[level]
            elif level == top + 1:
                x = pyramid[top] if self.spec.neck.extra_from == "p" else features[top]
            else:
                x = F.relu(pyramid[level - 1])
            pyramid[level] = self.output[str(level)](x)
        return [
            torch.cat(
                [
                    side(pyramid[l]).permute(0, 2, 3, 1).reshape(len(images), -1, outputs)
                    for l in self.spec.neck.levels
                ],
                1,
            )
            for side, outputs in zip(self.sides, (self.spec.classes, 4))
        ]


def prepared(network: nn.Module) -> nn.Module:
    """Returns the network in the memory order that PyTorch's CPU convolutions prefer."""
    return network.to(memory_format=torch.channels_last).train()


def channels_last(images) -> torch.Tensor:
    """Returns NHWC images as PyTorch sees them."""
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
