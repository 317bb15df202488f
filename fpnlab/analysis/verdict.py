"""Verdicts on claims: the outcome of each rule by its interval and adjusted p-value.

**Outcome of a rule**, by the paired Student-t confidence interval over seeds:

* *supported*: the whole interval lies on the claimed side;
* *refuted*: the whole interval lies on the other side;
* *undecided* otherwise. That is no evidence of equality, which has its own rule, with a margin.

For a claimed difference, the interval has level ``1 - alpha`` (95 %). For a claimed equivalence, it
has level ``1 - 2 alpha`` (90 %) and must lie within the margins at every axis value. This is the
two one-sided tests procedure (`fpnlab.stats.intervals.tost`) as an intersection-union test, which
needs no correction (Berger, 1982). Equivalence is refuted by a difference beyond the margin: the
interval at ``1 - alpha``, Bonferroni-corrected for the axis values, lies entirely outside at one of
them.

**Several rules** are several chances of an error, so that their p-values are adjusted by Holm's
procedure (`fpnlab.stats.intervals.holm`), and a rule is decided only if its adjusted p-value is
below ``alpha``. For a single rule, this is equivalent to the interval. The reported interval is not
adjusted. The family is the rules of one claim, or those of all claims of a study (``holm_over``).

**Equal values** decide nothing by themselves, because no standard deviation is taken to be below
that of the metric's rounding. **Failed trials** count as worse than any number, so that a decision
in the direction in which leaving them out biases the mean is ruled out. Both rules are explained in
`fpnlab.analysis.contrasts`.

**Verdict of the claim**: the verdict that holds however the undecided rules would turn out.

* SUPPORTED: every rule is supported.
* REFUTED: every rule is refuted.
* PARTIAL: one rule is supported and one is refuted; the claim holds in part.
* INCONCLUSIVE: the undecided rules could still change the verdict. If the others are supported, to
  SUPPORTED or PARTIAL; if they are refuted, to REFUTED or PARTIAL.

**The seeds are fixed in advance.** Looking at the result after every trial and stopping at the
first clear interval errs far more often than ``alpha`` (optional stopping). A rule is therefore
undecided until all trials that it needs have ended.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from fpnlab.analysis.contrasts import (
    STEP,
    Contrast,
    Failed,
    failure_note,
    failures,
    least_deviation,
    rule_contrasts,
)
from fpnlab.config.claims import (
    Cell,
    Claim,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    HolmOver,
    Rule,
    cells,
    label,
    pairs,
)
from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import (
    ClaimResult,
    ClaimVerdict,
    Decision,
    Estimate,
    Outcome,
    RuleRecord,
)
from fpnlab.stats.intervals import (
    difference_in_differences,
    holm,
    paired_difference,
    t_interval,
    t_test,
    tost,
)

Values = Mapping[Cell, Mapping[int, float]]
"""A number by cell and seed; NaN or absent if it was not measured."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Measurements of a study, by which its claims are judged."""

    values: Values
    """Points by cell and seed. Values that are not finite or absent are left out, and so are their
    seeds in every difference that needs them."""
    axis: str = "axis value"
    """Name of the axis in sentences, such as "batch size"."""
    unfinished: Collection[tuple[str, AxisValue]] = ()
    """Arms and axis values with trials that have not ended."""
    failed: Failed = dataclasses.field(default_factory=dict)
    """Trials that ended without a value."""
    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Resolutions of metrics in points; `contrasts.STEP` for others."""


def judge(rules: Sequence[Rule], evidence: Evidence, alpha: float = 0.05) -> ClaimResult:
    """Returns the outcome of each rule and the verdict on all of them (see the module).

    Args:
        rules: The rules of one claim, as fixed before the run, each with its metric.
        evidence: The measurements.
        alpha: Level of the tests.

    Raises:
        ValueError: ``rules`` is empty, a rule has no metric, or ``alpha`` is not in (0, 0.5).
    """
    if not rules:
        raise ValueError("judge: no rules; a claim needs one rule or more")
    if not 0 < alpha < 0.5:
        raise ValueError(f"judge: alpha must be between 0 and 0.5, such as 0.05; got {alpha}")
    tested = [_test(rule, evidence, alpha) for rule in rules]
    return _verdict(tested, holm([test.p for test in tested]), evidence, alpha)


def judge_claims(
    claims: Sequence[Claim], evidence: Evidence, holm_over: HolmOver = "claim"
) -> list[ClaimResult]:
    """Returns the verdict on each claim of a study.

    Args:
        claims: The claims, each rule with its metric.
        evidence: The measurements.
        holm_over: The family of rules over which p-values are adjusted: those of each claim, or
            those of all claims. The latter bounds the probability that any rule of the study with a
            true null hypothesis is decided by ``alpha`` (the largest of the claims').

    Raises:
        ValueError: A rule has no metric.
    """
    if holm_over == "claim":
        return [judge(claim.rules, evidence, claim.alpha) for claim in claims]
    tested = [[_test(rule, evidence, claim.alpha) for rule in claim.rules] for claim in claims]
    adjusted = iter(holm([test.p for tests in tested for test in tests]))
    return [
        _verdict(tests, [next(adjusted) for _ in tests], evidence, claim.alpha)
        for claim, tests in zip(claims, tested)
    ]


def _verdict(
    tested: "Sequence[_Test]", adjusted: Sequence[float], evidence: Evidence, alpha: float
) -> ClaimResult:
    outcomes = []
    for test, p_adjusted in zip(tested, adjusted):
        decision: Decision = "undecided"
        if p_adjusted < alpha:
            decision = "supported" if test.p_for < test.p_against else "refuted"
        words = _topic(test.rule, evidence.axis), _claimed(test.rule)
        outcome = Outcome(
            rule_record(test.rule), *words, decision, test.estimates, test.p, p_adjusted, ""
        )
        outcomes.append(dataclasses.replace(outcome, sentence=_sentence(outcome, test)))
    decisions = [outcome.decision for outcome in outcomes]
    word = overall(decisions)
    tally = ", ".join(f"{decisions.count(d)} {d}" for d in get_args(Decision) if d in decisions)
    rule_s = "rule" if len(tested) == 1 else "rules"
    more = " Not all of their trials have ended." if any(test.waits for test in tested) else ""
    sentence = f"{word}: of {len(tested)} {rule_s}, {tally}.{more}"
    return ClaimResult(word, alpha, tuple(outcomes), sentence)


def rule_record(rule: Rule) -> RuleRecord:
    """Returns a rule in the form that a summary stores."""
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    if "axis_values" in fields:
        fields["axis_values"] = [label(value) for value in fields["axis_values"]]
    for name in ("baseline_value", "start", "end"):
        if fields.get(name) is not None:
            fields[name] = label(fields[name])
    return RuleRecord(**fields)


def overall(decisions: Sequence[Decision]) -> ClaimVerdict:
    """Returns the verdict that holds however the undecided rules would turn out."""
    found = set(decisions)
    if found == {"supported"}:
        return "SUPPORTED"
    if found == {"refuted"}:
        return "REFUTED"
    return "PARTIAL" if found >= {"supported", "refuted"} else "INCONCLUSIVE"


class _Test(NamedTuple):
    """The estimates and p-values of a rule."""

    rule: Rule
    """The rule."""
    estimates: tuple[Estimate, ...]
    """Its estimates."""
    p_for: float
    """p-value of the test that can support the rule."""
    p_against: float
    """p-value of the test that can refute the rule."""
    waits: bool
    """True if some of its trials have not ended."""
    notes: tuple[str, ...]
    """Sentences on the decisions that failed trials rule out."""

    @property
    def p(self) -> float:
        """The p-value that decides: 1 while trials are missing."""
        return 1.0 if self.waits else min(self.p_for, self.p_against)


def _test(rule: Rule, evidence: Evidence, alpha: float) -> _Test:
    if rule.metric is None:
        raise ValueError("judge: a rule without a metric; write_claims fills in the study's")
    values, compared, contrasts = evidence.values, pairs(rule), rule_contrasts(rule)
    numbers = [(values.get(baseline, {}), values.get(arm, {})) for baseline, arm in compared]
    parts = [paired_difference(a, b).by_seed for a, b in numbers]
    match rule:
        case Equivalence():
            each = [
                _tests_of_equivalence(rule, part, contrast, evidence, alpha)
                for part, contrast in zip(parts, contrasts)
            ]
            estimates = tuple(
                _estimate(rule, part, [pair], contrast, 1 - 2 * alpha, evidence)
                for part, pair, contrast in zip(parts, compared, contrasts)
            )
            p_for = max(within for within, _ in each)
            p_against = min(1.0, 2 * len(parts) * min(beyond for _, beyond in each))
        case Difference() | DifferenceInDifferences():
            if rule.kind == "difference_in_differences":
                (a, b), (a_end, b_end) = numbers
                by_seed = difference_in_differences((a, a_end), (b, b_end)).by_seed
            else:
                common = sorted(set(parts[0]).intersection(*parts))
                by_seed = {seed: float(np.mean([part[seed] for part in parts])) for seed in common}
            [contrast] = contrasts
            level = 1 - alpha
            estimates = (_estimate(rule, by_seed, compared, contrast, level, evidence),)
            above, below = _p_values(rule, by_seed, contrast, evidence, rule.threshold)
            above, below = min(1.0, 2 * above), min(1.0, 2 * below)
            p_for, p_against = (above, below) if rule.side == "above" else (below, above)
    waits = any((c.arm, c.axis_value) in evidence.unfinished for c in cells(rule))
    notes = [failure_note(failures(c, evidence.failed), evidence.axis) for c in contrasts]
    return _Test(
        rule, estimates, p_for, p_against, waits, tuple(dict.fromkeys(filter(None, notes)))
    )


def _p_values(
    rule: Rule,
    by_seed: Mapping[int, float],
    contrast: Contrast,
    evidence: Evidence,
    threshold: float,
) -> tuple[float, float]:
    """Returns one-sided p-values that the mean is above the threshold, and that it is below.

    A p-value is 1 if there is no test, or if leaving failed trials out favors its side.
    """
    least = _least_deviation(rule, contrast, evidence)
    found = failures(contrast, evidence.failed)
    above, below = (
        _or_one(t_test(by_seed.values(), threshold, alternative, least))
        for alternative in ("greater", "less")
    )
    return 1.0 if found.positive else above, 1.0 if found.negative else below


def _tests_of_equivalence(
    rule: Equivalence,
    by_seed: Mapping[int, float],
    contrast: Contrast,
    evidence: Evidence,
    alpha: float,
) -> tuple[float, float]:
    """Returns p-values that the mean is within the margins, and that it is beyond one of them."""
    least = _least_deviation(rule, contrast, evidence)
    within = _or_one(tost(by_seed.values(), rule.margin, alpha, least).p)
    above, _ = _p_values(rule, by_seed, contrast, evidence, rule.margin)
    _, below = _p_values(rule, by_seed, contrast, evidence, -rule.margin)
    # The finished runs alone cannot show that the failed ones would be within the margins.
    return 1.0 if any(failures(contrast, evidence.failed)) else within, min(above, below)


def _least_deviation(rule: Rule, contrast: Contrast, evidence: Evidence) -> float:
    return least_deviation(contrast, evidence.steps.get(rule.metric or "", STEP))


def _estimate(
    rule: Rule,
    by_seed: dict[int, float],
    compared: Sequence[tuple[Cell, Cell]],
    contrast: Contrast,
    level: float,
    evidence: Evidence,
) -> Estimate:
    where = tuple(arm.axis_value for _, arm in compared)
    seeds = {seed for pair in compared for cell in pair for seed in evidence.values.get(cell, ())}
    least = _least_deviation(rule, contrast, evidence)
    interval = t_interval(by_seed.values(), level, least)
    mean, low, high = (bound if math.isfinite(bound) else None for bound in interval[:3])
    left_out = tuple(sorted(seeds - by_seed.keys()))
    place = _place(rule, where, evidence.axis)
    return Estimate(where, place, mean, low, high, level, by_seed, left_out)


def _or_one(p: float) -> float:
    """Returns a p-value, or 1 if it is NaN: without a test, nothing is decided."""
    return 1.0 if math.isnan(p) else p


def _sentence(outcome: Outcome, test: _Test) -> str:
    """Returns estimates, claim and decision of a rule as a sentence."""
    numbers = "; ".join(f"{e.place}: {_number(e)}" for e in outcome.estimates)
    adjusted = outcome.p_adjusted != outcome.p
    holm_p = f", Holm-adjusted p = {outcome.p_adjusted:.2g}" if adjusted else ""
    p = "not all of its trials have ended" if test.waits else f"p = {outcome.p:.2g}{holm_p}"
    claim = f"{outcome.claim.capitalize()}: {outcome.decision} ({p})"
    return " ".join([f"{outcome.topic}, {numbers}. {claim}.", *test.notes])


def _claimed(rule: Rule) -> str:
    """Returns the claimed range of the estimate in words."""
    if rule.kind == "equivalence":
        return f"within {rule.margin:g} of zero"
    return f"{rule.side} {rule.threshold:g}"


def _topic(rule: Rule, axis: str) -> str:
    """Returns the estimated number in words, such as "AP: BN (precise) minus BN (running)"."""
    baseline, arm = pairs(rule)[0]
    differ = baseline.evaluation != arm.evaluation
    names = [f"{c.arm} ({c.evaluation})" if differ else c.arm for c in (arm, baseline)]
    if rule.kind == "difference_in_differences":
        names = [f"change of {name}" for name in names]
    elif rule.baseline_value is not None:
        names[1] += f" at {axis} {baseline.axis_value}"
    source = "" if differ or arm.evaluation == "running" else f", {arm.evaluation} statistics"
    return f"{rule.metric}: {names[0]} minus {names[1]}{source}"


def _place(rule: Rule, where: tuple[AxisValue, ...], axis: str) -> str:
    """Returns the axis values of an estimate in words."""
    if rule.kind == "difference_in_differences":
        return f"from {axis} {where[0]} to {where[1]}"
    if len(where) > 1:
        return f"averaged over {axis} {', '.join(map(str, where))}"
    return f"at {axis} {where[0]}"


def _number(estimate: Estimate) -> str:
    """Returns mean, confidence interval and number of seeds of an estimate in words."""
    n = len(estimate.by_seed)
    seeds = f"{n} seed" if n == 1 else f"{n} seeds"
    if estimate.left_out:
        seeds += f", {len(estimate.left_out)} left out"
    mean, low, high = estimate.mean, estimate.low, estimate.high
    if mean is None:
        return f"not measured ({seeds})"
    if low is None or high is None:
        return f"{mean:.3g} (no confidence interval, {seeds})"
    interval = f"{100 * estimate.level:g} % confidence interval {low:.3g} to {high:.3g}"
    return f"{mean:.3g} ({interval}, {seeds})"
