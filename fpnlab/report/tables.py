"""A study's numbers as tables: every trial as a row of CSV, and the tables of the page."""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

from fpnlab.analysis.findings import beyond_points
from fpnlab.records.study_records import ClaimBootstrap, Summary, SummaryRow
from fpnlab.records.trial_table import TRIAL_FIELDS, axis_column
from fpnlab.report.study_folder import StudyFiles, TrialFiles

BEYOND = "*"
"""Marks intervals of means that leave 0 to 100."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table with the axis values as columns."""

    arm: str
    """The arm."""
    evaluation: str
    """Source of statistics; empty where all sources agree."""
    cells: list[SummaryRow | None]
    """One an axis value; None where nothing was measured."""


def write_csv(study: StudyFiles, path: pathlib.Path) -> None:
    """Writes a row for each trial and evaluation; metrics from 0 to 1, as in ``result.json``.

    ``test_images`` is the number of images that they are measured on. The test loss of classifiers,
    in nats, comes last.

    A trial without a measurement has one row, whose evaluation and metrics are empty. The axis
    value's column is named by `axis_column`.
    """
    axis = axis_column(study.plan.axis)
    results = [trial.result for trial in study.trials if trial.result is not None]
    metrics = list(
        dict.fromkeys(name for r in results for numbers in r.metrics.values() for name in numbers)
    )
    fields = [axis if field == "axis_value" else field for field in TRIAL_FIELDS]
    last = ["test_loss"] if any(result.test_loss for result in results) else []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        before = ["examples_per_second", "test_images", "evaluation"]
        writer.writerow([*fields, *before, *metrics, *last])
        for trial in study.trials:
            own = [_own(trial, field) for field in TRIAL_FIELDS]
            own += [examples_per_second(trial), study.plan.dataset.test_images]
            losses = (trial.result.test_loss or {}) if trial.result else {}
            for evaluation, numbers in _metrics(trial).items():
                measured = [numbers.get(metric) for metric in metrics]
                measured += [losses.get(evaluation)] if last else []
                writer.writerow([*own, evaluation, *measured])


def _metrics(trial: TrialFiles) -> dict[str, dict[str, float | None]]:
    return (trial.result.metrics if trial.result else {}) or {"": {}}


def group_sizes(norm_batch: dict[str, int | None]) -> int | str | None:
    """Returns the images in a statistics group: one number, or, where positions differ, of each.

    Args:
      norm_batch: By position.
    """
    groups = {position: size for position, size in norm_batch.items() if size is not None}
    if len(set(groups.values())) <= 1 and len(groups) in (0, len(norm_batch)):
        return next(iter(groups.values()), None)
    return " ".join(f"{position}={size}" for position, size in groups.items())


def _own(trial: TrialFiles, field: str) -> object:
    """Returns a field of a trial; empty of one without a measurement."""
    own = {"trial": trial.name, "status": trial.status, "error": trial.error or None}
    if field in own:
        return own[field]
    result = trial.result
    if result is None or (not result.metrics and field not in ("arm", "axis_value", "seed")):
        return None
    return group_sizes(result.norm_batch) if field == "norm_batch" else getattr(result, field)


def examples_per_second(trial: TrialFiles) -> float | None:
    """Returns the trial's mean speed; None before it has a result."""
    result = trial.result
    return result.examples / result.seconds if result is not None and result.seconds else None


def reason(trial: TrialFiles) -> str:
    """Returns why a trial has no measurement, or how far an unfinished one has come."""
    if trial.status == "unfinished":
        seen = trial.records[-1].examples if trial.records else 0
        return f"no result yet; {seen:,} examples seen"
    return trial.error


def means_by_axis(summary: Summary, metric: str) -> list[Line]:
    """Returns lines of a table with the axis values as columns.

    An arm whose evaluations differ has a line for each of them, any other arm one line.
    """
    differing = {row.arm for row in summary.gains}
    lines = []
    for arm in summary.arms:
        for evaluation in summary.evaluations if arm in differing else ["running"]:
            cells = {
                row.axis_value: row
                for row in summary.rows
                if (row.metric, row.evaluation, row.arm) == (metric, evaluation, arm)
            }
            shown = evaluation if arm in differing else ""
            lines.append(Line(arm, shown, [cells.get(value) for value in summary.axis_values]))
    return lines


def metric_names(summary: Summary) -> list[str]:
    """Returns the metrics that were measured, the study's own first."""
    measured = dict.fromkeys(row.metric for row in summary.rows if row.mean is not None)
    return sorted(measured, key=lambda metric: metric != summary.metric)


def claim_bootstrap(summary: Summary, claim: int, rule: int) -> list[ClaimBootstrap]:
    """Returns the bootstrap intervals of a rule, by its number and its claim's."""
    return [row for row in summary.claim_bootstrap if (row.claim, row.rule) == (claim, rule)]


def mean_and_half_width(row: SummaryRow | None) -> str:
    """Returns "41.2 ± 0.8", "41.2" where there is no interval, "-" where there is no value.

    An interval that leaves 0 to 100 is marked with `BEYOND`.
    """
    if row is None or row.mean is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.mean:.1f}"
    mark = BEYOND if beyond_points(row) else ""
    return f"{row.mean:.1f} ± {row.high - row.mean:.1f}{mark}"


def bounds_note(lines: Sequence[Line]) -> str:
    """Returns what the mark of intervals that leave 0 to 100 means; empty where none is marked."""
    cells = [cell for line in lines for cell in line.cells if cell is not None]
    if not any(map(beyond_points, cells)):
        return ""
    return (
        f"{BEYOND} The interval leaves 0 to 100, where every mean lies: Student's does not know "
        "these bounds, and so few seeds say no more."
    )


def family_note(summary: Summary) -> str:
    """Returns how the tests of a study's claims are adjusted; empty for a single claim."""
    verdicts = summary.verdicts
    if len(verdicts) < 2:
        return ""
    alphas = [verdict.alpha for verdict in verdicts]
    if summary.holm_over == "study":
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
