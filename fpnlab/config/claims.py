"""Claims of a study and the rules that decide them, fixed before the study runs.

A claim is one or more rules. A rule has an estimand (one number), the cells of the study that the
number is computed from, and the side or margin that is claimed. It does not depend on results:
`fpnlab.analysis.verdict.judge` decides it.

Thresholds and margins are in points, as are all numbers of a summary and a report: an AP or an
accuracy of 0.41 is 41 points, so that a threshold of 1.0 is one hundredth of the metric.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Annotated, Literal

import pydantic

from fpnlab.config.field_error import FieldError, unknown
from fpnlab.records.json_files import AxisValue, JsonObject
from fpnlab.spec import Bounds, Positive, spec

Evaluation = Literal["running", "precise", "batch"]
"""Source of batch-norm statistics at test time; ``running`` is the usual one."""
HolmOver = Literal["claim", "study"]
"""The family of rules whose p-values are adjusted together."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Hashable key of a number that a study has for each seed."""

    metric: str | None
    """Name of the metric; None: the study's metric."""
    evaluation: str
    """Source of batch-norm statistics at test time."""
    axis_value: AxisValue
    """Label of the value of the first axis; None: the axis does not apply to the arm."""
    arm: str
    """Name of the arm in the report."""


@spec
class Difference:
    """Arm minus baseline lies above or below a threshold."""

    kind: Literal["difference"] = "difference"
    arm: str
    """Name of the arm in the report that the claim is about."""
    baseline: str
    """Name of the arm that it is compared with; may be the same arm at another axis value."""
    axis_values: tuple[object, ...]
    """Axis values of the arm; of several, the mean of the differences counts, seed by seed."""
    baseline_value: object = None
    """Axis value of the baseline in all comparisons; none: that of the arm."""
    side: Literal["above", "below"]
    """Side of `threshold` on which the difference is claimed to lie."""
    threshold: float = 0.0
    """Smallest difference that matters, in points (hundredths of the metric), with its sign."""
    metric: str | None = None
    """Name of the metric that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of the arm's batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's batch-norm statistics at test time; none: `evaluation`."""

    def __post_init__(self) -> None:
        _check_values("axis_values", self.axis_values)
        _check_pairs(self)


@spec
class DifferenceInDifferences:
    """The arm changes more, or less, than the baseline from one axis value to another."""

    kind: Literal["difference_in_differences"] = "difference_in_differences"
    arm: str
    """Name of the arm in the report that the claim is about."""
    baseline: str
    """Name of the arm that it is compared with; may be the same arm at another axis value."""
    start: object
    """Axis value at which both changes begin."""
    end: object
    """Axis value at which both changes end."""
    side: Literal["above", "below"]
    """Side of `threshold` on which the arm's change minus the baseline's is claimed to lie."""
    threshold: float = 0.0
    """Smallest difference that matters, in points (hundredths of the metric), with its sign."""
    metric: str | None = None
    """Name of the metric that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of the arm's batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's batch-norm statistics at test time; none: `evaluation`."""

    def __post_init__(self) -> None:
        _check_pairs(self)
        if self.start == self.end:
            problem = f"is {self.end!r}, and so is start; it must be another axis value"
            raise FieldError(("end", problem))


@spec
class Equivalence:
    """Arm and baseline differ by less than a margin, at every one of the axis values."""

    kind: Literal["equivalence"] = "equivalence"
    arm: str
    """Name of the arm in the report that the claim is about."""
    baseline: str
    """Name of the arm that it is compared with; may be the same arm at another axis value."""
    axis_values: tuple[object, ...]
    """Axis values of the arm; the rule must hold at each of them."""
    baseline_value: object = None
    """Axis value of the baseline in all comparisons; none: that of the arm."""
    margin: Annotated[float, Positive]
    """Largest difference that does not matter, in points (hundredths of the metric)."""
    metric: str | None = None
    """Name of the metric that is compared; none: the study's metric."""
    evaluation: Evaluation = "running"
    """Source of the arm's batch-norm statistics at test time."""
    baseline_evaluation: Evaluation | None = None
    """Source of the baseline's batch-norm statistics at test time; none: `evaluation`."""

    def __post_init__(self) -> None:
        _check_values("axis_values", self.axis_values)
        _check_pairs(self)


Rule = Difference | DifferenceInDifferences | Equivalence


@spec
class Claim:
    """A statement about a study, and the rules that decide whether it is supported."""

    statement: str
    """The claim as a sentence, as the report prints it."""
    rules: tuple[Rule, ...]
    """Rules that must all be supported for the claim to hold."""
    alpha: Annotated[float, Bounds(above=0.0, below=0.5)] = 0.05
    """Significance level of the claim; its rules' p-values are adjusted to it (Holm)."""

    def __post_init__(self) -> None:
        problem = "is empty; it must have one {} or more"
        if empty := [f for f in ("statement", "rules") if not getattr(self, f)]:
            words = {"statement": "word", "rules": "rule"}
            raise FieldError(*((field, problem.format(words[field])) for field in empty))


_claims = pydantic.TypeAdapter(tuple[Claim, ...])


def write_claims(claims: Iterable[Claim], metric: str) -> list[JsonObject]:
    """Returns claims as JSON values with the metric of every rule, as ``study.json`` has them.

    Args:
        claims: The claims of a study.
        metric: The study's metric, which rules without a metric get.
    """
    completed = tuple(
        dataclasses.replace(
            claim,
            rules=tuple(
                dataclasses.replace(rule, metric=rule.metric or metric) for rule in claim.rules
            ),
        )
        for claim in claims
    )
    return _claims.dump_python(completed, mode="json")


def read_claims(table: Sequence[JsonObject]) -> tuple[Claim, ...]:
    """Returns the claims in the JSON values of `write_claims`."""
    return _claims.validate_json(json.dumps(table), strict=True)


def claim_hash(claim: Claim) -> str:
    """Returns the SHA-256 of a claim with its rules, as hexadecimal digits."""
    text = json.dumps(_claims.dump_python((claim,), mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def label(value: object) -> str | int | float:
    """Returns an axis value as names and tables show it: itself, or a list or table as JSON text.

    The label of None is "none".
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
        values, baseline_value = (rule.start, rule.end), None
    else:
        values, baseline_value = rule.axis_values, rule.baseline_value
    evaluation = rule.baseline_evaluation or rule.evaluation
    return [
        (
            Cell(
                rule.metric,
                evaluation,
                label(value if baseline_value is None else baseline_value),
                rule.baseline,
            ),
            Cell(rule.metric, rule.evaluation, label(value), rule.arm),
        )
        for value in values
    ]


def cells(rule: Rule) -> list[Cell]:
    """Returns the cells of the study that ``rule`` needs."""
    baselines, arms = zip(*pairs(rule))
    return list(dict.fromkeys([*baselines, *arms]))


def check_claims(
    claims: Sequence[Claim],
    places: Collection[tuple[str, AxisValue]],
    axis_values: Sequence[AxisValue],
    metrics: Collection[str],
) -> None:
    """Checks that the rules of all claims can be decided by a study.

    Args:
        claims: The claims.
        places: The arms with the axis values that they are run at; the value is ``None`` for an
            arm to which the axis does not apply, so that its trials count at every value.
        axis_values: The labels of the axis.
        metrics: The known metrics; empty where they are not known.

    Raises:
        FieldError: If two claims have the same statement; if a rule names an unknown arm, axis
            value or metric; or if it compares trials with themselves. All problems at once.
    """
    first = {}
    problems = [
        (f"claims.{i}.statement", f"is that of claims.{first[claim.statement]}; change one of them")
        for i, claim in enumerate(claims)
        if first.setdefault(claim.statement, i) != i
    ]
    arms = list(dict.fromkeys(arm for arm, _ in places))
    without_axis = {arm for arm, value in places if value is None}
    for i, claim in enumerate(claims):
        for j, rule in enumerate(claim.rules):
            found = list(_unknown_names(rule, arms, axis_values, list(metrics)))
            found = found or list(_same_trials(rule, without_axis))
            problems += [(f"claims.{i}.rules.{j}", problem) for problem in dict.fromkeys(found)]
    if problems:
        raise FieldError(*problems)


def _unknown_names(
    rule: Rule, arms: Sequence[str], axis_values: Sequence[AxisValue], metrics: Sequence[str]
) -> Iterator[str]:
    """Yields a message for each arm, axis value and metric that the study does not have."""
    for cell in cells(rule):
        if cell.arm not in arms:
            yield unknown("arm", cell.arm, arms)
        if cell.axis_value not in axis_values:
            yield unknown("axis value", cell.axis_value, axis_values)
    if rule.metric and metrics and rule.metric not in metrics:
        yield unknown("metric", rule.metric, metrics)


def _same_trials(rule: Rule, without_axis: Collection[str]) -> Iterator[str]:
    """Yields a message if comparisons of ``rule`` are of the same trials.

    An arm without the axis has one set of trials, which counts at every axis value: its value is
    dropped before the cells are compared.
    """
    trials = lambda cell: (
        dataclasses.replace(cell, axis_value=None) if cell.arm in without_axis else cell
    )
    compared = [(trials(baseline), trials(arm)) for baseline, arm in pairs(rule)]
    if len(set(compared)) < len(compared) or any(one == other for one, other in compared):
        both = dict.fromkeys((rule.baseline, rule.arm))
        arms = " and ".join(arm for arm in both if arm in without_axis)
        yield (
            f"compares the same trials at several axis values, because the first axis does not "
            f"apply to {arms}; name another arm, or one axis value"
        )


def _check_pairs(rule: Rule) -> None:
    if any(baseline == arm for baseline, arm in pairs(rule)):
        raise FieldError(
            (
                "baseline",
                f"is {rule.baseline!r}, and so is the arm, with the same evaluation at the same "
                "axis value; change baseline, baseline_evaluation or baseline_value",
            )
        )


def _check_values(field: str, given: Sequence[object]) -> None:
    if not given or len(set(map(str, given))) < len(given):
        problem = f"is {list(given)}; it must have one value or more, each once"
        raise FieldError((field, problem))
