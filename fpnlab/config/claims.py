"""The rules of a claim: what must come out of a study for the claim to hold, said before the run.

A claim is one or more rules. A rule names one number (an estimand), the cells of the study that it
needs, and what the claim says of the number; nothing of it depends on results. What the results
make of it is `fpnlab.analysis.verdict.judge`.

Thresholds and margins are in points, as everything in a summary and a report is: an AP or an
accuracy of 0.41 is 41 points, so that a threshold of 1.0 is one hundredth of the metric.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import pydantic

from fpnlab.spec import spec

Evaluation = Literal["running", "precise", "batch"]
"""Source of batch-norm statistics at test time; the first is what users get."""
HolmOver = Literal["claim", "study"]
"""The family of rules whose p-values are adjusted together."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Metric, statistics, axis value and arm of a number by seed; a hashable key."""

    metric: str | None
    evaluation: str
    axis_value: Any
    arm: str


@spec
class Difference:
    """Arm minus baseline lies above or below a threshold."""

    kind: Literal["difference"] = "difference"
    arm: str
    """The arm of the claim, by its name in the report."""
    baseline: str
    """The arm of comparison; may be the same arm, elsewhere."""
    axis_values: tuple[Any, ...]
    """Axis values; of several, the mean of the differences, seed by seed."""
    baseline_value: Any = None
    """The axis value of the baseline at each of them; none: the same as the arm's."""
    side: Literal["above", "below"]
    """The side of the threshold that is claimed."""
    threshold: float = 0.0
    """The smallest difference that matters, in points."""
    metric: str | None = None
    """The number that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's statistics; none: that of the arm."""

    def __post_init__(self):
        _check_values("axis_values", self.axis_values)
        _check_pairs(self)
        _check_threshold(self)


@spec
class DifferenceInDifferences:
    """The arm changes more, or less, than the baseline from one axis value to another."""

    kind: Literal["difference_in_differences"] = "difference_in_differences"
    arm: str
    """The arm of the claim, by its name in the report."""
    baseline: str
    """The arm of comparison; may be the same arm, elsewhere."""
    start: Any
    """The axis value that both changes begin at."""
    end: Any
    """The axis value that both changes end at."""
    side: Literal["above", "below"]
    """The side of the threshold that is claimed for the arm's change minus the baseline's."""
    threshold: float = 0.0
    """The smallest difference that matters, in points."""
    metric: str | None = None
    """The number that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's statistics; none: that of the arm."""

    def __post_init__(self):
        _check_pairs(self)
        _check_threshold(self)
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start}; give two axis values")


@spec
class Equivalence:
    """Arm and baseline differ by less than a margin, at every one of the axis values."""

    kind: Literal["equivalence"] = "equivalence"
    arm: str
    """The arm of the claim, by its name in the report."""
    baseline: str
    """The arm of comparison; may be the same arm, elsewhere."""
    axis_values: tuple[Any, ...]
    """Axis values; it must hold at each of them."""
    baseline_value: Any = None
    """The axis value of the baseline at each of them; none: the same as the arm's."""
    margin: float
    """The largest difference that does not matter, in points."""
    metric: str | None = None
    """The number that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's statistics; none: that of the arm."""

    def __post_init__(self):
        _check_values("axis_values", self.axis_values)
        _check_pairs(self)
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}; it must be above 0 and finite")


Rule = Difference | DifferenceInDifferences | Equivalence


@spec
class Claim:
    """A statement, and the rules by which a study decides on it."""

    statement: str
    """The claim, in a sentence."""
    rules: tuple[Rule, ...]
    """Rules that must all be supported for the claim to hold."""
    alpha: float = 0.05
    """Level of the tests, shared by the rules."""

    def __post_init__(self):
        if not self.statement or not self.rules:
            raise ValueError("a claim needs a statement, and one rule or more")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 and below 0.5, as 0.05 is")


_claims = pydantic.TypeAdapter(tuple[Claim, ...])


def write_claims(claims: Iterable[Claim], metric: str) -> list[dict[str, Any]]:
    """Returns claims as JSON values with nothing left open, as ``study.json`` holds them.

    Args:
        claims: The claims of a study.
        metric: The study's metric, which is that of a rule without one.
    """
    settled = tuple(
        dataclasses.replace(
            claim,
            rules=tuple(
                dataclasses.replace(rule, metric=rule.metric or metric) for rule in claim.rules
            ),
        )
        for claim in claims
    )
    return _claims.dump_python(settled, mode="json")


def read_claims(table: Sequence[Any]) -> tuple[Claim, ...]:
    """Returns the claims that `write_claims` has written."""
    return _claims.validate_json(json.dumps(table), strict=True)


def claim_hash(claim: Claim) -> str:
    """Returns the SHA-256 of a claim with its rules, as hexadecimal digits."""
    text = json.dumps(_claims.dump_python((claim,), mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def label(value: Any) -> Any:
    """Returns what stands for a value in names and tables: itself, or the text of a list or table.

    What is none has the label "none".
    """
    if value is None:
        return "none"
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)


def pairs(rule: Rule) -> list[tuple[Cell, Cell]]:
    """Returns the comparisons of ``rule``, each as the cells of its baseline and of its arm.

    A difference and an equivalence have one for each axis value, a difference in differences one
    at its start and one at its end.
    """
    if rule.kind == "difference_in_differences":
        where, fixed = (rule.start, rule.end), None
    else:
        where, fixed = rule.axis_values, rule.baseline_value
    other = rule.baseline_evaluation or rule.evaluation
    return [
        (
            Cell(rule.metric, other, label(at if fixed is None else fixed), rule.baseline),
            Cell(rule.metric, rule.evaluation, label(at), rule.arm),
        )
        for at in where
    ]


def cells(rule: Rule) -> list[Cell]:
    """Returns the cells of the study that ``rule`` needs."""
    baselines, arms = zip(*pairs(rule))
    return list(dict.fromkeys([*baselines, *arms]))


def check_claims(
    claims: Sequence[Claim],
    places: Collection[tuple[str, Any]],
    axis_values: Sequence[Any],
    metrics: Collection[str],
) -> None:
    """Sees to it that a study can decide on claims about it.

    Args:
        claims: The claims.
        places: The arms with the axis values that they are run at; the value is ``None`` for an
            arm to which the axis does not apply, whose trials count at every one.
        axis_values: The labels of the axis.
        metrics: The metrics there are; none where that is not known.

    Raises:
        ValueError: If two claims are one; if a rule names an arm, an axis value or a metric that
            there is not; or if it compares trials with themselves.
    """
    if len({claim.statement for claim in claims}) < len(claims):
        raise ValueError("two claims have one statement; give each its own")
    arms = list(dict.fromkeys(arm for arm, _ in places))
    fixed = {arm for arm, value in places if value is None}
    for i, claim in enumerate(claims):
        for j, rule in enumerate(claim.rules):
            where = f"claims.{i}.rules.{j}"
            for cell in cells(rule):
                _check_known(where, "arm", cell.arm, arms)
                _check_known(where, "axis value", cell.axis_value, axis_values)
                if rule.metric and metrics:
                    _check_known(where, "metric", rule.metric, metrics)
            _check_apart(where, rule, fixed)


def near(given: str, names: Sequence[str]) -> str:
    """Returns the end of a refusal: the name nearest to what was given, if one is, and all."""
    close = difflib.get_close_matches(given, names, n=1)
    choice = f"the nearest is {close[0]!r}; all" if close else "these are known"
    return f"; {choice}: {', '.join(names)}"


def _check_known(where, what, given, known):
    if given not in known:
        # Digits have no meaningful neighbors.
        remedy = near(given if isinstance(given, str) else "", [str(value) for value in known])
        raise ValueError(f"{where} names the {what} {given!r}, which there is not{remedy}")


def _check_apart(where, rule, fixed):
    """Refuses a rule whose comparisons are of the same trials, where the axis does not apply."""
    trial = lambda cell: dataclasses.replace(cell, axis_value=None) if cell.arm in fixed else cell
    found = [(trial(baseline), trial(arm)) for baseline, arm in pairs(rule)]
    if len(set(found)) < len(found) or any(baseline == arm for baseline, arm in found):
        arms = " and ".join(a for a in dict.fromkeys((rule.baseline, rule.arm)) if a in fixed)
        raise ValueError(
            f"{where} compares the same trials at several axis values, since the first axis does "
            f"not apply to {arms}; name another arm, or one axis value"
        )


def _check_pairs(rule):
    if any(baseline == arm for baseline, arm in pairs(rule)):
        raise ValueError(
            f"arm and baseline are both {rule.arm!r} under one evaluation at one axis value; give "
            "another baseline, baseline_evaluation or baseline_value"
        )


def _check_values(name, given):
    if not given or len(set(map(str, given))) < len(given):
        raise ValueError(f"{name} is {list(given)}; give one value or more, each once")


def _check_threshold(rule):
    if not math.isfinite(rule.threshold):
        raise ValueError(f"threshold is {rule.threshold}; it must be finite")
