"""CIFAR-10 and CIFAR-100 in their official binary format, for C programs."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8

from fpnlab.data.data_folder import MOST_ARRAY_BYTES, DataFolder
from fpnlab.data.dataset import Dataset, raise_errors
from fpnlab.data.split import Split, split_dataset
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

SIDE = 32
"""Height and width of an image in pixels."""
PIXELS = 3 * SIDE * SIDE
"""Bytes of an image in a file."""
COARSE = 20
"""Coarse classes of CIFAR-100."""
CLASS_NAMES = {
    10: tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    100: tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()
    ),
}


@spec
class CifarBinary:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) in the binary version of its archives."""

    kind: Literal["cifar"] = "cifar"
    root: str
    """Folder with the files data_batch_1.bin to data_batch_5.bin and test_batch.bin; for 100
    classes, with train.bin and test.bin."""
    classes: Literal[10, 100] = 10
    """Number of classes: 10 for CIFAR-10, 100 for CIFAR-100 with its fine labels."""
    split: Split = Split()
    """Split and subset of the images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to k - 1."""
        return CLASS_NAMES[self.classes]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return SIDE, SIDE


def load_cifar(spec: CifarBinary) -> Dataset[LabeledBatch]:
    """Returns the two splits of ``spec`` in host memory.

    A record is the label (for CIFAR-100 the coarse and then the fine one) and the planes of
    red, green and blue, row by row. A list of class names in the folder is checked.

    Args:
      spec: The data set.

    Raises:
      FileNotFoundError: The folder or a file is missing.
      ValueError: The size of a file is not a multiple of a record, a label is out of range, or the
        class names are others; or the split needs more images than there are. All errors of the
        files are raised at once.
    """
    folder = DataFolder(spec.root)
    if spec.classes == 10:
        names, train = "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)]
        test = ["test_batch.bin"]
    else:
        names, train, test = "fine_label_names.txt", ["train.bin"], ["test.bin"]
    errors: list[Exception] = []
    _check_names(spec, folder, names, errors)
    whole = _read(spec, folder, train, errors)
    held = whole if spec.split.validation else _read(spec, folder, test, errors)
    raise_errors(f"CIFAR-{spec.classes} data in {spec.root}", errors)
    name = f"cifar{spec.classes}"
    return split_dataset(name, spec.class_names, spec.split, whole, held, folder.files)


def _check_names(spec: CifarBinary, folder: DataFolder, file: str, errors: list[Exception]) -> None:
    """Adds an error if the list of class names is there and has other names."""
    try:
        found = tuple(folder.read_text(file).split())
    except FileNotFoundError:
        return
    except ValueError as error:
        errors.append(ValueError(f"{file}: {error}"))
        return
    if found != spec.class_names:
        near = next((k for k, names in CLASS_NAMES.items() if names == found), None)
        remedy = f"set classes = {near}" if near else "read other data with image_folder"
        errors.append(
            ValueError(
                f"{file}: names {len(found)} classes ({', '.join(found[:3])}, ...), which are "
                f"not those of CIFAR-{spec.classes}; {remedy}"
            )
        )


def _read(
    spec: CifarBinary, folder: DataFolder, files: list[str], errors: list[Exception]
) -> LabeledBatch:
    """Returns all records of ``files`` but those of invalid files, whose errors are added."""
    # CIFAR-100 has a coarse label before the fine one.
    limits = (10,) if spec.classes == 10 else (COARSE, 100)
    parts = [np.zeros((0, len(limits) + PIXELS), np.uint8)]
    for name in files:
        try:
            parts.append(_records(folder, name, limits))
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
    records = np.concatenate(parts)
    planes = records[:, len(limits) :].reshape(-1, 3, SIDE, SIDE)
    return LabeledBatch(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, len(limits) - 1].astype(np.int32),
        index=np.arange(len(records), dtype=np.int32),
    )


def _records(
    folder: DataFolder, name: str, limits: tuple[int, ...]
) -> UInt8[np.ndarray, "n record"]:
    """Returns the records of a file.

    Args:
      folder: The folder of the file.
      name: Its name.
      limits: Number of classes for each label of a record.
    """
    try:
        content = np.frombuffer(folder.read(name, MOST_ARRAY_BYTES), np.uint8)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: missing; {folder.listing()}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    record = len(limits) + PIXELS
    if not content.size or content.size % record:
        raise ValueError(
            f"{name}: has {content.size} bytes, {content.size % record} more than "
            f"{content.size // record} records of {record}; it is truncated or of another format"
        )
    records = content.reshape(-1, record)
    for column, limit in enumerate(limits):
        wrong = np.flatnonzero(records[:, column] >= limit)
        if wrong.size:
            raise ValueError(
                f"{name}, record {wrong[0] + 1}: label {records[wrong[0], column]} is not "
                f"from 0 to {limit - 1} ({wrong.size} such records); it is damaged or of another "
                "format"
            )
    return records
