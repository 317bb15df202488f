"""Findings of a study: sentences about the comparisons in its summary.

A comparison is decided if its 95 % confidence interval lies on one side of zero, and undecided
otherwise, never "equal". With fewer than two seeds there is no interval and no verdict. If trials
diverged or failed, the side toward which leaving them out biases the mean is undecided, too.
"""

import dataclasses
import math
from collections.abc import Iterator

from fpnlab.analysis.wording import cell_name, count, metric_unit, number
from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow


def write_findings(summary: Summary) -> list[str]:
    """Returns the findings on the study's metric as sentences, the most general ones first.

    In order: the change of the difference of the arms from the largest to the smallest axis value;
    the difference of the arms at each axis value; the change of each arm; precise and batch
    statistics compared with running ones; bootstrap intervals; the best cell; tuned values at the
    end of the tried range; excluded trials.
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
    """Returns whether the interval of a mean exceeds 0 to 100, the range of all metrics."""
    return row.low is not None and row.high is not None and (row.low < 0 or row.high > 100)


def _main(summary: Summary, part: str, evaluation: str) -> list[SummaryRow]:
    """Returns the rows of a part on the study's metric with one source of statistics.

    Rows without a value are left out while trials of the study are missing.
    """
    wanted = (summary.metric, evaluation)
    rows = [row for row in getattr(summary, part) if (row.metric, row.evaluation) == wanted]
    return [row for row in rows if row.n or not summary.counts["missing"]]


def _interval(row: SummaryRow) -> str:
    interval = f"{number(row.low)} to {number(row.high)}, {count(row.n, 'seed')}"
    if found := row.bootstrap:
        return f"{interval}; bootstrap interval {number(found.low)} to {number(found.high)}"
    return interval


def _turned(row: SummaryRow) -> SummaryRow:
    """Returns the row of the opposite difference."""
    turned = dataclasses.replace(row, low=_opposite(row.high), high=_opposite(row.low))
    if found := row.bootstrap:
        other = dataclasses.replace(found, low=-found.high, high=-found.low)
        turned = dataclasses.replace(turned, bootstrap=other)
    return turned


def _opposite(value: float | None) -> float | None:
    return None if value is None else -value


def _side(row: SummaryRow) -> str:
    """Returns the side of zero of the interval, without regard to failed trials."""
    if row.low is None:
        return "unmeasured"
    if row.low > 0:
        return "above"
    return "below" if row.high is not None and row.high < 0 else "undecided"


def _differing(row: SummaryRow) -> str:
    """Returns a sentence if bootstrap and t interval differ in whether they include zero."""
    found = row.bootstrap
    if found is None or found.verdict == _side(row):
        return ""
    verb = "includes" if found.verdict == "undecided" else "excludes"
    return f" The bootstrap interval {verb} zero."


def _compare(row: SummaryRow, subject: str, above: str, below: str, topic: str) -> str:
    """Returns a sentence on a comparison, and a second one if trials have failed.

    Args:
      row: The comparison.
      subject: Beginning of the sentence if the comparison is decided.
      above: Its end for the verdict ``above``; ``{}`` is replaced by the size.
      below: Its end for the verdict ``below``.
      topic: Beginning of the sentence if the comparison is not decided.
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
            return f"{subject} {claim} (95 % confidence interval {sizes}).{_differing(row)}"
        case "undecided" if _side(row) == "undecided":
            interval = f"the 95 % confidence interval ({_interval(row)}) includes zero"
            spread = f"{number(row.mean)}, and {interval}"
            return f"{topic} is undecided: {spread}.{_differing(row)}"
        case "undecided":
            spread = f"{number(row.mean)} (95 % confidence interval {_interval(row)})"
            return f"{topic} is undecided: {spread} without failed trials.{_differing(row)}"
        case _ if row.n == 1:
            mean = number(row.mean)
            return f"{topic} is {mean} with 1 seed, too few for a confidence interval."
        case _:
            return f"{topic} is not measured: no seed has a value on both sides."


def _way(summary: Summary, row: SummaryRow) -> str:
    return f"From {summary.axis_label} {row.start} to {row.end}"


def _shift(summary: Summary, row: SummaryRow) -> str:
    way, unit = _way(summary, row), metric_unit(summary)
    difference = f"the difference {row.arm} minus {row.reference} in {summary.metric}"
    above, below = (f"{verb} by {{}} {unit}" for verb in ("increases", "decreases"))
    topic = f"{way}, the change of {difference}"
    return _compare(row, f"{way}, {difference}", above, below, topic)


def _difference(summary: Summary, row: SummaryRow) -> str:
    metric, arm, reference = summary.metric, row.arm, row.reference
    place = f"At {summary.axis_label} {row.axis_value}"
    topic = f"{place}, the difference {arm} minus {reference} in {metric}"
    above, below = (
        f"is {{}} {metric_unit(summary)} {side} {reference}" for side in ("above", "below")
    )
    return _compare(row, f"{place}, {arm}", above, below, topic)


def _change(summary: Summary, row: SummaryRow) -> str:
    metric, way = summary.metric, _way(summary, row)
    topic = f"{way}, the change of {row.arm} in {metric}"
    above, below = (f"{verb} {{}} {metric_unit(summary)}" for verb in ("gains", "loses"))
    return _compare(row, f"{way}, {row.arm}", above, below, topic)


def _recovery(summary: Summary) -> Iterator[str]:
    """Yields the gains of precise and batch statistics at the smallest axis value."""
    label = summary.axis_label
    lost = {row.arm: row for row in _main(summary, "changes", "running")}
    names = {
        "precise": "precise statistics (re-estimated after training)",
        "batch": "statistics of the test batch",
    }
    for evaluation, name in names.items():
        for row in _main(summary, "gains", evaluation):
            change = lost.get(row.arm)
            if change is None or row.axis_value != change.end:
                continue
            place = f"At {label} {row.axis_value}"
            topic = f"{place}, the difference of {row.arm} between {name} and running statistics"
            base = f"with {name} than with running statistics"
            more, less = (
                f"has {{}} {metric_unit(summary)} {word} {base}" for word in ("more", "less")
            )
            sentence = _compare(row, f"{place}, {row.arm}", more, less, topic)
            if row.verdict == "above" and change.verdict == "below":
                unit, start = metric_unit(summary), change.start
                share = round(-100 * (row.mean or 0.0) / (change.mean or math.inf))
                loss = f"{number(_opposite(change.mean))} {unit} lost from {label} {start}"
                sentence = f"{sentence} This recovers {share} % of the {loss}."
            yield sentence


def _bootstrap(summary: Summary) -> Iterator[str]:
    """Yields a sentence on the bootstrap intervals, and one on trials without usable items."""
    comparisons = (summary.change_differences, summary.differences, summary.changes, summary.gains)
    rows = [row.bootstrap for part in comparisons for row in part]
    items = [found.items for found in [*rows, *summary.claim_bootstrap] if found is not None]
    if items:
        yield (
            f"Bootstrap intervals resample seeds and {count(items[0], 'test item')}; no verdict "
            "depends on them. With few seeds they are too narrow: with three, 95 % intervals cover "
            "the true value in 75 to 88 % of cases."
        )
    left_out = summary.items_left_out
    if left_out:
        named = [f"{trial} ({reason})" for trial, reason in list(left_out.items())[:3]]
        more = [f"{len(left_out) - 3} more"] if len(left_out) > 3 else []
        yield (
            f"Comparisons with these trials have no bootstrap interval: {', '.join(named + more)}. "
            "To evaluate a trial again, remove its result.json and run the same command again."
        )


def _at_the_end(summary: Summary) -> Iterator[str]:
    """Yields sentences on tuned values at the end of the tried range."""
    ends: dict[str, list[str]] = {"smallest": [], "largest": []}
    for row in summary.tuning:
        values = [tried.value for tried in row.tried]
        for end, value in (("smallest", min(values)), ("largest", max(values))):
            if row.chosen == value and len(values) > 1:
                ends[end].append(cell_name(summary, row.arm, row.axis_value))
    for end, places in ends.items():
        if places:
            yield (
                f"Tuning chose the {end} {summary.tuned} it tried, so that a better value may lie "
                f"outside the tried range: {'; '.join(places)}."
            )


def _best(summary: Summary) -> Iterator[str]:
    if (row := summary.best) is not None:
        place = cell_name(summary, row.arm, row.axis_value)
        spread = f"95 % confidence interval {_interval(row)}" if row.n > 1 else "1 seed"
        if beyond_points(row):
            spread += "; it exceeds 0 to 100, the range of the metric"
        yield f"The best mean is {number(row.mean)} {metric_unit(summary)}: {place} ({spread})."


def _left_out(summary: Summary) -> Iterator[str]:
    """Yields a sentence on the trials that are excluded from means."""
    cells: dict[tuple[str, AxisValue, str], int] = {}
    for trial in summary.left_out:
        cell = (trial.arm, trial.axis_value, trial.status)
        cells[cell] = cells.get(cell, 0) + 1
    if cells:
        names = "; ".join(
            f"{cell_name(summary, arm, value)}, {count(n, 'seed')} {status}"
            for (arm, value, status), n in cells.items()
        )
        yield f"Excluded from all means, which may bias them in favor of the arm: {names}."
