"""The answer of a study in at most three sentences, over all of its arms and axis values.

The first sentence has the decided comparisons. The second has the change of the difference along
the axis and, where the order is undecided, a bound for the difference. The third has the caveat
that matters most.

A comparison is decided by its own 95 % confidence interval, as everywhere in a summary. A bound,
however, is a statement about all comparisons at once, so that the intervals behind it are
Bonferroni's: with ``m`` comparisons, each has the level ``1 - 0.05 / m``, and all of them cover
their true differences together in at least 95 % of studies, whatever their dependence. The bound
therefore holds for the undecided comparisons, too, although the results select them.
"""

import itertools
import math
from collections.abc import Sequence

from scipy import special

from fpnlab.analysis.decisions import DECIDED, decided_comparisons
from fpnlab.analysis.headlines import outlying_headlines
from fpnlab.analysis.wording import (
    anywhere,
    at_values,
    cell_name,
    count,
    joined,
    metric_unit,
    number,
)
from fpnlab.records.study_records import Answer, OutlyingSeed, Summary, SummaryRow
from fpnlab.stats.intervals import holm, t_interval, t_test

MOST_ARMS = 6
"""Most arms of which all pairs are compared; more are compared with the baseline only."""
MOST_NAMED = 3
"""Arms or cells that a sentence names; it counts the others."""
RANGE = 100.0
"""Range of all metrics in points, which no difference exceeds."""
FEW_SEEDS = 3
"""Largest number of seeds that is itself the caveat."""


def arm_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs of reference and arm, each pair once: all, or those with the first arm."""
    if len(arms) > MOST_ARMS:
        return [(arms[0], arm) for arm in arms[1:]]
    return list(itertools.combinations(arms, 2))


def write_answer(summary: Summary, comparisons: Sequence[SummaryRow], step: float) -> Answer:
    """Returns the answer of a study, finished or not.

    Args:
      summary: The summary without the answer.
      comparisons: The differences of the pairs of arms in `arm_pairs` at each axis value.
      step: The resolution of the metric in points.
    """
    if summary.counts["done"] == 0:
        return Answer(sentences=["No trial is done yet."])
    cell, difference = step / math.sqrt(12), step / math.sqrt(6)
    outlying = outlying_headlines(summary, comparisons, cell)
    parts = [_change(summary, comparisons), _bound(summary, comparisons, difference)]
    sentences = [
        decided_comparisons(summary, comparisons),
        _sentence("; ".join(filter(None, parts))),
        _caveat(summary, comparisons, outlying),
    ]
    return Answer(
        sentences=[sentence for sentence in sentences if sentence],
        comparisons=list(comparisons),
        adjusted=_adjusted(comparisons, 1.0 - summary.level, difference),
        outlying=outlying,
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _points(row: SummaryRow) -> list[float]:
    return [value for value in row.values.values() if value is not None]


def _adjusted(comparisons: Sequence[SummaryRow], alpha: float, least: float) -> int:
    """Returns the number of decided comparisons that Holm's procedure over all of them rejects."""
    p = [t_test(_points(row), least_deviation=least) for row in comparisons]
    adjusted = holm([1.0 if math.isnan(value) else value for value in p])
    return sum(row.verdict in DECIDED and p < alpha for row, p in zip(comparisons, adjusted))


def _bound(summary: Summary, comparisons: Sequence[SummaryRow], least: float) -> str:
    """Returns the largest plausible difference of the undecided comparisons; empty without any.

    Where trials have failed, there is no bound: they count as worse than any number.
    """
    level = 1.0 - (1.0 - summary.level) / max(len(comparisons), 1)
    undecided = [row for row in comparisons if row.verdict == "undecided"]
    found = [(r, t_interval(_points(r), level, least)) for r in undecided if not r.failures]
    bounded = [(row, i) for row, i in found if -RANGE < i.low and i.high < RANGE]
    what = f"{'simultaneous ' * (len(comparisons) > 1)}95 % confidence intervals"
    how = f"{what} (Bonferroni)" if len(comparisons) > 1 else what
    if not bounded:
        exceed = f"{how} exceed {RANGE:g} points, the range of the metric"
        return f"no difference can be ruled out by these seeds: {exceed}" if found else ""
    rows = [row for row, _ in bounded]
    # Rounded outward, so that the printed bounds hold, too.
    low = math.floor(10 * min(interval.low for _, interval in bounded)) / 10
    high = math.ceil(10 * max(interval.high for _, interval in bounded)) / 10
    limit = f"a difference of more than {number(max(-low, high))} {metric_unit(summary)}"
    text = f"{limit} is not plausible {_extent(summary, comparisons, rows)}"
    if len(summary.arms) > 2:
        return f"{text} ({what}, Bonferroni)"
    pair = f"{summary.arms[1]} minus {summary.arms[0]}"
    return f"{text}: {how} of {pair} lie within {number(low)} to {number(high)}"


def _extent(summary: Summary, comparisons: Sequence[SummaryRow], rows: Sequence[SummaryRow]) -> str:
    """Returns the place of some undecided comparisons in words."""
    if len(rows) == len(comparisons):
        return anywhere(summary)
    if len(summary.arms) == 2:
        return at_values(summary, [row.axis_value for row in rows])
    undecided = sum(row.verdict == "undecided" for row in comparisons)
    if len(rows) == undecided:
        return "where the order is undecided"
    return f"in {len(rows)} of {undecided} undecided comparisons"


def _change(summary: Summary, comparisons: Sequence[SummaryRow]) -> str:
    """Returns the change of the differences along the axis.

    If no comparison is decided, it is left out unless it is decided itself.
    """
    once = {(row.arm, row.reference) for row in comparisons if row.axis_value is None}
    part = summary.change_differences if len(summary.arms) > 1 else summary.changes
    rows = [
        row
        for row in part
        if (row.metric, row.evaluation) == (summary.metric, summary.evaluations[0])
        and row.verdict != "unmeasured"
        and (row.arm, row.reference) not in once
    ]
    changed = any(row.verdict in DECIDED for row in rows)
    if not rows or (comparisons and not any(r.verdict in DECIDED for r in [*comparisons, *rows])):
        return ""
    way = f"from {summary.axis_label} {rows[0].start} to {rows[0].end}"
    if len(summary.arms) > 2:
        return f"{way}, {_changes(summary, rows)}"
    [row] = rows
    subject = f"the difference {row.arm} minus {row.reference}" if row.reference else row.arm
    interval = f"95 % confidence interval {number(row.low)} to {number(row.high)}"
    if not changed:
        mean = f"{number(row.mean)} {metric_unit(summary)}"
        return f"{way}, the change of {subject} is undecided ({mean}, {interval})"
    verb = "increases" if row.verdict == "above" else "decreases"
    mean = f"{number(row.mean)} {metric_unit(summary)}"
    return f"{way}, {subject} {verb} (change {mean}, {interval})"


def _changes(summary: Summary, rows: Sequence[SummaryRow]) -> str:
    """Returns the changes of the differences to the baseline for three arms or more."""
    parts = []
    for verdict, verb in (("above", "increases"), ("below", "decreases")):
        own = [row for row in rows if row.verdict == verdict]
        sizes = [f"{number(abs(row.mean or 0.0))} {metric_unit(summary)}" for row in own]
        if own:
            names = [f"{row.arm} (by {size})" for row, size in zip(own, sizes)]
            parts.append(f"{verb} for {joined(names, MOST_NAMED)}")
    if names := [row.arm for row in rows if row.verdict == "undecided"]:
        arms = joined(names) if len(names) <= MOST_NAMED else f"{len(names)} arms"
        parts.append(f"has an undecided change for {arms}")
    return f"the difference to {summary.arms[0]} {joined(parts)}"


def _caveat(
    summary: Summary, comparisons: Sequence[SummaryRow], outlying: Sequence[OutlyingSeed]
) -> str:
    """Returns the caveat that matters most.

    In this order: an outlying seed that makes a headline; failed trials; unfinished trials; few
    seeds, if not all comparisons are decided; the selection of the best cell.
    """
    if outlying:
        more = f"; {count(len(outlying) - 1, 'more case')} below the table."
        first = outlying[0].sentence
        return first.removesuffix(".") + more if len(outlying) > 1 else first
    if summary.left_out:
        return _left_out(summary)
    if missing := summary.counts["missing"]:
        verb = "has" if missing == 1 else "have"
        planned = count(summary.counts["planned"], "trial")
        return f"{missing} of {planned} {verb} not ended, and the answer may change with them."
    seeds = max((row.n for row in comparisons), default=FEW_SEEDS + 1)
    if seeds <= FEW_SEEDS and any(row.verdict not in DECIDED for row in comparisons):
        return _few_seeds(seeds, summary.level)
    best, cells = summary.best, len(summary.arms) * len(summary.axis_values)
    if best is None or cells < 2:
        return ""
    where = cell_name(summary, best.arm, best.axis_value)
    return (
        f"The best mean, {number(best.mean)} {metric_unit(summary)} ({where}), is biased upward, "
        f"because it is selected as the largest of {cells}."
    )


def _few_seeds(n: int, level: float) -> str:
    if n < 2:
        return "With fewer than two seeds there is no confidence interval, and nothing is decided."
    errors = float(special.stdtrit(n - 1, (1 + level) / 2))
    return (
        f"With {n} seeds, a confidence interval is ± {errors:.1f} standard errors, so that only "
        "large differences are decided; the command fpnlab plan has the number of seeds that a "
        "smaller one needs."
    )


def _left_out(summary: Summary) -> str:
    cells: dict[str, int] = {}
    for trial in summary.left_out:
        where = cell_name(summary, trial.arm, trial.axis_value)
        cells[where] = cells.get(where, 0) + 1
    names = joined([f"{where}, {count(n, 'seed')}" for where, n in cells.items()], MOST_NAMED)
    statuses = joined(sorted({trial.status for trial in summary.left_out}))
    return (
        f"{count(len(summary.left_out), 'trial')} {statuses} ({names}): excluded from means, which "
        "favors their arms, so that no comparison there is decided in their favor."
    )
