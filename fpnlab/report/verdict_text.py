"""The figure of the verdict on a claim."""

import pathlib
import textwrap

from fpnlab.records.study_records import ClaimResult
from fpnlab.report.figures import panel

COLORS = {"supported": "#00694f", "refuted": "#a33e00", "undecided": "#5b6470"}
"""Of decisions, as on the page."""
CLAIMED = "#cfe8dd"
BAND, LINE = 0.52, 0.17
"""Inches of a rule's band, and of a line of text above it."""


def plot_verdict(verdict: ClaimResult, path: pathlib.Path) -> None:
    """Draws what each rule of a claim is about: a dot with its interval, over what is claimed.

    The interval of a rule that holds lies in the shaded part of its line.
    """
    lines = [(outcome, e) for outcome in verdict.outcomes for e in outcome.estimates]
    words = [_words(*line) for line in lines]
    levels = sorted({estimate.level for _, estimate in lines}, reverse=True)
    height = sum(BAND + LINE * len(rows) for rows in words)
    with panel(path, "", height=height + 0.65) as axes:
        axes.set(xlim=_limits(lines), ylim=(height, 0), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color="#303030", linewidth=1.2, zorder=1.5)
        shown = " and ".join(f"{100 * level:g}" for level in levels)
        axes.set_xlabel(f"points, with {shown} % intervals over seeds")
        y = 0.0
        for (outcome, estimate), rows in zip(lines, words):
            y += LINE * len(rows)
            _write(axes, y, rows, outcome)
            _draw(axes, y + 0.2, outcome, estimate)
            y += BAND


def _words(outcome, estimate):
    """The lines of text above a band; the first of a rule's begins with its decision."""
    words = textwrap.wrap(f"{outcome.topic}, {estimate.place}", 74)
    if estimate is outcome.estimates[0]:
        return [f"{outcome.claim.capitalize()}: {outcome.decision}", *words]
    return words


def _write(axes, y, rows, outcome):
    for i, row in enumerate(reversed(rows)):
        heads = row.endswith(f": {outcome.decision}")
        text = axes.text(
            axes.get_xlim()[0],
            y - LINE * i,
            row,
            fontsize=9.5,
            color=COLORS[outcome.decision] if heads else "#1d2129",
            weight="bold" if heads else "normal",
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
        text.set_in_layout(False)


def _draw(axes, y, outcome, estimate):
    start, end = _claimed(outcome.rule, *axes.get_xlim())
    axes.barh(y, end - start, left=start, height=0.36, color=CLAIMED, zorder=1)
    look = {"color": COLORS[outcome.decision], "zorder": 3}
    seeds = list(estimate.by_seed.values())
    axes.scatter(seeds, [y + 0.1] * len(seeds), s=14, alpha=0.55, linewidths=0, **look)
    mean, low, high = estimate.mean, estimate.low, estimate.high
    if mean is not None:
        axes.plot(mean, y - 0.04, "o", **look)
    if low is not None:
        axes.plot([low, high], [y - 0.04] * 2, linewidth=2, marker="|", markersize=9, **look)


def _claimed(rule, low, high):
    """From where to where a rule claims its number to lie, as far as the figure reaches."""
    if rule.kind == "equivalence":
        return -rule.margin, rule.margin
    return (rule.threshold, high) if rule.side == "above" else (low, rule.threshold)


def _limits(lines):
    """The ends of x: zero, all seeds and borders, and intervals unless they are far longer."""
    near = [0.0]
    for outcome, estimate in lines:
        rule = outcome.rule
        border = rule.margin or rule.threshold or 0.0
        near += [border, *([-border] if rule.margin else []), *estimate.by_seed.values()]
    room = max(max(near) - min(near), 1.0)
    ends = [end for _, e in lines for end in (e.low, e.high) if end is not None]
    low = max(min(near + ends), min(near) - room)
    high = min(max(near + ends), max(near) + room)
    margin = 0.08 * max(high - low, 1.0)
    return low - margin, high + margin
