"""Summaries of a study: means, confidence intervals, paired differences and findings."""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar, get_args

from fpnlab.analysis.answer import arm_pairs, write_answer
from fpnlab.analysis.contrasts import (
    Contrast,
    Failed,
    failure_note,
    failures,
    least_deviation,
    resolution,
    row_contrast,
)
from fpnlab.analysis.findings import write_findings
from fpnlab.analysis.tuning import tuning_rows
from fpnlab.analysis.verdict import Evidence, judge_claims
from fpnlab.config.claims import Cell, Evaluation, claim_hash, read_claims
from fpnlab.records.json_files import AxisValue
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import (
    ClaimResult,
    LeftOutRow,
    SpeedRow,
    StudyFile,
    Summary,
    SummaryRow,
    Verdict,
    axis_label,
)
from fpnlab.stats.intervals import Interval, paired_difference, t_interval

EVALUATIONS = get_args(Evaluation)
LEVEL = 0.95
"""Level of all confidence intervals."""

Values = dict[int, float]
"""Points by seed."""
Row = TypeVar("Row", SummaryRow, SpeedRow)


def summarize(
    study: StudyFile, results: Iterable[RunResult], tuning: Iterable[RunResult] = ()
) -> Summary:
    """Returns the summary of a study, finished or not.

    The result of an arm to which the axis does not apply has no axis value (None) and counts at
    every axis value.

    Args:
      study: The plan.
      results: The results of the main trials that have ended.
      tuning: The results of the tuning trials that have ended.
    """
    results = list(results)
    arms, axis_values, metric = study.arms, study.axis_values, study.metric
    done = _done(results, axis_values)
    fixed = {result.arm for result in results if result.axis_value is None}
    values = _collect(done, arms, axis_values)
    label = axis_label(study.axis)
    compare = _Comparison(_failed(results, axis_values), study.dataset.test_images, label)
    changes = _changes(values, axis_values, compare)
    rows = [
        _with_numbers(
            _empty_row(cell),
            t_interval(points.values(), LEVEL, compare.least_deviation({cell: 1.0})),
            points,
        )
        for cell, points in values.items()
    ]
    key = (metric, EVALUATIONS[0])
    main = [row for row in rows if (row.metric, row.evaluation) == key and row.mean is not None]
    ranked = sorted(main, key=lambda row: row.mean or 0.0)
    everywhere = lambda row: replace(row, axis_value=None) if row.arm in fixed else row
    summary = Summary(
        name=study.name,
        metric=metric,
        level=LEVEL,
        axis=study.axis,
        axis_label=label,
        axis_values=axis_values,
        arms=arms,
        evaluations=list(EVALUATIONS),
        counts=_counts(study, results),
        left_out=_left_out(results),
        rows=rows,
        differences=_differences(values, arms, compare),
        changes=[row for row in changes if row.arm not in fixed],
        change_differences=_change_differences(changes, arms, compare),
        gains=_gains(values, compare),
        best=everywhere(ranked[-1]) if ranked else None,
        worst=everywhere(ranked[0]) if ranked else None,
        speed=_speed(done, arms, axis_values),
        tuning=tuning_rows(metric, tuning),
        tuned=study.tune,
        verdicts=judge_results(study, results),
        holm_over=study.holm_over,
    )
    pairs = _pairs(values, study, fixed, compare)
    answer = write_answer(summary, pairs, resolution(metric, study.dataset.test_images))
    return replace(summary, findings=write_findings(summary), answer=answer)


def judge_results(study: StudyFile, results: Iterable[RunResult]) -> list[ClaimResult]:
    """Returns the verdict on each claim of a study, finished or not.

    A rule is undecided until all trials that it needs have ended. A trial that diverged or failed
    has ended, and counts as worse than any number (see `fpnlab.analysis.contrasts`).

    Args:
      study: The plan, with the claims.
      results: The results of the main trials that have ended.
    """
    results, claims = list(results), read_claims(study.claims)
    arms, axis_values, images = study.arms, study.axis_values, study.dataset.test_images
    values = _collect(_done(results, axis_values), arms, axis_values)
    ended = {(result.arm, result.axis_value, result.seed) for result in results}
    unfinished = {
        (arm, value)
        for arm, value in itertools.product(arms, axis_values if claims else ())
        for seed in study.seeds
        if not ended & {(arm, value, seed), (arm, None, seed)}
    }
    metrics = {rule.metric for claim in claims for rule in claim.rules if rule.metric}
    evidence = Evidence(
        values,
        axis_label(study.axis),
        unfinished,
        _failed(results, axis_values),
        {metric: resolution(metric, images) for metric in metrics},
    )
    found = judge_claims(claims, evidence, study.holm_over)
    return [
        replace(verdict, statement=claim.statement, hash=claim_hash(claim))
        for claim, verdict in zip(claims, found)
    ]


def _done(results: list[RunResult], axis_values: list[AxisValue]) -> list[RunResult]:
    """Returns the results of trials that are done, with copies at each axis value if it is None."""
    return [
        replace(result, axis_value=value)
        for result in results
        if result.status == "done"
        for value in (axis_values if result.axis_value is None else [result.axis_value])
    ]


def _failed(results: list[RunResult], axis_values: list[AxisValue]) -> Failed:
    """Returns the trials that ended without a value, by arm and axis value."""
    failed: dict[tuple[str, AxisValue], list[tuple[str, AxisValue, int]]] = {}
    for result in results:
        if result.status == "done":
            continue
        arm, value, seed = result.arm, result.axis_value, result.seed
        for place in axis_values if value is None else [value]:
            failed.setdefault((arm, place), []).append((arm, value, seed))
    return failed


def _collect(
    results: list[RunResult], arms: list[str], axis_values: list[AxisValue]
) -> dict[Cell, Values]:
    """Returns points by cell and seed, in the order of the study; a missing metric is NaN."""
    values: dict[Cell, Values] = {}
    metrics: dict[str, None] = {}
    for result in results:
        for evaluation in EVALUATIONS:
            for metric, value in result.metrics.get(evaluation, {}).items():
                metrics[metric] = None
                cell = Cell(metric, evaluation, result.axis_value, result.arm)
                points = math.nan if value is None else 100.0 * value
                values.setdefault(cell, {})[result.seed] = points
    order = itertools.product(metrics, EVALUATIONS, axis_values, arms)
    return {cell: values[cell] for cell in itertools.starmap(Cell, order) if cell in values}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_numbers(row: Row, interval: Interval, values: Mapping[int, float]) -> Row:
    """Returns the row with mean, bounds, number of seeds and values."""
    return replace(
        row,
        mean=_number(interval.mean),
        low=_number(interval.low),
        high=_number(interval.high),
        n=interval.n,
        values={seed: _number(values[seed]) for seed in sorted(values)},
    )


def _empty_row(
    cell: Cell, reference: str | None = None, start: AxisValue = None, end: AxisValue = None
) -> SummaryRow:
    """Returns the row of a mean or a comparison without its numbers."""
    return SummaryRow(
        metric=cell.metric or "",
        evaluation=cell.evaluation,
        arm=cell.arm,
        axis_value=cell.axis_value,
        reference=reference,
        start=start,
        end=end,
        mean=None,
        low=None,
        high=None,
        n=0,
        values={},
    )


class _Comparison(NamedTuple):
    """Builds rows of comparisons of a study."""

    failed: Failed
    """Trials without a value."""
    test_images: int | None
    """Number of test images, if known."""
    axis_label: str
    """The axis in words."""

    def least_deviation(self, contrast: Contrast) -> float:
        """Returns the standard deviation of a contrast due to rounding of its metric."""
        return least_deviation(contrast, resolution(next(iter(contrast)).metric, self.test_images))

    def row(self, part: str, a: Values, b: Values, empty: SummaryRow) -> SummaryRow:
        """Returns the row of ``b - a`` with its verdict: the side of zero of the interval.

        A side toward which leaving failed trials out biases the mean is never decided.

        Args:
          part: The field of the summary that the row belongs to.
          a: Values that are subtracted.
          b: Values from which ``a`` is subtracted.
          empty: The row without its numbers.
        """
        contrast = row_contrast(part, empty)
        interval, by_seed = paired_difference(a, b, LEVEL, self.least_deviation(contrast))
        found = failures(contrast, self.failed)
        verdict: Verdict = "undecided" if math.isfinite(interval.low) else "unmeasured"
        if interval.sign > 0 and not found.positive:
            verdict = "above"
        if interval.sign < 0 and not found.negative:
            verdict = "below"
        note = failure_note(found, self.axis_label)
        return replace(_with_numbers(empty, interval, by_seed), verdict=verdict, failures=note)


def _differences(
    values: dict[Cell, Values], arms: list[str], compare: _Comparison
) -> list[SummaryRow]:
    rows = []
    for reference in dict.fromkeys(replace(cell, arm=arms[0]) for cell in values):
        for arm in arms[1:]:
            a, b = values.get(reference, {}), values.get(replace(reference, arm=arm), {})
            empty = _empty_row(replace(reference, arm=arm), arms[0])
            rows.append(compare.row("differences", a, b, empty))
    return rows


def _pairs(
    values: dict[Cell, Values], study: StudyFile, fixed: Collection[str], compare: _Comparison
) -> list[SummaryRow]:
    """Returns pairs of arms on the study's metric with running statistics at each axis value.

    Args:
      values: Points by cell and seed.
      study: The plan.
      fixed: Arms to which the axis does not apply; two of them have one row without axis value.
      compare: The builder of rows.
    """
    rows = []
    for reference, arm in arm_pairs(study.arms):
        once = {reference, arm} <= set(fixed)
        for value in study.axis_values[:1] if once else study.axis_values:
            cell = Cell(study.metric, EVALUATIONS[0], value, arm)
            a, b = values.get(replace(cell, arm=reference), {}), values.get(cell, {})
            row = compare.row("differences", a, b, _empty_row(cell, reference))
            rows.append(replace(row, axis_value=None) if once else row)
    return rows


def _ends(axis_values: list[AxisValue]) -> tuple[int | float, int | float] | None:
    """Returns the smallest and the largest axis value; None if values are not all numbers."""
    numbers = [value for value in axis_values if isinstance(value, int | float)]
    if len(numbers) < max(len(axis_values), 2):
        return None
    return min(numbers), max(numbers)


def _changes(
    values: dict[Cell, Values], axis_values: list[AxisValue], compare: _Comparison
) -> list[SummaryRow]:
    if (ends := _ends(axis_values)) is None:
        return []
    rows = []
    for cell in dict.fromkeys(replace(cell, axis_value=ends[1]) for cell in values):
        large, small = values.get(cell, {}), values.get(replace(cell, axis_value=ends[0]), {})
        empty = _empty_row(replace(cell, axis_value=None), start=ends[1], end=ends[0])
        rows.append(compare.row("changes", large, small, empty))
    return rows


def _change_differences(
    changes: list[SummaryRow], arms: list[str], compare: _Comparison
) -> list[SummaryRow]:
    by_arm: dict[tuple[str, str], dict[str, Values]] = {}
    for row in changes:
        measured = {seed: math.nan if v is None else v for seed, v in row.values.items()}
        by_arm.setdefault((row.metric, row.evaluation), {})[row.arm] = measured
    rows = []
    for (metric, evaluation), change in by_arm.items():
        for arm in arms[1:]:
            a, b = (change.get(name, {}) for name in (arms[0], arm))
            cell = Cell(metric, evaluation, None, arm)
            empty = _empty_row(cell, arms[0], changes[0].start, changes[0].end)
            rows.append(compare.row("change_differences", a, b, empty))
    return rows


def _gains(values: dict[Cell, Values], compare: _Comparison) -> list[SummaryRow]:
    """Returns precise and batch minus running statistics, for arms in which they differ."""
    pairs = [
        (cell, values[replace(cell, evaluation=EVALUATIONS[0])], other)
        for cell, other in values.items()
        if cell.evaluation != EVALUATIONS[0] and replace(cell, evaluation=EVALUATIONS[0]) in values
    ]
    differing = {
        cell.arm
        for cell, running, other in pairs
        if any(abs(d) > 1e-9 for d in paired_difference(running, other).by_seed.values())
    }
    return [
        compare.row("gains", running, other, _empty_row(cell))
        for cell, running, other in pairs
        if cell.arm in differing
    ]


def _counts(study: StudyFile, results: list[RunResult]) -> dict[str, int]:
    """Returns the number of trials by status, ``planned`` and ``missing`` ones included."""
    statuses: list[str] = [result.status for result in results]
    counts = {status: statuses.count(status) for status in sorted({"done", *statuses})}
    return {"planned": study.trials, "missing": study.trials - len(results), **counts}


def _left_out(results: list[RunResult]) -> list[LeftOutRow]:
    return [
        LeftOutRow(
            trial=result.trial,
            arm=result.arm,
            axis_value=result.axis_value,
            seed=result.seed,
            status=result.status,
            error=result.error,
        )
        for result in results
        if result.status != "done"
    ]


def _speed(
    results: list[RunResult], arms: list[str], axis_values: list[AxisValue]
) -> list[SpeedRow]:
    """Returns training examples per second, by arm and axis value."""
    speeds: dict[tuple[str, AxisValue], Values] = {
        (arm, axis_value): {} for arm in arms for axis_value in axis_values
    }
    for result in results:
        if result.seconds:
            place = result.arm, result.axis_value
            speeds[place][result.seed] = result.examples / result.seconds
    return [
        _with_numbers(
            SpeedRow(arm=arm, axis_value=value, mean=None, low=None, high=None, n=0, values={}),
            t_interval(own.values(), LEVEL),
            own,
        )
        for (arm, value), own in speeds.items()
    ]
