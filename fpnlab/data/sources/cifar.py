"""CIFAR-10 and CIFAR-100 in their official binary format: labels and planes, byte after byte."""

import pathlib
from typing import Literal

import numpy as np

from fpnlab.data.dataset import Dataset, refuse
from fpnlab.data.split import Split, split_dataset
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

SIDE = 32
PIXELS = 3 * SIDE * SIDE
COARSE = 20
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
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), as the archives for C programs have it."""

    kind: Literal["cifar"] = "cifar"
    root: str
    """Folder that holds data_batch_1.bin and so on, or for 100 classes train.bin and test.bin."""
    classes: Literal[10, 100] = 10
    """10 for CIFAR-10; 100 for CIFAR-100 with its fine labels."""
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
    red, green and blue, row by row. A list of class names beside the files is checked.

    Raises:
      FileNotFoundError: the folder or a file is absent.
      ValueError: a file has no whole number of records, a label out of range, or other names; or
        the split asks for more images than there are. All faults of the files come at once.
    """
    root = pathlib.Path(spec.root).expanduser()
    if spec.classes == 10:
        names, train = "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)]
        test = ["test_batch.bin"]
    else:
        names, train, test = "fine_label_names.txt", ["train.bin"], ["test.bin"]
    faults: list[Exception] = []
    _check_names(spec, root / names, faults)
    whole = _read(spec, root, train, faults)
    held = whole if spec.split.validation else _read(spec, root, test, faults)
    refuse(f"CIFAR-{spec.classes} data in {spec.root}", faults)
    return split_dataset(f"cifar{spec.classes}", spec.class_names, spec.split, whole, held)


def _check_names(spec, path, faults):
    if not path.is_file():
        return
    found = tuple(path.read_text(errors="replace").split())
    if found != spec.class_names:
        near = next((k for k, names in CLASS_NAMES.items() if names == found), None)
        remedy = f"set classes = {near}" if near else "read other data with image_folder"
        faults.append(
            ValueError(
                f"{path.name}: names {len(found)} classes ({', '.join(found[:3])}, ...), which are "
                f"not those of CIFAR-{spec.classes}; {remedy}"
            )
        )


def _read(spec, root, files, faults):
    """Returns all records of ``files``; those of a faulty file are left out."""
    # CIFAR-100 has a coarse label before the fine one.
    limits = (10,) if spec.classes == 10 else (COARSE, 100)
    parts = [np.zeros((0, len(limits) + PIXELS), np.uint8)]
    for name in files:
        try:
            parts.append(_records(root / name, limits))
        except (FileNotFoundError, ValueError) as fault:
            faults.append(fault)
    records = np.concatenate(parts)
    planes = records[:, len(limits) :].reshape(-1, 3, SIDE, SIDE)
    return LabeledBatch(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, len(limits) - 1].astype(np.int32),
        index=np.arange(len(records), dtype=np.int32),
    )


def _records(path, limits):
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        remedy = f"there are: {', '.join(there)}" if there else "no such folder, or it is empty"
        raise FileNotFoundError(f"{path.name}: absent; {remedy}")
    content = np.fromfile(path, np.uint8)
    record = len(limits) + PIXELS
    if not content.size or content.size % record:
        raise ValueError(
            f"{path.name}: has {content.size} bytes, {content.size % record} more than "
            f"{content.size // record} records of {record}; it is truncated or of another format"
        )
    records = content.reshape(-1, record)
    for column, limit in enumerate(limits):
        wrong = np.flatnonzero(records[:, column] >= limit)
        if wrong.size:
            raise ValueError(
                f"{path.name}, record {wrong[0] + 1}: label {records[wrong[0], column]} is not "
                f"from 0 to {limit - 1} ({wrong.size} such records); it is damaged or of another "
                "format"
            )
    return records
