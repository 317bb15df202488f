"""The named values that cross rooms: what data hands to models, models to losses, and so on.

Axis names in the shapes: ``b`` images, ``h w`` space, ``c`` channels, ``a`` anchors,
``m`` ground-truth boxes (padded to a fixed number), ``d`` detections, ``k`` classes.
Boxes are ``xyxy`` in pixels; the origin is the top-left corner of the top-left pixel.
"""

import collections
import typing
from typing import Any, ClassVar, TypeVar, dataclass_transform

import flax.struct
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fpnlab.spec import spec

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def tree(cls: type[T]) -> type[T]:
    """Returns ``cls`` as a frozen pytree dataclass: parameters, state, or a batch.

    Its constructor is left unchecked by shape checkers, because ``eval_shape``, ``vmap``
    and ``tree.map`` rebuild it around leaves that are not arrays. Programs that take or return it
    can be exported and serialized (``jax.export``).
    """
    built = typing.no_type_check(flax.struct.dataclass(cls, kw_only=True))
    jax.export.register_pytree_node_serialization(
        built,
        serialized_name=f"{cls.__module__}.{cls.__qualname__}",
        serialize_auxdata=lambda _: b"",  # All fields are leaves.
        deserialize_auxdata=lambda _: (),
    )
    return built


@spec
class Mode:
    """Three switches that other libraries hide behind one ``train`` flag.

    Every combination is legal.
    """

    stats: typing.Literal["batch", "running"] = "batch"
    """The statistics that normalize: those of this batch, or the running ones."""
    update: typing.Literal["none", "running", "moments"] = "running"
    """Update of the statistics in the state: none, a running average that takes this
    batch in, or the moments of all values so far, into which those of this batch are merged by
    count (from a state whose counts are 0; "precise" statistics are made so)."""
    stochastic: bool = True
    """If true, stochastic parts (stochastic depth, dropout) are on."""

    TRAIN: ClassVar["Mode"]
    EVAL: ClassVar["Mode"]
    BATCH_EVAL: ClassVar["Mode"]
    MOMENTS: ClassVar["Mode"]


Mode.TRAIN = Mode(stats="batch", update="running", stochastic=True)
Mode.EVAL = Mode(stats="running", update="none", stochastic=False)
Mode.BATCH_EVAL = Mode(stats="batch", update="none", stochastic=False)
Mode.MOMENTS = Mode(stats="batch", update="moments", stochastic=False)


def picture_mask(
    extent: Float[Array | np.ndarray, "b 2"], height: int, width: int
) -> Bool[Array, "b h w"]:
    """Returns which pixels of padded images belong to the pictures of this height and width."""
    inside_y = jnp.arange(height) < extent[:, :1]
    inside_x = jnp.arange(width) < extent[:, 1:]
    return inside_y[:, :, None] & inside_x[:, None, :]


@tree
class Batch:
    """Images with their boxes, padded to fixed shapes."""

    images: Any
    """``[b, h, w, 3]``, uint8 or float, 0 to 255."""
    boxes: Any
    """``[b, m, 4]`` float32, ``xyxy`` in pixels of ``images``."""
    classes: Any
    """``[b, m]`` int32, 0 to k - 1; anything where ``valid`` is false."""
    valid: Any
    """``[b, m]`` bool: which of the ``m`` rows are boxes."""
    extent: Any
    """``[b, 2]`` float32: height and width of the picture inside ``images``, whose remaining
    rows (below) and columns (to the right) are padding."""
    index: Any
    """``[b]`` int32: the images' numbers in their data set."""

    @property
    def mask(self) -> Bool[Array, "b h w"]:
        """``[b, h, w]`` bool: which pixels belong to the picture."""
        return picture_mask(self.extent, *self.images.shape[1:3])


@tree
class LabeledBatch:
    """Images with one label each, all pixels of the picture."""

    images: Any
    """``[b, h, w, 3]``, uint8 or float, 0 to 255."""
    labels: Any
    """``[b]`` int32, 0 to k - 1; or ``[b, k]`` float32, the shares of the classes, sum 1."""
    index: Any
    """``[b]`` int32: the images' numbers in their data set."""


@tree
class Detections:
    """Boxes found in a batch of images, best first, padded to a fixed number."""

    boxes: Float[Array, "*b d 4"]
    """``xyxy`` in pixels."""
    scores: Float[Array, "*b d"]
    """0 to 1; 0 where ``valid`` is false."""
    classes: Int[Array, "*b d"]
    """0 to k - 1; -1 where ``valid`` is false."""
    valid: Bool[Array, "*b d"]
    """True for rows that are detections."""


@tree
class Moments:
    """Count, mean and biased variance of the values of each channel, in float32 or wider.

    Moments are merged by Chan's formula (``ops.moments.merge_moments``), never averaged.
    """

    count: Float[Array, "*g"]
    """Number of values."""
    mean: Float[Array, "*g c"]
    """Mean of the values."""
    var: Float[Array, "*g c"]
    """Biased variance: the mean squared deviation from the mean."""


Features = dict[int, Float[Array, "b _ _ _"]]
"""Maps by level; the stride of level ``l`` is ``2**l``. Backbone maps are C, pyramid maps P."""

Key = jax.Array
"""A typed PRNG key (``jax.random.key``)."""

Intermediates = collections.OrderedDict[str, Array]
"""Layer outputs by name, in the order of computation, which ``jit`` keeps of this type."""
