"""Comparisons as weighted sums of cells: how finely they are measured, and whom failures favor.

**Resolution.** Metrics have steps: an accuracy over ``n`` test images is a multiple of ``100 / n``
points, and an AP is given to 0.1. Rounding to steps of ``h`` has the standard deviation
``h / sqrt(12)``, so that a sum of cells with weights ``w`` has at least
``h sqrt(sum w^2 / 12)``, however equal the few values are that were seen. With it as the least
deviation, simulated 95 % intervals of rounded normal values cover at least 94.8 % at 2 to 10 seeds,
whatever the spread; without it, 21 to 51 % where the spread is a tenth of a step.

**Failures.** A trial that diverged or failed has no value, and leaving it out favors its arm: with
no true difference but one arm's worst runs diverging, the paired t test of the rest calls the other
one worse in 3 to 15 % of studies where 2.5 are nominal (``benchmarks/false_verdicts.py``), and in
at most 2.4 % by the rule that follows. A missing value counts as worse than any number. So the mean
of the rest is too high where cells of positive weight have lost trials, and then nothing above is
decided; it is too low where cells of negative weight have, and then nothing below is. What is
decided although the failures favor the other side would be so all the more with them. A trial that
is on both sides, under two kinds of statistics, favors neither.
"""

import collections
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fpnlab.config.claims import Cell, Rule, pairs
from fpnlab.records.study_records import SummaryRow

Contrast = Mapping[Cell, float]
"""A comparison: the weight of each of its cells."""
Trial = tuple[str, Any, int]
"""Arm, axis value (none where the axis does not apply to the arm) and seed."""
Failed = Mapping[tuple[str, Any], Collection[Trial]]
"""The trials without a value by the arm and the axis value that they count at."""

COUNTED = ("accuracy", "top5")
"""Metrics that are shares of the test images."""
MANY_IMAGES = 10_000
"""Their number where it is unknown, as in tables from before they had a column for it."""
STEP = 0.1
"""Points in which other metrics are given."""


class Failures(NamedTuple):
    """The failed trials of a comparison, by the side of it that they would have been on."""

    positive: list[Trial]
    """With positive weight: without them the mean is too high."""
    negative: list[Trial]
    """With negative weight: without them it is too low."""


def resolution(metric: str | None, test_images: int | None) -> float:
    """Returns the step of a metric in points.

    Args:
        metric: The metric.
        test_images: The number of images that it is measured on; none if that is not known.
    """
    if metric in COUNTED:
        return 100.0 / (test_images or MANY_IMAGES)
    return STEP


def least_deviation(contrast: Contrast, step: float) -> float:
    """Returns the standard deviation that rounding to ``step`` gives a comparison."""
    return step * math.sqrt(sum(weight**2 for weight in contrast.values()) / 12)


def failures(contrast: Contrast, failed: Failed) -> Failures:
    """Returns the failed trials of a comparison, by the sign of their weight."""
    weights: dict[Trial, float] = collections.defaultdict(float)
    for cell, weight in contrast.items():
        for trial in failed.get((cell.arm, cell.axis_value), ()):
            weights[trial] += weight
    return Failures(
        [trial for trial, weight in weights.items() if weight > 1e-9],
        [trial for trial, weight in weights.items() if weight < -1e-9],
    )


def failure_note(found: Failures, axis: str) -> str:
    """Returns a sentence on what failed trials keep from being decided; empty without any.

    Args:
        found: The failed trials.
        axis: What the axis is called, such as "batch size".
    """
    places = collections.Counter((arm, value) for arm, value, _ in found.positive + found.negative)
    if not places:
        return ""
    names = [
        f"{arm if value is None else f'{arm} at {axis} {value}'} ({n} seed{'s' * (n > 1)})"
        for (arm, value), n in places.items()
    ]
    match bool(found.positive), bool(found.negative):
        case True, True:
            effect = "favors both sides, and neither above nor below can be decided"
        case True, False:
            effect = "makes the mean too high, and only below can be decided"
        case _:
            effect = "makes the mean too low, and only above can be decided"
    return f"Diverged or failed: {', '.join(names)}. That {effect}."


def row_contrast(part: str, row: SummaryRow) -> Contrast:
    """Returns the contrast of a row of a summary's ``part``, by the cells that the row names."""
    own = Cell(row.metric, row.evaluation, row.axis_value, row.arm)
    reference = row.reference or row.arm
    match part:
        case "differences":
            return {own: 1.0, replace(own, arm=reference): -1.0}
        case "gains":
            return {own: 1.0, replace(own, evaluation="running"): -1.0}
    change = {replace(own, axis_value=row.end): 1.0, replace(own, axis_value=row.start): -1.0}
    if part == "changes":
        return change
    other = {replace(cell, arm=reference): -weight for cell, weight in change.items()}
    return change | other


def rule_contrasts(rule: Rule) -> list[Contrast]:
    """Returns the contrast of each number of a rule, in the order of its estimates."""
    each: list[Contrast] = [{arm: 1.0, baseline: -1.0} for baseline, arm in pairs(rule)]
    match rule.kind:
        case "equivalence":
            return each
        case "difference":
            weights = [1 / len(each)] * len(each)
        case _:
            weights = [-1.0, 1.0]
    total: dict[Cell, float] = collections.defaultdict(float)
    for weight, contrast in zip(weights, each):
        for cell, sign in contrast.items():
            total[cell] += weight * sign
    return [total]
