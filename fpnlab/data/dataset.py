"""Data sets in memory, their problems, and the order in which training visits the images."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Int

from fpnlab.records.data_files import DataFile, DataFingerprint, fingerprint
from fpnlab.spec import Bounds, SpecError
from fpnlab.types import Batch, LabeledBatch

Images = TypeVar("Images", bound=Batch | LabeledBatch)
"""Images with boxes, or with labels."""

ERRORS_SHOWN = 10
"""Errors of a data set that are shown in full."""
Side = Bounds(least=1.0, most=8192.0)
"""Height or width of an image in pixels."""
MOST_PIXELS = 4 * 10**9
"""Largest number of pixels in all images of a data set together, three bytes each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was left out or changed while loading a data set."""

    file: str
    """The file or folder, relative to the data set's folder."""
    where: str
    """The place in the file, counted from 1, such as ``"object 12"``."""
    what: str
    """The problem, and how it was handled."""
    count: int = 1
    """Number of objects or images concerned."""

    def __str__(self) -> str:
        return f"{self.file}, {self.where}: {self.what}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Generic[Images]):
    """A training and a held-out split in memory, with one leading axis over the images."""

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
    files: tuple[DataFile, ...] = ()
    """The files that were read; empty for generated data."""

    @functools.cached_property
    def fingerprint(self) -> DataFingerprint | None:
        """The fingerprint of the files; None for generated data."""
        return fingerprint(self.files)


def too_many_pixels(images: int, size: tuple[int, int]) -> str | None:
    """Returns the message for more images than fit into memory; None if they fit.

    Args:
      images: Number of images.
      size: Height and width in pixels.
    """
    pixels = images * size[0] * size[1]
    if pixels <= MOST_PIXELS:
        return None
    return (
        f"{images} images of {size[0]}x{size[1]} are {pixels} pixels, and at most {MOST_PIXELS} "
        "(12 GB) are held in memory; give fewer or smaller images, or raise "
        "fpnlab.data.dataset.MOST_PIXELS"
    )


def check_pixels(owner: str, images: int, size: tuple[int, int]) -> None:
    """Checks that images fit into memory.

    Args:
      owner: The field or data set that they belong to, for the message.
      images: Number of images.
      size: Height and width in pixels.

    Raises:
      ValueError: They have more than `MOST_PIXELS`.
    """
    if problem := too_many_pixels(images, size):
        raise ValueError(f"{owner}: {problem}")


def check_class_names(owner: str, class_names: Sequence[str]) -> None:
    """Checks that there are class names, and that they differ.

    Args:
      owner: Name of the spec, for the message.
      class_names: Names of classes 0 to k - 1.

    Raises:
      SpecError: There is no name, or a name occurs twice.
    """
    if not class_names or len(set(class_names)) < len(class_names):
        problem = f"is {list(class_names)}; it must be one or more different names"
        raise SpecError(owner, [("class_names", problem)])


def raise_errors(data: str, errors: Sequence[Exception]) -> None:
    """Raises all ``errors`` of a data set as one, if there are any.

    Args:
      data: The data set, such as ``"Idx data in some/folder"``.
      errors: The errors, each with its file; the first ten are shown in full.

    Raises:
      FileNotFoundError: All errors are of missing files.
      ValueError: There are other errors.
    """
    if not errors:
        return
    shown = [f"  {error}" for error in errors[:ERRORS_SHOWN]]
    if hidden := len(errors) - len(shown):
        shown.append(f"  ... and {hidden} more")
    absent = all(isinstance(error, FileNotFoundError) for error in errors)
    number = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    message = "\n".join([f"{data}: {number}", *shown])
    raise FileNotFoundError(message) if absent else ValueError(message)


def stream_order(seed: int, size: int, start: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns the image numbers at positions ``start`` to ``start + count - 1`` of a stream.

    The stream is endless. Its epoch ``e``, the positions ``e * size`` to
    ``(e + 1) * size - 1``, is a permutation that depends on ``(seed, e)`` alone. So every
    batch size sees the same images in the same order, batches cross the ends of epochs, and a
    run resumes at any position without replaying the ones before.

    Args:
      seed: Seed of the order; 0 or more.
      size: Number of images in the split.
      start: First position, counted in images from the start of training.
      count: Number of positions.

    Returns:
      Image numbers, int32, each 0 to ``size - 1``.

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
def _epoch_order(seed: int, size: int, epoch: int) -> Int[np.ndarray, " size"]:
    """Returns the permutation of an epoch, read-only because it is cached."""
    order = np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
    order.flags.writeable = False
    return order


def take(split: Images, indices: Int[Array, " b"] | np.ndarray) -> Images:
    """Returns a batch of the images with the numbers ``indices``.

    A split in host memory is gathered there; one on the device is gathered on the device,
    also inside ``jit`` (pass the split as an argument, or it becomes a constant).

    Args:
      split: Images with a leading axis.
      indices: Numbers of images, ``[b]``.
    """
    return jax.tree.map(lambda leaf: leaf[indices], split)
