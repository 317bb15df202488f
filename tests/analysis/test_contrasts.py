"""Resolution of comparisons, and the bias of their failed trials."""

import dataclasses
import math

import numpy as np
import pytest

from fpnlab.analysis.contrasts import (
    failure_note,
    failures,
    least_deviation,
    resolution,
    row_contrast,
    rule_contrasts,
)
from fpnlab.config.claims import Cell, Difference, DifferenceInDifferences, Equivalence
from fpnlab.records.study_records import SummaryRow
from fpnlab.stats.intervals import t_interval

PAIR = {"arm": "LN", "baseline": "BN", "metric": "AP"}


def at(arm, value):
    return Cell("AP", "running", value, arm)


def test_resolution_is_one_image_for_accuracies_and_a_tenth_for_ap():
    assert resolution("accuracy", 500) == pytest.approx(0.2)
    assert resolution("top5", 10_000) == pytest.approx(0.01)
    assert resolution("accuracy", None) == pytest.approx(0.01)
    assert resolution("AP", 73) == resolution("AP_small", None) == 0.1


def test_least_deviation_equals_that_of_rounded_sums():
    numbers = np.random.default_rng(0).uniform(0, 1e4, size=(100_000, 4))
    errors = 0.2 * (np.round(numbers / 0.2) - numbers / 0.2)
    for weights in ([1.0], [1.0, -1.0], [1.0, -1.0, -1.0, 1.0], [0.5, -0.5, 0.5, -0.5]):
        contrast = {at("BN", i): weight for i, weight in enumerate(weights)}
        found = (errors[:, : len(weights)] @ weights).std()
        assert least_deviation(contrast, 0.2) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("deviation", [0.1, 0.5, 1.0, 5.0])
def test_intervals_of_rounded_differences_have_nominal_coverage(n, deviation):
    """Rounding to 1 with true values in between; without the floor, 0.1 covers 20 to 41 %."""
    rng = np.random.default_rng(n)
    true = rng.uniform(0, 1, size=(4000, 2, 1))
    seen = np.round(true + deviation * rng.normal(size=(4000, 2, n)))
    # The expectation of the rounded values, by their probabilities.
    steps = np.arange(-30, 31)
    below = np.vectorize(math.erf)((steps + 0.5 - true) / deviation / math.sqrt(2))
    expected = (np.diff(below) / 2) @ steps[1:]
    truth = expected[:, 1] - expected[:, 0]
    floor = least_deviation({at("LN", 2): 1.0, at("BN", 2): -1.0}, 1.0)
    covered = [
        interval.low <= t <= interval.high
        for interval, t in zip((t_interval(b - a, 0.95, floor) for a, b in seen), truth)
    ]
    # Four standard errors of a share of 0.95 in 4000.
    assert np.mean(covered) > 0.95 - 0.014


def test_failures_are_grouped_by_the_sign_of_their_weight():
    change = DifferenceInDifferences(**PAIR, start=32, end=2, side="above")
    [contrast] = rule_contrasts(change)
    assert contrast == {at("LN", 2): 1, at("LN", 32): -1, at("BN", 2): -1, at("BN", 32): 1}
    places = {(arm, value): [(arm, value, 0)] for arm in ("BN", "LN", "GN") for value in (2, 32)}
    found = failures(contrast, places)
    assert sorted(found.positive) == [("BN", 32, 0), ("LN", 2, 0)]
    assert sorted(found.negative) == [("BN", 2, 0), ("LN", 32, 0)]


def test_rule_contrasts_have_the_weights_of_the_estimates():
    both = Difference(**PAIR, axis_values=(2, 8), side="above")
    [contrast] = rule_contrasts(both)
    assert contrast == {at(arm, v): s / 2 for arm, s in (("LN", 1), ("BN", -1)) for v in (2, 8)}
    each = rule_contrasts(Equivalence(**PAIR, axis_values=(2, 8), margin=1.0))
    assert each == [{at("LN", v): 1, at("BN", v): -1} for v in (2, 8)]


def test_row_contrasts_of_changes_have_the_weights_of_their_ends():
    row = SummaryRow(
        metric="AP",
        evaluation="running",
        arm="LN",
        start=32,
        end=2,
        mean=None,
        low=None,
        high=None,
        n=0,
        values={},
    )
    assert row_contrast("changes", row) == {at("LN", 2): 1, at("LN", 32): -1}
    shift = row_contrast("change_differences", dataclasses.replace(row, reference="BN"))
    assert shift == {at("LN", 2): 1, at("LN", 32): -1, at("BN", 2): -1, at("BN", 32): 1}


def test_failure_note_names_the_cells_and_the_possible_decisions():
    contrast = {at("LN", 2): 1.0, at("BN", 2): -1.0}
    bn, ln = [("BN", 2, 0), ("BN", 2, 1)], [("LN", None, 0)]
    note = lambda failed: failure_note(failures(contrast, failed), "batch size")
    assert note({}) == note({("BN", 8): [("BN", 8, 0)]}) == ""
    assert note({("BN", 2): bn}) == (
        "Diverged or failed: BN at batch size 2 (2 seeds). Leaving them out biases the mean "
        "downward, so that only above can be decided."
    )
    assert note({("LN", 2): ln}).startswith(
        "Diverged or failed: LN (1 seed). Leaving them out biases the mean"
    )
    assert "upward, so that only below" in note({("LN", 2): ln})
    assert "neither above nor below" in note({("LN", 2): ln, ("BN", 2): bn})
