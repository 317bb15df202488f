"""Selection of the best value of a tuned field for each arm and axis value."""

import math
from collections.abc import Iterable

from fpnlab.errors import TuningError
from fpnlab.records.json_files import AxisValue
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import TriedValue, TuningRow

SOURCES = ("precise", "running")
"""Sources of statistics by which values are compared; the first one that was measured counts."""


def best_value(metric: str, results: Iterable[RunResult]) -> dict[str, float]:
    """Returns the tuned field with its best value; the smallest one in case of a tie.

    Args:
      metric: The metric to compare, with precise statistics where they were measured. Trials that
        diverged or have no finite value are ignored.
      results: The tuning trials of one arm and axis value.

    Raises:
      TuningError: No trial has a finite value.
    """
    scores = [(score(metric, result), result.tuned or {}) for result in results]
    ranked = [(-found, *tuned.values(), tuned) for found, tuned in scores if found is not None]
    if not ranked:
        tried = ", ".join(f"{k} = {v}" for _, tuned in scores for k, v in tuned.items())
        raise TuningError(f"tuning: no value gave a finite {metric} ({tried}); use smaller factors")
    return min(ranked, key=lambda row: row[:2])[-1]


def score(metric: str, result: RunResult) -> float | None:
    """Returns the score of a trial, from 0 to 1; None if it has no finite value."""
    if result.status != "done":
        return None
    numbers = next((result.metrics[s] for s in SOURCES if s in result.metrics), {})
    value = numbers.get(metric)
    return value if value is not None and math.isfinite(value) else None


def tuning_rows(metric: str, results: Iterable[RunResult]) -> list[TuningRow]:
    """Returns the tried values and the chosen one for each arm and axis value.

    Args:
      metric: The study's metric.
      results: The results of all tuning trials, including failed ones.
    """
    cells: dict[tuple[str, AxisValue], list[RunResult]] = {}
    for result in results:
        cells.setdefault((result.arm, result.axis_value), []).append(result)
    return [
        TuningRow(
            arm=arm,
            axis_value=axis_value,
            chosen=_chosen(metric, trials),
            tried=[_tried(metric, trial) for trial in trials],
        )
        for (arm, axis_value), trials in cells.items()
    ]


def _tried(metric: str, trial: RunResult) -> TriedValue:
    found = score(metric, trial)
    return TriedValue(
        trial=trial.trial,
        value=next(iter((trial.tuned or {}).values())),
        status=trial.status,
        points=None if found is None else 100.0 * found,
    )


def _chosen(metric: str, trials: list[RunResult]) -> float | None:
    if any(trial.status == "failed" for trial in trials):
        return None
    try:
        return next(iter(best_value(metric, trials).values()))
    except TuningError:
        return None
