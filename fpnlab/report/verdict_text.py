"""Figures of the verdicts on claims."""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fpnlab.records.study_records import ClaimResult, Estimate, Outcome, RuleRecord
from fpnlab.report.figures import panel

if TYPE_CHECKING:
    import matplotlib.axes

COLORS = {"supported": "#00694f", "refuted": "#a33e00", "undecided": "#5b6470"}
"""Colors of decisions, as on the page."""
CLAIMED = "#cfe8dd"
"""Color of the claimed range."""
BAND, LINE = 0.52, 0.17
"""Height of the band of an estimate, and of a line of text above it, in inches."""


def plot_verdict(verdict: ClaimResult, file: io.BytesIO) -> None:
    """Draws the estimates of each rule of a claim with confidence intervals and claimed ranges.

    The interval of a supported rule lies within the claimed range, which is shaded.
    """
    lines = [(outcome, e) for outcome in verdict.outcomes for e in outcome.estimates]
    words = [_words(*line) for line in lines]
    levels = sorted({estimate.level for _, estimate in lines}, reverse=True)
    height = sum(BAND + LINE * len(rows) for rows in words)
    with panel(file, "", height=height + 0.65) as axes:
        axes.set(xlim=_limits(lines), ylim=(height, 0), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color="#303030", linewidth=1.2, zorder=1.5)
        shown = " and ".join(f"{100 * level:g}" for level in levels)
        axes.set_xlabel(f"points, with {shown} % confidence intervals over seeds")
        y = 0.0
        for (outcome, estimate), rows in zip(lines, words):
            y += LINE * len(rows)
            _write(axes, y, rows, outcome)
            _draw(axes, y + 0.2, outcome, estimate)
            y += BAND


def _words(outcome: Outcome, estimate: Estimate) -> list[str]:
    """Returns the lines of text above a band; the first band of a rule has its decision."""
    words = textwrap.wrap(f"{outcome.topic}, {estimate.place}", 74)
    if estimate is outcome.estimates[0]:
        return [f"{outcome.claim.capitalize()}: {outcome.decision}", *words]
    return words


def _write(axes: "matplotlib.axes.Axes", y: float, rows: Sequence[str], outcome: Outcome) -> None:
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


def _draw(axes: "matplotlib.axes.Axes", y: float, outcome: Outcome, estimate: Estimate) -> None:
    start, end = _claimed(outcome.rule, *axes.get_xlim())
    axes.barh(y, end - start, left=start, height=0.36, color=CLAIMED, zorder=1)
    color = COLORS[outcome.decision]
    seeds = list(estimate.by_seed.values())
    axes.scatter(
        seeds, [y + 0.1] * len(seeds), s=14, alpha=0.55, linewidths=0, color=color, zorder=3
    )
    mean, low, high = estimate.mean, estimate.low, estimate.high
    if mean is not None:
        axes.plot(mean, y - 0.04, "o", color=color, zorder=3)
    if low is not None and high is not None:
        ends = [low, high]
        axes.plot(ends, [y - 0.04] * 2, lw=2, marker="|", ms=9, color=color, zorder=3)


def _claimed(rule: RuleRecord, low: float, high: float) -> tuple[float, float]:
    """Returns the claimed range of a rule, clipped to the limits of the figure."""
    if rule.margin is not None:
        return -rule.margin, rule.margin
    threshold = rule.threshold or 0.0
    return (threshold, high) if rule.side == "above" else (low, threshold)


def _limits(lines: Sequence[tuple[Outcome, Estimate]]) -> tuple[float, float]:
    """Returns limits that hold zero, seeds, thresholds, margins and all but long intervals."""
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
