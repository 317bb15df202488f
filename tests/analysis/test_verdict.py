"""Decisions on rules and verdicts on claims, by intervals, p-values and failed trials."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fpnlab.analysis.verdict import Evidence, judge_claims, overall
from fpnlab.analysis.verdict import judge as judge_evidence
from fpnlab.config.claims import (
    Cell,
    Claim,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    Rule,
    cells,
)
from fpnlab.stats.intervals import holm, t_interval

CLEAR = (-0.1, 0.0, 0.1, 0.05, -0.05)
"""Noise of five seeds that is small against a difference of one."""
LUCK = (5.0, -3.0, 0.0, 8.0, -7.0)
"""Effect of each seed, equal for both arms."""


def at(arm, axis_value, evaluation="running", metric="AP"):
    return Cell(metric, evaluation, axis_value, arm)


def cell(mean, noise=CLEAR):
    return {seed: mean + luck + d for seed, (luck, d) in enumerate(zip(LUCK, noise))}


def study(**means):
    """Values of arms at axis values 2, 8 and 32; the baseline BN has no noise."""
    table = {"BN": (0.0, 0.0, 0.0), **means}
    return {
        at(arm, value): cell(mean, CLEAR if arm != "BN" else (0.0,) * 5)
        for arm, row in table.items()
        for value, mean in zip((2, 8, 32), row)
    }


def difference(axis_values=(2,), side="above", threshold=0.0, arm="LN", **fields):
    fields = {"baseline": "BN", "metric": "AP"} | fields
    return Difference(arm=arm, axis_values=axis_values, side=side, threshold=threshold, **fields)


def change(side="above", threshold=0.0, start=32, end=2, **fields):
    fields = {"arm": "LN", "baseline": "BN", "metric": "AP"} | fields
    return DifferenceInDifferences(start=start, end=end, side=side, threshold=threshold, **fields)


def equivalence(margin=1.0, axis_values=(2,), **fields):
    fields = {"arm": "LN", "baseline": "BN", "metric": "AP"} | fields
    return Equivalence(axis_values=axis_values, margin=margin, **fields)


def judge(rules, values, alpha=0.05, **known):
    return judge_evidence(rules, Evidence(values, **known), alpha)


def decide(rule, values, **kwargs):
    return judge([rule], values, **kwargs).outcomes[0]


@pytest.mark.parametrize(
    ("side", "threshold", "decision"),
    [
        ("above", 0.0, "supported"),
        ("above", 1.0, "undecided"),
        ("above", 2.0, "refuted"),
        ("below", 2.0, "supported"),
        ("below", 1.0, "undecided"),
        ("below", 0.0, "refuted"),
    ],
)
def test_a_difference_is_decided_if_the_whole_interval_is_on_one_side(side, threshold, decision):
    outcome = decide(difference(side=side, threshold=threshold), study(LN=(1.0, 0.0, 0.0)))
    assert outcome.decision == decision
    (estimate,) = outcome.estimates
    assert (estimate.mean, estimate.level) == (pytest.approx(1.0), 0.95)
    np.testing.assert_allclose((estimate.low, estimate.high), t_interval(1 + np.array(CLEAR))[1:3])


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=6),
    threshold=st.floats(-5, 5),
    alpha=st.floats(0.01, 0.4),
)
def test_a_single_rule_is_decided_iff_the_interval_excludes_the_threshold(values, threshold, alpha):
    arms = {
        at("LN", 2): dict(enumerate(values)),
        at("BN", 2): dict.fromkeys(range(len(values)), 0.0),
    }
    outcome = decide(difference(threshold=threshold), arms, alpha=alpha)
    assume(abs(outcome.p - alpha) > 1e-9)
    (estimate,) = outcome.estimates
    expected = "undecided"
    if estimate.low > threshold:
        expected = "supported"
    elif estimate.high < threshold:
        expected = "refuted"
    assert outcome.decision == expected


def test_the_mean_over_axis_values_is_paired_by_seed():
    values = study(LN=(1.0, 2.0, 6.0))
    del values[at("LN", 8)][3]
    values[at("BN", 32)][0] = math.nan
    (estimate,) = decide(difference((2, 8, 32)), values).estimates
    expected = {seed: 3.0 + CLEAR[seed] for seed in (1, 2, 4)}
    assert estimate.by_seed == pytest.approx(expected)
    assert estimate.left_out == (0, 3)


def test_difference_in_differences_compares_the_changes_of_two_arms():
    # Both arms lose toward small batches, LN less.
    values = study(BN=(-6.0, -2.0, 0.0), LN=(-2.0, -2.0, 1.0))
    assert decide(change(), values).decision == "supported"
    assert decide(change("below"), values).decision == "refuted"
    assert decide(change(threshold=3.0), values).decision == "undecided"
    assert decide(change(start=2, end=32), values).decision == "refuted"
    (estimate,) = decide(change(), values).estimates
    assert estimate.mean == pytest.approx(-3.0 + 6.0)
    assert estimate.axis_values == (32, 2)


@pytest.mark.parametrize(
    ("mean", "decision"), [(0.0, "supported"), (1.0, "undecided"), (2.0, "refuted")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_equivalence_is_decided_by_the_margins(mean, sign, decision):
    outcome = decide(equivalence(margin=1.0), study(LN=(sign * mean, 0.0, 0.0)))
    assert outcome.decision == decision
    assert outcome.estimates[0].level == pytest.approx(0.9)


def test_equivalence_must_hold_at_every_axis_value_and_is_refuted_at_one():
    values = study(LN=(0.1, 0.0, 2.0))
    assert decide(equivalence(axis_values=(2, 8)), values).decision == "supported"
    assert decide(equivalence(axis_values=(2, 8, 32)), values).decision == "refuted"
    values[at("LN", 32)] = {}
    found = decide(equivalence(axis_values=(2, 8, 32)), values)
    assert found.decision == "undecided"
    assert [e.left_out for e in found.estimates] == [(), (), (0, 1, 2, 3, 4)]


def test_a_seed_is_left_out_only_where_a_value_is_missing():
    values = study(LN=(0.0, 0.0, 0.0))
    values[at("LN", 8)] = {seed: 0.0 for seed in (1, 2, 7)}
    found = decide(equivalence(axis_values=(2, 8)), values)
    assert [e.left_out for e in found.estimates] == [(), (0, 3, 4, 7)]


def test_noise_supports_neither_a_difference_nor_equivalence():
    noise = (3.0, -2.0, 1.0, -4.0, 2.0)
    values = {at("LN", 2): cell(0.0, noise), at("BN", 2): cell(0.0, (0.0,) * 5)}
    for rule in (difference(), difference(side="below"), equivalence()):
        assert decide(rule, values).decision == "undecided"


@pytest.mark.parametrize("axis_values", [(2,), (2, 8)])
@pytest.mark.parametrize(("margin", "deviation"), [(1.0, 0.3), (0.01, 3.0)])
def test_equivalence_is_falsely_refuted_in_at_most_alpha_of_all_cases(
    margin, deviation, axis_values
):
    # The true difference is on the margin at every axis value, which is the hardest case.
    rng = np.random.default_rng(0)
    samples = rng.normal(margin, deviation, size=(2000, len(axis_values), 5))
    rule, zeros = equivalence(margin, axis_values), dict.fromkeys(range(5), 0.0)
    refuted = 0
    for rows in samples:
        values = {at("BN", value): zeros for value in axis_values}
        for value, row in zip(axis_values, rows):
            values[at("LN", value)] = dict(enumerate(row.tolist()))
        refuted += decide(rule, values).decision == "refuted"
    assert refuted / len(samples) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(samples))


def test_several_rules_are_decided_by_holm_adjusted_p_values():
    noise = (1.0, -1.0, 0.5, -0.5, 0.2)
    values = {at("BN", value): cell(0.0, (0.0,) * 5) for value in (2, 8, 32)}
    for value, mean in ((2, 1.2), (8, 1.25), (32, 1.3)):
        values[at("LN", value)] = cell(mean, noise)
    rules = [difference((value,)) for value in (2, 8, 32)]
    alone = [decide(rule, values) for rule in rules]
    together = judge(rules, values)
    assert [outcome.decision for outcome in alone] == ["supported"] * 3
    assert [outcome.decision for outcome in together.outcomes] == ["undecided"] * 3
    assert [o.p_adjusted for o in together.outcomes] == holm([o.p for o in alone])
    # The reported interval is not adjusted.
    assert [o.estimates for o in together.outcomes] == [o.estimates for o in alone]


def test_families_of_true_null_rules_err_in_at_most_alpha_of_all_cases():
    rng = np.random.default_rng(1)
    rules = [difference(), difference((8,), "below"), change()]
    wrong = 0
    for noise in rng.normal(size=(1500, 2, 3, 5)):
        rows = {
            at(arm, value): dict(enumerate(noise[i, j].tolist()))
            for i, arm in enumerate(("BN", "LN"))
            for j, value in enumerate((2, 8, 32))
        }
        wrong += any(outcome.decision != "undecided" for outcome in judge(rules, rows).outcomes)
    assert wrong / 1500 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1500)


FAILING = [
    # Rule, mean of the arm, arm and axis value of the failed trial, decision.
    (difference(), 3.0, ("BN", 2), "supported"),
    (difference(), 3.0, ("LN", 2), "undecided"),
    (difference(), -3.0, ("BN", 2), "undecided"),
    (difference(), -3.0, ("LN", 2), "refuted"),
    (difference(side="below"), -3.0, ("BN", 2), "undecided"),
    (difference(side="below"), -3.0, ("LN", 2), "supported"),
    (difference((2, 8)), 6.0, ("BN", 8), "supported"),
    (difference((2, 8)), 6.0, ("LN", 8), "undecided"),
    (change(), 3.0, ("BN", 2), "supported"),
    (change(), 3.0, ("LN", 2), "undecided"),
    (change(), 3.0, ("BN", 32), "undecided"),
    (change(), 3.0, ("LN", 32), "supported"),
    (change(), -3.0, ("LN", 32), "undecided"),
    (equivalence(), 0.1, ("BN", 2), "undecided"),
    (equivalence(), 0.1, ("LN", 2), "undecided"),
    (equivalence(), 3.0, ("BN", 2), "refuted"),
    (equivalence(), 3.0, ("LN", 2), "undecided"),
    (equivalence(), -3.0, ("LN", 2), "refuted"),
    (equivalence(), -3.0, ("BN", 2), "undecided"),
    # The failed trial is not part of the comparison.
    (difference(), 3.0, ("LN", 32), "supported"),
]


@pytest.mark.parametrize(("rule", "mean", "place", "decision"), FAILING)
def test_a_failed_trial_rules_out_the_decision_that_leaving_it_out_favors(
    rule, mean, place, decision
):
    values = study(LN=(mean, 0.0, 0.0))
    whole = decide(rule, values).decision
    values[at(place[0], place[1])].pop(4)
    outcome = decide(rule, values, axis="batch size", failed={place: [(*place, 4)]})
    assert outcome.decision == decision
    assert decision in (whole, "undecided")
    arm, value = place
    note = f"Diverged or failed: {arm} at batch size {value} (1 seed). Leaving them out biases"
    assert (note in outcome.sentence) == (place in {(c.arm, c.axis_value) for c in cells(rule)})


def test_failures_on_both_sides_leave_everything_undecided():
    values = study(LN=(3.0, 0.0, 0.0))
    failed = {("LN", 2): [("LN", 2, 8)], ("BN", 2): [("BN", 2, 8), ("BN", 2, 9)]}
    for rule in (difference(), difference(side="below"), equivalence(), equivalence(9.0)):
        outcome = decide(rule, values, failed=failed)
        assert (outcome.decision, outcome.p) == ("undecided", 1.0)
        assert "LN at axis value 2 (1 seed), BN at axis value 2 (2 seeds)" in outcome.sentence
        assert "either way, so that neither above nor below can be decided" in outcome.sentence


def test_a_trial_on_both_sides_of_a_comparison_favors_neither():
    values = study(BN=(1.0, 0.0, 0.0))
    values |= {at("BN", 2, "precise"): cell(3.0)}
    rule = difference(arm="BN", evaluation="precise", baseline_evaluation="running")
    outcome = decide(rule, values, failed={("BN", 2): [("BN", 2, 9)]})
    assert outcome.decision == "supported"
    assert "Diverged" not in outcome.sentence
    # A trial without an axis value counts at both axis values.
    values = study(BN=(-6.0, 0.0, 0.0), LN=(0.0, 0.0, 0.0))
    lost = [("LN", None, 9)]
    assert decide(change(), values, failed={("LN", 2): lost, ("LN", 32): lost}).decision == (
        "supported"
    )


def shares(studies, rules, known):
    """Share of studies that support each rule; ``known``: failed trials are taken into account."""
    found = np.zeros(len(rules))
    for values, failed in studies:
        outcomes = judge(rules, values, failed=failed if known else {}).outcomes
        found += [o.decision == "supported" for o in outcomes]
    return found / len(studies)


def studies_whose_worst_runs_diverge(number, arms, seeds=5):
    """Studies without a difference, in which runs of ``arms`` below -1 deviation diverge."""
    rng = np.random.default_rng(7)
    for noise in rng.normal(size=(number, 2, seeds)):
        values, failed = {}, {}
        for arm, row in zip(("BN", "LN"), noise.tolist()):
            lost = [seed for seed, value in enumerate(row) if arm in arms and value < -1.0]
            values[at(arm, 2)] = {seed: v for seed, v in enumerate(row) if seed not in lost}
            failed[arm, 2] = [(arm, 2, seed) for seed in lost]
        yield values, failed


@pytest.mark.parametrize("arms", [("BN",), ("LN",), ("BN", "LN")])
def test_diverging_worst_runs_favor_no_arm_beyond_the_nominal_share(arms):
    rules = [difference(), difference(side="below")]
    found = list(studies_whose_worst_runs_diverge(2500, arms))
    # Each rule alone, without a correction for two.
    after = [shares(found, [rule], known=True)[0] for rule in rules]
    # Four standard errors of a share of 0.025.
    assert max(after) < 0.025 + 4 * math.sqrt(0.025 * 0.975 / len(found))
    if len(arms) == 1:
        before = [shares(found, [rule], known=False)[0] for rule in rules]
        assert max(before) > 0.038


def test_equal_seeds_have_an_interval_from_the_resolution_of_the_metric():
    values = {at("BN", 2): {0: 1.0, 1: 2.0}, at("LN", 2): {0: 21.6, 1: 22.6}}
    for steps, width in (({"AP": 1.0}, 1.0), ({}, 0.1)):
        outcome = decide(difference(), values, steps=steps)
        (estimate,) = outcome.estimates
        half = 12.7062 * width / math.sqrt(6) / math.sqrt(2)
        assert estimate.high - estimate.mean == pytest.approx(half, rel=1e-4)
        assert outcome.decision == "supported"
        assert outcome.p > 1e-4
        assert decide(equivalence(20.6 + half), values, steps=steps).decision == "supported"
        assert decide(equivalence(20.6 + half / 3), values, steps=steps).decision == "undecided"
    # The resolution is coarser than the effect.
    assert decide(difference(), values, steps={"AP": 20.0}).decision == "undecided"
    zeros = {at("BN", 2): {0: 1.0, 1: 2.0}, at("LN", 2): {0: 1.0, 1: 2.0}}
    for rule in (difference(), difference(side="below")):
        assert decide(rule, zeros).decision == "undecided"


def test_the_least_deviation_follows_from_the_cells_of_the_rule():
    values = study(LN=(3.0, 3.0, 0.0))
    for cell_values in values.values():
        for seed in cell_values:
            cell_values[seed] = float(round(cell_values[seed]))
    widths = {}
    for name, rule in (("one", difference()), ("two", difference((2, 8))), ("change", change())):
        (estimate,) = decide(rule, values, steps={"AP": 1.0}).estimates
        widths[name] = estimate.high - estimate.low
    assert widths["two"] == pytest.approx(widths["one"] / math.sqrt(2))
    assert widths["change"] == pytest.approx(widths["one"] * math.sqrt(2))


def four_claims(noise):
    """Four claims, each on one arm against BN, and the evidence of one study."""
    arms = ("BN", "LN", "GN", "IN", "RMS")
    claims = [Claim(statement=arm, rules=(difference(arm=arm),)) for arm in arms[1:]]
    values = {at(arm, 2): dict(enumerate(row.tolist())) for arm, row in zip(arms, noise)}
    return claims, Evidence(values)


def test_holm_over_the_study_bounds_the_error_of_four_null_claims():
    # The four arms are different, so that the tests are independent, which is the hardest case.
    rng = np.random.default_rng(3)
    supported = {"claim": 0, "study": 0}
    for noise in rng.normal(size=(800, 5, 5)):
        claims, evidence = four_claims(np.concatenate([np.zeros((1, 5)), noise[1:]]))
        for family in supported:
            words = [v.verdict for v in judge_claims(claims, evidence, family)]
            supported[family] += "SUPPORTED" in words
    # 1 - 0.975^4 = 0.096 and 1 - (1 - 0.025 / 4)^4 = 0.025.
    assert abs(supported["claim"] / 800 - 0.096) < 4 * math.sqrt(0.096 * 0.904 / 800)
    assert abs(supported["study"] / 800 - 0.025) < 4 * math.sqrt(0.025 * 0.975 / 800)


def test_holm_over_the_study_adjusts_the_rules_of_all_claims_together():
    claims, evidence = four_claims(np.random.default_rng(0).normal(size=(5, 5)))
    claims[0] = dataclasses.replace(claims[0], rules=(difference(), difference(arm="GN")))
    alone, together = (judge_claims(claims, evidence, family) for family in ("claim", "study"))
    p = [outcome.p for verdict in alone for outcome in verdict.outcomes]
    assert [o.p_adjusted for v in together for o in v.outcomes] == holm(p)
    assert [o.p_adjusted for o in alone[0].outcomes] == holm(p[:2])
    assert [v.outcomes[0].p_adjusted for v in alone[1:]] == p[2:]


def test_the_verdict_holds_however_undecided_rules_turn_out():
    """Brute force: the verdict on which all completions of undecided rules agree, if any."""

    def completed(decisions):
        if len(set(decisions)) > 1:
            return "PARTIAL"
        return "SUPPORTED" if decisions[0] == "supported" else "REFUTED"

    for n in (1, 2, 3, 4):
        for decisions in itertools.product(["supported", "refuted", "undecided"], repeat=n):
            options = [
                ["supported", "refuted"] if decision == "undecided" else [decision]
                for decision in decisions
            ]
            words = {completed(completion) for completion in itertools.product(*options)}
            assert overall(decisions) == (words.pop() if len(words) == 1 else "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("means", "verdict", "tally"),
    [
        ((3.0, 0.0, 0.0), "SUPPORTED", "of 2 rules, 2 supported."),
        ((-3.0, -9.0, 0.0), "REFUTED", "of 2 rules, 2 refuted."),
        ((3.0, 5.0, 0.0), "PARTIAL", "of 2 rules, 1 supported, 1 refuted."),
        ((3.0, 1.0, 0.0), "INCONCLUSIVE", "of 2 rules, 1 supported, 1 undecided."),
    ],
)
def test_a_claim_of_two_rules_can_have_each_verdict(means, verdict, tally):
    found = judge([difference(), equivalence(axis_values=(8,))], study(LN=means))
    assert found.verdict == verdict
    assert found.sentence == f"{verdict}: {tally}"


def test_an_arm_can_be_compared_with_itself_with_other_statistics():
    values = study(BN=(-6.0, -2.0, 0.0), LN=(0.0, 0.0, 0.0))
    values |= {at("BN", value, "precise"): cell(mean) for value, mean in ((2, -1.0), (32, 0.0))}
    both = {"arm": "BN", "baseline": "BN", "evaluation": "precise"}
    for rule, mean, topic in (
        (difference(**both, baseline_evaluation="running"), 5.0, "BN (precise) minus BN (running)"),
        (
            change(**both, baseline_evaluation="running"),
            5.0,
            "change of BN (precise) minus change of BN (running)",
        ),
    ):
        outcome = decide(rule, values)
        assert outcome.decision == "supported"
        assert outcome.estimates[0].mean == pytest.approx(mean)
        assert outcome.sentence.startswith(f"AP: {topic}, ")
    # Both arms use precise statistics, which LN lacks.
    outcome = decide(difference(evaluation="precise"), values)
    assert outcome.estimates[0].mean is None
    assert outcome.sentence.startswith("AP: LN minus BN, precise statistics, at axis value 2: not")


def test_an_arm_can_be_compared_with_itself_at_another_axis_value():
    values = study(LN=(0.3, 0.2, 0.5))
    flat = equivalence(1.0, (2, 8), baseline="LN", baseline_value=32)
    outcome = decide(flat, values, axis="batch size")
    assert outcome.decision == "supported"
    assert [e.mean for e in outcome.estimates] == pytest.approx([-0.2, -0.3])
    assert outcome.sentence.startswith("AP: LN minus LN at batch size 32, at batch size 2: -0.2 (")
    (estimate,) = decide(difference((2, 8), baseline="LN", baseline_value=32), values).estimates
    assert estimate.mean == pytest.approx(-0.25)


def test_values_of_another_metric_are_ignored():
    values = study(LN=(3.0, 0.0, 0.0))
    assert decide(difference(metric="AP50"), values).estimates[0].by_seed == {}


def test_a_rule_is_undecided_until_all_its_trials_have_ended():
    values = study(LN=(3.0, 3.0, 3.0))
    rules = [difference((2,)), difference((8,), "below")]
    found = judge(rules, values, unfinished={("LN", 2), ("GN", 8)})
    waits, done = found.outcomes
    assert (waits.decision, waits.p, done.decision) == ("undecided", 1.0, "refuted")
    assert waits.estimates[0].mean == pytest.approx(3.0)
    assert waits.sentence.endswith("Above 0: undecided (not all of its trials have ended).")
    assert found.verdict == "INCONCLUSIVE"
    assert found.sentence.endswith("Not all of their trials have ended.")
    assert judge(rules, values).verdict == "PARTIAL"


def test_unmeasured_estimates_are_undecided_and_reported():
    values = study(LN=(3.0, 3.0, 3.0))
    values[at("LN", 8)] = {0: 3.0, 1: math.nan}
    none, one = judge([difference(arm="GN"), difference((8,))], values, axis="batch size").outcomes
    assert (none.decision, one.decision) == ("undecided", "undecided")
    assert (none.p, none.p_adjusted, none.estimates[0].mean) == (1.0, 1.0, None)
    assert none.estimates[0].left_out == (0, 1, 2, 3, 4)
    assert (one.estimates[0].mean, one.estimates[0].low) == (pytest.approx(-2.0), None)
    assert none.sentence == (
        "AP: GN minus BN, at batch size 2: not measured (0 seeds, 5 left out). "
        "Above 0: undecided (p = 1)."
    )
    assert "-2 (no confidence interval, 1 seed, 4 left out)" in one.sentence


def test_sentences_have_estimates_claim_and_decision():
    values = study(LN=(3.0, 0.0, 1.0))
    rules = [difference(threshold=1.0), change(), equivalence(0.5, (8, 32)), difference((2, 8))]
    sentences = [outcome.sentence for outcome in judge(rules, values, axis="batch size").outcomes]
    interval = "{} (95 % confidence interval {} to {}, 5 seeds)"
    first = interval.format(3, 2.9, "3.1")
    assert sentences[0].startswith(
        f"AP: LN minus BN, at batch size 2: {first}. Above 1: supported (p = "
    )
    assert ", Holm-adjusted p = " in sentences[0]
    assert sentences[1].startswith(
        "AP: change of LN minus change of BN, from batch size 32 to 2: 2 ("
    )
    assert "at batch size 8: " in sentences[2]
    assert "; at batch size 32: 1 (90 % confidence interval" in sentences[2]
    assert "Within 0.5 of zero: refuted" in sentences[2]
    assert "averaged over batch size 2, 8: 1.5" in sentences[3]


def test_a_verdict_can_be_stored_as_json_without_nan():
    rules = [difference(), change(), equivalence(), difference(arm="GN")]
    values = study(LN=(3.0, 0.0, 1.0))
    values[at("LN", 2)][0] = np.float64(7.0)
    table = dataclasses.asdict(judge(rules, values))
    again = json.loads(json.dumps(table, allow_nan=False))
    assert [outcome["rule"]["kind"] for outcome in again["outcomes"]] == [
        "difference",
        "difference_in_differences",
        "equivalence",
        "difference",
    ]
    assert again["verdict"] == table["verdict"]


def test_cells_are_exactly_those_that_a_rule_needs():
    values = study(LN=(3.0, 0.0, 1.0), GN=(1.0, 1.0, 1.0))
    for rule in (difference((2, 8)), change(), equivalence(axis_values=(8, 32))):
        needed = cells(rule)
        assert decide(rule, {key: values[key] for key in needed}) == decide(rule, values)
        for gone in needed:
            rest = {key: values[key] for key in needed if key != gone}
            assert any(e.mean is None for e in decide(rule, rest).estimates)


def test_rules_survive_a_round_trip_through_json():
    adapter = pydantic.TypeAdapter(tuple[Rule, ...])
    rules = (difference((2, 8), threshold=1.0), change(), equivalence())
    assert adapter.validate_json(adapter.dump_json(rules), strict=True) == rules
    assert len({*rules, *rules}) == 3
    with pytest.raises(pydantic.ValidationError, match="magrin"):
        adapter.validate_python([{"kind": "equivalence", "magrin": 1.0}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: difference(arm="BN"), "baseline: is 'BN', and so is the arm"),
        (lambda: difference(()), "axis_values: is"),
        (lambda: equivalence(axis_values=(2, 2)), "axis_values: is"),
        (lambda: difference(threshold=math.nan), "threshold is nan"),
        (lambda: change(threshold=math.inf), "threshold is inf"),
        (lambda: change(start=2, end=2), "end: is 2, and so is start"),
        (lambda: equivalence(margin=0.0), "margin is 0.0"),
        (
            lambda: equivalence(axis_values=(2, 32), arm="BN", baseline_value=32),
            "is 'BN', and so is the arm",
        ),
        (lambda: change(arm="BN", baseline_evaluation="running"), "is 'BN', and so is the arm"),
        (lambda: Claim(statement="", rules=(change(),)), "statement: is empty"),
        (lambda: Claim(statement="x", rules=()), "rules: is empty; it must have one rule or more"),
        (lambda: Claim(statement="x", rules=(change(),), alpha=0.5), "alpha is 0.5"),
        (lambda: judge([], {}), "no rules"),
        (lambda: judge([difference(metric=None)], {}), "a rule without a metric"),
        (lambda: judge([difference()], {}, alpha=0.5), "alpha must be between"),
    ],
)
def test_invalid_rules_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
