"""Readers of the folders of studies and runs, finished or not.

An interrupted or damaged trial does not prevent the report of the others: a torn last line of
``metrics.jsonl`` is skipped, and a result that cannot be read becomes a status.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Literal

import numpy as np

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import JsonObject, read_json
from fpnlab.records.run_records import MetricRecord, RunResult, read_records, read_result
from fpnlab.records.study_records import (
    LeftOutRow,
    StudyFile,
    Summary,
    axis_label,
    read_study_file,
    read_summary,
)

Status = Literal["done", "diverged", "failed", "unfinished", "unreadable"]


@dataclasses.dataclass(frozen=True)
class TrialFiles:
    """The files of a trial."""

    name: str
    """Name of the trial."""
    status: Status
    """``unfinished`` without a result, ``unreadable`` with one that cannot be read."""
    error: str
    """Why it diverged, failed or cannot be read."""
    result: RunResult | None
    """``result.json``; for a failed trial, the fields that the summary has."""
    records: list[MetricRecord]
    """``metrics.jsonl``."""
    folder: pathlib.Path
    """The run folder."""
    gallery: pathlib.Path | None
    """``gallery.npz``, if it exists."""

    @property
    def config(self) -> JsonObject:
        """``config.json``, read lazily, because a study's report shows only that of one trial."""
        return _read_table(self.folder / "config.json")

    @property
    def environment(self) -> JsonObject:
        """``env.json``, read lazily."""
        return _read_table(self.folder / "env.json")

    def curve(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns examples seen and values of ``field``, for the records in which it is finite."""
        points = [(record.examples, record.value(field)) for record in self.records]
        finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        x, y = np.array(finite, dtype=np.float64).reshape(-1, 2).T
        return x, y


@dataclasses.dataclass(frozen=True)
class StudyFiles:
    """The files of a study."""

    folder: pathlib.Path
    """The study folder."""
    plan: StudyFile
    """``study.json``."""
    summary: Summary | None
    """``summary.json``; None until the study has written it."""
    trials: list[TrialFiles]
    """The trials in order of arm, axis value and seed; those without a result come last."""

    @functools.cached_property
    def axis_label(self) -> str:
        """The first axis in words."""
        return axis_label(self.plan.axis)


def read_study(folder: str | pathlib.Path) -> StudyFiles:
    """Returns the files of a study, whether or not it has finished.

    Raises:
      FileNotFoundError: The folder has no ``study.json``.
      RunFolderError: A file is damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / "study.json").is_file():
        raise FileNotFoundError(
            f"{folder}: not the folder of a study (study.json is missing); give the folder written "
            "by `fpnlab study`, which also contains trials/"
        )
    plan = read_study_file(folder / "study.json")
    summary = folder / "summary.json"
    summary = read_summary(summary) if summary.is_file() else None
    trials = [read_trial(path) for path in sorted((folder / "trials").glob("*/"))]
    known = {row.trial: row for row in summary.left_out} if summary else {}
    trials = [_with_failure(trial, known.get(trial.name)) for trial in trials]

    def place(trial: TrialFiles) -> tuple[int, int, int]:
        if trial.result is None:
            return len(plan.arms), 0, 0
        value = trial.result.axis_value
        # An arm to which the axis does not apply has no axis value; it comes first.
        rank = -1 if value is None else plan.axis_values.index(value)
        return plan.arms.index(trial.result.arm), rank, trial.result.seed

    return StudyFiles(folder, plan, summary, sorted(trials, key=place))


def read_trial(folder: str | pathlib.Path) -> TrialFiles:
    """Returns the files of a trial; missing files count as empty.

    Raises:
      RunFolderError: ``metrics.jsonl`` is damaged before its last line.
    """
    folder = pathlib.Path(folder)
    gallery, path = folder / "gallery.npz", folder / "result.json"
    status: Status = "unfinished"
    result, error = None, ""
    if path.is_file():
        try:
            result = read_result(path)
            status, error = result.status, result.error or ""
        except RunFolderError as problem:
            status, error = "unreadable", str(problem)
    return TrialFiles(
        name=folder.name,
        status=status,
        error=error,
        result=result,
        records=read_records(folder / "metrics.jsonl"),
        folder=folder,
        gallery=gallery if gallery.is_file() else None,
    )


def _with_failure(trial: TrialFiles, row: LeftOutRow | None) -> TrialFiles:
    """Returns a trial that raised with the error from the summary, since it has no result."""
    if trial.status != "unfinished" or row is None:
        return trial
    result = RunResult(
        trial=row.trial,
        arm=row.arm,
        axis_value=row.axis_value,
        seed=row.seed,
        status="failed",
        error=row.error,
    )
    return dataclasses.replace(trial, status="failed", error=row.error or "", result=result)


def _read_table(path: pathlib.Path) -> JsonObject:
    return read_json(path) if path.is_file() else {}
