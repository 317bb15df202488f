"""Generic ``init`` and ``apply``, which dispatch on the type of a layer's spec."""

from jaxtyping import Array, PyTree

from fpnlab.nn.backbone import Backbone, apply_backbone, init_backbone
from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.conv_norm import ConvNorm, apply_conv_norm, init_conv_norm
from fpnlab.nn.detector import Detector, apply_detector, init_detector
from fpnlab.nn.fpn import Fpn, apply_fpn, init_fpn
from fpnlab.nn.norm_layer import apply_norm, init_norm
from fpnlab.nn.norm_specs import Norm
from fpnlab.nn.retina_head import RetinaHead, apply_head, init_head
from fpnlab.types import Features, Key, Mode

Layer = Norm | ConvNorm | Block | Backbone | Fpn | RetinaHead | Detector | Classifier
Widths = Array | int | Features | dict[int, int]
"""Input of a layer, or the number of channels in place of each map."""


def init(key: Key, spec: Layer, like: Widths | None = None) -> tuple[PyTree, PyTree]:
    """Returns parameters and state of a layer.

    Args:
      key: Draws the parameters.
      spec: The layer.
      like: For a norm an input or its number of channels, for an `Fpn` and a `RetinaHead` a
        dictionary of these by level; not needed for other layers. Only channels are read.

    Raises:
      TypeError: ``spec`` is not a layer, or ``like`` is missing.
      ValueError: The channels do not fit, see the ``init_`` function of the layer.
    """
    match spec:
        case ConvNorm():
            return init_conv_norm(key, spec)
        case Block():
            return init_block(key, spec)
        case Detector():
            return init_detector(key, spec)
        case Classifier():
            return init_classifier(key, spec)
        case Fpn():
            return init_fpn(key, spec, _channels_by_level(spec, like))
        case RetinaHead():
            channels = _channels_by_level(spec, like)
            return init_head(
                key, spec, channels=next(iter(channels.values())), levels=len(channels)
            )
        case _ if isinstance(spec, Backbone):
            return init_backbone(key, spec)
        case _ if isinstance(spec, Norm):
            if like is None or isinstance(like, dict):
                raise TypeError(f"{type(spec).__name__}: give like, an input or its channels")
            return init_norm(spec, _channels(like))
    raise TypeError(_not_a_layer(spec))


def apply(
    spec: Layer, params: PyTree, state: PyTree, x: PyTree, mode: Mode, **options: PyTree
) -> tuple[PyTree, PyTree]:
    """Returns the output of a layer and its new state.

    Args:
      spec: The layer.
      params: Its parameters.
      state: Its running statistics.
      x: Maps ``[b, *space, c]``, images ``[b, h, w, 3]``, or maps by level.
      mode: Source and update of statistics, and whether stochastic layers are active.
      **options: Further arguments of the layer's ``apply_`` function: ``mask``, ``key``,
        ``extent``, ``gates``.

    Raises:
      TypeError: ``spec`` is not a layer.
    """
    match spec:
        case ConvNorm():
            return apply_conv_norm(spec, params, state, x, mode, **options)
        case Block():
            return apply_block(spec, params, state, x, mode, **options)
        case Detector():
            return apply_detector(spec, params, state, x, mode, **options)
        case Classifier():
            return apply_classifier(spec, params, state, x, mode, **options)
        case Fpn():
            return apply_fpn(spec, params, state, x, mode, **options)
        case RetinaHead():
            return apply_head(spec, params, state, x, mode, **options)
        case _ if isinstance(spec, Backbone):
            return apply_backbone(spec, params, state, x, mode, **options)
        case _ if isinstance(spec, Norm):
            return apply_norm(spec, params, state, x, mode, **options)
    raise TypeError(_not_a_layer(spec))


def _channels_by_level(spec: Fpn | RetinaHead, like: Widths | None) -> dict[int, int]:
    if not isinstance(like, dict) or not like:
        raise TypeError(f"{type(spec).__name__}: give like, maps or their channels by level")
    return {level: _channels(feature) for level, feature in like.items()}


def _channels(like: Array | int) -> int:
    return like if isinstance(like, int) else like.shape[-1]


def _not_a_layer(spec: object) -> str:
    return (
        f"spec: {spec!r} is not a layer; expected a norm, ConvNorm, Block, ResNet, ConvNeXt, "
        "Mlp, Fpn, RetinaHead, Detector or Classifier of fpnlab"
    )
