"""Parameter shapes and mode of a layer, for both Flax adapters."""

import functools

import jax
from jaxtyping import PyTree

from fpnlab.nn.layers import Layer, init
from fpnlab.types import Mode

Widths = int | tuple[tuple[int, int], ...] | None
"""Channels of an input, or pairs of level and channels; hashable."""


def widths_of(like: PyTree) -> Widths:
    """Returns the channels of an input, or of each map of a dictionary by level.

    Args:
      like: Arrays, or the channels themselves in place of each map.
    """
    channels = lambda feature: feature if isinstance(feature, int) else feature.shape[-1]
    if isinstance(like, dict):
        return tuple((level, channels(feature)) for level, feature in like.items())
    return channels(like)


def init_like(key: jax.Array, spec: Layer, widths: Widths) -> tuple[PyTree, PyTree]:
    """Returns parameters and state of ``spec`` for inputs of these widths."""
    return init(key, spec, dict(widths) if isinstance(widths, tuple) else widths)


@functools.lru_cache(maxsize=256)
def shapes(spec: Layer, widths: Widths) -> tuple[PyTree, PyTree]:
    """Returns parameters and state of a layer as shapes and dtypes."""
    return jax.eval_shape(lambda key: init_like(key, spec, widths), jax.random.key(0))


def mode_of(*given: tuple[Mode | None, bool | None]) -> Mode:
    """Returns the mode of the first pair ``(mode, use_running_average)`` that has one.

    ``use_running_average`` is Flax's one flag for three switches: False is ``Mode.TRAIN``, True
    is ``Mode.EVAL``.

    Raises:
      ValueError: No pair has a mode, or the first one that does has both.
    """
    pairs = [pair for pair in given if pair != (None, None)]
    if not pairs or None not in pairs[0]:
        raise ValueError("give either mode or use_running_average")
    mode, use_running_average = pairs[0]
    if mode is not None:
        return mode
    return Mode.EVAL if use_running_average else Mode.TRAIN
