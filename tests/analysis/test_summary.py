"""Summaries: means, intervals, paired differences, findings and verdicts of a study."""

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


def test_rows_are_means_in_points_with_t_intervals(results):
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


def test_the_change_of_the_difference_is_the_difference_of_the_changes(results):
    summary = summarize(STUDY, results)
    row = find(summary.change_differences, arm="LN")
    small, large = (find(summary.differences, axis_value=value).values for value in (2, 32))
    expected = t_interval(small[seed] - large[seed] for seed in small)
    np.testing.assert_allclose(bounds(row), expected)


def test_only_arms_with_differing_statistics_have_gains(results):
    gains = summarize(STUDY, results).gains
    assert {row.arm for row in gains} == {"BN"}
    np.testing.assert_allclose(find(gains, evaluation="precise", axis_value=2).mean, 3.9)


def test_findings_follow_the_confidence_intervals(results):
    findings = summarize(STUDY, results).findings
    assert findings[0].startswith(
        "From batch size 32 to 2, the difference LN minus BN in AP increases by 9.0 AP (95 % "
    )
    above = "LN is 8.3 AP above BN (95 % confidence interval 6.9 to 9.8, 3 seeds)."
    assert f"At batch size 2, {above}" in findings
    assert any(f.startswith("At batch size 32, the difference LN minus BN") for f in findings)
    assert any("includes zero" in f and "undecided" in f for f in findings)
    recovery = next(f for f in findings if "re-estimated" in f)
    assert recovery.endswith("This recovers 38 % of the 10.3 AP lost from batch size 32.")
    assert not any("equal" in f for f in findings)


def test_swapping_the_arms_turns_above_into_below(results):
    findings = summarize(STUDY | {"arms": ["LN", "BN"]}, results).findings
    below = "BN is 8.3 AP below LN (95 % confidence interval 6.9 to 9.8, 3 seeds)."
    assert f"At batch size 2, {below}" in findings
    assert "the difference BN minus LN in AP decreases by 9.0 AP" in findings[0]


EQUAL = STUDY | {"metric": "accuracy", "dataset": {"test_images": 500}}


def equal_differences(metric):
    """Results of two seeds in which LN is 20.6 points above BN at both axis values."""
    found = []
    for value, seed in itertools.product((2, 32), (0, 1)):
        bn = 0.3 + 0.1 * seed
        for arm, number in (("BN", bn), ("LN", bn + 0.206)):
            one = result(arm, value, seed, 0.0)
            found.append(one | {"metrics": {"running": {metric: number}}})
    return found


def test_equal_differences_have_an_interval_from_the_resolution_of_the_metric():
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


def test_the_best_mean_notes_an_interval_beyond_0_to_100():
    found = [result("BN", 2, seed, ap) for seed, ap in enumerate((0.95, 0.99))]
    best = [f for f in summarize(STUDY, found).findings if f.startswith("The best mean")]
    assert "it exceeds 0 to 100, the range of the metric" in best[0]
    found = [result("BN", 2, seed, ap) for seed, ap in enumerate((0.50, 0.51))]
    best = [f for f in summarize(STUDY, found).findings if f.startswith("The best mean")]
    assert "exceeds" not in best[0]


@pytest.mark.parametrize("status", ["diverged", "failed"])
@pytest.mark.parametrize(("arm", "verdict"), [("BN", "above"), ("LN", "undecided")])
def test_no_finding_favors_an_arm_for_its_failed_trial(arm, verdict, status, results):
    # LN is clearly above BN in the three seeds that both have.
    results += [result(name, 2, 3, 0.3) for name in ("BN", "LN")]
    lost = next(r for r in results if (r["arm"], r["seed"]) == (arm, 3))
    lost |= {"status": status, "metrics": {}}
    summary = summarize(STUDY, results)
    row = find(summary.differences, axis_value=2)
    assert row.low > 0
    assert row.verdict == verdict
    assert row.failures.startswith(f"Diverged or failed: {arm} at batch size 2 (1 seed). Leaving")
    [finding] = [f for f in summary.findings if f.startswith("At batch size 2") and "LN" in f]
    assert finding.endswith(row.failures)
    without = "undecided: 8.3 (95 % confidence interval 6.9 to 9.8, 3 seeds) without failed trials"
    assert (without in finding) == (verdict == "undecided")
    # The difference in differences includes the failed cell; the difference at 32 does not.
    assert find(summary.change_differences, arm="LN").verdict == verdict
    assert find(summary.differences, axis_value=32).failures == ""


def test_a_failed_trial_favors_neither_of_two_kinds_of_statistics(results):
    results[0] |= {"status": "diverged", "metrics": {}}
    row = find(summarize(STUDY, results).gains, evaluation="precise", arm="BN", axis_value=2)
    assert (row.verdict, row.failures) == ("above", "")


def test_diverged_and_failed_trials_are_excluded_and_listed(results):
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
    assert any("with 1 seed, too few for a confidence interval" in f for f in summary.findings)


def test_a_study_without_results_has_no_verdicts():
    summary = summarize(STUDY, [])
    assert summary.findings == ["No trial is done yet."]
    assert summary.verdicts == []
    assert summary.counts == {"planned": 12, "missing": 12, "done": 0}
    assert summary.best is None


def test_findings_skip_comparisons_that_an_unfinished_study_has_not_measured(results):
    one = [result for result in results if result["arm"] == "BN" and result["axis_value"] == 2]
    findings = summarize(STUDY, one).findings
    assert not any("not measured" in finding for finding in findings)
    assert any(finding.startswith("The best mean") for finding in findings)


def test_an_axis_without_numbers_has_no_changes(results):
    for trial in results:
        trial["axis_value"] = {2: "small", 32: "large"}[trial["axis_value"]]
    summary = summarize(STUDY | {"axis_values": ["small", "large"]}, results)
    assert summary.changes == summary.change_differences == []
    assert find(summary.differences, axis_value="small").n == 3


def test_best_and_worst_are_the_extreme_means_with_running_statistics(results):
    summary = summarize(STUDY, results)
    best, worst = summary.best, summary.worst
    assert (best.arm, best.axis_value) == ("BN", 32)
    assert (worst.arm, worst.axis_value, worst.evaluation) == ("BN", 2, "running")


def test_read_summary_returns_the_written_summary(results, tmp_path):
    results[0]["metrics"]["running"]["AP"] = math.nan
    summary = summarize(STUDY, results)
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    assert find(summary.rows, metric="AP_small", arm="LN", axis_value=2).mean is None


def test_speed_is_examples_per_second(results):
    results[0]["seconds"] = 10.0
    speed = summarize(STUDY, results).speed
    row = next(r for r in speed if (r.arm, r.axis_value) == ("BN", 2))
    np.testing.assert_allclose(row.mean, (100 + 50 + 50) / 3)


@pytest.fixture
def apart():
    """BN at both axis values; LN, to which the axis does not apply, once per seed."""
    bn = [result("BN", k, seed, ap) for k in BN for seed, ap in enumerate(BN[k])]
    return bn + [result("LN", None, seed, ap) for seed, ap in enumerate(LN[2])]


def test_a_result_without_an_axis_value_counts_at_every_axis_value(apart):
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


def test_an_arm_without_the_axis_has_no_changes(apart):
    summary = summarize(STUDY, apart)
    assert {row.arm for row in summary.changes} == {"BN"}
    assert not any("change of LN" in finding for finding in summary.findings)
    # The difference in differences is the change of the reference alone.
    shift = find(summary.change_differences, arm="LN")
    change = find(summary.changes, arm="BN")
    np.testing.assert_allclose(shift.mean, -change.mean)


def test_findings_name_an_arm_without_the_axis_without_a_value(apart):
    apart[-1] |= {"status": "diverged"}
    for trial in apart[:6]:
        trial["metrics"]["running"]["AP"] = 0.1
    summary = summarize(STUDY, apart)
    assert summary.best.axis_value is None
    assert any(f.startswith("The best mean is 39.0 AP: LN (") for f in summary.findings)
    assert summary.findings[-1].endswith("in favor of the arm: LN, 1 seed diverged.")


def tuning(arm, batch_size, scores):
    return [
        result(arm, batch_size, 1000, ap) | {"tuned": {"train.learning_rate": rate}}
        for rate, ap in scores.items()
    ]


def test_tuning_trials_do_not_affect_the_results(results):
    tried = tuning("BN", 2, {0.1: 0.2, 0.3: 0.9}) + tuning("LN", 2, {0.1: 0.2, 0.3: 0.3, 0.9: 0.1})
    plain = summarize(STUDY, results)
    summary = summarize(STUDY | {"tune": "train.learning_rate"}, results, tried)
    bn, ln = summary.tuning
    assert (bn.chosen, ln.chosen) == (0.3, 0.3)
    assert [row.points for row in bn.tried] == [20.0, 90.0]
    for part in ("rows", "differences", "changes", "counts", "best", "speed"):
        assert getattr(summary, part) == getattr(plain, part)
    [finding] = [f for f in summary.findings if "Tuning" in f]
    assert finding == (
        "Tuning chose the largest train.learning_rate it tried, so that a better value may lie "
        "outside the tried range: BN at batch size 2."
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


def test_a_verdict_has_the_hash_of_its_claim(results):
    [verdict] = summarize(CLAIMED, results).verdicts
    complete = Claim(statement=CLAIM.statement, rules=(replace(RULE, metric="AP"),))
    assert verdict.hash == claim_hash(complete)


def test_a_claim_is_undecided_until_all_seeds_of_its_cells_have_ended(results):
    assert summarize(CLAIMED, results).verdicts[0].verdict == "SUPPORTED"
    [verdict] = summarize(CLAIMED, results[:-1]).verdicts
    assert verdict.verdict == "INCONCLUSIVE"
    assert len(verdict.outcomes[0].estimates[0].by_seed) == 2
    [verdict] = summarize(CLAIMED, []).verdicts
    assert verdict.verdict == "INCONCLUSIVE"
    assert "not measured" in verdict.outcomes[0].sentence


def test_a_diverged_trial_counts_as_ended(results):
    results[-1] |= {"status": "diverged"}
    [verdict] = summarize(CLAIMED, results).verdicts
    assert "not all of its trials" not in verdict.outcomes[0].sentence
    assert verdict.outcomes[0].estimates[0].left_out == (2,)


def test_a_claim_on_an_arm_without_the_axis_is_judged_once_its_seeds_have_ended(apart):
    [verdict] = summarize(CLAIMED, apart).verdicts
    change = find(summarize(STUDY, apart).changes, arm="BN")
    assert verdict.verdict == "SUPPORTED"
    np.testing.assert_allclose(verdict.outcomes[0].estimates[0].mean, change.mean)
    assert summarize(CLAIMED, apart[:-1]).verdicts[0].verdict == "INCONCLUSIVE"


def test_read_summary_returns_the_written_verdicts(results, tmp_path):
    results[0]["metrics"]["running"]["AP"] = math.nan
    summary = summarize(CLAIMED, results)
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
