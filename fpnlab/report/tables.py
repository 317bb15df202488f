"""A study's numbers as tables: every trial as a row of CSV, and what the page shows."""

import csv
import pathlib
from typing import Any

from fpnlab.analysis.findings import beyond_points
from fpnlab.analysis.table_results import TRIAL_FIELDS, axis_column
from fpnlab.report.study_folder import Study, Trial

Row = dict[str, Any]
BEYOND = "*"
"""Marks intervals of means that leave 0 to 100."""


def write_csv(study: Study, path: pathlib.Path) -> None:
    """Writes a row for each trial and evaluation; metrics from 0 to 1, as in ``result.json``.

    ``test_images`` is the number of images that they are measured on. The test loss of classifiers,
    in nats, comes last.

    A trial without a measurement has one row, whose evaluation and metrics are empty. The axis
    value's column is named by `axis_column`.
    """
    axis = axis_column(study.description["axis"])
    metrics = list(
        dict.fromkeys(
            metric
            for trial in study.trials
            for numbers in trial.result.get("metrics", {}).values()
            for metric in numbers
        )
    )
    fields = [axis if field == "axis_value" else field for field in TRIAL_FIELDS]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        losses = {t.name: t.result.get("test_loss") or {} for t in study.trials}
        last = ["test_loss"] if any(losses.values()) else []
        before = ["examples_per_second", "test_images", "evaluation"]
        writer.writerow([*fields, *before, *metrics, *last])
        images = study.description.get("dataset", {}).get("test_images")
        for trial in study.trials:
            own = [_own(trial, field) for field in TRIAL_FIELDS]
            for evaluation, numbers in (trial.result.get("metrics") or {"": {}}).items():
                measured = [numbers.get(metric) for metric in metrics]
                measured += [losses[trial.name].get(evaluation)] if last else []
                writer.writerow([*own, examples_per_second(trial), images, evaluation, *measured])


def group_sizes(norm_batch: dict[str, int | None] | int | None) -> int | str | None:
    """Returns the images in a statistics group: one number, or, where positions differ, of each.

    Args:
      norm_batch: by position; older results have one number.
    """
    if not isinstance(norm_batch, dict):
        return norm_batch
    groups = {position: size for position, size in norm_batch.items() if size is not None}
    if len(set(groups.values())) <= 1 and len(groups) in (0, len(norm_batch)):
        return next(iter(groups.values()), None)
    return " ".join(f"{position}={size}" for position, size in groups.items())


def _own(trial: Trial, field: str) -> Any:
    if field == "trial":
        return trial.name
    value = trial.result.get(field)
    return group_sizes(value) if field == "norm_batch" else value


def examples_per_second(trial: Trial) -> float | None:
    """Returns the trial's mean speed; ``None`` before it has a result."""
    seconds = trial.result.get("seconds")
    return trial.result["examples"] / seconds if seconds else None


def reason(trial: Trial) -> str:
    """Returns why a trial has no measurement, or how far an unfinished one has come."""
    if trial.status == "unfinished":
        seen = trial.records[-1]["examples"] if trial.records else 0
        return f"no result yet; {seen:,} examples seen"
    return trial.result.get("error") or ""


def means_by_axis(summary: Row, metric: str) -> list[Row]:
    """Returns lines of a table with the axis values as columns.

    An arm whose evaluations differ has a line for each of them, any other arm one line.
    """
    differing = {row["arm"] for row in summary["gains"]}
    lines = []
    for arm in summary["arms"]:
        for evaluation in summary["evaluations"] if arm in differing else ["running"]:
            cells = {
                row["axis_value"]: row
                for row in summary["rows"]
                if (row["metric"], row["evaluation"], row["arm"]) == (metric, evaluation, arm)
            }
            lines.append(
                {
                    "arm": arm,
                    "evaluation": evaluation if arm in differing else "",
                    "cells": [cells.get(value) for value in summary["axis_values"]],
                }
            )
    return lines


def metric_names(summary: Row) -> list[str]:
    """Returns the metrics that were measured, the study's own first."""
    measured = dict.fromkeys(row["metric"] for row in summary["rows"] if row["mean"] is not None)
    return sorted(measured, key=lambda metric: metric != summary["metric"])


def second_opinions(summary: Row, claim: int, rule: int) -> list[Row]:
    """Returns the second opinions on a rule, by its number and its claim's; most have none."""
    found = summary.get("second_opinions", [])
    return [row for row in found if (row["claim"], row["rule"]) == (claim, rule)]


def mean_and_half_width(row: Row | None) -> str:
    """Returns "41.2 ± 0.8", "41.2" where there is no interval, "-" where there is no value.

    An interval that leaves 0 to 100 is marked with `BEYOND`.
    """
    if row is None or row["mean"] is None:
        return "-"
    if row["low"] is None:
        return f"{row['mean']:.1f}"
    mark = BEYOND if beyond_points(row) else ""
    return f"{row['mean']:.1f} ± {row['high'] - row['mean']:.1f}{mark}"


def bounds_note(lines: list[Row]) -> str:
    """Returns what the mark of intervals that leave 0 to 100 means; empty where none is marked."""
    cells = [cell for line in lines for cell in line["cells"] if cell is not None]
    if not any(map(beyond_points, cells)):
        return ""
    return (
        f"{BEYOND} The interval leaves 0 to 100, where every mean lies: Student's does not know "
        "these bounds, and so few seeds say no more."
    )


def family_note(summary: Row) -> str:
    """Returns how the tests of a study's claims are adjusted; empty for a single claim."""
    verdicts = summary.get("verdicts", [])
    if len(verdicts) < 2:
        return ""
    alphas = [verdict["alpha"] for verdict in verdicts]
    if summary.get("holm_over", "claim") == "study":
        return (
            f"p-values are adjusted by Holm's procedure over the rules of all {len(verdicts)} "
            "claims: where no effect is true, one or more is decided in at most "
            f"{100 * max(alphas):g} % of studies."
        )
    return (
        'Each claim is tested by itself (holm_over = "claim"): where no effect is true, one or '
        f"more of these {len(verdicts)} is decided in up to {min(100.0, 100 * sum(alphas)):g} % of "
        "studies."
    )
