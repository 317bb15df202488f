"""RetinaNet head: class and box towers shared over the levels of the pyramid."""

import collections
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.conv_norm import (
    ConvNorm,
    ConvNormParams,
    Kernel,
    apply_convolution,
    downsample_mask,
    init_conv_norm,
)
from fpnlab.nn.norm_layer import (
    NormParams,
    NormState,
    activate,
    apply_norm,
    at_level,
    put_level,
)
from fpnlab.nn.norm_specs import BatchNorm, NoNorm, Norm
from fpnlab.ops.convolution import conv
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, Count, Inside, Positive, spec
from fpnlab.types import Features, Intermediates, Key, Mode, tree


@spec
class RetinaHead:
    """Class and box towers with convolutions shared over the levels (arXiv:1708.02002).

    Statistics and parameters of a batch norm can each be shared over levels or separate: the four
    combinations of arXiv:2105.07576, section 5.2, and a fifth that normalizes all levels together.
    The maps of the levels differ in distribution: if levels are normalized separately in training,
    running statistics shared over them fit no level at test time.
    """

    depth: Annotated[int, Bounds(least=0.0, most=100.0)] = 4
    """3x3 convolutions in each tower."""
    norm: Norm = NoNorm()
    """After each convolution of a tower."""
    kernel: Kernel = "free"
    """Parametrization of the towers' convolution kernels."""
    level_statistics: Literal["separate", "shared", "joint"] = "separate"
    """One set of running statistics per level; or one set that each level updates in turn; or one
    set over the values of all levels together, which then also normalize in training."""
    level_affine: Literal["shared", "separate"] = "shared"
    """One set of norm parameters, or one per level."""
    prior: Annotated[float, Inside] = 0.01
    """Initial object probability of every anchor (arXiv:1708.02002, section 4.1)."""
    kernel_deviation: Annotated[float, Positive] = 0.01
    """Standard deviation of the initial kernels of towers and predictors
    (arXiv:1708.02002, section 4.1; torchvision's too)."""
    anchors_per_cell: Annotated[int | None, Count] = None
    """Boxes predicted at each cell; none: those of the detector."""
    classes: Annotated[int | None, Count] = None
    """Number of classes; none: that of the detector."""

    def __post_init__(self) -> None:
        if self.level_statistics == "joint" and not isinstance(self.norm, BatchNorm):
            raise ValueError(
                f"level_statistics is 'joint' and norm {self.norm.kind!r}; only the statistics of "
                "a batch_norm can be taken over levels together"
            )

    def tower_layer(self, channels: int) -> ConvNorm:
        """Returns the 3x3 convolution of a tower for maps with ``channels`` channels."""
        return ConvNorm(
            size=3,
            inputs=channels,
            outputs=channels,
            norm=self.norm,
            kernel=self.kernel,
            deviation=self.kernel_deviation,
        )


@tree
class Predictor:
    """Parameters of the last convolution, which has a bias."""

    kernel: Float[Array, "3 3 d o"]
    bias: Float[Array, " o"]


@tree
class HeadParams:
    """Parameters of the towers, and of the predictors on top of them."""

    class_tower: tuple[ConvNormParams, ...]
    box_tower: tuple[ConvNormParams, ...]
    class_predictor: Predictor
    box_predictor: Predictor


@tree
class HeadOutput:
    """Outputs with one row per anchor, finest level first; float32."""

    logits: Float[Array, "b a k"]
    """Class scores before the sigmoid."""
    deltas: Float[Array, "b a 4"]
    """Box offsets from the anchors (``ops.boxes.encode``)."""


@tree
class HeadState:
    """Running statistics of the towers' norms, ``[levels, channels]`` if separate."""

    class_tower: tuple[NormState | None, ...]
    box_tower: tuple[NormState | None, ...]


def init_head(
    key: Key, head: RetinaHead, *, channels: int, levels: int
) -> tuple[HeadParams, HeadState]:
    """Returns the initial parameters and state of a head.

    Args:
      key: Draws the kernels.
      head: The head.
      channels: Channels of every pyramid map.
      levels: Number of pyramid maps.

    Raises:
      ValueError: ``anchors_per_cell`` or ``classes`` of the head is None.
    """
    if head.anchors_per_cell is None or head.classes is None:
        raise ValueError(
            f"retina head: anchors_per_cell is {head.anchors_per_cell} and classes "
            f"{head.classes}; a head outside of a detector needs both"
        )
    layer = head.tower_layer(channels)

    def tower(name: str) -> tuple[tuple[ConvNormParams, ...], tuple[NormState | None, ...]]:
        made = [
            init_conv_norm(
                named_key(key, name, i),
                layer,
                affine_levels=levels if head.level_affine == "separate" else None,
                state_levels=levels if head.level_statistics == "separate" else None,
            )
            for i in range(head.depth)
        ]
        return tuple(p for p, _ in made), tuple(s for _, s in made)

    def predictor(name: str, outputs: int, bias: float) -> Predictor:
        kernel = head.kernel_deviation * jax.random.normal(
            named_key(key, name), (3, 3, channels, outputs)
        )
        return Predictor(kernel=kernel, bias=jnp.full((outputs,), bias, jnp.float32))

    class_tower, class_state = tower("class_tower")
    box_tower, box_state = tower("box_tower")
    anchors, prior_logit = head.anchors_per_cell, -math.log((1 - head.prior) / head.prior)
    params = HeadParams(
        class_tower=class_tower,
        box_tower=box_tower,
        class_predictor=predictor("class_predictor", anchors * head.classes, prior_logit),
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
) -> tuple[HeadOutput, HeadState]:
    """Returns class logits and box deltas, one row per anchor, and the new state.

    Rows are ordered as in ``ops.anchors``: level (finest first), then row, column, anchor.
    ``mask``, of the size of the images, selects the pixels that enter statistics.
    """
    output, state, _ = capture_head(head, params, state, pyramid, mode, mask=mask)
    return output, state


def capture_head(
    head: RetinaHead,
    params: HeadParams,
    state: HeadState,
    pyramid: Features,
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
) -> tuple[HeadOutput, HeadState, Intermediates]:
    """Returns the outputs of ``apply_head``, and those of each convolution at each level."""
    masks = {level: downsample_mask(mask, 2**level) for level in pyramid}
    outputs: Intermediates = collections.OrderedDict()

    def side(
        name: str,
        tower: tuple[ConvNormParams, ...],
        states: tuple[NormState | None, ...],
        predictor: Predictor,
        width: int,
    ) -> tuple[Float[Array, "b a w"], tuple[NormState | None, ...]]:
        maps, new = dict(sorted(pyramid.items())), []
        layer = head.tower_layer(next(iter(maps.values())).shape[-1])
        for i, (p, s) in enumerate(zip(tower, states)):
            maps = {level: apply_convolution(layer, p, x) for level, x in maps.items()}
            assert p.norm is not None
            maps, s = _apply_norm_over_levels(head, p.norm, s, maps, mode, masks)
            maps = {level: activate(head.norm, x) for level, x in maps.items()}
            new.append(s)
            outputs.update({f"{name} tower {i} level {k}": x for k, x in maps.items()})
        rows = []
        for level, x in maps.items():
            y = conv(x, predictor.kernel.astype(x.dtype)).astype(jnp.float32) + predictor.bias
            outputs[f"{name} predictor level {level}"] = y
            rows.append(y.reshape(y.shape[0], -1, width))
        return jnp.concatenate(rows, 1), tuple(new)

    anchors = params.box_predictor.bias.size // 4
    classes = params.class_predictor.bias.size // anchors
    logits, class_state = side(
        "class", params.class_tower, state.class_tower, params.class_predictor, classes
    )
    deltas, box_state = side("box", params.box_tower, state.box_tower, params.box_predictor, 4)
    new = HeadState(class_tower=class_state, box_tower=box_state)
    return HeadOutput(logits=logits, deltas=deltas), new, outputs


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


def _apply_joint_norm(
    head: RetinaHead,
    params: NormParams,
    state: NormState | None,
    maps: Features,
    mode: Mode,
    masks: dict[int, Array | None],
) -> tuple[Features, NormState | None]:
    """Returns all levels normalized as one map of all their cells, ``[b, cells, 1, c]``."""
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
        assert affine.scale is not None
        assert affine.bias is not None
        cells = x.shape[1] * x.shape[2]
        part = y[:, start : start + cells].reshape(x.shape)
        normed[level] = part * affine.scale.astype(x.dtype) + affine.bias.astype(x.dtype)
        start += cells
    return normed, state
