"""A field's best value for an arm and axis value, by trials that never count as results."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

SOURCES = ("precise", "running")
"""The statistics by which values are compared: the first that was measured."""


class TuningError(ValueError):
    """Trials that leave nothing to choose."""


def best_value(metric: str, results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the tuned field with the value of the best of ``results``; of equals, the smaller.

    Args:
      metric: the one that is compared, by precise statistics where they were measured. A trial
        that diverged, or has no such number, is out.
      results: those of the tuning trials of one arm and axis value.

    Raises:
      TuningError: no trial is left.
    """
    results = list(results)
    scores = [(score(metric, result), result["tuned"]) for result in results]
    ranked = [(-found, *tuned.values(), tuned) for found, tuned in scores if found is not None]
    if not ranked:
        tried = ", ".join(f"{k} = {v}" for _, tuned in scores for k, v in tuned.items())
        raise TuningError(
            f"tuning: no value gave a finite {metric} ({tried}); give smaller factors"
        )
    return min(ranked, key=lambda row: row[:2])[-1]


def score(metric: str, result: Mapping[str, Any]) -> float | None:
    """Returns what a tuning trial is worth; None where it did not end with a number."""
    if result["status"] != "done":
        return None
    numbers = next((result["metrics"][s] for s in SOURCES if s in result["metrics"]), {})
    value = numbers.get(metric)
    return value if value is not None and math.isfinite(value) else None


def tuning_rows(metric: str, results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each arm and axis value: what was tried, in points, and what was chosen.

    Args:
      metric: the study's.
      results: those of all tuning trials, those that failed among them.
    """
    cells: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for result in results:
        cells.setdefault((result["arm"], result["axis_value"]), []).append(result)
    return [
        {
            "arm": arm,
            "axis_value": axis_value,
            "chosen": _chosen(metric, rows),
            "tried": [
                {
                    "trial": row["trial"],
                    "value": next(iter(row["tuned"].values())),
                    "status": row["status"],
                    "points": None if (s := score(metric, row)) is None else 100.0 * s,
                }
                for row in rows
            ],
        }
        for (arm, axis_value), rows in cells.items()
    ]


def _chosen(metric, rows):
    if any(row["status"] == "failed" for row in rows):
        return None
    try:
        return next(iter(best_value(metric, rows).values()))
    except TuningError:
        return None
