"""Tables of a study: ``table.csv``, and the tables of means on the page."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence

from fpnlab.analysis.findings import beyond_points
from fpnlab.records.json_files import replace_file
from fpnlab.records.plain_text import table_cell
from fpnlab.records.study_records import ClaimBootstrap, Summary, SummaryRow
from fpnlab.records.trial_table import TRIAL_FIELDS, axis_column
from fpnlab.report.study_folder import StudyFiles, TrialFiles

BEYOND = "*"
"""Mark of confidence intervals that exceed 0 to 100."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table with the axis values as columns."""

    arm: str
    """The arm."""
    evaluation: str
    """Source of batch-norm statistics; empty if all sources agree."""
    cells: list[SummaryRow | None]
    """One cell per axis value; None if it was not measured."""


def write_csv(study: StudyFiles, path: pathlib.Path) -> None:
    """Writes one row per trial and evaluation; metrics are from 0 to 1, as in ``result.json``.

    ``test_images`` is the number of images on which they are measured. The last column is the test
    loss of classifiers in nats. A trial without metrics has one row with empty columns for them.
    Text that a spreadsheet would take for a formula begins with an apostrophe (`table_cell`).
    `axis_column` names the column of the axis value.
    """
    axis = axis_column(study.plan.axis)
    results = [trial.result for trial in study.trials if trial.result is not None]
    metrics = list(
        dict.fromkeys(name for r in results for numbers in r.metrics.values() for name in numbers)
    )
    fields = [axis if field == "axis_value" else field for field in TRIAL_FIELDS]
    last = ["test_loss"] if any(result.test_loss for result in results) else []
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    write = lambda cells: writer.writerow([table_cell(cell) for cell in cells])
    write([*fields, "examples_per_second", "test_images", "evaluation", *metrics, *last])
    for trial in study.trials:
        own = [_own(trial, field) for field in TRIAL_FIELDS]
        own += [examples_per_second(trial), study.plan.dataset.test_images]
        losses = (trial.result.test_loss or {}) if trial.result else {}
        for evaluation, numbers in _metrics(trial).items():
            measured = [numbers.get(metric) for metric in metrics]
            measured += [losses.get(evaluation)] if last else []
            write([*own, evaluation, *measured])
    # The name of a folder may have bytes that are not UTF-8.
    replace_file(path, content.getvalue().encode(errors="backslashreplace"))


def _metrics(trial: TrialFiles) -> dict[str, dict[str, float | None]]:
    return (trial.result.metrics if trial.result else {}) or {"": {}}


def group_sizes(norm_batch: dict[str, int | None]) -> int | str | None:
    """Returns the images per statistics group: one number, or one per position if these differ.

    Args:
      norm_batch: Images per statistics group by position.
    """
    groups = {position: size for position, size in norm_batch.items() if size is not None}
    if len(set(groups.values())) <= 1 and len(groups) in (0, len(norm_batch)):
        return next(iter(groups.values()), None)
    return " ".join(f"{position}={size}" for position, size in groups.items())


def _own(trial: TrialFiles, field: str) -> object:
    """Returns a field of a trial; None if it was not measured."""
    own = {"trial": trial.name, "status": trial.status, "error": trial.error or None}
    if field in own:
        return own[field]
    result = trial.result
    if result is None or (not result.metrics and field not in ("arm", "axis_value", "seed")):
        return None
    return group_sizes(result.norm_batch) if field == "norm_batch" else getattr(result, field)


def examples_per_second(trial: TrialFiles) -> float | None:
    """Returns the mean training speed of a trial; None without a result."""
    result = trial.result
    return result.examples / result.seconds if result is not None and result.seconds else None


def reason(trial: TrialFiles) -> str:
    """Returns the reason why a trial has no result, or the progress of an unfinished one."""
    if trial.status == "unfinished":
        seen = trial.records[-1].examples if trial.records else 0
        return f"no result yet; {seen:,} examples seen"
    return trial.error


def means_by_axis(summary: Summary, metric: str) -> list[Line]:
    """Returns the rows of a table of means with the axis values as columns.

    An arm has one row per source of batch-norm statistics if these differ, otherwise one row.
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
    """Returns the measured metrics, with the study's metric first."""
    measured = dict.fromkeys(row.metric for row in summary.rows if row.mean is not None)
    return sorted(measured, key=lambda metric: metric != summary.metric)


def claim_bootstrap(summary: Summary, claim: int, rule: int) -> list[ClaimBootstrap]:
    """Returns the bootstrap intervals of a rule by the indices of claim and rule."""
    return [row for row in summary.claim_bootstrap if (row.claim, row.rule) == (claim, rule)]


def mean_and_half_width(row: SummaryRow | None) -> str:
    """Returns "41.2 ± 0.8", or "41.2" without an interval, or "-" without a value.

    An interval that exceeds 0 to 100 is marked with `BEYOND`.
    """
    if row is None or row.mean is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.mean:.1f}"
    mark = BEYOND if beyond_points(row) else ""
    return f"{row.mean:.1f} ± {row.high - row.mean:.1f}{mark}"


def bounds_note(lines: Sequence[Line]) -> str:
    """Returns a note that explains the mark `BEYOND`; empty if no interval is marked."""
    cells = [cell for line in lines for cell in line.cells if cell is not None]
    if not any(map(beyond_points, cells)):
        return ""
    return (
        f"{BEYOND} The confidence interval exceeds 0 to 100, the range of the metric: Student's t "
        "assumes an unbounded normal distribution, and there are too few seeds for a narrower one."
    )


def family_note(summary: Summary) -> str:
    """Returns a note on the adjustment of p-values; empty for fewer than two claims."""
    verdicts = summary.verdicts
    if len(verdicts) < 2:
        return ""
    alphas = [verdict.alpha for verdict in verdicts]
    if summary.holm_over == "study":
        return (
            f"p-values are adjusted by Holm's procedure over the rules of all {len(verdicts)} "
            "claims: if all null hypotheses are true, one or more is rejected in at most "
            f"{100 * max(alphas):g} % of studies."
        )
    return (
        'Each claim is tested separately (holm_over = "claim"): if all null hypotheses are true, '
        f"one or more of these {len(verdicts)} claims is decided in up to "
        f"{min(100.0, 100 * sum(alphas)):g} % of studies."
    )
