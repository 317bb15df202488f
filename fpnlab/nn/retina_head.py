"""The RetinaNet head: two small towers shared over the pyramid, for classes and for boxes."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.block import ConvNormParams, apply_kernel, init_conv_norm, thinned
from fpnlab.nn.norm_layer import (
    BatchNorm,
    NoNorm,
    Norm,
    NormParams,
    NormState,
    activate,
    apply_norm,
    at_level,
    put_level,
)
from fpnlab.ops.conv import conv
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, Inside, Positive, spec
from fpnlab.types import Features, Key, Mode, Watch, tree, unwatched


@spec
class RetinaHead:
    """Towers whose convolutions are shared over the pyramid's levels (arXiv:1708.02002).

    A batch norm among them may share its statistics or not, and its parameters or not: the four
    combinations of arXiv:2105.07576, section 5.2, and a fifth that normalizes all levels together.
    The levels' maps differ in distribution: running statistics shared by levels that are each
    normalized by themselves fit none of them at test time.
    """

    depth: Annotated[int, Bounds(least=0.0, most=100.0)] = 4
    """3x3 convolutions in each tower."""
    norm: Norm = NoNorm()
    """After each convolution of a tower."""
    level_statistics: Literal["separate", "shared", "joint"] = "separate"
    """Running statistics a level, or one set that each level updates in turn, or one set of all
    levels' values together, which then also normalize in training."""
    level_affine: Literal["shared", "separate"] = "shared"
    """One set of norm parameters, or one a level."""
    prior: Annotated[float, Inside] = 0.01
    """Probability of an object that every anchor starts with (arXiv:1708.02002, section 4.1)."""
    kernel_deviation: Annotated[float, Positive] = 0.01
    """Standard deviation of the kernels as they are drawn, of towers and predictors alike
    (arXiv:1708.02002, section 4.1; torchvision's too)."""

    def __post_init__(self):
        if self.level_statistics == "joint" and not isinstance(self.norm, BatchNorm):
            raise ValueError(
                f"level_statistics is 'joint' and norm {self.norm.kind!r}; only the statistics of "
                "a batch_norm can be taken over levels together"
            )


@tree
class Predictor:
    """A last convolution with a bias."""

    kernel: Float[Array, "3 3 d o"]
    bias: Float[Array, " o"]


@tree
class HeadParams:
    """The towers, and the predictors on top of them."""

    class_tower: tuple[ConvNormParams, ...]
    box_tower: tuple[ConvNormParams, ...]
    class_predictor: Predictor
    box_predictor: Predictor


@tree
class HeadState:
    """The running statistics of the towers' norms, ``[levels, channels]`` where separate."""

    class_tower: tuple[NormState | None, ...]
    box_tower: tuple[NormState | None, ...]


def init_head(
    key: Key, head: RetinaHead, *, channels: int, levels: int, anchors: int, classes: int
) -> tuple[HeadParams, HeadState]:
    """Returns a head over pyramid maps of ``channels``, with ``anchors`` boxes a cell."""

    def tower(name):
        made = [
            init_conv_norm(
                named_key(key, name, i),
                head.norm,
                3,
                channels,
                channels,
                deviation=head.kernel_deviation,
                affine_levels=levels if head.level_affine == "separate" else None,
                state_levels=levels if head.level_statistics == "separate" else None,
            )
            for i in range(head.depth)
        ]
        return tuple(p for p, _ in made), tuple(s for _, s in made)

    def predictor(name, outputs, bias):
        kernel = head.kernel_deviation * jax.random.normal(
            named_key(key, name), (3, 3, channels, outputs)
        )
        return Predictor(kernel=kernel, bias=jnp.full((outputs,), bias, jnp.float32))

    class_tower, class_state = tower("class_tower")
    box_tower, box_state = tower("box_tower")
    params = HeadParams(
        class_tower=class_tower,
        box_tower=box_tower,
        class_predictor=predictor(
            "class_predictor", anchors * classes, -math.log((1 - head.prior) / head.prior)
        ),
        box_predictor=predictor("box_predictor", anchors * 4, 0.0),
    )
    return params, HeadState(class_tower=class_state, box_tower=box_state)


def apply_head(
    head: RetinaHead,
    params: HeadParams,
    state: HeadState,
    pyramid: Features,
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    watch: Watch = unwatched,
) -> tuple[Float[Array, "b cells k"], Float[Array, "b cells 4"], HeadState]:
    """Returns one row an anchor, finest level first: class logits and box deltas; and the state.

    Both are float32. The rows follow ``ops.anchors``: level, then row, column, anchor. ``mask``,
    of the images' size, has the pixels that enter statistics; ``watch`` is called with the name
    and the output of each convolution at each level.
    """
    masks = {level: thinned(mask, 2**level) for level in pyramid}

    def side(name, tower, states, predictor, outputs):
        maps, new = dict(sorted(pyramid.items())), []
        for i, (p, s) in enumerate(zip(tower, states)):
            maps = {level: apply_kernel(head.norm, p, x) for level, x in maps.items()}
            maps, s = _apply_norm_over_levels(head, p.norm, s, maps, mode, masks)
            maps = {level: activate(head.norm, x) for level, x in maps.items()}
            new.append(s)
            for level, x in maps.items():
                watch(f"{name} tower {i} level {level}", x)
        rows = []
        for level, x in maps.items():
            y = conv(x, predictor.kernel.astype(x.dtype)).astype(jnp.float32) + predictor.bias
            watch(f"{name} predictor level {level}", y)
            rows.append(y.reshape(y.shape[0], -1, outputs))
        return jnp.concatenate(rows, 1), tuple(new)

    anchors = params.box_predictor.bias.size // 4
    classes = params.class_predictor.bias.size // anchors
    logits, class_state = side(
        "class", params.class_tower, state.class_tower, params.class_predictor, classes
    )
    deltas, box_state = side("box", params.box_tower, state.box_tower, params.box_predictor, 4)
    return logits, deltas, HeadState(class_tower=class_state, box_tower=box_state)


def _apply_norm_over_levels(
    head: RetinaHead,
    params: NormParams,
    state: NormState | None,
    maps: Features,
    mode: Mode,
    masks: dict[int, Array | None],
) -> tuple[Features, NormState | None]:
    if head.level_statistics == "joint":
        return _apply_joint_norm(head, params, state, maps, mode, masks)
    normed = {}
    for i, (level, x) in enumerate(maps.items()):
        affine = at_level(params, i if head.level_affine == "separate" else None)
        at = i if head.level_statistics == "separate" else None
        own = at_level(state, at)
        normed[level], own = apply_norm(head.norm, affine, own, x, mode, mask=masks[level])
        state = put_level(state, own, at)
    return normed, state


def _apply_joint_norm(head, params, state, maps, mode, masks):
    """Normalizes all levels as one map of all their cells, ``[b, cells, 1, c]``."""
    flat = lambda x: x.reshape(x.shape[0], -1, 1, *x.shape[3:])
    together = jnp.concatenate([flat(x) for x in maps.values()], 1)
    mask = None
    if None not in masks.values():
        mask = jnp.concatenate([flat(masks[level]) for level in maps], 1)
    channels = together.shape[-1]
    plain = NormParams(scale=jnp.ones(channels), bias=jnp.zeros(channels))
    y, state = apply_norm(head.norm, plain, state, together, mode, mask=mask)
    normed, start = {}, 0
    for i, (level, x) in enumerate(maps.items()):
        affine = at_level(params, i if head.level_affine == "separate" else None)
        cells = x.shape[1] * x.shape[2]
        part = y[:, start : start + cells].reshape(x.shape)
        normed[level] = part * affine.scale.astype(x.dtype) + affine.bias.astype(x.dtype)
        start += cells
    return normed, state
