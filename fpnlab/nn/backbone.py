"""Backbones: images to the feature maps of the levels, for every kind of residual network."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.block import Block, BlockParams, BlockState, Gate, apply_block, init_block
from fpnlab.nn.conv_norm import (
    ConvNormParams,
    apply_conv_norm,
    downsample_mask,
    init_conv_norm,
)
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.layout import Layout
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_layer import NormParams, NormState, activate, apply_norm, init_norm
from fpnlab.nn.norm_specs import NoNorm
from fpnlab.nn.resnet import ResNet
from fpnlab.ops.pooling import max_pool
from fpnlab.ops.random import named_key
from fpnlab.types import Features, Intermediates, Key, Mode, tree

Backbone = ResNet | ConvNeXt | Mlp
"""The kinds of backbone."""


@tree
class DownsampleParams:
    """Parameters of the norm and the convolution between two stages."""

    norm: NormParams
    conv: ConvNormParams


@tree
class BackboneParams:
    """Parameters of a backbone; empty for layers that it does not have."""

    stem: ConvNormParams
    """The last convolution of the stem."""
    stages: tuple[tuple[BlockParams, ...], ...]
    """The blocks of each stage."""
    deep_stem: tuple[ConvNormParams, ...] = ()
    """The other convolutions of a stem of several."""
    downsamples: dict[int, DownsampleParams] = dataclasses.field(default_factory=dict)
    """The layers before the blocks of a level."""
    outputs: dict[int, NormParams] = dataclasses.field(default_factory=dict)
    """The output norms by level."""


@tree
class BackboneState:
    """The running statistics of a backbone's norms."""

    stem: NormState | None
    stages: tuple[tuple[BlockState, ...], ...]
    deep_stem: tuple[NormState | None, ...] = ()
    downsamples: dict[int, NormState | None] = dataclasses.field(default_factory=dict)
    outputs: dict[int, NormState | None] = dataclasses.field(default_factory=dict)


def init_backbone(
    key: Key, spec: Backbone, levels: Iterable[int] | None = None
) -> tuple[BackboneParams, BackboneState]:
    """Returns initial parameters and state of a network for RGB images.

    A plain twin has the kernels of its residual network.

    Args:
      key: Draws the kernels.
      spec: The backbone.
      levels: Levels whose maps are used; those above the last of the network are ignored. Only a
        network with output norms depends on it. None: the last one.

    Raises:
      ValueError: The groups of a norm do not divide its channels.
    """
    layout = spec.layout
    *deep, stem = [
        init_conv_norm(named_key(key, "stem", *([i] if i < len(layout.stem) - 1 else [])), layer)
        for i, layer in enumerate(layout.stem)
    ]
    made = [
        [init_block(named_key(key, "stage", i, j), block) for j, block in enumerate(blocks)]
        for i, blocks in enumerate(layout.stages.values())
    ]
    between, outputs = {}, {}
    for level, layer in layout.downsamples.items():
        conv, _ = init_conv_norm(named_key(key, "downsample", level), layer.conv)
        norm, state = init_norm(layer.norm, layer.conv.inputs)
        between[level] = DownsampleParams(norm=norm, conv=conv), state
    if layout.output_norm is not None:
        channels = layout.channels
        for level in sorted({max(channels)} if levels is None else {*levels} & {*channels}):
            outputs[level] = init_norm(layout.output_norm, channels[level])
    parts = lambda i: {
        "stem": stem[i],
        "deep_stem": tuple(layer[i] for layer in deep),
        "stages": tuple(tuple(block[i] for block in stage) for stage in made),
        "downsamples": {level: layer[i] for level, layer in between.items()},
        "outputs": {level: layer[i] for level, layer in outputs.items()},
    }
    return BackboneParams(**parts(0)), BackboneState(**parts(1))


def apply_backbone(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    key: Key | None = None,
    gates: Gate | None = None,
) -> tuple[Features, BackboneState]:
    """Returns the last map of each level (C2 to C5 for the standard ResNets), and the state.

    Computes in the dtype of ``images``; the statistics of the norms stay in float32.

    Args:
      spec: The backbone.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      mode: Source and update of statistics, and whether stochastic layers are active.
      mask: Pixels that enter statistics; None for all of them.
      key: Draws the branches to drop; needed where ``drop_path`` is above 0 and the mode
        stochastic.
      gates: Factors of the branches and shortcuts of all blocks in order, ``[n]`` each; None for an
        unchanged network.

    Raises:
      ValueError: Images of another size than an `Mlp` has inputs, or another number of gates than
        of blocks.
    """
    features, state, _ = capture_backbone(
        spec, params, state, images, mode, mask=mask, key=key, gates=gates
    )
    return features, state


def capture_backbone(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    key: Key | None = None,
    gates: Gate | None = None,
) -> tuple[Features, BackboneState, Intermediates]:
    """Returns the outputs of ``apply_backbone``, and those of the stem and of each block."""
    layout = spec.layout
    params = _held(spec, params)
    first = apply_stem(spec, params, state, images, _mode_of(layout, 0, mode), mask=mask)
    x, mask = first.x, first.mask
    outputs: Intermediates = collections.OrderedDict(stem=first.stem)
    gate = _each_gate(gates, len(layout.blocks))
    features, stages, between, output_states = {}, [], {}, {}
    for i, (level, blocks) in enumerate(layout.stages.items()):
        own_mode = _mode_of(layout, i + 1, mode)
        if level in layout.downsamples:
            x, mask, between[level] = apply_downsample(
                spec, params, state, level, x, own_mode, mask
            )
        calls = [
            _Call(
                params.stages[i][j],
                state.stages[i][j],
                None if key is None else named_key(key, "drop", i, j),
                next(gate),
            )
            for j in range(len(blocks))
        ]
        x, mask, states, maps = _apply_stage(layout, blocks, calls, x, own_mode, mask)
        stages.append(states)
        outputs.update((f"stage {i} block {j}", y) for j, y in enumerate(maps))
        features[level], output = apply_output(spec, params, state, level, x, mode, mask)
        if level in params.outputs:
            output_states[level] = output
    new = BackboneState(
        stem=first.states[-1],
        stages=tuple(stages),
        deep_stem=first.states[:-1],
        downsamples=between,
        outputs=output_states,
    )
    return features, new, outputs


def trained(spec: Backbone, params: BackboneParams) -> BackboneParams:
    """Returns a tree like ``params`` that is False for each parameter of a frozen stage."""
    layout = spec.layout
    levels = list(layout.stages)[: layout.frozen_stages or 0]
    fill = lambda tree, value: jax.tree.map(lambda _: value, tree)
    stem = layout.frozen_stages is None
    return BackboneParams(
        stem=fill(params.stem, stem),
        deep_stem=fill(params.deep_stem, stem),
        stages=tuple(fill(stage, i >= len(levels)) for i, stage in enumerate(params.stages)),
        downsamples={k: fill(layer, k not in levels) for k, layer in params.downsamples.items()},
        outputs=fill(params.outputs, True),
    )


def _held(spec: Backbone, params: BackboneParams) -> BackboneParams:
    """Returns the parameters with gradients of zero for those of frozen stages."""
    if spec.frozen_stages is None:
        return params
    hold = lambda value, learns: value if learns else jax.lax.stop_gradient(value)
    return jax.tree.map(hold, params, trained(spec, params))


def _mode_of(layout: Layout, place: int, mode: Mode) -> Mode:
    """Returns the mode of a stage, counted from 1; 0 is the stem."""
    frozen = layout.frozen_stages is not None and place <= layout.frozen_stages
    if not (frozen and layout.frozen_statistics):
        return mode
    return dataclasses.replace(mode, stats="running", update="none")


class StemOutput(NamedTuple):
    """The layers before the first block, applied."""

    x: Array
    """Input of the first block, or of the downsampling before it."""
    mask: Array | None
    """Its mask."""
    stem: Array
    """Output of the stem: ``x`` before the max pooling, if there is one."""
    states: tuple[NormState | None, ...]
    """New states of the stem's norms."""


def apply_stem(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
) -> StemOutput:
    """Returns the outputs of the layers before the first block; arguments as ``apply_backbone``.

    Raises:
      ValueError: Images of another size than an `Mlp` has inputs.
    """
    layout = spec.layout
    x, mask = (_flat(layout, images), None) if layout.flatten else (images, mask)
    states = []
    for layer, own, before in zip(
        layout.stem, (*params.deep_stem, params.stem), (*state.deep_stem, state.stem)
    ):
        mask = downsample_mask(mask, layer.stride)
        x, new = apply_conv_norm(layer, own, before, x, mode, mask=mask)
        x = activate(layer.norm or NoNorm(), x) if layout.stem_activation else x
        states.append(new)
    stem = x
    if layout.pool:
        x, mask = max_pool(x), downsample_mask(mask, 2)
    return StemOutput(x=x, mask=mask, stem=stem, states=tuple(states))


def _flat(layout: Layout, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1 1 i"]:
    """Returns each image as a map of one pixel."""
    values, inputs = images[0].size, layout.stem[0].inputs
    if values != inputs:
        raise ValueError(
            f"mlp: images of {images.shape[1]}x{images.shape[2]} have {values} values, and the "
            f"network has {inputs} inputs; use inputs = {values}"
        )
    return images.reshape(len(images), 1, 1, -1)


def apply_downsample(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    level: int,
    x: Array,
    mode: Mode,
    mask: Array | None = None,
) -> tuple[Array, Array | None, NormState | None]:
    """Returns the map before the blocks of a level, its mask, and the state of the norm."""
    layer, own = spec.layout.downsamples[level], params.downsamples[level]
    x, new = apply_norm(layer.norm, own.norm, state.downsamples[level], x, mode, mask=mask)
    x, _ = apply_conv_norm(layer.conv, own.conv, None, x, mode)
    return x, downsample_mask(mask, layer.conv.stride), new


def apply_output(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    level: int,
    x: Array,
    mode: Mode,
    mask: Array | None = None,
) -> tuple[Array, NormState | None]:
    """Returns the map of a level after its output norm, if it has one, and the norm's state."""
    norm = spec.layout.output_norm
    if level not in params.outputs or norm is None:
        return x, None
    own = params.outputs[level], state.outputs[level]
    y, new = apply_norm(norm, *own, x, mode, mask=mask)
    return activate(norm, y) if spec.layout.output_activation else y, new


class _Call(NamedTuple):
    """The arguments of ``apply_block`` that differ between the blocks of a stage."""

    params: BlockParams
    state: BlockState
    key: Key | None
    gate: Gate | None


def _apply_stage(
    layout: Layout,
    blocks: Sequence[Block],
    calls: Sequence[_Call],
    x: Array,
    mode: Mode,
    mask: Array | None,
) -> tuple[Array, Array | None, tuple[BlockState, ...], list[Array]]:
    """Returns the last map and its mask, and the state and the map of each block."""
    states, maps = [], []
    for block, group in itertools.groupby(zip(blocks, calls), lambda pair: pair[0]):
        equal = [call for _, call in group]
        run = functools.partial(_run, block, mode, mask)
        run = jax.checkpoint(run) if layout.rematerialize else run
        if layout.repeat == "scanned" and len(equal) > 1:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *equal)
            x, (new, found) = jax.lax.scan(run, x, stacked)
            states += [jax.tree.map(lambda leaf, i=i: leaf[i], new) for i in range(len(equal))]
            maps += list(found)
        else:
            for call in equal:
                x, (new, _) = run(x, call)
                states.append(new)
                maps.append(x)
        mask = downsample_mask(mask, block.stride)
    return x, mask, tuple(states), maps


def _run(
    block: Block, mode: Mode, mask: Array | None, x: Array, call: _Call
) -> tuple[Array, tuple[BlockState, Array]]:
    """Returns the output of a block, and its new state with the output again, as a scan expects."""
    params, state, key, gate = call
    y, new = apply_block(block, params, state, x, mode, mask=mask, key=key, gate=gate)
    return y, (new, y)


def _each_gate(gates: Gate | None, count: int) -> Iterator[Gate | None]:
    """Returns an iterator over the gates of the blocks."""
    if gates is None:
        return itertools.repeat(None)
    sizes = {leaf.shape for leaf in jax.tree.leaves(gates)}
    if sizes != {(count,)}:
        raise ValueError(
            f"gates: the factors have the shapes {sorted(sizes)}; expected ({count},), one factor "
            "for each block"
        )
    return iter([jax.tree.map(lambda leaf, i=i: leaf[i], gates) for i in range(count)])
