"""Data sets in the Pascal VOC layout: lists of images, and an XML and a JPEG file for each."""

import concurrent.futures
import dataclasses
import difflib
import functools
import math
import os
from typing import Annotated, Literal
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Int, UInt8

from fpnlab.data.data_folder import DataFolder
from fpnlab.data.dataset import (
    Dataset,
    Problem,
    Side,
    check_class_names,
    check_pixels,
    raise_errors,
)
from fpnlab.data.fit_image import letterbox, letterbox_boxes
from fpnlab.data.image_io import MOST_IMAGE_BYTES, decode_rgb
from fpnlab.spec import Bounds, spec
from fpnlab.types import Batch

LISTS, ANNOTATIONS, IMAGES = "ImageSets/Main", "Annotations", "JPEGImages"
MOST_ANNOTATION_BYTES = 10**7
"""Largest annotation in bytes."""


@spec
class Voc:
    """Images with boxes in the Pascal VOC layout, letterboxed to one size."""

    kind: Literal["voc"] = "voc"
    root: str
    """Folder that contains ImageSets/Main, Annotations and JPEGImages."""
    train: str = "trainval"
    """Name of the list of training images in ImageSets/Main, without .txt."""
    test: str = "test"
    """Name of the list of held-out images in ImageSets/Main, without .txt."""
    image_size: Annotated[tuple[int, int], Side] = (240, 320)
    """Height and width in pixels to which every image is letterboxed."""
    class_names: tuple[str, ...]
    """Names of classes 0 to k - 1, as they are spelled in the annotations."""
    max_boxes: Annotated[int, Bounds(least=1.0, most=10_000.0)] = 32
    """Rows for the boxes of an image; an image with more boxes is an error."""

    def __post_init__(self) -> None:
        """Checks the names of the classes."""
        check_class_names("Voc", self.class_names)


@dataclasses.dataclass
class _Findings:
    """Errors, which are raised together at the end, and problems, which are only listed."""

    errors: list[Exception] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Example:
    """A letterboxed image with its boxes."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    extent: Float[np.ndarray, "2"]
    boxes: Float[np.ndarray, "m 4"]
    classes: Int[np.ndarray, " m"]


def load_voc(spec: Voc) -> Dataset:
    """Returns the two splits of ``spec`` in host memory, decoded and letterboxed.

    VOC counts pixels from 1 and includes the last, so ``xmin ymin xmax ymax`` becomes the
    box ``xmin - 1, ymin - 1, xmax, ymax`` with edges that count from 0. Images are used as
    stored, as the boxes are: an EXIF orientation is not applied. Objects flagged
    ``difficult`` or ``truncated`` count like all others, also in evaluation, where the
    VOC metric would ignore the difficult ones.

    Left out and listed in ``problems``: objects without area (``xmax <= xmin``; by the definition,
    equal ones are a pixel wide, but annotation tools write them for a click without a drag) and
    objects outside their image. Clipped and listed: objects partly outside, such as those of tools
    that count from 0.

    Args:
      spec: The data set.

    Raises:
      FileNotFoundError: The folder, a list, an annotation or an image is missing.
      ValueError: A file is invalid. All errors are raised at once, the first ten in full.
    """
    folder = DataFolder(spec.root)
    findings = _Findings()
    lists = [_read_list(folder, name, findings) for name in (spec.train, spec.test)]
    raise_errors(f"Voc data in {spec.root}", findings.errors)
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
    check_pixels("data", len(train) + len(test), spec.image_size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(functools.partial(_read_example, spec, folder), train + test))
    for _, found in read:
        findings.errors += found.errors
        findings.problems += found.problems
    examples = [example for example, _ in read if example is not None]
    most = max(examples, key=lambda example: len(example.boxes), default=None)
    if most is not None and (count := len(most.boxes)) > spec.max_boxes:
        findings.errors.append(
            ValueError(
                f"{ANNOTATIONS}/{most.name}.xml: {count} objects, the most of all images, are "
                f"more than max_boxes = {spec.max_boxes}; set max_boxes = {count}"
            )
        )
    raise_errors(f"Voc data in {spec.root}", findings.errors)
    return Dataset(
        name=folder.root.resolve().name,
        class_names=spec.class_names,
        train=_stack(spec, examples[: len(train)]),
        test=_stack(spec, examples[len(train) :]),
        problems=tuple(findings.problems),
        files=folder.files,
    )


def _read_list(folder: DataFolder, name: str, findings: _Findings) -> list[str]:
    """Returns the image names in a list: the first word of each line."""
    if not folder.root.is_dir():
        findings.errors = [FileNotFoundError("no such folder; set root to that of the data set")]
        return []
    file = f"{LISTS}/{name}.txt"
    try:
        lines = folder.read_text(file).splitlines()
    except FileNotFoundError:
        lists = (folder.root / LISTS).glob("*.txt")
        there = ", ".join(sorted(path.stem for path in lists)) or "none"
        findings.errors.append(FileNotFoundError(f"{file}: no such list; there are: {there}"))
        return []
    except ValueError as error:
        findings.errors.append(ValueError(f"{file}: {error}"))
        return []
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        findings.errors.append(ValueError(f"{file}: names no image; give one per line"))
    return names


def _read_example(spec: Voc, folder: DataFolder, name: str) -> tuple[_Example | None, _Findings]:
    """Returns the image ``name`` with its boxes, ``None`` if there are errors."""
    findings = _Findings()
    annotation = _read_annotation(spec, folder, name, findings)
    image = _read_image(folder, name, findings)
    if annotation is None or image is None or findings.errors:
        return None, findings
    (height, width), boxes, classes = annotation
    if image.shape[:2] != (height, width):
        findings.errors.append(
            ValueError(
                f"{ANNOTATIONS}/{name}.xml, size: says {width} x {height}, but the image as "
                f"stored has {image.shape[1]} x {image.shape[0]} pixels; make them agree "
                "(an image turned by its EXIF flag needs its stored size and boxes)"
            )
        )
        return None, findings
    image, scale, extent = letterbox(image, spec.image_size)
    return _Example(name, image, extent, letterbox_boxes(boxes, scale), classes), findings


def _read_image(
    folder: DataFolder, name: str, findings: _Findings
) -> UInt8[np.ndarray, "h w 3"] | None:
    file = f"{IMAGES}/{name}.jpg"
    try:
        return decode_rgb(folder.read(file, MOST_IMAGE_BYTES))
    except FileNotFoundError:
        problem = FileNotFoundError(f"{file}: missing; add it, or remove {name} from the list")
    except ValueError as error:
        problem = ValueError(f"{file}: {error}; replace it, or remove {name} from the list")
    findings.errors.append(problem)
    return None


def _read_annotation(
    spec: Voc, folder: DataFolder, name: str, findings: _Findings
) -> tuple[tuple[int, int], Float[np.ndarray, "m 4"], Int[np.ndarray, " m"]] | None:
    """Returns the image's height and width, and its boxes and classes; ``None`` if unreadable."""
    file = f"{ANNOTATIONS}/{name}.xml"
    try:
        content = folder.read(file, MOST_ANNOTATION_BYTES)
        tree = ElementTree.fromstring(content, ElementTree.XMLParser(target=_Tree()))
    except FileNotFoundError:
        findings.errors.append(
            FileNotFoundError(f"{file}: missing; add it (without objects if there are none)")
        )
        return None
    except (ElementTree.ParseError, LookupError) as error:
        findings.errors.append(ValueError(f"{file}: is not XML ({error}); replace it"))
        return None
    except ValueError as error:
        findings.errors.append(ValueError(f"{file}: {error}; replace it"))
        return None
    size = _numbers(tree, ("size/height", "size/width"), file, findings)
    if size is None:
        return None
    boxes, classes = [], []
    for number, node in enumerate(tree.findall("object"), 1):
        where = f"object {number}"
        class_ = _class(spec, node, f"{file}, {where}", findings)
        fields = tuple(f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
        corners = _numbers(node, fields, f"{file}, {where}", findings)
        if corners is None or class_ is None:
            continue
        box, what = _box(corners, size)
        if what:
            findings.problems.append(Problem(file=file, where=where, what=what))
        if box is not None:
            boxes.append(box)
            classes.append(class_)
    return (
        (int(size[0]), int(size[1])),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(classes, np.int32),
    )


class _Tree(ElementTree.TreeBuilder):
    """A builder of trees without a document type, whose entities could expand to any size."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Raises ValueError; called at the start of a document type."""
        raise ValueError(f"declares the document type {name!r}, of which annotations have none")


def _numbers(
    node: ElementTree.Element, fields: tuple[str, ...], place: str, findings: _Findings
) -> list[float] | None:
    """Returns the numbers in ``fields``; adds an error for each that is missing or invalid."""
    numbers = []
    for field in fields:
        text = node.findtext(field)
        try:
            number = float(text or "")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            given = "is missing" if text is None else f"is {text.strip()!r}"
            findings.errors.append(ValueError(f"{place}, {field}: {given}; must be a number"))
        numbers.append(number)
    return numbers if all(map(math.isfinite, numbers)) else None


def _class(spec: Voc, node: ElementTree.Element, place: str, findings: _Findings) -> int | None:
    name = (node.findtext("name") or "").strip()
    if name in spec.class_names:
        return spec.class_names.index(name)
    near = difflib.get_close_matches(name, spec.class_names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    findings.errors.append(
        ValueError(
            f"{place}, name: {name!r} is not in class_names; {hint}known: "
            + ", ".join(spec.class_names)
        )
    )
    return None


def _box(corners: list[float], size: list[float]) -> tuple[Float[np.ndarray, "4"] | None, str]:
    """Returns the box clipped to the image, None if nothing is left, and its problem, if any."""
    height, width = size
    given = ", ".join(f"{corner:g}" for corner in corners)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None, f"box ({given}) has no area: left out"
    box = np.array(corners) - (1, 1, 0, 0)
    inside = np.clip(box, 0, (width, height, width, height))
    outside = f"outside the image of {width:g} x {height:g} (pixels count from 1)"
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, f"box ({given}) is {outside}: left out"
    return inside, "" if np.array_equal(
        box, inside
    ) else f"box ({given}) is partly {outside}: clipped"


def _stack(spec: Voc, examples: list[_Example]) -> Batch:
    """Returns the examples as one batch, boxes padded to ``max_boxes`` rows."""
    count = np.array([len(example.boxes) for example in examples])
    valid = np.arange(spec.max_boxes) < count[:, None]
    boxes = np.zeros((*valid.shape, 4), np.float32)
    classes = np.zeros(valid.shape, np.int32)
    boxes[valid] = np.concatenate([example.boxes for example in examples])
    classes[valid] = np.concatenate([example.classes for example in examples])
    return Batch(
        images=np.stack([example.image for example in examples]),
        boxes=boxes,
        classes=classes,
        valid=valid,
        extent=np.stack([example.extent for example in examples]),
        index=np.arange(len(examples), dtype=np.int32),
    )
