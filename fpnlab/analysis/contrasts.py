"""Comparisons as weighted sums of cells, with their resolution and the bias of failed trials.

**Resolution.** Metrics are discrete: an accuracy over ``n`` test images is a multiple of
``100 / n`` points, and an AP is reported to 0.1. Rounding to steps of ``h`` has the standard
deviation ``h / sqrt(12)``, so that a sum of cells with weights ``w`` has at least the standard
deviation ``h sqrt(sum w^2 / 12)``, even if the few observed values are equal. With it as the least
deviation, simulated 95 % intervals of rounded normal values cover at least 94.8 % at 2 to 10 seeds,
whatever the spread; without it, 21 to 51 % where the spread is a tenth of a step.

**Failures.** A trial that diverged or failed has no value, and leaving it out favors its arm. If
there is no true difference but the worst runs of one arm diverge, the paired t test of the rest
calls the other arm worse in 3 to 15 % of studies where 2.5 % are nominal
(``benchmarks/false_verdicts.py``), and in at most 2.4 % with the following rule. A missing value
counts as worse than any number. So the mean of the rest is biased upward if cells of positive
weight have lost trials, and then "above" is never decided; it is biased downward if cells of
negative weight have, and then "below" is never decided. A decision against the bias would only be
clearer with the missing values. A trial on both sides, under two kinds of statistics, favors
neither.
"""

import collections
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from fpnlab.config.claims import Cell, Rule, pairs
from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import SummaryRow

Contrast = Mapping[Cell, float]
"""A comparison: the weight of each of its cells."""
Trial = tuple[str, AxisValue, int]
"""Arm, axis value (None if the axis does not apply to the arm) and seed."""
Failed = Mapping[tuple[str, AxisValue], Collection[Trial]]
"""Trials without a value, by the arm and axis value at which they count."""

COUNTED = ("accuracy", "top5")
"""Metrics that are proportions of the test images."""
MANY_IMAGES = 10_000
"""Assumed number of test images where it is unknown, as in old tables without the column."""
STEP = 0.1
"""Resolution of other metrics in points."""


class Failures(NamedTuple):
    """The failed trials of a comparison, by the sign of their weight."""

    positive: list[Trial]
    """Positive weight: leaving them out biases the mean upward."""
    negative: list[Trial]
    """Negative weight: leaving them out biases the mean downward."""


def resolution(metric: str | None, test_images: int | None) -> float:
    """Returns the resolution of a metric in points.

    Args:
        metric: The metric.
        test_images: The number of images on which it is measured; None if unknown.
    """
    if metric in COUNTED:
        return 100.0 / (test_images or MANY_IMAGES)
    return STEP


def least_deviation(contrast: Contrast, step: float) -> float:
    """Returns the standard deviation of a comparison due to rounding to ``step``."""
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
    """Returns a sentence on the decisions that failed trials rule out; empty without any.

    Args:
        found: The failed trials.
        axis: Name of the axis in words, such as "batch size".
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
            effect = "can bias the mean either way, so that neither above nor below can be decided"
        case True, False:
            effect = "biases the mean upward, so that only below can be decided"
        case _:
            effect = "biases the mean downward, so that only above can be decided"
    return f"Diverged or failed: {', '.join(names)}. Leaving them out {effect}."


def row_contrast(part: str, row: SummaryRow) -> Contrast:
    """Returns the contrast of a row in the field ``part`` of a summary."""
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
    """Returns the contrast of each estimate of a rule, in order."""
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
