"""IDX files, the format of MNIST: a magic number, sizes, and bytes."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8

from fpnlab.data.data_folder import MOST_ARRAY_BYTES, DataFolder
from fpnlab.data.dataset import Dataset, Side, check_class_names, raise_errors
from fpnlab.data.split import Split, check_sources_differ, split_dataset
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

UNSIGNED_BYTE = 0x08
"""Code of the type of values in the magic number."""
CHUNK = 2**20
"""Bytes that are decompressed at once."""


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
    folder = DataFolder(spec.root)
    errors: list[Exception] = []
    train = _read(spec, folder, spec.train, errors)
    held = train if spec.split.validation else _read(spec, folder, spec.test, errors)
    raise_errors(f"Idx data in {spec.root}", errors)
    name = folder.root.resolve().name
    return split_dataset(name, spec.class_names, spec.split, train, held, folder.files)


def _read(spec: Idx, folder: DataFolder, prefix: str, errors: list[Exception]) -> LabeledBatch:
    """Returns the images of one split; no images if a file is invalid, whose errors are added."""
    arrays: list[np.ndarray] = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        try:
            name = _find(folder, f"{prefix}-{what}", dimensions)
            arrays.append(_parse(folder, name, dimensions))
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


def _find(folder: DataFolder, start: str, dimensions: int) -> str:
    """Returns the name of a file, whose separator and compression differ by distributor."""
    names = [f"{start}{dot}idx{dimensions}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
    for name in names:
        if (folder.root / name).exists():
            return name
    raise FileNotFoundError(f"{names[0]} (or .gz): missing; {folder.listing()}")


def _parse(folder: DataFolder, name: str, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Returns the array in an IDX file of unsigned bytes."""
    try:
        content = folder.read(name, MOST_ARRAY_BYTES)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    stream: io.BufferedIOBase = io.BytesIO(content)
    # Detected by content, not by name: some browsers decompress a file and keep its name.
    if content.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    try:
        shape = _shape(name, stream.read(4 + 4 * dimensions), dimensions)
        # A small compressed file can hold any number of bytes: read at most one too many.
        values = _read_at_most(stream, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{name}: does not decompress ({error}); it is truncated or damaged"
        ) from None
    if len(values) != math.prod(shape):
        more = " or more" if len(values) > math.prod(shape) else ""
        raise ValueError(
            f"{name}: has {len(values)} bytes{more} after its header, which gives "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}; it is truncated or damaged"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(name: str, header: bytes, dimensions: int) -> tuple[int, ...]:
    """Returns the sizes in the header of an IDX file, after checking them."""
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        found = header[:4].hex(" ") or "nothing"
        raise ValueError(
            f"{name}: begins with {found}, not with {magic.hex(' ')} and {dimensions} sizes; "
            f"expected an IDX file of bytes with {dimensions} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if math.prod(shape) > MOST_ARRAY_BYTES:
        raise ValueError(
            f"{name}: its header gives {' x '.join(map(str, shape))} bytes; at most "
            f"{MOST_ARRAY_BYTES:,} are read"
        )
    return shape


def _read_at_most(stream: io.BufferedIOBase, count: int) -> bytearray:
    """Returns ``count`` bytes, or fewer at the end of the stream."""
    values = bytearray()
    while part := stream.read(min(CHUNK, count - len(values))):
        values += part
    return values
