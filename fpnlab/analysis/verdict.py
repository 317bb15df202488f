"""Verdicts on claims: the outcome of each rule by its interval and adjusted p-value.

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
one rule that is the same as the interval. The interval shown is not adjusted. The family is the
rules of one claim, or those of all claims of a study (`plan.Study.holm_over`).

**Equal values** decide nothing by themselves: no deviation is taken to be below that of the
metric's rounding. **Failed trials** are worse than any number: what they would have been is not
known, but on which side they are, and a decision that leaving them out favors is barred. Both are
in `fpnlab.analysis.contrasts`.

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
from typing import Any, NamedTuple, get_args

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
"""A number by seed for each cell; what was not measured is nan or absent."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Measurements of a study that bear on its claims."""

    values: Values
    """A number by seed for each cell, in points. Values that are not finite, or absent, are left
    out, as are their seeds in every difference that needs them."""
    axis: str = "axis value"
    """Name of the axis in sentences, such as "batch size"."""
    unfinished: Collection[tuple[str, Any]] = ()
    """The arms and axis values some of whose trials have not ended."""
    failed: Failed = dataclasses.field(default_factory=dict)
    """The trials that ended without a value."""
    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Resolutions of metrics in points; `contrasts.STEP` for others."""


def judge(rules: Sequence[Rule], evidence: Evidence, alpha: float = 0.05) -> ClaimResult:
    """Returns the outcome of each rule and the verdict on all of them; the module says how.

    Args:
        rules: The rules of one claim, as they were fixed before the run, each with its metric.
        evidence: What was measured.
        alpha: Level of the tests.

    Raises:
        ValueError: If there is no rule, one has no metric, or ``alpha`` is not between 0 and 0.5.
    """
    if not rules:
        raise ValueError("judge: no rules; a claim without a rule has no verdict")
    if not 0 < alpha < 0.5:
        raise ValueError(f"judge: alpha must lie between 0 and 0.5, as 0.05 does; got {alpha}")
    tested = [_test(rule, evidence, alpha) for rule in rules]
    return _verdict(tested, holm([test.p for test in tested]), evidence, alpha)


def judge_claims(
    claims: Sequence[Claim], evidence: Evidence, holm_over: HolmOver = "claim"
) -> list[ClaimResult]:
    """Returns the verdict on each claim of a study.

    Args:
        claims: The claims, each rule with its metric.
        evidence: What was measured.
        holm_over: Whether the p-values are adjusted for the rules of each claim or for those of
            all claims. In the latter case a rule of a true null hypothesis is decided, in any of
            the claims, in at most a share ``alpha`` (the largest of the claims') of all studies.

    Raises:
        ValueError: If a rule has no metric.
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
    """Returns a rule as a summary keeps it."""
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    if "axis_values" in fields:
        fields["axis_values"] = [label(value) for value in fields["axis_values"]]
    for name in ("baseline_value", "start", "end"):
        if fields.get(name) is not None:
            fields[name] = label(fields[name])
    return RuleRecord(**fields)


def overall(decisions: Sequence[Decision]) -> ClaimVerdict:
    """Returns the verdict that stands however the undecided rules would turn out."""
    found = set(decisions)
    if found == {"supported"}:
        return "SUPPORTED"
    if found == {"refuted"}:
        return "REFUTED"
    return "PARTIAL" if found >= {"supported", "refuted"} else "INCONCLUSIVE"


class _Test(NamedTuple):
    """A rule's numbers, and the p-values for it and against it."""

    rule: Rule
    estimates: tuple[Estimate, ...]
    p_for: float
    p_against: float
    waits: bool
    """True if some of its trials have not ended."""
    notes: tuple[str, ...]
    """Sentences on what its failed trials keep from being decided."""

    @property
    def p(self) -> float:
        """The p-value that decides."""
        return 1.0 if self.waits else min(self.p_for, self.p_against)


def _test(rule: Rule, evidence: Evidence, alpha: float) -> _Test:
    if rule.metric is None:
        raise ValueError("judge: a rule without a metric; write_claims gives it the study's")
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


def _p_values(rule, by_seed, contrast, evidence, threshold):
    """One-sided p-values that the mean is above the threshold, and that it is below.

    Without a test, and where leaving failed trials out favors that side, it is 1.
    """
    least = _least_deviation(rule, contrast, evidence)
    found = failures(contrast, evidence.failed)
    above, below = (
        _or_one(t_test(by_seed.values(), threshold, alternative, least))
        for alternative in ("greater", "less")
    )
    return 1.0 if found.positive else above, 1.0 if found.negative else below


def _tests_of_equivalence(rule, by_seed, contrast, evidence, alpha):
    """P-values that the mean is within the margins, and that it is beyond one of them."""
    least = _least_deviation(rule, contrast, evidence)
    within = _or_one(tost(by_seed.values(), rule.margin, alpha, least).p)
    above, _ = _p_values(rule, by_seed, contrast, evidence, rule.margin)
    _, below = _p_values(rule, by_seed, contrast, evidence, -rule.margin)
    # Survivors within the margins say nothing about the runs that failed.
    return 1.0 if any(failures(contrast, evidence.failed)) else within, min(above, below)


def _least_deviation(rule: Rule, contrast: Contrast, evidence: Evidence) -> float:
    return least_deviation(contrast, evidence.steps.get(rule.metric or "", STEP))


def _estimate(rule, by_seed, compared, contrast, level, evidence):
    where = tuple(arm.axis_value for _, arm in compared)
    seeds = {seed for pair in compared for cell in pair for seed in evidence.values.get(cell, ())}
    least = _least_deviation(rule, contrast, evidence)
    mean, low, high, _ = t_interval(by_seed.values(), level, least)
    mean, low, high = (bound if math.isfinite(bound) else None for bound in (mean, low, high))
    left_out = tuple(sorted(seeds - by_seed.keys()))
    place = _place(rule, where, evidence.axis)
    return Estimate(where, place, mean, low, high, level, by_seed, left_out)


def _or_one(p):
    return 1.0 if math.isnan(p) else p


def _sentence(outcome, test):
    numbers = "; ".join(f"{e.place}: {_number(e)}" for e in outcome.estimates)
    adjusted = f", adjusted {outcome.p_adjusted:.2g}" if outcome.p_adjusted != outcome.p else ""
    p = "not all of its trials have ended" if test.waits else f"p {outcome.p:.2g}{adjusted}"
    claim = f"{outcome.claim.capitalize()}: {outcome.decision} ({p})"
    return " ".join([f"{outcome.topic}, {numbers}. {claim}.", *test.notes])


def _claimed(rule):
    if rule.kind == "equivalence":
        return f"less than {rule.margin:g} from zero"
    return f"{rule.side} {rule.threshold:g}"


def _topic(rule, axis):
    """Returns the number in words, such as "AP: BN (precise) minus BN (running)"."""
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
