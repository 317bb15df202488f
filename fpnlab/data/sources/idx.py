"""IDX files, the format of MNIST and its relatives: a magic number, sizes, and bytes."""

import gzip
import math
import pathlib
import struct
import zlib
from typing import Annotated, Literal

import numpy as np

from fpnlab.data.dataset import Dataset, Side, refuse
from fpnlab.data.split import Split, refuse_same, split_dataset
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

UNSIGNED_BYTE = 0x08


@spec
class Idx:
    """A folder of IDX files, plain or compressed: MNIST, Fashion-MNIST, KMNIST, EMNIST."""

    kind: Literal["idx"] = "idx"
    root: str
    """Folder that holds files like train-images-idx3-ubyte and train-labels-idx1-ubyte.gz."""
    train: str = "train"
    """Prefix of the names of the training files, before -images and -labels."""
    test: str = "t10k"
    """Prefix of the names of the held-out files."""
    image_size: Annotated[tuple[int, int], Side] = (28, 28)
    """Height and width in pixels of the images in the files."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Names of classes 0 to k - 1."""
    split: Split = Split()
    """Split and subset of the images."""

    def __post_init__(self) -> None:
        """Refuses names that fit no data."""
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"Idx.class_names = {self.class_names}: must be one or more different names"
            )
        refuse_same("Idx", self.train, self.test, self.split)


def load_idx(spec: Idx) -> Dataset[LabeledBatch]:
    """Returns the two splits of ``spec`` in host memory, gray repeated over three channels.

    Raises:
      FileNotFoundError: the folder or a file is absent.
      ValueError: a file has another magic number, more or fewer bytes than it announces, images of
        another size, or labels without a name; or the split asks for more images than there are.
        All faults of the files come at once.
    """
    root = pathlib.Path(spec.root).expanduser()
    faults: list[Exception] = []
    train = _read(spec, root, spec.train, faults)
    held = train if spec.split.validation else _read(spec, root, spec.test, faults)
    refuse(f"Idx data in {spec.root}", faults)
    return split_dataset(root.resolve().name, spec.class_names, spec.split, train, held)


def _read(spec, root, prefix, faults):
    """Returns the images of one split; none where faults were found."""
    arrays = []
    for what, dimensions in (("images", 3), ("labels", 1)):
        try:
            arrays.append(_parse(_find(root, f"{prefix}-{what}", dimensions), dimensions))
        except (FileNotFoundError, ValueError) as fault:
            faults.append(fault)
    if len(arrays) == 2:
        faults += _disagreements(spec, prefix, *arrays)
    else:
        arrays = [np.zeros((0, 0, 0), np.uint8), np.zeros(0, np.uint8)]
    images, labels = arrays
    return LabeledBatch(
        images=np.broadcast_to(images[..., None], (*images.shape, 3)),
        labels=labels.astype(np.int32),
        index=np.arange(len(labels), dtype=np.int32),
    )


def _disagreements(spec, prefix, images, labels):
    """Yields what is wrong with files that are each right by themselves."""
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


def _find(root, start, dimensions):
    """Returns the file's path: distributors differ in a dot and in compression."""
    names = [f"{start}{dot}idx{dimensions}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
    for name in names:
        if (root / name).is_file():
            return root / name
    there = sorted(path.name for path in root.glob("*")) if root.is_dir() else []
    remedy = f"there are: {', '.join(there)}" if there else "no such folder, or it is empty"
    raise FileNotFoundError(f"{names[0]} (or .gz): absent; {remedy}")


def _parse(path, dimensions):
    content = path.read_bytes()
    # By content, not by name: some browsers unpack a file and leave its name.
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path.name}: does not unpack ({error}); it is truncated or damaged"
            ) from None
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    header = 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        found = content[:4].hex(" ") or "nothing"
        raise ValueError(
            f"{path.name}: begins with {found}, not with {magic.hex(' ')} and {dimensions} sizes; "
            f"it is no IDX file of {dimensions} dimensions of bytes"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path.name}: has {len(content) - header} bytes after its header, which announces "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}; it is truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
