"""Reads the folders that a study and its trials leave on disk, finished or not.

A trial that was cut short must not cost the report of the others: a torn last line of
``metrics.jsonl`` is skipped, and a result that cannot be read becomes a status.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one trial's folder holds."""

    name: str
    result: dict[str, Any]
    """``result.json``; without one, only its ``status`` is there."""
    records: list[dict[str, Any]]
    """``metrics.jsonl``, one record a line."""
    folder: pathlib.Path
    gallery: pathlib.Path | None
    """``gallery.npz``, where there is one."""

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``, read where it is shown: of a study's trials only the first one's is."""
        return _read_json(self.folder / "config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """``env.json``, read where it is shown."""
        return _read_json(self.folder / "env.json")

    @property
    def status(self) -> str:
        """``done``, ``diverged``, ``failed``, ``unfinished`` (no result yet) or ``unreadable``."""
        return self.result["status"]

    def curve(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Examples seen and ``field``, over the records that have a finite value of it."""
        points = [(record["examples"], record.get(field)) for record in self.records]
        finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        x, y = np.array(finite, dtype=np.float64).reshape(-1, 2).T
        return x, y


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's folder holds."""

    folder: pathlib.Path
    description: dict[str, Any]
    """``study.json``."""
    summary: dict[str, Any] | None
    """``summary.json``; ``None`` until the study has written it."""
    trials: list[Trial]
    """In the order of arms, axis values and seeds; those without a result last."""


def read_study(folder: str | pathlib.Path) -> Study:
    """Returns what a study's folder holds, whether or not the study has finished.

    Raises:
        FileNotFoundError: If the folder has no ``study.json``.
    """
    folder = pathlib.Path(folder)
    if not (folder / "study.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no study's folder: it has no study.json. "
            "Give the folder that the study wrote; it also holds the folder trials/"
        )
    description = _read_json(folder / "study.json")
    summary = folder / "summary.json"
    summary = _read_json(summary) if summary.is_file() else None
    trials = [read_trial(path) for path in sorted((folder / "trials").glob("*/"))]
    # A trial that raised has no result; what is known of it stands in the summary.
    known = {row["trial"]: row for row in (summary or {"left_out": []})["left_out"]}
    trials = [
        dataclasses.replace(trial, result=known.get(trial.name, trial.result))
        if trial.status == "unfinished"
        else trial
        for trial in trials
    ]

    def place(trial: Trial) -> tuple[int, int, int]:
        arms, values = description["arms"], description["axis_values"]
        if "arm" not in trial.result:
            return len(arms), 0, 0
        arm, value = trial.result["arm"], trial.result["axis_value"]
        # An arm to which the axis does not apply has no value of it.
        rank = -1 if value is None else values.index(value)
        return arms.index(arm), rank, trial.result["seed"]

    return Study(folder, description, summary, sorted(trials, key=place))


def read_trial(folder: str | pathlib.Path) -> Trial:
    """Returns what a trial's folder holds; files that are not there yet count as empty."""
    folder = pathlib.Path(folder)
    gallery = folder / "gallery.npz"
    return Trial(
        name=folder.name,
        result=_read_result(folder / "result.json"),
        records=read_records(folder / "metrics.jsonl"),
        folder=folder,
        gallery=gallery if gallery.is_file() else None,
    )


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON-lines file; a torn last line is skipped.

    Raises:
        ValueError: If a line before the last is not JSON, for then the file is damaged.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    with contextlib.suppress(json.JSONDecodeError):
        # In one go: thousands of trials have hundreds of thousands of lines.
        return json.loads(f"[{','.join(lines)}]")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is not JSON: {error}. Remove that line"
                ) from error
    return records


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _read_result(path: pathlib.Path) -> dict[str, Any]:
    try:
        return {"status": "unfinished", **_read_json(path)}
    except json.JSONDecodeError as error:
        return {"status": "unreadable", "error": f"result.json is not JSON: {error}"}
