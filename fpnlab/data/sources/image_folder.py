"""Image files with one folder per class, the most common layout of labeled images."""

import concurrent.futures
import dataclasses
import difflib
import os
import pathlib
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int, UInt8

from fpnlab.data.data_folder import DataFolder
from fpnlab.data.dataset import (
    Dataset,
    Problem,
    Side,
    check_class_names,
    check_pixels,
    raise_errors,
)
from fpnlab.data.fit_image import center_fit
from fpnlab.data.image_io import MOST_IMAGE_BYTES, decode_rgb
from fpnlab.data.split import Split, check_sources_differ, draw_split
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Ends of the names of image files, in any case."""
CHUNK = 64
"""Images that a thread decodes at once."""


@spec
class ImageFolder:
    """JPEG and PNG files in one folder per class, inside one folder per split."""

    kind: Literal["image_folder"] = "image_folder"
    root: str
    """Folder that contains the folders of the splits."""
    train: str = "train"
    """Folder of the training images, inside `root`."""
    test: str = "test"
    """Folder of the held-out images, inside `root`."""
    image_size: Annotated[tuple[int, int], Side]
    """Height and width in pixels; other images are scaled to cover it and center-cropped."""
    class_names: tuple[str, ...]
    """Names of classes 0 to k - 1, which are those of their folders; other folders are ignored."""
    split: Split = Split()
    """Split and subset of the images."""

    def __post_init__(self) -> None:
        """Checks the names of the classes and of the splits."""
        check_class_names("ImageFolder", self.class_names)
        check_sources_differ("ImageFolder", self.train, self.test, self.split)


@dataclasses.dataclass
class _Files:
    """The image files of one split's folder, class by class and by name."""

    paths: list[str]
    """Paths relative to the data set's folder."""
    labels: Int[np.ndarray, " n"]
    """Class of each file."""


def load_image_folder(spec: ImageFolder) -> Dataset[LabeledBatch]:
    """Returns the two splits of ``spec`` in host memory, decoded and of one size.

    Only the images that the split chooses are decoded. Images are used as stored: an EXIF
    orientation is not applied.

    Left out and listed in ``problems``: images that do not decode, files of other types, and
    folders that are not in ``class_names``. Resized and listed, as one problem for each split:
    images of other sizes.

    Args:
      spec: The data set.

    Raises:
      FileNotFoundError: The folder, or that of a split or a class, is missing.
      ValueError: A class has no image, a split has no readable image, or the split needs more
        images than there are.
    """
    folder = DataFolder(spec.root)
    errors: list[Exception] = []
    problems: list[Problem] = []
    what = f"Image folder {spec.root}"
    sides = spec.train, spec.train if spec.split.validation else spec.test
    train = _list(spec, folder, spec.train, errors, problems)
    held = train if spec.split.validation else _list(spec, folder, spec.test, errors, problems)
    raise_errors(what, errors)
    numbers = draw_split(spec.split, train.labels, held.labels)
    batches = [
        _decode(spec, folder, side, files, picked, errors, problems)
        for side, files, picked in zip(sides, (train, held), numbers)
    ]
    raise_errors(what, errors)
    return Dataset(
        name=folder.root.resolve().name,
        class_names=spec.class_names,
        train=batches[0],
        test=batches[1],
        problems=tuple(problems),
        files=folder.files,
    )


def _list(
    spec: ImageFolder,
    folder: DataFolder,
    split: str,
    errors: list[Exception],
    problems: list[Problem],
) -> _Files:
    """Returns the files of a split's folder, whose errors and problems are added."""
    paths: list[str] = []
    labels: list[int] = []
    parent = folder.root / split
    if not parent.is_dir():
        errors.append(FileNotFoundError(f"{split}: no such folder; {folder.listing()}"))
        return _Files(paths, np.zeros(0, np.int32))
    folders = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    for label, name in enumerate(spec.class_names):
        if name not in folders:
            near = difflib.get_close_matches(name, folders, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            errors.append(
                FileNotFoundError(
                    f"{split}/{name}: no such folder; {hint}there are: {', '.join(folders)}"
                )
            )
            continue
        found = _images(parent / name, f"{split}/{name}", problems)
        if not found:
            errors.append(
                ValueError(f"{split}/{name}: has no image; add {', '.join(SUFFIXES)} files")
            )
        paths += [f"{split}/{name}/{file}" for file in found]
        labels += [label] * len(found)
    if others := sorted(set(folders) - set(spec.class_names)):
        problems.append(
            Problem(
                file=split,
                where=others[0],
                what=f"{len(others)} folders are not in class_names: left out",
                count=len(others),
            )
        )
    return _Files(paths, np.array(labels, np.int32))


def _images(folder: pathlib.Path, shown: str, problems: list[Problem]) -> list[str]:
    """Returns the names of a class's image files, sorted, without hidden files."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    if others := sorted(set(names) - set(images)):
        problems.append(
            Problem(
                file=shown,
                where=others[0],
                what=f"{len(others)} entries are not {', '.join(SUFFIXES)} files: left out",
                count=len(others),
            )
        )
    return images


def _decode(
    spec: ImageFolder,
    folder: DataFolder,
    split: str,
    files: _Files,
    numbers: Int[np.ndarray, " n"],
    errors: list[Exception],
    problems: list[Problem],
) -> LabeledBatch:
    """Returns the images ``numbers`` of ``files``, without those that do not decode."""
    check_pixels("data", len(numbers), spec.image_size)
    images = np.zeros((len(numbers), *spec.image_size, 3), np.uint8)
    paths = [files.paths[number] for number in numbers]
    part = lambda first: _fill(images[first : first + CHUNK], folder, paths[first : first + CHUNK])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(part, range(0, len(paths), CHUNK)))
    outcomes = [outcome for outcomes in parts for outcome in outcomes]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    sizes = [outcome for outcome in outcomes if not isinstance(outcome, Problem)]
    if others := [size for size in sizes if size != spec.image_size]:
        least, most = (f"{h} x {w}" for h, w in (min(others), max(others)))
        problems.append(
            Problem(
                file=split,
                where=f"{len(others)} of {len(paths)} images",
                what=f"of other sizes ({least} to {most} pixels): scaled to cover "
                f"{spec.image_size[0]} x {spec.image_size[1]} and center-cropped",
                count=len(others),
            )
        )
    problems += failed
    if not sizes:
        errors.append(ValueError(f"{split}: none of {len(paths)} images is readable; {failed[0]}"))
    kept = np.array([not isinstance(outcome, Problem) for outcome in outcomes], bool)
    return LabeledBatch(
        images=images[kept] if failed else images,
        labels=files.labels[numbers[kept]],
        index=numbers[kept].astype(np.int32),
    )


def _fill(
    images: UInt8[np.ndarray, "n h w 3"], folder: DataFolder, paths: list[str]
) -> list[Problem | tuple[int, int]]:
    """Writes decoded files into ``images``; returns the original size of each, or its problem."""
    outcomes: list[Problem | tuple[int, int]] = []
    for row, path in zip(images, paths):
        try:
            image = decode_rgb(folder.read(path, MOST_IMAGE_BYTES))
        except FileNotFoundError:
            outcomes.append(Problem(file=path, where="whole file", what="is missing: left out"))
        except ValueError as error:
            outcomes.append(Problem(file=path, where="whole file", what=f"{error}: left out"))
        else:
            outcomes.append((image.shape[0], image.shape[1]))
            row[:] = center_fit(image, row.shape[:2])
    return outcomes
