"""Data sets in the Pascal VOC layout: lists, one XML file and one JPEG file per image."""

import concurrent.futures
import dataclasses
import difflib
import math
import os
import pathlib
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from fpnlab.data.dataset import Dataset, Problem
from fpnlab.data.letterbox import letterbox, letterbox_boxes
from fpnlab.types import Batch, spec

LISTS, ANNOTATIONS, IMAGES = "ImageSets/Main", "Annotations", "JPEGImages"
FAULTS_SHOWN = 10


@spec
class Voc:
    """A folder in the Pascal VOC layout, every image letterboxed to one size."""

    kind: Literal["voc"] = "voc"
    root: str
    """Folder that holds ImageSets/Main, Annotations and JPEGImages."""
    train: str = "trainval"
    """List in ImageSets/Main (without .txt) of the images to train on."""
    test: str = "test"
    """List in ImageSets/Main (without .txt) of the held-out images."""
    image_size: tuple[int, int] = (240, 320)
    """Height and width in pixels that every image is brought to."""
    class_names: tuple[str, ...]
    """Names of classes 0 to k - 1, as the annotations spell them."""
    max_boxes: int = 32
    """Rows kept for the boxes of an image; no image may have more."""

    def __post_init__(self) -> None:
        """Refuses sizes and names that fit no data."""
        if min(self.image_size) < 1:
            raise ValueError(f"Voc.image_size = {self.image_size}: must be positive pixels")
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"Voc.class_names = {self.class_names}: must be one or more different names"
            )
        if self.max_boxes < 1:
            raise ValueError(f"Voc.max_boxes = {self.max_boxes}: must be at least 1")


@dataclasses.dataclass
class _Findings:
    """What reading turns up: ``faults`` stop the load once all are known, problems do not."""

    faults: list[Exception] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Example:
    image: np.ndarray
    extent: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def load_voc(spec: Voc) -> Dataset:
    """Returns the two splits of ``spec`` in host memory, decoded and letterboxed.

    VOC counts pixels from 1 and includes the last, so ``xmin ymin xmax ymax`` becomes the
    box ``xmin - 1, ymin - 1, xmax, ymax`` whose edges count from 0. Images are taken as
    stored, as the boxes are: an EXIF orientation is not applied. Objects flagged
    ``difficult`` or ``truncated`` count like all others, also in evaluation, where the
    VOC metric would ignore the difficult ones.

    Left out and listed in ``problems``: objects without area (``xmax <= xmin``; read to the
    letter, equal ones are a pixel wide, but annotation tools write them for a click without
    a drag) and objects outside their image. Clipped and listed: objects partly outside,
    among them the coordinate 0 of tools that count from 0.

    Args:
      spec: where the data are, and what to make of them.

    Raises:
      FileNotFoundError: the folder, a list, an annotation or an image is absent.
      ValueError: anything else is wrong with a file. Both name every fault found, the first
        ten of them in full.
    """
    root = pathlib.Path(spec.root).expanduser()
    findings = _Findings()
    lists = [_read_list(root, name, findings) for name in (spec.train, spec.test)]
    _raise(findings, spec)
    train, test = lists
    if shared := sorted(set(train) & set(test)):
        findings.problems.append(
            Problem(
                file=f"{LISTS}/{spec.test}.txt",
                where=shared[0],
                what=f"{len(shared)} held-out images are also in {spec.train}.txt: kept in both",
                count=len(shared),
            )
        )
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(lambda name: _read_example(spec, root, name), train + test)
        examples = []
        for example, found in read:
            examples.append(example)
            findings.faults += found.faults
            findings.problems += found.problems
    _raise(findings, spec)
    return Dataset(
        name=root.resolve().name,
        class_names=spec.class_names,
        train=_stack(spec, examples[: len(train)]),
        test=_stack(spec, examples[len(train) :]),
        problems=tuple(findings.problems),
    )
