"""IDX files, the format of MNIST: a magic number, sizes, and bytes."""

import gzip
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8

from fpnlab.data.dataset import Dataset, Side, check_class_names, raise_errors
from fpnlab.data.split import Split, check_sources_differ, split_dataset
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

UNSIGNED_BYTE = 0x08
"""Code of the type of values in the magic number."""


@spec
class Idx:
    """IDX files, plain or compressed, such as MNIST, Fashion-MNIST, KMNIST and EMNIST."""

    kind: Literal["idx"] = "idx"
    root: str
    """Folder with files like train-images-idx3-ubyte and train-labels-idx1-ubyte.gz."""
    train: str = "train"
    """Prefix of the training files, before -images and -labels."""
    test: str = "t10k"
    """Prefix of the held-out files, before -images and -labels."""
    image_size: Annotated[tuple[int, int], Side] = (28, 28)
    """Height and width of the images in the files in pixels."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Names of classes 0 to k - 1, the labels in the files."""
    split: Split = Split()
    """Split and subset of the images."""

    def __post_init__(self) -> None:
        """Checks the names of classes and files."""
        check_class_names("Idx", self.class_names)
        check_sources_differ("Idx", self.train, self.test, self.split)


def load_idx(spec: Idx) -> Dataset[LabeledBatch]:
    """Returns the two splits of ``spec`` in host memory, gray repeated over three channels.

    Args:
      spec: The data set.

    Raises:
      FileNotFoundError: The folder or a file is missing.
      ValueError: A file has another magic number, more or fewer bytes than its header gives, images
        of another size, or labels without a name; or the split needs more images than there are.
        All errors of the files are raised at once.
    """
    root = pathlib.Path(spec.root).expanduser()
    errors: list[Exception] = []
    train = _read(spec, root, spec.train, errors)
    held = train if spec.split.validation else _read(spec, root, spec.test, errors)
    raise_errors(f"Idx data in {spec.root}", errors)
    return split_dataset(root.resolve().name, spec.class_names, spec.split, train, held)


def _read(spec: Idx, root: pathlib.Path, prefix: str, errors: list[Exception]) -> LabeledBatch:
    """Returns the images of one split; no images if a file is invalid, whose errors are added."""
    arrays: list[np.ndarray] = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        try:
            arrays.append(_parse(_find(root, f"{prefix}-{what}", dimensions), dimensions))
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
    if len(arrays) == 2:
        errors += _mismatches(spec, prefix, *arrays)
    else:
        arrays = [np.zeros((0, 0, 0), np.uint8), np.zeros(0, np.uint8)]
    images, labels = arrays
    return LabeledBatch(
        images=np.broadcast_to(images[..., None], (*images.shape, 3)),
        labels=labels.astype(np.int32),
        index=np.arange(len(labels), dtype=np.int32),
    )


def _mismatches(
    spec: Idx, prefix: str, images: UInt8[np.ndarray, "n h w"], labels: UInt8[np.ndarray, " m"]
) -> Iterator[ValueError]:
    """Yields errors of files that are each valid, but do not fit together or to the spec."""
    if not len(images) or len(images) != len(labels):
        yield ValueError(
            f"{prefix}-labels: has {len(labels)} labels for the {len(images)} images of "
            f"{prefix}-images; give files of the same images, one or more"
        )
    height, width = images.shape[1:]
    if (height, width) != spec.image_size:
        yield ValueError(
            f"{prefix}-images: has images of {height} x {width} pixels, but image_size is "
            f"{spec.image_size}; set image_size = [{height}, {width}]"
        )
    names = len(spec.class_names)
    if len(labels) and labels.max() >= names:
        yield ValueError(
            f"{prefix}-labels: has labels from {labels.min()} to {labels.max()}, but class_names "
            f"has {names} names, for 0 to {names - 1}; name every label from 0"
        )


def _find(root: pathlib.Path, start: str, dimensions: int) -> pathlib.Path:
    """Returns the path of a file, whose separator and compression differ by distributor."""
    names = [f"{start}{dot}idx{dimensions}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
    for name in names:
        if (root / name).is_file():
            return root / name
    there = sorted(path.name for path in root.glob("*")) if root.is_dir() else []
    remedy = f"there are: {', '.join(there)}" if there else "no such folder, or it is empty"
    raise FileNotFoundError(f"{names[0]} (or .gz): missing; {remedy}")


def _parse(path: pathlib.Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Returns the array in an IDX file of unsigned bytes."""
    content = path.read_bytes()
    # Detected by content, not by name: some browsers decompress a file and keep its name.
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path.name}: does not decompress ({error}); it is truncated or damaged"
            ) from None
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    header = 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        found = content[:4].hex(" ") or "nothing"
        raise ValueError(
            f"{path.name}: begins with {found}, not with {magic.hex(' ')} and {dimensions} sizes; "
            f"expected an IDX file of bytes with {dimensions} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path.name}: has {len(content) - header} bytes after its header, which gives "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}; it is truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
