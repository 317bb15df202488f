"""What the results make of a claim: the outcome of each rule, and the verdict.

**Outcome of a rule**, by the interval of Student's t over paired seeds:

* *supported*: the whole interval lies on the side that is claimed;
* *refuted*: the whole interval lies on the other side;
* *undecided* otherwise. That is no evidence for "equal": equality is its own rule, within a margin.

The interval has level ``1 - alpha`` (95 %) where a difference is claimed. Where equivalence is, it
has ``1 - 2 alpha`` (90 %) and must lie within the margins, which is the two one-sided tests (see
`statistics.tost`), at every axis value: an intersection-union test, which needs no correction
(Berger, 1982). Equivalence is refuted as a difference beyond the margin is shown: the interval at
``1 - alpha``, Bonferroni-corrected for the axis values, lies wholly outside at one of them.

**Several rules** are several chances to err, so that their p-values are adjusted by Holm's
procedure (`statistics.holm`), and a rule is decided only if its adjusted p is below ``alpha``. For
one rule that is the same as the interval. The interval shown is not adjusted.

**Verdict of the claim**: the one that stands however the undecided rules would turn out.

* SUPPORTED: every rule is supported.
* REFUTED: every rule is refuted.
* PARTIAL: one rule is supported and one is refuted; the claim holds in part.
* INCONCLUSIVE: the undecided rules could still tip it. Some supported and the rest undecided may
  become SUPPORTED or PARTIAL; some refuted and the rest undecided, REFUTED or PARTIAL.

**The seeds are part of what was fixed.** Who looks after every trial and stops at the first clear
interval errs far more often than ``alpha``. A rule is therefore undecided until all trials that it
needs have ended.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from fpnlab.study.rules import (
    Cell,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    Rule,
    cells,
    pairs,
)
from fpnlab.study.statistics import (
    difference_in_differences,
    holm,
    paired_difference,
    t_interval,
    t_test,
    tost,
)

Values = Mapping[Cell, Mapping[int, float]]
"""A number by seed for each cell; what was not measured is nan or absent."""
Decision = Literal["supported", "refuted", "undecided"]
Word = Literal["SUPPORTED", "REFUTED", "PARTIAL", "INCONCLUSIVE"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number that a rule is about, with its interval; None is what cannot be given."""

    axis_values: tuple[Any, ...]
    """The axis values that went into it."""
    place: str
    """The same in words."""
    mean: float | None
    """Mean over seeds."""
    low: float | None
    """Lower bound; none for fewer than two seeds."""
    high: float | None
    """Upper bound; none for fewer than two seeds."""
    level: float
    """Level of the interval."""
    by_seed: dict[int, float]
    """The number of each seed that counts."""
    left_out: tuple[int, ...]
    """Seeds with a value in some of the cells but not in all: diverged, failed, or not yet run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one rule."""

    rule: Rule
    """The rule."""
    topic: str
    """What its number is, in words."""
    claim: str
    """What it claims of the number, in words."""
    decision: Decision
    """Whether it is supported or refuted."""
    estimates: tuple[Estimate, ...]
    """The rule's number; of an equivalence, one an axis value."""
    p: float
    """The p-value that decides; 1 without a test."""
    p_adjusted: float
    """The p-value adjusted for the number of rules."""
    sentence: str
    """All of it in words."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    verdict: Word
    """The verdict on all rules together."""
    alpha: float
    """Level of the tests."""
    outcomes: tuple[Outcome, ...]
    """One a rule, in their order."""
    sentence: str
    """The verdict and what it rests on, in words."""


def judge(
    rules: Sequence[Rule],
    values: Values,
    alpha: float = 0.05,
    axis: str = "axis value",
    unfinished: Collection[tuple[str, Any]] = (),
) -> Verdict:
    """Returns the outcome of each rule and the verdict on all of them; the module says how.

    The result consists of JSON values: ``json.dumps(dataclasses.asdict(verdict))``.

    Args:
        rules: The rules of one claim, as they were fixed before the run, each with its metric.
        values: A number by seed for each cell, in points. Values that are not finite, or absent,
            are left out, as are their seeds in every difference that needs them.
        alpha: Level of the tests.
        axis: What the sentences call the axis, such as "batch size".
        unfinished: The arms and axis values some of whose trials have not ended.

    Raises:
        ValueError: If there is no rule, one has no metric, or ``alpha`` is not between 0 and 0.5.
    """
    if not rules:
        raise ValueError("judge: no rules; a claim without a rule has no verdict")
    if any(rule.metric is None for rule in rules):
        raise ValueError("judge: a rule without a metric; write_claims gives it the study's")
    if not 0 < alpha < 0.5:
        raise ValueError(f"judge: alpha must lie between 0 and 0.5, as 0.05 does; got {alpha}")
    waits = [any((c.arm, c.axis_value) in unfinished for c in cells(rule)) for rule in rules]
    tested = [_test(rule, values, alpha, axis) for rule in rules]
    ps = [1.0 if wait else min(both) for wait, (_, *both) in zip(waits, tested)]
    outcomes = []
    for rule, wait, test, p, adjusted in zip(rules, waits, tested, ps, holm(ps)):
        estimates, p_for, p_against = test
        decision: Decision = "undecided"
        if adjusted < alpha:
            decision = "supported" if p_for < p_against else "refuted"
        words = _topic(rule, axis), _claimed(rule)
        outcome = Outcome(rule, *words, decision, estimates, p, adjusted, "")
        outcomes.append(dataclasses.replace(outcome, sentence=_sentence(outcome, wait)))
    decisions = [outcome.decision for outcome in outcomes]
    word = overall(decisions)
    tally = ", ".join(f"{decisions.count(d)} {d}" for d in get_args(Decision) if d in decisions)
    rule_s = "rule" if len(rules) == 1 else "rules"
    more = " Not all of their trials have ended." if any(waits) else ""
    sentence = f"{word}: of {len(rules)} {rule_s}, {tally}.{more}"
    return Verdict(word, alpha, tuple(outcomes), sentence)


def overall(decisions: Sequence[Decision]) -> Word:
    """Returns the verdict that stands however the undecided rules would turn out."""
    found = set(decisions)
    if found == {"supported"}:
        return "SUPPORTED"
    if found == {"refuted"}:
        return "REFUTED"
    return "PARTIAL" if found >= {"supported", "refuted"} else "INCONCLUSIVE"


def _test(
    rule: Rule, values: Values, alpha: float, axis: str
) -> tuple[tuple[Estimate, ...], float, float]:
    """A rule's numbers, and the p-values for it and against it."""
    compared = pairs(rule)
    numbers = [(values.get(baseline, {}), values.get(arm, {})) for baseline, arm in compared]
    parts = [paired_difference(a, b).by_seed for a, b in numbers]
    match rule:
        case Equivalence():
            estimates = tuple(
                _estimate(rule, values, part, [pair], 1 - 2 * alpha, axis)
                for part, pair in zip(parts, compared)
            )
            samples = [list(part.values()) for part in parts]
            p_for = max(_or_one(tost(sample, rule.margin, alpha).p) for sample in samples)
            p_out = min(
                _or_one(t_test(sample, sign * rule.margin, alternative))
                for sample in samples
                for sign, alternative in ((1, "greater"), (-1, "less"))
            )
            return estimates, p_for, min(1.0, 2 * len(parts) * p_out)
        case DifferenceInDifferences():
            (a, b), (a_end, b_end) = numbers
            by_seed = difference_in_differences((a, a_end), (b, b_end)).by_seed
        case Difference():
            common = sorted(set(parts[0]).intersection(*parts))
            by_seed = {seed: float(np.mean([part[seed] for part in parts])) for seed in common}
    estimate = _estimate(rule, values, by_seed, compared, 1 - alpha, axis)
    above, below = (
        min(1.0, 2 * _or_one(t_test(by_seed.values(), rule.threshold, alternative)))
        for alternative in ("greater", "less")
    )
    p_for, p_against = (above, below) if rule.side == "above" else (below, above)
    return (estimate,), p_for, p_against


def _estimate(rule, values, by_seed, compared, level, axis):
    where = tuple(arm.axis_value for _, arm in compared)
    seeds = {seed for pair in compared for cell in pair for seed in values.get(cell, ())}
    mean, low, high, _ = t_interval(by_seed.values(), level)
    mean, low, high = (bound if math.isfinite(bound) else None for bound in (mean, low, high))
    left_out = tuple(sorted(seeds - by_seed.keys()))
    place = _place(rule, where, axis)
    return Estimate(where, place, mean, low, high, level, by_seed, left_out)


def _or_one(p):
    return 1.0 if math.isnan(p) else p


def _sentence(outcome, waits):
    numbers = "; ".join(f"{e.place}: {_number(e)}" for e in outcome.estimates)
    adjusted = f", adjusted {outcome.p_adjusted:.2g}" if outcome.p_adjusted != outcome.p else ""
    p = "not all of its trials have ended" if waits else f"p {outcome.p:.2g}{adjusted}"
    claim = f"{outcome.claim.capitalize()}: {outcome.decision} ({p})"
    return f"{outcome.topic}, {numbers}. {claim}."


def _claimed(rule):
    if rule.kind == "equivalence":
        return f"less than {rule.margin:g} from zero"
    return f"{rule.side} {rule.threshold:g}"


def _topic(rule, axis):
    """What the number is, such as "AP: BN (precise) minus BN (running)"."""
    baseline, arm = pairs(rule)[0]
    differ = baseline.evaluation != arm.evaluation
    names = [f"{c.arm} ({c.evaluation})" if differ else c.arm for c in (arm, baseline)]
    if rule.kind == "difference_in_differences":
        names = [f"change of {name}" for name in names]
    elif rule.baseline_value is not None:
        names[1] += f" at {axis} {baseline.axis_value}"
    source = "" if differ or arm.evaluation == "running" else f", {arm.evaluation} statistics"
    return f"{rule.metric}: {names[0]} minus {names[1]}{source}"


def _place(rule, where, axis):
    if rule.kind == "difference_in_differences":
        return f"from {axis} {where[0]} to {where[1]}"
    if len(where) > 1:
        return f"in the mean over {axis} {', '.join(map(str, where))}"
    return f"at {axis} {where[0]}"


def _number(estimate):
    n = len(estimate.by_seed)
    seeds = f"{n} seed" if n == 1 else f"{n} seeds"
    if estimate.left_out:
        seeds += f", {len(estimate.left_out)} left out"
    match estimate.mean, estimate.low:
        case None, _:
            return f"not measured ({seeds})"
        case mean, None:
            return f"{mean:.3g} (no interval, {seeds})"
        case mean, low:
            percent = f"{100 * estimate.level:g} %"
            return f"{mean:.3g} ({percent} interval {low:.3g} to {estimate.high:.3g}, {seeds})"
