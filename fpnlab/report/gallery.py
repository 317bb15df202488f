"""Pictures with what is true and what was predicted, from the ``gallery.npz`` of a trial."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fpnlab.records.study_records import SummaryRow
from fpnlab.report.draw import draw_pictures
from fpnlab.report.study_folder import StudyFiles, TrialFiles

LABEL_COLUMNS = 4
"""Pictures with labels in a row."""
LARGEST_FILE = 300_000
"""Bytes; a page with many figures must stay light enough for a telephone."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A trial whose gallery is shown, and why."""

    trial: TrialFiles
    reason: str


def draw_gallery(
    trial: TrialFiles,
    class_names: Sequence[str],
    path: pathlib.Path,
    *,
    pictures: int = 4,
    columns: int = 2,
) -> None:
    """Writes the first pictures of a trial's gallery, with truth and predictions, to ``path``.

    Of predicted boxes, an image shows the best-scored ones, as many as it has true boxes: a rule
    that needs no score threshold, which would favor the detector with the larger scores.
    Pictures with labels are small: all of them are shown, four in a row.

    Raises:
        ValueError: If the trial has no gallery.
    """
    if trial.gallery is None:
        raise ValueError(f"trial {trial.name} has no gallery.npz; choose() gives trials that do")
    with np.load(trial.gallery) as file:
        arrays = {name: file[name] for name in file.files}
    if "labels" not in arrays:
        arrays = {name: values[:pictures] for name, values in arrays.items()}
        wanted = arrays["truth_valid"].sum(axis=1, keepdims=True)
        # Detections are sorted by score, invalid ones last.
        arrays["valid"] &= np.arange(arrays["valid"].shape[1]) < wanted
    columns = columns if "labels" not in arrays else LABEL_COLUMNS
    _save_small(draw_pictures(arrays, class_names, columns=columns), path)


def _save_small(picture: Image.Image, path: pathlib.Path) -> None:
    """Saves with 256 colors, and shrinks until the file is small enough."""
    while True:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST_FILE:
            return
        size = (round(picture.width * 0.8), round(picture.height * 0.8))
        picture = picture.resize(size, Image.Resampling.LANCZOS)


def choose(study: StudyFiles) -> list[Choice]:
    """Returns the trials to show: of the best and of the worst cell, the seed nearest its mean.

    The nearest seed rather than the best one, because the picture should show the usual case.
    Without a summary, the first trial that has a gallery.
    """
    summary = study.summary
    if summary is None or summary.best is None:
        return [Choice(trial, "the first trial done") for trial in _with_gallery(study)[:1]]
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
