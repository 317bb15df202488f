"""Types shared by several subpackages: modes, batches, detections, moments, feature maps.

Axis names in the shapes: ``b`` images, ``h w`` space, ``c`` channels, ``a`` anchors,
``m`` ground-truth boxes (padded to a fixed number), ``d`` detections, ``k`` classes.
Boxes are ``xyxy`` in pixels; the origin is the top-left corner of the top-left pixel.
"""

import collections
import typing
from typing import ClassVar, TypeVar, dataclass_transform

import flax.struct
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.spec import spec

T = TypeVar("T")

PixelValue = float | tuple[float, float, float]
"""A value in the units of pixels, 0 to 255: of all channels, or of red, green and blue."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def tree(cls: type[T]) -> type[T]:
    """Returns ``cls`` as a frozen pytree dataclass, for parameters, state or a batch.

    Runtime shape checkers skip its constructor, because ``eval_shape``, ``vmap`` and ``tree.map``
    rebuild it around leaves that are not arrays. Programs that take or return it can be exported
    and serialized (``jax.export``).
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
    """Three independent switches that other libraries combine into one ``train`` flag.

    Every combination is valid.
    """

    stats: typing.Literal["batch", "running"] = "batch"
    """Statistics that normalize: those of the current batch, or the running ones."""
    update: typing.Literal["none", "running", "moments"] = "running"
    """Update of the statistics in the state: none; a step of the running average; or a merge of
    this batch's moments, weighted by count, into the moments of all values so far (starting from
    a state with counts of 0; "precise" statistics are computed this way)."""
    stochastic: bool = True
    """If true, stochastic layers (stochastic depth, dropout) are on."""

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
    """Returns the mask of the pixels of padded images that belong to the pictures.

    Args:
      extent: Height and width of each picture, pixels.
      height: Height of the padded images, pixels.
      width: Width of the padded images, pixels.
    """
    inside_y = jnp.arange(height) < extent[:, :1]
    inside_x = jnp.arange(width) < extent[:, 1:]
    return inside_y[:, :, None] & inside_x[:, None, :]


@tree
class Batch:
    """Images with their ground-truth boxes, padded to fixed shapes."""

    images: Num[Array | np.ndarray, "*b h w 3"]
    """uint8 or float, 0 to 255."""
    boxes: Float[Array | np.ndarray, "*b m 4"]
    """float32, ``xyxy`` in pixels of ``images``."""
    classes: Int[Array | np.ndarray, "*b m"]
    """int32, 0 to k - 1; arbitrary where ``valid`` is false."""
    valid: Bool[Array | np.ndarray, "*b m"]
    """True for rows that are boxes, false for padding."""
    extent: Float[Array | np.ndarray, "*b 2"]
    """float32; height and width of the picture inside ``images``. The rows below and the columns
    to the right of it are padding."""
    index: Int[Array | np.ndarray, "*b"]
    """int32; the images' numbers in their data set."""

    @property
    def mask(self) -> Bool[Array, "b h w"]:
        """True for pixels that belong to the picture."""
        return picture_mask(self.extent, *self.images.shape[1:3])


@tree
class LabeledBatch:
    """Images with one label each, without padding."""

    images: Num[Array | np.ndarray, "*b h w 3"]
    """uint8 or float, 0 to 255."""
    labels: Int[Array | np.ndarray, "*b"] | Float[Array | np.ndarray, "*b k"]
    """int32 class indices, 0 to k - 1; or float32 class probabilities that sum to 1."""
    index: Int[Array | np.ndarray, "*b"]
    """int32; the images' numbers in their data set."""


@tree
class Detections:
    """Detected boxes of a batch of images, best first, padded to a fixed number."""

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
"""Feature maps by level; level ``l`` has stride ``2**l``. C are backbone maps, P pyramid maps."""

Key = jax.Array
"""A typed PRNG key (``jax.random.key``)."""

Intermediates = collections.OrderedDict[str, Array]
"""Layer outputs by name, in order of computation; ``jit`` would sort the keys of a plain dict."""
