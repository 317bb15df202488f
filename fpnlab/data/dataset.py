"""Whole data sets in memory, and the order in which training walks through them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Int

from fpnlab.spec import Bounds
from fpnlab.types import Batch, LabeledBatch

Images = TypeVar("Images", bound=Batch | LabeledBatch)
"""Images with boxes, or with labels."""

FAULTS_SHOWN = 10
Side = Bounds(least=1.0, most=8192.0)
"""Height or width of an image in pixels."""
MOST_PIXELS = 4 * 10**9
"""Of all images of a data set together, three bytes each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was left out or changed while loading, and how often."""

    file: str
    """The file it is in, relative to the data set's folder."""
    where: str
    """The place in the file, counted from 1: ``"object 12"``."""
    what: str
    """The problem, and its treatment."""
    count: int = 1
    """Number of objects or images concerned."""

    def __str__(self) -> str:
        return f"{self.file}, {self.where}: {self.what}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Generic[Images]):
    """A training and a held-out split, whole, with one leading axis over their images."""

    name: str
    """Name of the data set in results."""
    class_names: tuple[str, ...]
    """Names of classes 0 to k - 1."""
    train: Images
    """All images to train on."""
    test: Images
    """All held-out images."""
    problems: tuple[Problem, ...] = ()
    """Objects and images that loading left out or changed; empty for clean data."""


def check_pixels(owner: str, images: int, size: tuple[int, int]) -> None:
    """Checks that so many images of a size, ``[height, width]`` in pixels, fit into memory.

    Raises:
      ValueError: they have more than `MOST_PIXELS`.
    """
    pixels = images * size[0] * size[1]
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{owner}: {images} images of {size[0]}x{size[1]} are {pixels} pixels, and at most "
            f"{MOST_PIXELS} (12 GB) are held in memory; give fewer or smaller images, or raise "
            "fpnlab.data.dataset.MOST_PIXELS"
        )


def refuse(data: str, faults: Sequence[Exception]) -> None:
    """Raises all ``faults`` of a data set as one error, if there are any.

    Args:
      data: what has them: ``"Idx data in some/folder"``.
      faults: what is wrong, each with its file; the first ten are shown in full.

    Raises:
      FileNotFoundError: there are faults, and all of them are absent files.
      ValueError: there are others.
    """
    if not faults:
        return
    shown = [f"  {fault}" for fault in faults[:FAULTS_SHOWN]]
    if hidden := len(faults) - len(shown):
        shown.append(f"  ... and {hidden} more")
    absent = all(isinstance(fault, FileNotFoundError) for fault in faults)
    number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    message = "\n".join([f"{data}: {number}", *shown])
    raise FileNotFoundError(message) if absent else ValueError(message)


def stream_order(seed: int, size: int, start: int, count: int) -> np.ndarray:
    """Returns the image numbers at positions ``start`` to ``start + count - 1`` of a stream.

    The stream is endless. Its epoch ``e``, the positions ``e * size`` to
    ``(e + 1) * size - 1``, is a permutation that depends on ``(seed, e)`` alone. So every
    batch size sees the same images in the same order, batches run on across the ends of
    epochs, and resuming at a position is computing it.

    Args:
      seed: names the order; 0 or more.
      size: number of images in the split.
      start: first position, counted in images from the start of training.
      count: number of positions.

    Returns:
      ``[count]`` int32, each 0 to ``size - 1``.

    Raises:
      ValueError: ``size`` is below 1, or another argument below 0.
    """
    if size < 1 or min(seed, start, count) < 0:
        raise ValueError(
            f"stream_order: seed={seed}, size={size}, start={start}, count={count}; "
            "size must be at least 1, the others at least 0"
        )
    end = start + count
    parts = [
        _epoch_order(seed, size, epoch)[max(start - epoch * size, 0) : end - epoch * size]
        for epoch in range(start // size, -(-end // size))
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


@functools.lru_cache(maxsize=16)  # A permutation for every batch would cost more than small steps.
def _epoch_order(seed, size, epoch):
    order = np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
    order.flags.writeable = False
    return order


def take(split: Images, indices: Int[Array, " b"] | np.ndarray) -> Images:
    """Returns the batch of the images ``indices`` of ``split``.

    A split in host memory is gathered there; one on the device is gathered on the device,
    also inside ``jit`` (pass the split as an argument, or it becomes a constant).
    """
    return jax.tree.map(lambda leaf: leaf[indices], split)
