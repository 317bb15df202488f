"""Drawing of boxes on images, and of labels below images."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fpnlab.report.figure_text import shortened

PALETTE = ("#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#009e73", "#d55e00", "#0072b2")
"""Colors of classes, distinguishable by color-blind readers (Okabe and Ito, 2008), repeated for
more classes. Bright ones come first, because they stand out from images."""
TRUTH = "#ffffff"
SHADOW = "#101010"
RIGHT, WRONG = "#009e73", "#d55e00"
SIDE = 320
"""Smallest length of the long side of a drawn image in pixels."""
CROWD = 8
"""Number of boxes with scores in an image above which labels show the score alone."""
THUMB = 160
"""Smallest length of the long side of a labeled image in pixels."""
CAPTION = 36
"""Height of the labels below an image in pixels."""
GAP = 6
"""Space between images in pixels."""


def class_color(index: int) -> str:
    """Returns the color of a class, ``#rrggbb``."""
    return PALETTE[index % len(PALETTE)]


def draw_pictures(
    pictures: Mapping[str, np.ndarray], class_names: Sequence[str], *, columns: int = 4
) -> Image.Image:
    """Returns a grid of images with their annotations and predictions.

    Args:
      pictures: The arrays of a ``gallery.npz``. For a classifier: ``images``, ``labels`` and, with
        predictions, ``shares``. For a detector: ``images``, ``truth_boxes``, ``truth_classes``,
        ``truth_valid`` and, with predictions, ``boxes``, ``classes``, ``scores``, ``valid``.
      class_names: Names of the classes.
      columns: Number of images in a row of the grid.
    """
    images = pictures["images"]
    if "labels" in pictures:
        shares = pictures.get("shares")
        return draw_labels(images, pictures["labels"], class_names, shares, columns=columns)
    boxes, classes, valid = (pictures[f"truth_{name}"] for name in ("boxes", "classes", "valid"))
    if "scores" not in pictures:
        return draw_boxes(images, boxes, classes, valid, class_names, columns=columns)
    return draw_boxes(
        images,
        pictures["boxes"],
        pictures["classes"],
        pictures["valid"],
        class_names,
        scores=pictures["scores"],
        truth=(boxes, valid),
        columns=columns,
    )


def draw_boxes(
    images: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    valid: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    scale: int | None = None,
    columns: int = 2,
) -> Image.Image:
    """Returns a grid of images, row by row, with their boxes drawn on them.

    A box has the color of its class and a label with the name and, if given, the score; in an image
    with more than ``CROWD`` scored boxes, the label is the score alone. Ground-truth boxes are
    white with a dark edge, one pixel wide, and below the others.

    Args:
        images: ``[n, h, w, 3]``, 0 to 255.
        boxes: ``[n, d, 4]``, ``xyxy`` in pixels of ``images``.
        classes: ``[n, d]``, 0 to k - 1.
        valid: ``[n, d]`` bool, True for rows that are boxes.
        class_names: The k names; other classes are labeled with their number.
        scores: ``[n, d]``, 0 to 1.
        truth: Ground-truth boxes ``[n, m, 4]`` and their valid mask ``[n, m]``.
        scale: Integer factor by which pixels are repeated; None: the smallest one with a long side
            of at least 320 pixels.
        columns: Number of images in a row of the grid.

    Raises:
        ValueError: ``images`` is empty or has another shape.
    """
    tiles = []
    for i, tile in enumerate(_enlarged(images, SIDE, scale)):
        scale = tile.width // images.shape[2]
        if truth is not None:
            _draw_truth(tile, truth[0][i][truth[1][i]] * scale)
        named = class_names if scores is None or valid[i].sum() <= CROWD else None
        labels = [
            _label(named, int(classes[i, j]), None if scores is None else float(scores[i, j]))
            for j in np.flatnonzero(valid[i])
        ]
        colors = [class_color(int(k)) for k in classes[i][valid[i]]]
        _draw_found(tile, boxes[i][valid[i]] * scale, labels, colors)
        tiles.append(tile)
    return _grid(tiles, min(columns, len(tiles)))


def draw_labels(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    shares: np.ndarray | None = None,
    columns: int = 4,
) -> Image.Image:
    """Returns a grid of images, row by row, each above its label and its prediction.

    A prediction has its probability; it is green if it is correct and orange if it is not.

    Args:
        images: ``[n, h, w, 3]``, 0 to 255.
        labels: ``[n]``, 0 to k - 1; None if they are unknown.
        class_names: The k names.
        shares: ``[n, k]``, predicted probabilities of the classes; None without predictions.
        columns: Number of images in a row of the grid.

    Raises:
        ValueError: ``images`` is empty or has another shape.
    """
    font = ImageFont.load_default(size=13)
    tiles = []
    for i, picture in enumerate(_enlarged(images, THUMB)):
        tile = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
        tile.paste(picture, (0, 0))
        pen = ImageDraw.Draw(tile)
        at = picture.height + 2
        if labels is not None:
            pen.text((2, at), _label(class_names, int(labels[i]), None), fill=SHADOW, font=font)
        if shares is not None:
            guess = int(shares[i].argmax())
            text = _label(class_names, guess, float(shares[i, guess]))
            if labels is None:
                color = SHADOW
            else:
                color = RIGHT if guess == labels[i] else WRONG
            pen.text((2, at + 16), text, fill=color, font=font)
        tiles.append(tile)
    return _grid(tiles, min(columns, len(tiles)))


def _enlarged(images: np.ndarray, side: int, scale: int | None = None) -> Iterator[Image.Image]:
    """Yields the images, with pixels repeated until the long side has at least ``side`` pixels."""
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise ValueError(f"images must be [n, h, w, 3] with n > 0; got {list(images.shape)}")
    scale = scale or math.ceil(side / max(images.shape[1:3]))
    for pixels in np.clip(images, 0, 255).astype(np.uint8):
        tile = Image.fromarray(pixels)
        size = (tile.width * scale, tile.height * scale)
        yield tile.resize(size, Image.Resampling.NEAREST)


def _label(class_names: Sequence[str] | None, index: int, score: float | None) -> str:
    if class_names is None:
        return f"{score:.2f}"
    name = class_names[index] if 0 <= index < len(class_names) else f"class {index}"
    name = shortened(name)
    return name if score is None else f"{name} {score:.2f}"


def _corners(box: np.ndarray) -> list[float]:
    """Returns the box with ordered corners, as PIL requires."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _draw_truth(tile: Image.Image, boxes: np.ndarray) -> None:
    pen = ImageDraw.Draw(tile)
    for box in boxes:
        x1, y1, x2, y2 = _corners(box)
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=SHADOW, width=3)
        pen.rectangle((x1, y1, x2, y2), outline=TRUTH, width=1)


def _draw_found(tile: Image.Image, boxes: np.ndarray, labels: list[str], colors: list[str]) -> None:
    """Draws all boxes, then all labels, each in reverse order, so that the best is on top."""
    pen = ImageDraw.Draw(tile)
    font = ImageFont.load_default(size=12)
    for box, color in reversed(list(zip(boxes, colors))):
        pen.rectangle(_corners(box), outline=color, width=2)
    places: list[tuple[float, float, float, float]] = []
    for box, label in zip(boxes, labels):
        _, _, width, height = pen.textbbox((0, 0), label, font=font)
        places.append(_free_place(box, width + 4.0, height + 3.0, tile, places))
    for place, label, color in reversed(list(zip(places, labels, colors))):
        pen.rectangle(place, fill=color)
        pen.text((place[0] + 2, place[1] + 1), label, fill=SHADOW, font=font)


def _free_place(
    box: np.ndarray,
    width: float,
    height: float,
    tile: Image.Image,
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Returns the rectangle of a label: above its box, or below the labels that are there."""
    x1, y1, _, _ = _corners(box)
    x = max(min(x1, tile.width - width), 0.0)
    y = start = y1 - height if y1 > height else max(y1, 0.0)
    for left, top, right, bottom in sorted(taken, key=lambda place: place[1]):
        if x <= right and left <= x + width and y <= bottom and top <= y + height:
            y = bottom + 1
    if y + height > tile.height:
        y = start
    return x, y, x + width, y + height


def _grid(tiles: list[Image.Image], columns: int) -> Image.Image:
    width, height = tiles[0].size
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    grid = Image.new("RGB", size, "white")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        grid.paste(tile, (column * (width + GAP), row * (height + GAP)))
    return grid
