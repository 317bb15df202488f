"""Test images with ground truth and predictions, from the ``gallery.npz`` of a trial."""

import dataclasses
import io
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fpnlab.records.study_records import SummaryRow
from fpnlab.report.draw import draw_pictures
from fpnlab.report.study_folder import StudyFiles, TrialFiles

LABEL_COLUMNS = 4
"""Number of labeled images in a row."""
LARGEST_FILE = 300_000
"""Largest size of a file in bytes, so that a page with many figures loads on a phone."""


LARGEST_GALLERY = 1 << 28
"""Largest size of the arrays of a gallery in bytes; those of a bomb can have any."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A trial selected for the gallery."""

    trial: TrialFiles
    """The trial."""
    reason: str
    """Why it was selected."""


def draw_gallery(
    trial: TrialFiles,
    class_names: Sequence[str],
    file: io.BytesIO,
    *,
    pictures: int = 4,
    columns: int = 2,
) -> None:
    """Draws the first images of a trial's gallery with ground truth and predictions.

    An image of a detector shows as many predicted boxes as it has ground-truth boxes, those with
    the highest scores. A score threshold instead would favor the detector with larger scores.
    Images of a classifier are small, so that all of them are shown, four in a row.

    Args:
        trial: The trial.
        class_names: Names of the classes.
        file: Receives the PNG.
        pictures: Number of images of a detector.
        columns: Number of images in a row for a detector.

    Raises:
        ValueError: The trial has no gallery, or it is larger than `LARGEST_GALLERY`.
    """
    if trial.gallery is None:
        raise ValueError(f"trial {trial.name} has no gallery.npz; choose() selects trials with one")
    with zipfile.ZipFile(trial.gallery) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST_GALLERY:
        raise ValueError(f"{trial.gallery}: {size:,} bytes; expected at most {LARGEST_GALLERY:,}")
    with np.load(trial.gallery) as gallery:
        arrays = {name: gallery[name] for name in gallery.files}
    if "labels" not in arrays:
        arrays = {name: values[:pictures] for name, values in arrays.items()}
        wanted = arrays["truth_valid"].sum(axis=1, keepdims=True)
        # Detections are sorted by score, invalid ones last.
        arrays["valid"] &= np.arange(arrays["valid"].shape[1]) < wanted
    columns = columns if "labels" not in arrays else LABEL_COLUMNS
    _save_small(draw_pictures(arrays, class_names, columns=columns), file)


def _save_small(picture: Image.Image, file: io.BytesIO) -> None:
    """Saves a picture with 256 colors, shrunk until the file is small enough."""
    while True:
        scratch = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(scratch, "PNG", optimize=True)
        if len(scratch.getvalue()) <= LARGEST_FILE:
            file.write(scratch.getvalue())
            return
        size = (round(picture.width * 0.8), round(picture.height * 0.8))
        picture = picture.resize(size, Image.Resampling.LANCZOS)


def choose(study: StudyFiles) -> list[Choice]:
    """Returns the trials to show: for the best and the worst cell, the seed nearest to its mean.

    The nearest rather than the best seed, because the images should be typical. Without a summary,
    the first trial with a gallery.
    """
    summary = study.summary
    if summary is None or summary.best is None:
        return [Choice(trial, "The first trial that is done") for trial in _with_gallery(study)[:1]]
    cells = {"best": summary.best, "worst": summary.worst or summary.best}
    if cells["best"] == cells["worst"]:
        cells = {"only": summary.best}
    choices = []
    for name, cell in cells.items():
        if (trial := _nearest(study, cell)) is not None:
            label = f"{cell.arm} at {summary.axis_label} {cell.axis_value}"
            mean = f"mean {summary.metric} {cell.mean:.1f}"
            choices.append(Choice(trial, f"The {name} cell: {label} ({mean})"))
    return choices


def _with_gallery(study: StudyFiles) -> list[TrialFiles]:
    return [trial for trial in study.trials if trial.gallery is not None]


def _nearest(study: StudyFiles, cell: SummaryRow) -> TrialFiles | None:
    place = (cell.arm, cell.axis_value)
    distances = {}
    for i, trial in enumerate(_with_gallery(study)):
        result = trial.result
        if result is None or (result.arm, result.axis_value) != place:
            continue
        value = cell.values.get(result.seed)
        if value is not None and cell.mean is not None:
            distances[abs(value - cell.mean), i] = trial
    return distances[min(distances)] if distances else None
