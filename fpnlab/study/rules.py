"""The rules of a claim: what must come out of a study for the claim to hold, said before the run.

A claim is one or more rules. A rule names one number (an estimand), the cells of the study that it
needs, and what the claim says of the number; nothing of it depends on results. What the results
make of it is `fpnlab.study.verdict.judge`.
"""

import math
from typing import Any, Literal

from fpnlab.types import spec


@spec
class Difference:
    """Arm minus baseline lies above or below a threshold."""

    kind: Literal["difference"] = "difference"
    arm: str
    """What is claimed about."""
    baseline: str
    """What it is compared with."""
    axis_values: tuple[Any, ...]
    """Where; of several values, the mean of the differences, seed by seed."""
    side: Literal["above", "below"]
    """The side of the threshold that is claimed."""
    threshold: float = 0.0
    """The smallest difference that matters, in the unit of the metric."""

    def __post_init__(self):
        _check_arms(self)
        _check_values("axis_values", self.axis_values)
        _check_threshold(self)


@spec
class DifferenceInDifferences:
    """The arm changes more, or less, than the baseline from one axis value to another."""

    kind: Literal["difference_in_differences"] = "difference_in_differences"
    arm: str
    """What is claimed about."""
    baseline: str
    """What it is compared with."""
    start: Any
    """The axis value that both changes begin at."""
    end: Any
    """The axis value that both changes end at."""
    side: Literal["above", "below"]
    """The side of the threshold that is claimed for the arm's change minus the baseline's."""
    threshold: float = 0.0
    """The smallest difference that matters, in the unit of the metric."""

    def __post_init__(self):
        _check_arms(self)
        _check_threshold(self)
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start}; give two axis values")


@spec
class Equivalence:
    """Arm and baseline differ by less than a margin, at every one of the axis values."""

    kind: Literal["equivalence"] = "equivalence"
    arm: str
    """What is claimed about."""
    baseline: str
    """What it is compared with."""
    axis_values: tuple[Any, ...]
    """Where; it must hold at each of them."""
    margin: float
    """The largest difference that does not matter, in the unit of the metric."""

    def __post_init__(self):
        _check_arms(self)
        _check_values("axis_values", self.axis_values)
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}; it must be above 0 and finite")


Rule = Difference | DifferenceInDifferences | Equivalence


def cells(rule: Rule) -> list[tuple[str, Any]]:
    """Returns the cells (arm, axis value) of the study that ``rule`` needs."""
    where = (rule.start, rule.end) if rule.kind == "difference_in_differences" else rule.axis_values
    return [(arm, value) for arm in (rule.baseline, rule.arm) for value in where]


def _check_arms(rule):
    if rule.arm == rule.baseline:
        raise ValueError(f"arm and baseline are both {rule.arm!r}; give two arms")


def _check_values(name, given):
    if not given or len(set(map(str, given))) < len(given):
        raise ValueError(f"{name} is {list(given)}; give one value or more, each once")


def _check_threshold(rule):
    if not math.isfinite(rule.threshold):
        raise ValueError(f"threshold is {rule.threshold}; it must be finite")
