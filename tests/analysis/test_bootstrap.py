"""Bootstrap intervals estimate the same numbers as t intervals, over seeds and test items."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from scipy import stats

from fpnlab.analysis import summary as module
from fpnlab.analysis.bootstrap import COMPARISONS, with_bootstrap
from fpnlab.config.claims import (
    Claim,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    write_claims,
)
from fpnlab.records.study_records import read_summary, write_record
from fpnlab.stats.resampling import hierarchical_bootstrap

from .cases import plan_of, results_of

BN = {"arm": "BN", "baseline": "LN"}
CLAIMS = (
    Claim(
        statement="BN depends on the batch size.",
        rules=(
            DifferenceInDifferences(**BN, start=32, end=2, side="below", threshold=-10.0),
            Difference(**BN, axis_values=(2, 32), side="below"),
        ),
    ),
    Claim(
        statement="BN is what its running statistics make of it.",
        rules=(
            Equivalence(
                arm="BN",
                baseline="BN",
                axis_values=(2, 32),
                evaluation="precise",
                baseline_evaluation="running",
                margin=30.0,
                metric="top5",
            ),
        ),
    ),
)
STUDY = {
    "name": "test",
    "axis": "train.batch_size",
    "axis_values": [2, 32],
    "arms": ["BN", "LN"],
    "metric": "accuracy",
    "trials": 12,
    "seeds": [0, 1, 2],
    "claims": write_claims(CLAIMS, "accuracy"),
}
SHARES = {("BN", 2): 0.5, ("BN", 32): 0.8, ("LN", 2): 0.7, ("LN", 32): 0.75}


def items(arm, axis_value, seed, size=60):
    """Correctness of an artificial trial on each item; some items are hard for all trials."""
    random = np.random.default_rng([seed, axis_value or 0, arm == "LN"])
    ease = np.random.default_rng(9).normal(0, 1, size) + random.normal(0, 0.7, size)
    share = SHARES[arm, axis_value or 2]
    found = {}
    for source, more in (("running", 0.0), ("precise", 0.15 * (arm == "BN")), ("batch", 0.0)):
        for metric, easier in (("accuracy", 0.0), ("top5", 1.0)):
            found[f"{metric}_{source}"] = ease > stats.norm.ppf(1 - share) * 1.2 - more - easier
    return found


def write(folder, arm, axis_value, seed, arrays):
    """Writes a trial's items, and returns its result."""
    name = f"{arm}-{axis_value}-{seed}"
    (folder / name).mkdir()
    np.savez_compressed(folder / name / "items.npz", **arrays)
    metrics = {}
    for key, right in arrays.items():
        metric, _, source = key.partition("_")
        metrics.setdefault(source, {})[metric] = float(right.mean())
    base = {"trial": name, "arm": arm, "axis_value": axis_value, "seed": seed, "error": None}
    return base | {"status": "done", "metrics": metrics, "examples": 10, "seconds": 1.0}


@pytest.fixture
def results(tmp_path):
    cells = product(("BN", "LN"), (2, 32), range(3))
    return [write(tmp_path, *cell, items(*cell)) for cell in cells]


def summarize(results):
    return module.summarize(plan_of(STUDY), results_of(results))


def bootstrapped(results, folder):
    found = results_of(results)
    return with_bootstrap(summarize(results), plan_of(STUDY), found, lambda name: folder / name)


def matrix(of_seed):
    return np.stack([100.0 * of_seed(seed) for seed in range(3)])


def right(arm, axis_value, seed, name="accuracy_running"):
    return items(arm, axis_value, seed)[name].astype(float)


def row(summary, part, **keys):
    keys = {"metric": "accuracy", "evaluation": "running"} | keys
    [found] = [
        r for r in getattr(summary, part) if all(getattr(r, k) == v for k, v in keys.items())
    ]
    return found


def has_interval(*args, **keys):
    return row(*args, **keys).bootstrap is not None


def differ(s, at=2):
    return right("LN", at, s) - right("BN", at, s)


def change(s, arm="BN"):
    return right(arm, 2, s) - right(arm, 32, s)


def gain(s, at=2, metric="accuracy"):
    return right("BN", at, s, f"{metric}_precise") - right("BN", at, s, f"{metric}_running")


@pytest.mark.parametrize(
    ("part", "keys", "of_seed"),
    [
        ("differences", {"axis_value": 2}, differ),
        ("changes", {"arm": "BN"}, change),
        ("change_differences", {"arm": "LN"}, lambda s: change(s, "LN") - change(s)),
        ("gains", {"evaluation": "precise", "axis_value": 2}, gain),
    ],
)
def test_a_row_has_the_bootstrap_interval_of_its_difference_by_seed_and_item(
    part, keys, of_seed, results, tmp_path
):
    summary = bootstrapped(results, tmp_path)
    found, expected = row(summary, part, **keys), hierarchical_bootstrap(matrix(of_seed))
    interval = found.bootstrap
    assert (interval.low, interval.high, interval.items) == (*expected[1:3], 60)
    assert interval.low < interval.high
    assert found.mean == pytest.approx(expected.mean)
    assert interval.verdict == {1: "above", -1: "below", 0: "undecided"}[expected.sign]


def test_each_estimate_of_a_claim_has_a_bootstrap_interval_at_its_level(results, tmp_path):
    summary = bootstrapped(results, tmp_path)
    found = {(o.claim, o.rule, o.place): o for o in summary.claim_bootstrap}
    for (claim, rule, place), of_seed, level in [
        ((0, 0, "from batch size 32 to 2"), lambda s: change(s) - change(s, "LN"), 0.95),
        (
            (0, 1, "averaged over batch size 2, 32"),
            lambda s: -(differ(s) + differ(s, 32)) / 2,
            0.95,
        ),
        ((1, 0, "at batch size 2"), lambda s: gain(s, 2, "top5"), 0.9),
        ((1, 0, "at batch size 32"), lambda s: gain(s, 32, "top5"), 0.9),
    ]:
        interval = found.pop((claim, rule, place))
        expected = hierarchical_bootstrap(matrix(of_seed), level=level)
        estimates = summary.verdicts[claim].outcomes[rule].estimates
        [estimate] = [e for e in estimates if e.place == place]
        assert estimate.mean == pytest.approx(expected.mean)
        np.testing.assert_allclose((interval.low, interval.high), expected[1:3], atol=1e-9)
        assert (interval.level, interval.n, interval.items) == (level, 3, 60)
    assert found == {}


def test_the_bootstrap_of_identical_seeds_has_the_binomial_noise_of_the_items(tmp_path):
    """BN is correct on all items, LN on all but 12 of 60."""
    arrays = {"BN": np.ones(60, bool), "LN": np.arange(60) >= 12}
    cells = product(("BN", "LN"), (2, 32), range(3))
    trials = [write(tmp_path, *cell, {"accuracy_running": arrays[cell[0]]}) for cell in cells]
    found = row(bootstrapped(trials, tmp_path), "differences", axis_value=2)
    # Student's interval is over seeds, which differ only by the rounding of the accuracy.
    assert (found.low, found.high) == pytest.approx((-20, -20), abs=0.02)
    drawn = -100 * stats.binom(60, 12 / 60).ppf([0.975, 0.025]) / 60
    ends = found.bootstrap.low, found.bootstrap.high
    # A quantile of 10,000 resamples may be off by one item.
    np.testing.assert_allclose(ends, drawn, atol=100 / 60 + 1e-9)


def test_bootstrap_changes_no_other_field_of_the_summary(results, tmp_path):
    plain, summary = summarize(results), bootstrapped(results, tmp_path)
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    assert summary.items_left_out == {}
    without = {
        part: [dataclasses.replace(row, bootstrap=None) for row in getattr(summary, part)]
        for part in COMPARISONS
    }
    same = dataclasses.replace(summary, **without, claim_bootstrap=[], findings=plain.findings)
    assert same == plain


def test_findings_report_the_bootstrap_beside_the_t_interval_and_explain_it_once(results, tmp_path):
    summary = bootstrapped(results, tmp_path)
    found = row(summary, "changes", arm="BN")
    low, high = (-end for end in (found.bootstrap.high, found.bootstrap.low))
    assert found.verdict == "below"
    [finding] = [f for f in summary.findings if f.startswith("From batch size 32 to 2, BN loses")]
    assert finding.endswith(f"3 seeds; bootstrap interval {low:.1f} to {high:.1f}).")
    assert (
        sum("95 % intervals cover the true value in 75 to 88 %" in f for f in summary.findings) == 1
    )
    assert any("resample seeds and 60 test items" in f for f in summary.findings)


def of_counts(folder, counts):
    """BN is wrong on ``counts`` of 100 items by seed, LN on none, at both axis values."""
    trials = []
    for axis_value, (seed, wrong) in product((2, 32), enumerate(counts)):
        for arm, ends in (("BN", wrong), ("LN", 0)):
            arrays = {"accuracy_running": np.arange(100) >= ends}
            trials.append(write(folder, arm, axis_value, seed, arrays))
    return trials


def test_findings_report_a_bootstrap_interval_that_disagrees(tmp_path):
    # With three seeds the t interval of 10, 20 and 60 is wide; the bootstrap stays above zero.
    summary = bootstrapped(of_counts(tmp_path, (10, 20, 60)), tmp_path)
    found = row(summary, "differences", axis_value=2)
    assert (found.verdict, found.bootstrap.verdict) == ("undecided", "above")
    [finding] = [f for f in summary.findings if f.startswith("At batch size 2, the difference")]
    assert finding.endswith("includes zero. The bootstrap interval excludes zero.")
    interval = summary.claim_bootstrap[1]
    assert interval.agrees is False
    assert interval.sentence.endswith("It lies below 0, but the t interval includes 0.")


def test_findings_report_a_bootstrap_interval_that_includes_zero(tmp_path):
    # Each seed is wrong on the same two of 100 items: seeds agree, resampled items do not.
    summary = bootstrapped(of_counts(tmp_path, (2, 2, 2)), tmp_path)
    found = row(summary, "differences", axis_value=2)
    assert (found.verdict, found.bootstrap.verdict) == ("above", "undecided")
    assert any(f.endswith("). The bootstrap interval includes zero.") for f in summary.findings)
    assert "It includes 0, but the t interval lies below 0" in summary.claim_bootstrap[1].sentence


def test_agreement_is_relative_to_the_threshold_or_margin(results, tmp_path):
    shift, _, near, _ = bootstrapped(results, tmp_path).claim_bootstrap
    assert (shift.agrees, near.agrees) == (True, True)
    assert shift.sentence.endswith("(60 test items). It also lies below -10.")
    assert near.sentence.startswith("90 % bootstrap interval at batch size 2: ")
    assert near.sentence.endswith("(60 test items). It also lies within 30 of zero.")


def test_without_items_the_summary_is_unchanged(results, tmp_path):
    for path in tmp_path.glob("*/items.npz"):
        path.unlink()
    summary = summarize(results)
    assert (
        with_bootstrap(summary, plan_of(STUDY), results_of(results), lambda name: tmp_path / name)
        is summary
    )


def damage(path, how):
    content = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "torn":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            middle = content.index(b"accuracy_running") + 200
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :]
            )
        case "empty":
            path.write_bytes(b"")
        case "of another":
            path.write_bytes((path.parents[1] / "BN-32-0" / "items.npz").read_bytes())


@pytest.mark.parametrize("how", ["missing", "torn", "flipped", "empty", "of another"])
def test_unusable_items_only_remove_the_bootstrap_intervals_of_their_comparisons(
    how, results, tmp_path
):
    whole = bootstrapped(results, tmp_path)
    damage(tmp_path / "BN-2-1" / "items.npz", how)
    summary = bootstrapped(results, tmp_path)
    assert summary.verdicts == whole.verdicts
    near = row(summary, "differences", axis_value=2)
    assert near.bootstrap is None
    assert near.n == 3
    far = row(summary, "differences", axis_value=32)
    assert far == row(whole, "differences", axis_value=32)
    assert [o.place for o in summary.claim_bootstrap] == ["at batch size 32"]
    [(trial, reason)] = summary.items_left_out.items()
    assert trial == "BN-2-1"
    assert reason.startswith("items.npz ")
    [finding] = [
        f for f in summary.findings if f.startswith("Comparisons with these trials have no")
    ]
    assert f"BN-2-1 ({reason})" in finding


def test_a_diverged_seed_is_left_out_of_both_intervals(results, tmp_path):
    results[0] |= {"status": "diverged"}
    (tmp_path / "BN-2-0" / "items.npz").unlink()
    summary = bootstrapped(results, tmp_path)
    found = row(summary, "differences", axis_value=2)
    expected = hierarchical_bootstrap(matrix(differ)[1:])
    assert found.n == 2
    assert found.bootstrap.low == expected.low
    assert summary.items_left_out == {}


def test_trials_with_different_test_items_have_no_bootstrap_interval(results, tmp_path):
    (tmp_path / "LN-2-0" / "items.npz").unlink()
    (tmp_path / "LN-2-0").rmdir()
    results[6] = write(tmp_path, "LN", 2, 0, items("LN", 2, 0, size=50))
    summary = bootstrapped(results, tmp_path)
    assert not has_interval(summary, "differences", axis_value=2)
    assert has_interval(summary, "differences", axis_value=32)


def test_items_of_an_arm_without_the_axis_count_at_every_axis_value(results, tmp_path):
    apart = results[:6] + [write(tmp_path, "LN", None, s, items("LN", None, s)) for s in range(3)]
    summary = bootstrapped(apart, tmp_path)
    of_seed = lambda s: right("LN", None, s) - right("BN", 32, s)
    found = row(summary, "differences", axis_value=32).bootstrap
    assert found.low == hierarchical_bootstrap(matrix(of_seed)).low
    # An arm without the axis does not change, and adds nothing to the difference of the changes.
    found = row(summary, "change_differences", arm="LN").bootstrap
    assert found.low == hierarchical_bootstrap(matrix(lambda s: -change(s))).low
