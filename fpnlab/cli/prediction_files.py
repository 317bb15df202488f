"""Predictions for image files: a JSON file and drawn pictures."""

import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from fpnlab.cli.command_line import say
from fpnlab.data.image_io import read_image
from fpnlab.errors import DataError
from fpnlab.records.json_files import write_json
from fpnlab.report.draw import draw_boxes, draw_labels
from fpnlab.run.predict import load_run
from fpnlab.tasks.predictions import ImageDetections, Prediction

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files of a folder that are taken for images."""
PICTURE_SIDE = 1280
"""Long side in pixels beyond which a drawn picture is reduced."""


def predict_files(
    run: pathlib.Path, images: Sequence[pathlib.Path], out: pathlib.Path, *, score: float
) -> int:
    """Returns how many files could not be read, after writing the predictions for the others.

    ``out`` then holds ``predictions.json`` and a drawn PNG of each image.

    Args:
      run: Run folder whose last checkpoint predicts.
      images: Image files, or folders, of which all images are taken, also those of subfolders.
      out: Folder for the results; made if absent.
      score: Lowest score of a box that is written.

    Raises:
      DataError: There is no image.
      FpnlabError: ``run`` cannot be used (see ``fpnlab.run.predict.load_run``).
    """
    trained = load_run(run)
    files = list(_image_files(images))
    if not files:
        raise DataError(
            f"{', '.join(map(str, images))}: no image; these are taken: {', '.join(SUFFIXES)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    pictures = _picture_paths(files, out)
    read: list[pathlib.Path] = []
    table = []
    for image, prediction in trained.iterate(_readable(files, read)):
        file = read[len(table)]
        if isinstance(prediction, ImageDetections):
            prediction = prediction.above(score)
        _draw(image, prediction, trained.class_names).save(pictures[file])
        size = {"file": str(file), "height": image.shape[0], "width": image.shape[1]}
        table.append(size | prediction.table())
        say(f"{file}: {_sentence(prediction)}")
    write_json(out / "predictions.json", {"run": str(run), "images": table})
    failed = len(files) - len(read)
    count = lambda n: f"{n} image" if n == 1 else f"{n} images"
    say(
        f"{count(len(table))} predicted{f', {failed} left out' if failed else ''}: "
        f"{out / 'predictions.json'}"
    )
    return failed


def _image_files(images: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
    for path in images:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            yield path


def _picture_paths(
    files: Sequence[pathlib.Path], out: pathlib.Path
) -> dict[pathlib.Path, pathlib.Path]:
    """Returns where the picture of each file goes; files of one name are told apart by number."""
    paths: dict[pathlib.Path, pathlib.Path] = {}
    taken: set[pathlib.Path] = set()
    for file in files:
        path, number = out / f"{file.stem}.png", 2
        while path in taken:
            path, number = out / f"{file.stem}_{number}.png", number + 1
        taken.add(path)
        paths[file] = path
    return paths


def _readable(files: Iterable[pathlib.Path], read: list[pathlib.Path]) -> Iterator[np.ndarray]:
    """Yields the images that decode, and appends their paths to ``read``."""
    for file in files:
        try:
            # Pillow warns of damaged tags, beside the pixels or before its error.
            with warnings.catch_warnings(action="ignore"):
                image = read_image(file)
        except (OSError, ValueError) as error:
            say(f"{file}: left out: {error}", err=True)
            continue
        read.append(file)
        yield image


def _draw(image: np.ndarray, prediction: Prediction, class_names: Sequence[str]) -> Image.Image:
    """Returns the image with its prediction drawn, reduced to ``PICTURE_SIDE``."""
    factor = min(PICTURE_SIDE / max(image.shape[:2]), 1)
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    reduced = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))[None]
    if isinstance(prediction, ImageDetections):
        return draw_boxes(
            reduced,
            prediction.boxes_xyxy[None] * factor,
            prediction.classes[None],
            np.ones((1, len(prediction.classes)), bool),
            class_names,
            scores=prediction.scores[None],
        )
    shares = np.array([list(prediction.probabilities.values())])
    return draw_labels(reduced, None, class_names, shares)


def _sentence(prediction: Prediction) -> str:
    if not isinstance(prediction, ImageDetections):
        return f"{prediction.label} {prediction.probability:.2f}"
    counts = {label: prediction.labels.count(label) for label in sorted({*prediction.labels})}
    return ", ".join(f"{count} {label}" for label, count in counts.items()) or "nothing found"
