"""Decided comparisons of a study over its whole axis, in one sentence."""

import collections
from collections.abc import Iterable, Sequence

from fpnlab.analysis.wording import anywhere, at_values, axis_order, joined, metric_unit, number
from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow

MOST_CLAUSES = 4
"""Groups of decided comparisons that the sentence names; it counts the others."""
MOST_NAMES = 6
"""Arms that a clause names; it counts the others."""

DECIDED = ("above", "below")
"""Verdicts of decided comparisons."""
Decided = dict[tuple[str, str], dict[AxisValue, float]]
"""Size of decided differences in points, by the arms above and below, and by axis value."""


def decided_comparisons(summary: Summary, comparisons: Sequence[SummaryRow]) -> str:
    """Returns a sentence that has each decided comparison once, or their number.

    Two arms have all axis values in it, the undecided ones too. Of more arms, an arm that is above
    all others at an axis value comes first. The other decided comparisons follow, grouped by a
    common arm and the same axis values.

    Args:
      summary: The summary of the study.
      comparisons: The differences of pairs of arms.
    """
    if len(summary.arms) < 2:
        return ""
    if len(summary.arms) == 2:
        return _two_arms(summary, comparisons)
    return _many_arms(summary, comparisons)


def _two_arms(summary: Summary, rows: Sequence[SummaryRow]) -> str:
    reference, arm = summary.arms
    values: dict[str | None, list[AxisValue]] = collections.defaultdict(list)
    for row in rows:
        values[row.verdict].append(row.axis_value)
    label: str | None = None
    decided, other = [], []
    for verdict in DECIDED:
        if own := values[verdict]:
            sizes = [abs(row.mean or 0.0) for row in rows if row.verdict == verdict]
            side = f"{verdict} {'it' if decided else reference}"
            decided.append(_clause(summary, side, own, sizes, label))
            label = ""
    for verdict, words in (("undecided", "undecided"), ("unmeasured", "not measured")):
        if own := values[verdict]:
            nowhere = len(own) == len(rows) and verdict == "unmeasured"
            place = anywhere(summary) if nowhere else at_values(summary, own, label)
            other.append(f"{words} {place}".strip())
            label = ""
    order = f"order is {joined(other)}." if other else ""
    if not decided:
        return f"The order of {reference} and {arm} is {joined(other)}."
    return f"{arm} is {joined(decided)}" + (f"; the {order}" if other else ".")


def _many_arms(summary: Summary, rows: Sequence[SummaryRow]) -> str:
    decided: Decided = {}
    for row in rows:
        if row.verdict in DECIDED:
            sides = (row.arm, row.reference or "")
            above, below = sides if row.verdict == "above" else sides[::-1]
            decided.setdefault((above, below), {})[row.axis_value] = abs(row.mean or 0.0)
    n, unmeasured = _size(decided.values()), sum(row.verdict == "unmeasured" for row in rows)
    pairs = {(row.arm, row.reference) for row in rows}
    with_baseline = f" with {summary.arms[0]}" if len(pairs) < len(summary.arms) else ""
    scope = f"{len(rows)} comparisons{with_baseline}"
    gaps = f" ({unmeasured} not measured)" if unmeasured else ""
    # Without it, a handful of decisions among hundreds of comparisons would read as results.
    chance = f"{(len(rows) - unmeasured) * (1 - summary.level):.2g}"
    if not n:
        return f"None of the {scope} is decided {anywhere(summary)}{gaps}."
    # In the order of the arms, so that the order of the axis values does not matter.
    order = {arm: i for i, arm in enumerate(summary.arms)}
    decided = dict(sorted(decided.items(), key=lambda item: [order[arm] for arm in item[0]]))
    groups = [*_leads(summary, decided), *_groups(decided)]
    clauses = [_group(summary, group) for group in groups[:MOST_CLAUSES]]
    if rest := sum(_size(group.values()) for group in groups[MOST_CLAUSES:]):
        clauses.append(f"{rest} more are in the table")
    decisions = f"{n} of {scope} {'is' if n == 1 else 'are'} decided{gaps}"
    return f"{decisions}, where about {chance} are expected by chance: {'; '.join(clauses)}."


def _size(cells: Iterable[dict[AxisValue, float]]) -> int:
    return sum(map(len, cells))


def _leads(summary: Summary, decided: Decided) -> list[Decided]:
    """Returns the comparisons of arms that are above all others, and removes them."""
    leads: dict[str, Decided] = {}
    for value in axis_order(summary):
        for arm in summary.arms:
            others = [other for other in summary.arms if other != arm]
            if all(value in decided.get((arm, other), {}) for other in others):
                for other in others:
                    own = leads.setdefault(arm, {}).setdefault((arm, other), {})
                    own[value] = decided[arm, other].pop(value)
    return list(leads.values())


def _groups(decided: Decided) -> list[Decided]:
    """Returns the comparisons in groups with a common arm and axis values, large groups first."""
    left = {pair: own for pair, own in decided.items() if own}
    groups = []
    while left:
        found: dict[tuple[int, str, frozenset[AxisValue]], list[tuple[str, str]]] = {}
        for pair, own in left.items():
            for common in (1, 0):
                found.setdefault((common, pair[common], frozenset(own)), []).append(pair)
        largest = max(found.values(), key=len)
        groups.append({pair: left.pop(pair) for pair in largest})
    return groups


def _group(summary: Summary, group: Decided) -> str:
    """Returns a clause on a group of comparisons at the same axis values."""
    above, below = (list(dict.fromkeys(pair[side] for pair in group)) for side in (0, 1))
    everyone = len(below) == len(summary.arms) - 1 > 1
    others = "all other arms" if everyone else joined(below, MOST_NAMES)
    verb = "is" if len(above) == 1 else "are"
    sizes = [size for own in group.values() for size in own.values()]
    subject = f"{joined(above, MOST_NAMES)} {verb} above {others}"
    return _clause(summary, subject, list(next(iter(group.values()))), sizes)


def _clause(
    summary: Summary,
    subject: str,
    values: Sequence[AxisValue],
    sizes: Sequence[float],
    label: str | None = None,
) -> str:
    """Returns "SUBJECT at batch size 2 to 8 (by 1.2 to 4.0 AP)"."""
    low, high = number(min(sizes)), number(max(sizes))
    size = low if low == high else f"{low} to {high}"
    place = at_values(summary, values, label)
    return " ".join(filter(None, [subject, place, f"(by {size} {metric_unit(summary)})"]))
