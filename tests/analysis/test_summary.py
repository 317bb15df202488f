import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from fpnlab.analysis import summary as module
from fpnlab.config.claims import Claim, DifferenceInDifferences, claim_hash, write_claims
from fpnlab.records.study_records import read_summary, write_record
from fpnlab.stats.intervals import paired_difference, t_interval

from .cases import plan_of, results_of

STUDY = {
    "name": "batch-size",
    "trials": 12,
    "arms": ["BN", "LN"],
    "axis": "train.batch_size",
    "axis_values": [2, 32],
    "metric": "AP",
}
BN = {2: (0.30, 0.31, 0.33), 32: (0.40, 0.42, 0.43)}
LN = {2: (0.38, 0.40, 0.41), 32: (0.39, 0.41, 0.43)}
PRECISE = 0.04


def summarize(study, results, tuning=()):
    return module.summarize(plan_of(study), results_of(results), results_of(tuning))


def result(arm, batch_size, seed, ap, precise=0.0, **fields):
    metrics = {
        "running": {"AP": ap, "AP_small": None},
        "precise": {"AP": ap + precise, "AP_small": None},
        "batch": {"AP": ap, "AP_small": None},
    }
    base = {"arm": arm, "axis_value": batch_size, "seed": seed, "metrics": metrics}
    base |= {"trial": f"{arm}-{batch_size}-{seed}", "status": "done", "error": None}
    return base | {"examples": 1000, "seconds": 20.0} | fields


@pytest.fixture
def results():
    return [
        result(
            arm,
            batch_size,
            seed,
            ap,
            PRECISE - seed / 1000 if (arm, batch_size) == ("BN", 2) else 0,
        )
        for arm, values in (("BN", BN), ("LN", LN))
        for batch_size in values
        for seed, ap in enumerate(values[batch_size])
    ]


def find(rows, **keys):
    keys = {"metric": "AP", "evaluation": "running"} | keys
    found = [row for row in rows if all(getattr(row, k) == v for k, v in keys.items())]
    assert len(found) == 1
    return found[0]


def bounds(row):
    return row.mean, row.low, row.high, row.n


def points(values):
    return {seed: 100 * value for seed, value in enumerate(values)}


def test_rows_are_means_in_points_with_their_intervals(results):
    summary = summarize(STUDY, results)
    for (arm, values), batch_size in itertools.product((("BN", BN), ("LN", LN)), (2, 32)):
        row = find(summary.rows, arm=arm, axis_value=batch_size)
        np.testing.assert_allclose(bounds(row), t_interval(points(values[batch_size]).values()))


def test_differences_and_changes_are_paired_by_seed(results):
    summary = summarize(STUDY, results)
    difference = find(summary.differences, arm="LN", axis_value=2)
    expected = paired_difference(points(BN[2]), points(LN[2])).interval
    np.testing.assert_allclose(bounds(difference), expected)
    change = find(summary.changes, arm="BN")
    expected = paired_difference(points(BN[32]), points(BN[2])).interval
    np.testing.assert_allclose(bounds(change), expected)
    assert (difference.verdict, change.verdict) == ("above", "below")


def test_change_of_the_difference_is_the_difference_of_the_changes(results):
    summary = summarize(STUDY, results)
    row = find(summary.change_differences, arm="LN")
    small, large = (find(summary.differences, axis_value=value).values for value in (2, 32))
    expected = t_interval(small[seed] - large[seed] for seed in small)
    np.testing.assert_allclose(bounds(row), expected)


def test_only_arms_whose_statistics_matter_have_gains(results):
    gains = summarize(STUDY, results).gains
    assert {row.arm for row in gains} == {"BN"}
    np.testing.assert_allclose(find(gains, evaluation="precise", axis_value=2).mean, 3.9)


def test_findings_say_what_the_intervals_decide(results):
    findings = summarize(STUDY, results).findings
    assert findings[0].startswith("From batch size 32 to 2, the balance shifts by 9.0 AP toward LN")
    assert "At batch size 2, LN is 8.3 AP above BN (95 % interval 6.9 to 9.8, 3 seeds)." in findings
    assert any(f.startswith("At batch size 32, the difference LN minus BN") for f in findings)
    assert any("includes zero" in f and "undecided" in f for f in findings)
    recovery = next(f for f in findings if "re-estimated" in f)
    assert recovery.endswith("That is 38 % of the 10.3 AP lost since batch size 32.")
    assert not any("equal" in f for f in findings)


def test_swapping_the_arms_turns_above_into_below(results):
    findings = summarize(STUDY | {"arms": ["LN", "BN"]}, results).findings
    assert "At batch size 2, BN is 8.3 AP below LN (95 % interval 6.9 to 9.8, 3 seeds)." in findings
    assert "toward LN" in findings[0]


EQUAL = STUDY | {"metric": "accuracy", "dataset": {"test_images": 500}}


def equal_differences(metric):
    """Two seeds in which LN is 20.6 points above BN at both axis values."""
    found = []
    for value, seed in itertools.product((2, 32), (0, 1)):
        bn = 0.3 + 0.1 * seed
        for arm, number in (("BN", bn), ("LN", bn + 0.206)):
            one = result(arm, value, seed, 0.0)
            found.append(one | {"metrics": {"running": {metric: number}}})
    return found


def test_two_seeds_with_equal_differences_have_an_interval_by_the_steps_of_the_metric():
    half = {"accuracy": 0.2, "AP": 0.1}
    for metric, step in half.items():
        summary = summarize(EQUAL | {"metric": metric}, equal_differences(metric))
        row = find(summary.differences, metric=metric, arm="LN", axis_value=2)
        expected = 12.7062 * step / math.sqrt(6) / math.sqrt(2)
        assert row.high - row.mean == pytest.approx(expected, rel=1e-4)
        assert row.mean - row.low == pytest.approx(expected, rel=1e-4)
        shift = find(summary.change_differences, metric=metric, arm="LN")
        assert shift.high - shift.mean == pytest.approx(math.sqrt(2) * expected, rel=1e-4)
    assert not any(
        "20.6 to 20.6" in f for f in summarize(EQUAL, equal_differences("accuracy")).findings
    )


def test_an_interval_of_a_mean_that_leaves_0_to_100_is_said_so_where_it_is_the_best():
    found = [result("BN", 2, seed, ap) for seed, ap in enumerate((0.95, 0.99))]
    best = [f for f in summarize(STUDY, found).findings if f.startswith("The best mean")]
    assert "no mean lies beyond 0 to 100, which the interval does not know" in best[0]
    found = [result("BN", 2, seed, ap) for seed, ap in enumerate((0.50, 0.51))]
    best = [f for f in summarize(STUDY, found).findings if f.startswith("The best mean")]
    assert "beyond" not in best[0]


@pytest.mark.parametrize("status", ["diverged", "failed"])
@pytest.mark.parametrize(("arm", "verdict"), [("BN", "above"), ("LN", "undecided")])
def test_no_finding_favors_an_arm_for_the_trial_that_it_lost(arm, verdict, status, results):
    # LN is clearly above BN in the three seeds that both have.
    results += [result(name, 2, 3, 0.3) for name in ("BN", "LN")]
    lost = next(r for r in results if (r["arm"], r["seed"]) == (arm, 3))
    lost |= {"status": status, "metrics": {}}
    summary = summarize(STUDY, results)
    row = find(summary.differences, axis_value=2)
    assert row.low > 0
    assert row.verdict == verdict
    assert row.failures.startswith(f"Diverged or failed: {arm} at batch size 2 (1 seed). That")
    [said] = [f for f in summary.findings if f.startswith("At batch size 2") and "LN" in f]
    assert said.endswith(row.failures)
    assert ("undecided: 8.3 (95 % interval 6.9 to 9.8, 3 seeds) without failed" in said) == (
        verdict == "undecided"
    )
    # The shift is the difference at 2 minus that at 32; nothing was lost there.
    assert find(summary.change_differences, arm="LN").verdict == verdict
    assert find(summary.differences, axis_value=32).failures == ""


def test_a_trial_that_is_lost_under_both_kinds_of_statistics_favors_neither(results):
    results[0] |= {"status": "diverged", "metrics": {}}
    row = find(summarize(STUDY, results).gains, evaluation="precise", arm="BN", axis_value=2)
    assert (row.verdict, row.failures) == ("above", "")


def test_diverged_and_failed_trials_are_left_out_and_named(results):
    results[0] |= {"status": "diverged", "error": "loss is nan"}
    results[5] |= {"status": "failed", "error": "out of memory", "metrics": {}}
    summary = summarize(STUDY, results)
    assert find(summary.rows, arm="BN", axis_value=2).n == 2
    assert find(summary.differences, axis_value=2).values.keys() == {1, 2}
    assert summary.counts == {
        "planned": 12,
        "missing": 0,
        "diverged": 1,
        "done": 10,
        "failed": 1,
    }
    assert [(t.trial, t.error) for t in summary.left_out] == [
        ("BN-2-0", "loss is nan"),
        ("BN-32-2", "out of memory"),
    ]
    assert "BN at batch size 2, 1 seed diverged" in summary.findings[-1]


def test_an_arm_without_any_finished_seed_is_reported_as_not_measured(results):
    for trial in results[:3]:
        trial |= {"status": "diverged", "metrics": {}}
    summary = summarize(STUDY, results)
    row = find(summary.differences, axis_value=2)
    assert (row.verdict, row.n, row.mean) == ("unmeasured", 0, None)
    assert any(f.startswith("At batch size 2") and "not measured" in f for f in summary.findings)


def test_a_single_seed_gives_means_but_no_verdict(results):
    summary = summarize(STUDY, [r for r in results if r["seed"] == 0])
    row = find(summary.differences, axis_value=2)
    assert (row.n, row.low, row.verdict) == (1, None, "unmeasured")
    assert any("1 seed, which gives no interval" in f for f in summary.findings)


def test_a_study_without_results_has_nothing_to_say():
    summary = summarize(STUDY, [])
    assert summary.findings == ["No trial is done yet."]
    assert summary.verdicts == []
    assert summary.counts == {"planned": 12, "missing": 12, "done": 0}
    assert summary.best is None


def test_what_an_unfinished_study_has_not_measured_yet_is_no_finding(results):
    one = [result for result in results if result["arm"] == "BN" and result["axis_value"] == 2]
    findings = summarize(STUDY, one).findings
    assert not any("not measured" in finding for finding in findings)
    assert any(finding.startswith("The best mean") for finding in findings)


def test_an_axis_without_numbers_has_no_largest_end(results):
    for trial in results:
        trial["axis_value"] = {2: "small", 32: "large"}[trial["axis_value"]]
    summary = summarize(STUDY | {"axis_values": ["small", "large"]}, results)
    assert summary.changes == summary.change_differences == []
    assert find(summary.differences, axis_value="small").n == 3


def test_best_and_worst_are_the_extreme_means_of_the_running_evaluation(results):
    summary = summarize(STUDY, results)
    best, worst = summary.best, summary.worst
    assert (best.arm, best.axis_value) == ("BN", 32)
    assert (worst.arm, worst.axis_value, worst.evaluation) == ("BN", 2, "running")


def test_a_summary_is_read_as_it_was_written(results, tmp_path):
    results[0]["metrics"]["running"]["AP"] = math.nan
    summary = summarize(STUDY, results)
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    assert find(summary.rows, metric="AP_small", arm="LN", axis_value=2).mean is None


def test_speed_is_examples_over_seconds(results):
    results[0]["seconds"] = 10.0
    speed = summarize(STUDY, results).speed
    row = next(r for r in speed if (r.arm, r.axis_value) == ("BN", 2))
    np.testing.assert_allclose(row.mean, (100 + 50 + 50) / 3)


@pytest.fixture
def apart():
    """BN at both axis values; LN, to which the axis does not apply, once a seed."""
    bn = [result("BN", k, seed, ap) for k in BN for seed, ap in enumerate(BN[k])]
    return bn + [result("LN", None, seed, ap) for seed, ap in enumerate(LN[2])]


def test_a_result_without_axis_value_counts_at_every_one(apart):
    summary = summarize(STUDY | {"trials": 9}, apart)
    for batch_size in (2, 32):
        row = find(summary.rows, arm="LN", axis_value=batch_size)
        np.testing.assert_allclose(bounds(row), t_interval(points(LN[2]).values()))
        difference = find(summary.differences, axis_value=batch_size)
        # At 32 the seeds have equal differences, and the deviation is that of rounding to 0.1.
        both = points(BN[batch_size]), points(LN[2])
        expected = paired_difference(*both, 0.95, 0.1 / math.sqrt(6)).interval
        np.testing.assert_allclose(bounds(difference), expected)
    assert summary.counts == {"planned": 9, "missing": 0, "done": 9}
    assert {(row.arm, row.n) for row in summary.speed} == {("BN", 3), ("LN", 3)}


def test_an_arm_that_cannot_change_is_not_said_to_have_changed(apart):
    summary = summarize(STUDY, apart)
    assert {row.arm for row in summary.changes} == {"BN"}
    assert not any("change of LN" in finding for finding in summary.findings)
    # The shift toward it is all the reference's change.
    shift = find(summary.change_differences, arm="LN")
    change = find(summary.changes, arm="BN")
    np.testing.assert_allclose(shift.mean, -change.mean)


def test_an_arm_without_axis_value_is_named_without_one(apart):
    apart[-1] |= {"status": "diverged"}
    for trial in apart[:6]:
        trial["metrics"]["running"]["AP"] = 0.1
    summary = summarize(STUDY, apart)
    assert summary.best.axis_value is None
    assert any(f.startswith("The best mean is 39.0 AP: LN (") for f in summary.findings)
    assert summary.findings[-1].endswith("flatter the arm: LN, 1 seed diverged.")


def tuning(arm, batch_size, scores):
    return [
        result(arm, batch_size, 1000, ap) | {"tuned": {"train.learning_rate": rate}}
        for rate, ap in scores.items()
    ]


def test_tuning_is_apart_from_the_results(results):
    tried = tuning("BN", 2, {0.1: 0.2, 0.3: 0.9}) + tuning("LN", 2, {0.1: 0.2, 0.3: 0.3, 0.9: 0.1})
    plain = summarize(STUDY, results)
    summary = summarize(STUDY | {"tune": "train.learning_rate"}, results, tried)
    bn, ln = summary.tuning
    assert (bn.chosen, ln.chosen) == (0.3, 0.3)
    assert [row.points for row in bn.tried] == [20.0, 90.0]
    for part in ("rows", "differences", "changes", "counts", "best", "speed"):
        assert getattr(summary, part) == getattr(plain, part)
    [said] = [f for f in summary.findings if "Tuning" in f]
    assert said == (
        "Tuning chose the largest train.learning_rate that it tried, so that a better one may lie "
        "beyond: BN at batch size 2."
    )


RULE = DifferenceInDifferences(
    arm="BN", baseline="LN", start=32, end=2, side="below", threshold=-1.0
)
CLAIM = Claim(statement="BN changes more than LN.", rules=(RULE,))
CLAIMED = STUDY | {"seeds": [0, 1, 2], "claims": write_claims([CLAIM], "AP")}


def test_a_claim_is_judged_in_points(results):
    [verdict] = summarize(CLAIMED, results).verdicts
    assert (verdict.verdict, verdict.statement) == ("SUPPORTED", CLAIM.statement)
    [estimate] = verdict.outcomes[0].estimates
    shift = find(summarize(STUDY, results).change_differences, arm="LN")
    np.testing.assert_allclose(estimate.mean, -shift.mean)
    assert estimate.mean < -5
    assert "from batch size 32 to 2: -9 (" in verdict.outcomes[0].sentence


def test_a_verdict_names_the_hash_of_the_claim_that_was_judged(results):
    [verdict] = summarize(CLAIMED, results).verdicts
    settled = Claim(statement=CLAIM.statement, rules=(replace(RULE, metric="AP"),))
    assert verdict.hash == claim_hash(settled)


def test_a_claim_waits_for_all_seeds_of_its_cells(results):
    assert summarize(CLAIMED, results).verdicts[0].verdict == "SUPPORTED"
    [verdict] = summarize(CLAIMED, results[:-1]).verdicts
    assert verdict.verdict == "INCONCLUSIVE"
    assert len(verdict.outcomes[0].estimates[0].by_seed) == 2
    [verdict] = summarize(CLAIMED, []).verdicts
    assert verdict.verdict == "INCONCLUSIVE"
    assert "not measured" in verdict.outcomes[0].sentence


def test_a_trial_that_diverged_is_not_waited_for(results):
    results[-1] |= {"status": "diverged"}
    [verdict] = summarize(CLAIMED, results).verdicts
    assert "not all of its trials" not in verdict.outcomes[0].sentence
    assert verdict.outcomes[0].estimates[0].left_out == (2,)


def test_an_arm_without_the_axis_is_judged_once_its_seeds_have_ended(apart):
    [verdict] = summarize(CLAIMED, apart).verdicts
    change = find(summarize(STUDY, apart).changes, arm="BN")
    assert verdict.verdict == "SUPPORTED"
    np.testing.assert_allclose(verdict.outcomes[0].estimates[0].mean, change.mean)
    assert summarize(CLAIMED, apart[:-1]).verdicts[0].verdict == "INCONCLUSIVE"


def test_verdicts_are_read_as_they_were_written(results, tmp_path):
    results[0]["metrics"]["running"]["AP"] = math.nan
    summary = summarize(CLAIMED, results)
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
