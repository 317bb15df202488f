"""Outlying seeds that make a headline: a decided comparison, or the best cell."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fpnlab.analysis.wording import cell_name, metric_unit, number
from fpnlab.records.study_records import OutlyingSeed, Summary, SummaryRow, Verdict
from fpnlab.stats.intervals import t_interval
from fpnlab.stats.outliers import outlying_seeds


def outlying_headlines(
    summary: Summary, comparisons: Sequence[SummaryRow], least_deviation: float
) -> list[OutlyingSeed]:
    """Returns the outlying seeds that change a comparison, or select the best cell.

    A seed is named if it lies far from the other seeds (`fpnlab.stats.outliers`), and without it
    the comparison has another verdict or its mean changes by more than half, or another cell is
    best. The distance comes first, because with few seeds a verdict often changes without any one
    of them: there is less evidence.

    One far seed seldom makes a decision: it widens the interval, too, and Student's t approaches 1
    as its distance grows. It hides decisions, and it makes large means and wide bounds.

    The best cell comes first, then comparisons with another verdict, then the others; of these,
    larger changes of the mean come first.

    Args:
      summary: The summary of the study.
      comparisons: The differences of pairs of arms.
      least_deviation: Standard deviation of one cell due to rounding of the metric.
    """
    # A difference has the rounding of two cells.
    both = least_deviation * math.sqrt(2)
    samples = [_points(row) for row in comparisons]
    found = [
        _comparison(summary, row, seed, both)
        for row, seed in zip(comparisons, outlying_seeds(samples, both))
        if seed is not None
    ]
    best = _best(summary, least_deviation)
    found.sort(key=lambda change: (change.verdict, abs(change.size)), reverse=True)
    changed = [change.named for change in found if change.verdict or change.relative > 0.5]
    return changed if best is None else [best, *changed]


class _Change(NamedTuple):
    """The effect of one seed on a comparison."""

    named: OutlyingSeed
    verdict: bool
    """True if the verdict differs without the seed."""
    size: float
    """Change of the mean in points."""

    @property
    def relative(self) -> float:
        """Change of the mean as a share of the mean."""
        return abs(self.size) / (abs(self.named.mean) or math.ulp(0.0))


def _points(row: SummaryRow) -> dict[int, float]:
    return {seed: value for seed, value in row.values.items() if value is not None}


def _comparison(summary: Summary, row: SummaryRow, seed: int, least: float) -> _Change:
    points, mean = _points(row), row.mean or 0.0
    others = t_interval((v for s, v in points.items() if s != seed), summary.level, least)
    sides: dict[int, Verdict] = {1: "above", -1: "below", 0: "undecided"}
    verdict = sides[others.sign]
    if verdict in _ruled_out(summary, row):
        verdict = "undecided"
    where = cell_name(summary, f"{row.arm} minus {row.reference}", row.axis_value)
    far = f"{number(points[seed])} {metric_unit(summary)} against {number(others.mean)} on average"
    named = OutlyingSeed(
        arm=row.arm,
        reference=row.reference,
        axis_value=row.axis_value,
        seed=seed,
        value=points[seed],
        mean=mean,
        mean_without=others.mean,
        sentence=f"Seed {seed} lies far from the others in {where} ({far}): with it, the "
        f"difference is {number(mean)} ({row.verdict}); without it, {number(others.mean)} "
        f"({verdict}).",
    )
    return _Change(named, verdict != row.verdict, mean - others.mean)


def _ruled_out(summary: Summary, row: SummaryRow) -> set[Verdict]:
    """Returns the verdicts that failed trials rule out (`fpnlab.analysis.contrasts`)."""
    failed = {t.arm for t in summary.left_out if t.axis_value in (row.axis_value, None)}
    sides: dict[Verdict, str | None] = {"above": row.arm, "below": row.reference}
    return {verdict for verdict, arm in sides.items() if arm in failed}


def _best(summary: Summary, least: float) -> OutlyingSeed | None:
    """Returns the outlying seed without which another cell is best; None without one."""
    best = summary.best
    if best is None or best.mean is None:
        return None
    rows = {
        (row.arm, row.axis_value): row
        for row in summary.rows
        if (row.metric, row.evaluation) == (best.metric, best.evaluation)
    }
    # The axis value of the best row is None if the axis does not apply to its arm.
    own = [
        key
        for key in rows
        if key[0] == best.arm and (best.axis_value is None or key[1] == best.axis_value)
    ]
    seeds = dict(zip(rows, outlying_seeds([_points(row) for row in rows.values()], least)))
    seed = seeds[own[0]]
    rivals = [row for key, row in rows.items() if key not in own and row.mean is not None]
    if seed is None or not rivals:
        return None
    points = _points(best)
    without = t_interval((v for s, v in points.items() if s != seed), summary.level, least).mean
    second = max(rivals, key=lambda row: row.mean or 0.0)
    if without >= (second.mean or 0.0):
        return None
    far = f"{number(points[seed])} {metric_unit(summary)} against {number(without)} on average"
    where = cell_name(summary, best.arm, best.axis_value)
    other = cell_name(summary, second.arm, second.axis_value)
    return OutlyingSeed(
        arm=best.arm,
        reference=None,
        axis_value=best.axis_value,
        seed=seed,
        value=points[seed],
        mean=best.mean,
        mean_without=without,
        sentence=f"Seed {seed} lies far from the others in {where} ({far}): with it, this mean is "
        f"the best, {number(best.mean)}; without it, that of {other} is, {number(second.mean)}.",
    )
