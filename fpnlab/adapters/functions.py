"""The init and apply functions of a spec, as both adapters call them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.detector import Detector, apply_detector, init_detector
from fpnlab.nn.fpn import Fpn, apply_fpn, init_fpn
from fpnlab.nn.norm_layer import Norm, apply_norm, init_norm
from fpnlab.nn.resnet import ResNet, apply_resnet, init_resnet
from fpnlab.nn.retina_head import RetinaHead, apply_head, init_head
from fpnlab.types import Key, Mode


@dataclasses.dataclass(frozen=True)
class Functions:
    """A layer's two functions, with its spec and sizes filled in."""

    init: Callable[[Key], tuple[Any, Any]]
    """Key to parameters and state."""
    apply: Callable[..., Any]
    """(params, state, x, mode) to the outputs and, last, the state."""

    @functools.cached_property
    def like(self) -> tuple[Any, Any]:
        """Parameters and state as shapes and dtypes."""
        return jax.eval_shape(self.init, jax.random.key(0))


def functions(spec: Any, like: Any, sizes: dict[str, int]) -> Functions:
    """Returns the functions of ``spec`` for inputs like ``like``.

    Args:
      spec: a norm, `Block`, `ResNet`, `Fpn`, `RetinaHead`, `Detector` or `Classifier`.
      like: an input, of which only widths are read: a map, or a dictionary of maps by level; or
        just its channels in place of each map.
      sizes: of a head: ``anchors`` and ``classes``.

    Raises:
      TypeError: ``spec`` is none of them.
    """
    match spec:
        case Block():
            init, apply = lambda key: init_block(key, spec), apply_block
        case ResNet():
            init, apply = lambda key: init_resnet(key, spec), apply_resnet
        case Detector():
            init, apply = lambda key: init_detector(key, spec), apply_detector
        case Classifier():
            init, apply = lambda key: init_classifier(key, spec), apply_classifier
        case Fpn():
            channels = {level: _width(feature) for level, feature in like.items()}
            init, apply = lambda key: init_fpn(key, spec, channels), apply_fpn
        case RetinaHead():
            width = _width(next(iter(like.values())))
            init = lambda key: init_head(key, spec, channels=width, levels=len(like), **sizes)
            apply = apply_head
        case _ if isinstance(spec, Norm):
            init, apply = lambda _: init_norm(spec, _width(like)), apply_norm
        case _:
            raise TypeError(
                f"spec: {spec!r} is no layer; expected a norm, Block, ResNet, Fpn, RetinaHead, "
                "Detector or Classifier of fpnlab"
            )
    return Functions(init, lambda *args, **options: apply(spec, *args, **options))


def _width(like: Any) -> int:
    return like if isinstance(like, int) else like.shape[-1]


def mode_of(*ways: tuple[Mode | None, bool | None]) -> Mode:
    """Returns the mode that the first of ``ways`` says, each ``(mode, use_running_average)``.

    ``use_running_average`` is Flax's one flag for three switches: False is ``Mode.TRAIN``, True
    is ``Mode.EVAL``.

    Raises:
      ValueError: none says it, or one says it twice.
    """
    said = [way for way in ways if way != (None, None)]
    if not said or None not in said[0]:
        raise ValueError("give either mode or use_running_average")
    mode, use_running_average = said[0]
    if mode is not None:
        return mode
    return Mode.EVAL if use_running_average else Mode.TRAIN
