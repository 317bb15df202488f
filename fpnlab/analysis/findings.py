"""Sentences that say what a study's summary allows one to say, and no more.

The rule of every comparison: it is decided when its 95 % interval lies on one side of zero, and
undecided otherwise; never "equal". With fewer than two seeds there is no interval and no verdict.
Where trials diverged or failed, a side that leaving them out favors is undecided too.
"""

import dataclasses
import math
from collections.abc import Iterator

from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow


def write_findings(summary: Summary) -> list[str]:
    """Returns the findings on the study's metric in plain words, the most general first.

    In order: how the difference of the arms changes from the largest to the smallest axis value;
    the arms at each value; each arm's own change; what other statistics than the running ones
    give; the bootstrap intervals; the best cell; values that tuning chose at
    the end of what it tried; the trials left out.
    """
    if summary.counts["done"] == 0:
        return ["No trial is done yet."]
    return [
        *(_shift(summary, row) for row in _main(summary, "change_differences", "running")),
        *(_difference(summary, row) for row in _main(summary, "differences", "running")),
        *(_change(summary, row) for row in _main(summary, "changes", "running")),
        *_recovery(summary),
        *_bootstrap(summary),
        *_best(summary),
        *_at_the_end(summary),
        *_left_out(summary),
    ]


def beyond_points(row: SummaryRow) -> bool:
    """Returns whether the interval of a mean leaves 0 to 100, where all metrics lie."""
    return row.low is not None and row.high is not None and (row.low < 0 or row.high > 100)


def number(value: float | None) -> str:
    """Returns ``value`` to one decimal; what rounds to zero has no sign."""
    if value is None:
        return "-"
    return f"{value:.1f}".replace("-0.0", "0.0")


def count(n: int, noun: str) -> str:
    """Returns ``n`` with the noun in its singular or plural: "1 seed", "3 seeds"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _unit(summary: Summary) -> str:
    """Returns the unit of the study's metric: "AP", or "points of accuracy"."""
    metric = summary.metric
    return metric if metric.startswith("AP") else f"points of {metric}"


def _main(summary: Summary, part: str, evaluation: str) -> list[SummaryRow]:
    """The rows of a part that are about the study's metric under one evaluation.

    What an unfinished study has not measured yet is no finding.
    """
    wanted = (summary.metric, evaluation)
    rows = [row for row in getattr(summary, part) if (row.metric, row.evaluation) == wanted]
    return [row for row in rows if row.n or not summary.counts["missing"]]


def _interval(row: SummaryRow) -> str:
    interval = f"{number(row.low)} to {number(row.high)}, {count(row.n, 'seed')}"
    if found := row.bootstrap:
        return f"{interval}; bootstrap {number(found.low)} to {number(found.high)}"
    return interval


def _turned(row: SummaryRow) -> SummaryRow:
    """Returns the row of the opposite difference, whose interval is that of a loss."""
    turned = dataclasses.replace(row, low=_opposite(row.high), high=_opposite(row.low))
    if found := row.bootstrap:
        other = dataclasses.replace(found, low=-found.high, high=-found.low)
        turned = dataclasses.replace(turned, bootstrap=other)
    return turned


def _opposite(value: float | None) -> float | None:
    return None if value is None else -value


def _side(row: SummaryRow) -> str:
    """Returns the side of zero of the interval, even where failed trials leave it undecided."""
    if row.low is None:
        return "unmeasured"
    if row.low > 0:
        return "above"
    return "below" if row.high is not None and row.high < 0 else "undecided"


def _differing(row: SummaryRow) -> str:
    """Returns a sentence if the bootstrap interval lies otherwise about zero than Student's."""
    found = row.bootstrap
    if found is None or found.verdict == _side(row):
        return ""
    return f" The bootstrap {'includes' if found.verdict == 'undecided' else 'leaves out'} zero."


def _compare(row: SummaryRow, subject: str, above: str, below: str, topic: str) -> str:
    """A sentence after the verdict; ``{}`` in ``above`` and ``below`` takes the size.

    What failed trials keep from being decided is a second one.
    """
    sentence = _decided(row, subject, above, below, topic)
    return " ".join(filter(None, [sentence, row.failures]))


def _decided(row: SummaryRow, subject: str, above: str, below: str, topic: str) -> str:
    match row.verdict:
        case "above" | "below":
            claim = (above if row.verdict == "above" else below).format(
                number(abs(row.mean or 0.0))
            )
            sizes = _interval(row if row.verdict == "above" else _turned(row))
            return f"{subject} {claim} (95 % interval {sizes}).{_differing(row)}"
        case "undecided" if _side(row) == "undecided":
            spread = f"{number(row.mean)}, and the interval ({_interval(row)}) includes zero"
            return f"{topic} is undecided: {spread}.{_differing(row)}"
        case "undecided":
            spread = f"{number(row.mean)} (95 % interval {_interval(row)}) without failed trials"
            return f"{topic} is undecided: {spread}.{_differing(row)}"
        case _ if row.n == 1:
            mean = number(row.mean)
            return f"{topic} rests on 1 seed, which gives no interval: {mean}."
        case _:
            return f"{topic} is not measured: no seed has finished on both sides."


def _way(summary: Summary, row: SummaryRow) -> str:
    return f"From {summary.axis_label} {row.start} to {row.end}"


def _shift(summary: Summary, row: SummaryRow) -> str:
    way, arm, reference = _way(summary, row), row.arm, row.reference
    topic = f"{way}, the shift from {reference} toward {arm} in {summary.metric}"
    to_arm, back = (f"shifts by {{}} {_unit(summary)} toward {a}" for a in (arm, reference))
    return _compare(row, f"{way}, the balance", to_arm, back, topic)


def _difference(summary: Summary, row: SummaryRow) -> str:
    metric, arm, reference = summary.metric, row.arm, row.reference
    place = f"At {summary.axis_label} {row.axis_value}"
    topic = f"{place}, the difference {arm} minus {reference} in {metric}"
    above, below = (f"is {{}} {_unit(summary)} {side} {reference}" for side in ("above", "below"))
    return _compare(row, f"{place}, {arm}", above, below, topic)


def _change(summary: Summary, row: SummaryRow) -> str:
    metric, way = summary.metric, _way(summary, row)
    topic = f"{way}, the change of {row.arm} in {metric}"
    above, below = (f"{verb} {{}} {_unit(summary)}" for verb in ("gains", "loses"))
    return _compare(row, f"{way}, {row.arm}", above, below, topic)


def _recovery(summary: Summary) -> Iterator[str]:
    """Yields the changes by precise and batch statistics at the smallest axis value."""
    label = summary.axis_label
    lost = {row.arm: row for row in _main(summary, "changes", "running")}
    names = {
        "precise": "statistics re-estimated after training",
        "batch": "the statistics of the test batch",
    }
    for evaluation, name in names.items():
        for row in _main(summary, "gains", evaluation):
            change = lost.get(row.arm)
            if change is None or row.axis_value != change.end:
                continue
            place = f"At {label} {row.axis_value}"
            topic = f"{place}, what {name} change for {row.arm}"
            base = f"{_unit(summary)} than the running ones"
            more, less = f"{{}} more {base}", f"{{}} less {base}"
            sentence = _compare(row, f"{place}, {name} give {row.arm}", more, less, topic)
            if row.verdict == "above" and change.verdict == "below":
                unit, start = _unit(summary), change.start
                share = round(-100 * (row.mean or 0.0) / (change.mean or math.inf))
                loss = f"{number(_opposite(change.mean))} {unit} lost since {label} {start}"
                sentence = f"{sentence} That is {share} % of the {loss}."
            yield sentence


def _bootstrap(summary: Summary) -> Iterator[str]:
    """Yields a sentence on the bootstrap intervals, and on the trials that none is about."""
    comparisons = (summary.change_differences, summary.differences, summary.changes, summary.gains)
    rows = [row.bootstrap for part in comparisons for row in part]
    items = [found.items for found in [*rows, *summary.claim_bootstrap] if found is not None]
    if items:
        yield (
            f"Bootstrap intervals are over seeds and {count(items[0], 'test item')} and decide "
            "nothing. They do not stand alone, because with few seeds they claim too much: with "
            "three, 95 % intervals cover 75 to 88 %."
        )
    left_out = summary.items_left_out
    if left_out:
        named = [f"{trial} ({reason})" for trial, reason in list(left_out.items())[:3]]
        more = [f"{len(left_out) - 3} more"] if len(left_out) > 3 else []
        yield (
            f"No bootstrap interval where these trials count: {', '.join(named + more)}. A trial "
            "is measured again if its result.json is removed and the same command run again."
        )


def _place(summary: Summary, arm: str, axis_value: AxisValue) -> str:
    """Returns arm and axis value in words; the arm alone where the axis does not apply."""
    return arm if axis_value is None else f"{arm} at {summary.axis_label} {axis_value}"


def _at_the_end(summary: Summary) -> Iterator[str]:
    """Tuned values beyond which a better one may be."""
    ends: dict[str, list[str]] = {"smallest": [], "largest": []}
    for row in summary.tuning:
        values = [tried.value for tried in row.tried]
        for end, value in (("smallest", min(values)), ("largest", max(values))):
            if row.chosen == value and len(values) > 1:
                ends[end].append(_place(summary, row.arm, row.axis_value))
    for end, places in ends.items():
        if places:
            yield (
                f"Tuning chose the {end} {summary.tuned} that it tried, so that a better one "
                f"may lie beyond: {'; '.join(places)}."
            )


def _best(summary: Summary) -> Iterator[str]:
    if (row := summary.best) is not None:
        place = _place(summary, row.arm, row.axis_value)
        spread = _interval(row) if row.n > 1 else "1 seed"
        if beyond_points(row):
            spread += "; no mean lies beyond 0 to 100, which the interval does not know"
        yield f"The best mean is {number(row.mean)} {_unit(summary)}: {place} ({spread})."


def _left_out(summary: Summary) -> Iterator[str]:
    """The cells whose means stand for fewer seeds than were run."""
    cells: dict[tuple[str, AxisValue, str], int] = {}
    for trial in summary.left_out:
        cell = (trial.arm, trial.axis_value, trial.status)
        cells[cell] = cells.get(cell, 0) + 1
    if cells:
        names = "; ".join(
            f"{_place(summary, arm, value)}, {count(n, 'seed')} {status}"
            for (arm, value, status), n in cells.items()
        )
        yield f"Left out of every mean, which may flatter the arm: {names}."
