"""The figure of the verdict on a claim."""

import pathlib
from typing import Any

from fpnlab.report.figures import panel

COLOURS = {"supported": "#00694f", "refuted": "#a33e00", "undecided": "#5b6470"}
"""Of decisions, as on the page."""
CLAIMED = "#cfe8dd"
Row = dict[str, Any]


def plot_verdict(verdict: Row, path: pathlib.Path) -> None:
    """Draws what each rule of a claim is about: a dot with its interval, over what is claimed.

    The shaded part of a line is where its interval must lie for the rule to hold.
    """
    lines = [(outcome, e) for outcome in verdict["outcomes"] for e in outcome["estimates"]]
    low, high = _limits(lines)
    with panel(path, "", height=0.9 + 0.72 * len(lines)) as axes:
        axes.set(xlim=(low, high), ylim=(len(lines) - 0.45, -0.75), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color="#303030", linewidth=1.2, zorder=1.5)
        axes.set_xlabel(f"points; {100 * lines[0][1]['level']:g} % intervals over seeds")
        for y, (outcome, estimate) in enumerate(lines):
            _draw_line(axes, y, outcome, estimate)


def _draw_line(axes, y, outcome, estimate):
    low, high = axes.get_xlim()
    start, end = _claimed(outcome["rule"], low, high)
    axes.barh(y, end - start, left=start, height=0.5, color=CLAIMED, zorder=1)
    colour = COLOURS[outcome["decision"]]
    words = f"{outcome['topic']}, {estimate['place']}: {outcome['decision']}"
    axes.text(low, y - 0.33, words, fontsize=9, color=colour, va="bottom")
    axes.scatter(
        list(estimate["by_seed"].values()),
        [y + 0.15] * len(estimate["by_seed"]),
        s=14,
        color=colour,
        alpha=0.55,
        linewidths=0,
        zorder=3,
    )
    if estimate["mean"] is not None:
        bounds = (estimate["mean"] if estimate[k] is None else estimate[k] for k in ("low", "high"))
        axes.plot(list(bounds), [y, y], color=colour, linewidth=2, marker="|", zorder=3)
        axes.plot(estimate["mean"], y, "o", color=colour, zorder=4)


def _claimed(rule, low, high):
    """From where to where a rule claims its number to lie, as far as the figure reaches."""
    if rule["kind"] == "equivalence":
        return -rule["margin"], rule["margin"]
    return (rule["threshold"], high) if rule["side"] == "above" else (low, rule["threshold"])


def _limits(lines):
    """The ends of x: zero, all seeds and borders, and intervals unless they are far longer."""
    near = [0.0]
    for outcome, estimate in lines:
        rule = outcome["rule"]
        border = rule.get("margin") or rule["threshold"]
        near += [border, *([-border] if "margin" in rule else []), *estimate["by_seed"].values()]
    room = max(max(near) - min(near), 1.0)
    ends = [e[k] for _, e in lines for k in ("low", "high") if e[k] is not None]
    low = max(min(near + ends), min(near) - room)
    high = min(max(near + ends), max(near) + room)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)
