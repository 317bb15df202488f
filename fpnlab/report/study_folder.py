"""Readers of the folders of studies and runs, finished or not.

A damaged file does not prevent the report of all others, except ``study.json``: a torn last line of
``metrics.jsonl`` is skipped, a result that cannot be read becomes a status, and what else is wrong
is a problem of the trial or of the study.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Literal

import numpy as np

from fpnlab import compiler
from fpnlab.errors import FpnlabError, RunFolderError
from fpnlab.records.json_files import JsonObject, read_json
from fpnlab.records.run_records import MetricRecord, RunResult, read_result, scan_records
from fpnlab.records.study_records import (
    LeftOutRow,
    StudyFile,
    Summary,
    axis_label,
    read_study_file,
    read_summary,
)
from fpnlab.report.figure_text import shortened

LARGEST = float(np.finfo(np.float32).max)
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
    doubt: str | None = None
    """Reason why its numbers may be wrong, from ``env.json``."""
    problems: tuple[str, ...] = ()
    """Files, other than the result, that were left out, each with the reason."""

    @property
    def config(self) -> JsonObject:
        """``config.json``, read lazily, because a study's report shows only that of one trial."""
        return _read_table(self.folder / "config.json")

    @property
    def environment(self) -> JsonObject:
        """``env.json``, read lazily, too."""
        return _read_table(self.folder / "env.json")

    def curve(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns examples seen and values of ``field``, for the records in which it is finite.

        Training computes in 32 bits, so that a larger number is damage, too.
        """
        points = [(record.examples, record.value(field)) for record in self.records]
        finite = [(x, y) for x, y in points if y is not None and abs(y) <= LARGEST]
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
    problems: tuple[str, ...] = ()
    """Files of the study that were left out, each with the reason."""

    @functools.cached_property
    def axis_label(self) -> str:
        """The first axis in words."""
        return axis_label(self.plan.axis)


def read_study(folder: str | pathlib.Path) -> StudyFiles:
    """Returns the files of a study, whether or not it has finished.

    Raises:
      FileNotFoundError: The folder has no ``study.json``.
      RunFolderError: ``study.json`` is damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / "study.json").exists():
        raise FileNotFoundError(
            f"{folder}: not the folder of a study (study.json is missing); give the folder written "
            "by `fpnlab study`, which also contains trials/"
        )
    plan = read_study_file(folder / "study.json")
    problems: list[str] = []
    summary = None
    if _is_file(folder / "summary.json", problems):
        try:
            summary = read_summary(folder / "summary.json")
        except RunFolderError as error:
            problems.append(str(error))
    trials = [_read_any(path) for path in sorted((folder / "trials").glob("*/"))]
    known = {row.trial: row for row in summary.left_out} if summary else {}
    trials = [_planned(_with_failure(trial, known.get(trial.name)), plan) for trial in trials]

    def place(trial: TrialFiles) -> tuple[int, int, int]:
        if trial.result is None:
            return len(plan.arms), 0, 0
        value = trial.result.axis_value
        # An arm to which the axis does not apply has no axis value; it comes first.
        rank = -1 if value is None else plan.axis_values.index(value)
        return plan.arms.index(trial.result.arm), rank, trial.result.seed

    return StudyFiles(folder, plan, summary, sorted(trials, key=place), tuple(problems))


def read_trial(folder: str | pathlib.Path) -> TrialFiles:
    """Returns the files of a trial; missing files count as empty, and damaged ones are problems."""
    folder = pathlib.Path(folder)
    problems: list[str] = []
    status: Status = "unfinished"
    result, error = None, ""
    path = folder / "result.json"
    try:
        if _is_file(path, unreadable := []):
            result = read_result(path)
            status, error = result.status, result.error or ""
        elif unreadable:
            status, error = "unreadable", unreadable[0]
    except RunFolderError as problem:
        status, error = "unreadable", str(problem)
    doubt = None
    try:
        if _is_file(path := folder / "env.json", problems):
            doubt = compiler.doubt(read_json(path))
    except RunFolderError as problem:
        problems.append(str(problem))
    return TrialFiles(
        name=folder.name,
        status=status,
        error=error,
        result=result,
        records=_read_log(folder / "metrics.jsonl", problems, ended=result is not None),
        folder=folder,
        gallery=gallery if _is_file(gallery := folder / "gallery.npz", problems) else None,
        doubt=doubt,
        problems=tuple(problems),
    )


def _read_any(folder: pathlib.Path) -> TrialFiles:
    """Returns the files of a trial, which is unreadable where reading raises."""
    try:
        return read_trial(folder)
    except Exception as error:  # No damage that nobody thought of costs the page of the others.
        return TrialFiles(folder.name, "unreadable", one_line(error), None, [], folder, None)


def _read_log(path: pathlib.Path, problems: list[str], *, ended: bool) -> list[MetricRecord]:
    """Returns the complete records of a log; only a run that goes on may have a torn last line."""
    if not _is_file(path, problems):
        return []
    try:
        records, damaged = scan_records(path)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error})")
        return []
    if lines := [problem.number for problem in damaged if ended or not problem.torn]:
        total = len(records) + len(damaged)
        problems.append(f"{path}: {len(lines)} of {total} lines are no records, from {lines[0]} on")
    elif ended and not records:
        problems.append(f"{path}: empty")
    return records


def _is_file(path: pathlib.Path, problems: list[str]) -> bool:
    """Returns whether there is a file; a folder, a pipe or a dead link there is a problem."""
    if path.is_file():
        return True
    if os.path.lexists(path):
        problems.append(f"{path}: not a file")
    return False


def _planned(trial: TrialFiles, plan: StudyFile) -> TrialFiles:
    """Returns the trial, unreadable if the study has no such arm or axis value."""
    result = trial.result
    if result is None:
        return trial
    problem = ""
    if result.axis_value is not None and result.axis_value not in plan.axis_values:
        problem = f"axis_value is {result.axis_value!r}, which is not in study.json"
    if result.arm not in plan.arms:
        problem = f"arm is {result.arm!r}, which is not in study.json"
    if not problem:
        return trial
    error = f"{trial.folder / 'result.json'}: {problem}"
    return dataclasses.replace(trial, status="unreadable", error=error, result=None)


def one_line(error: Exception) -> str:
    """Returns an error as one line of at most 300 characters."""
    text = " ".join(str(error).split())
    known = isinstance(error, FpnlabError | OSError)
    return shortened(text if known and text else f"{type(error).__name__}: {text}", 300)


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
