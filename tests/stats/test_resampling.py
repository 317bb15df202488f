import itertools
import math

import numpy as np
import pytest

from fpnlab.stats.intervals import t_test
from fpnlab.stats.resampling import _sign_flip_p, hierarchical_bootstrap, sign_flip_test

ALTERNATIVES = ["two-sided", "greater", "less"]


def sign_flip_by_definition(differences, alternative):
    patterns = itertools.product([1, -1], repeat=len(differences))
    sums = [sum(sign * d for sign, d in zip(signs, differences)) for signs in patterns]
    seen = sum(differences)
    greater = np.mean([total >= seen - 1e-12 for total in sums])
    less = np.mean([total <= seen + 1e-12 for total in sums])
    return {
        "greater": greater,
        "less": less,
        "two-sided": min(1.0, 2 * min(greater, less)),
    }[alternative]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_sign_flip_p_is_the_share_of_sign_patterns(n, alternative):
    for differences in np.random.default_rng(n).normal(0.5, 1.0, size=(5, n)):
        found = sign_flip_test(differences, alternative)
        assert found.p == pytest.approx(sign_flip_by_definition(differences, alternative))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 16])
def test_differences_of_one_sign_reach_the_smallest_p_that_there_is(n):
    differences = np.arange(1.0, n + 1)
    for alternative, smallest in (("greater", 2.0**-n), ("two-sided", 2.0 ** (1 - n))):
        found = sign_flip_test(differences, alternative)
        assert found.p == found.smallest_p == smallest
    assert sign_flip_test(-differences, "less").p == 2.0**-n
    assert sign_flip_test(differences, "less").p == 1.0


def test_five_seeds_cannot_be_significant_and_six_can():
    assert sign_flip_test([1.0] * 5).smallest_p == 0.0625
    assert sign_flip_test([1.0] * 6).smallest_p == 0.03125


def test_above_sixteen_seeds_the_patterns_are_drawn_and_p_is_never_zero():
    found = sign_flip_test(np.arange(1.0, 41))
    assert found.p == found.smallest_p == 2 / 65_537
    differences = np.random.default_rng(0).normal(0.4, 1.0, size=30)
    drawn = sign_flip_test(differences)
    assert drawn == sign_flip_test(differences)
    # For so many values the two tests nearly agree.
    assert drawn.p == pytest.approx(t_test(differences), abs=0.005)


def test_differences_that_are_not_finite_are_left_out():
    assert sign_flip_test([1.0, math.nan, 2.0, -math.inf]) == sign_flip_test([1.0, 2.0])
    one, none = sign_flip_test([3.0]), sign_flip_test([])
    assert math.isnan(one.p)
    assert math.isnan(none.p)
    assert (one[1:], none[1:]) == ((1.0, 1), (1.0, 0))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_sign_flip_test_errs_in_alpha_of_all_cases_without_normal_differences(alternative):
    rng = np.random.default_rng(0)
    # Symmetric with heavy tails, and another width in every seed.
    samples = rng.standard_t(2, size=(10_000, 6)) * np.array([1, 2, 3, 5, 8, 13])
    p = _sign_flip_p(samples, alternative)
    assert p.shape == (10_000,)
    # p is uniform on its steps: 2 of 64 patterns two-sided, and 3 of 64 one-sided are below 0.05.
    reachable = 2 / 64 if alternative == "two-sided" else 3 / 64
    assert abs(np.mean(p <= 0.05) - reachable) < 4 * math.sqrt(0.05 * 0.95 / 10_000)


def test_bootstrap_of_constant_items_is_the_range_of_three_seeds():
    differences = np.repeat([[1.0], [5.0], [3.0]], 4, axis=1)
    interval = hierarchical_bootstrap(differences)
    assert interval == (3.0, 1.0, 5.0, 3)


@pytest.mark.parametrize(("items", "variance"), [("shared", 1 / 4), ("own", 1 / 4 / 3)])
def test_items_of_equal_seeds_vary_as_they_are_drawn(items, variance):
    # Seeds that agree leave the items' variance alone: 1 / items, and over own items also / seeds.
    differences = np.tile([-1.0, 1.0, -1.0, 1.0], (3, 1))
    interval = hierarchical_bootstrap(differences, items, level=0.6827, resamples=40_000)
    # Means of few coin flips are discrete, so that quantiles only locate the deviation.
    assert interval.high == pytest.approx(math.sqrt(variance), abs=0.17)
    assert interval.low == pytest.approx(-interval.high, abs=1e-9)


def test_items_drawn_by_their_kind_are_items_drawn_one_by_one():
    """Of differences of right and wrong answers there are few kinds, in any order of the items."""
    rng = np.random.default_rng(0)
    differences = rng.choice([-1.0, 0.0, 0.0, 1.0], size=(3, 50)) + rng.choice([0.0, 1.0], size=50)
    interval = hierarchical_bootstrap(differences, resamples=40_000)
    assert interval == hierarchical_bootstrap(differences[:, ::-1], resamples=40_000)
    means = [
        differences[rng.integers(3, size=3)][:, rng.integers(50, size=50)].mean()
        for _ in range(40_000)
    ]
    np.testing.assert_allclose(interval[1:3], np.quantile(means, [0.025, 0.975]), atol=0.015)


def test_bootstrap_repeats_itself_and_another_key_draws_anew():
    differences = np.random.default_rng(0).normal(size=(3, 5))
    first = hierarchical_bootstrap(differences, resamples=200)
    assert first == hierarchical_bootstrap(differences, resamples=200)
    assert first != hierarchical_bootstrap(differences, resamples=200, key=1)


def test_bootstrap_in_pieces_draws_as_many_resamples(monkeypatch):
    differences = np.random.default_rng(0).normal(size=(4, 6))
    whole = hierarchical_bootstrap(differences)
    monkeypatch.setattr("fpnlab.stats.resampling.RESAMPLED_VALUES", 700)
    pieces = hierarchical_bootstrap(differences)
    np.testing.assert_allclose(pieces, whole, atol=0.05)
    assert pieces != whole


def coverage(seeds, deviations, items="shared", simulations=1500):
    """Share of intervals over `deviations` (seed, shared item, rest) that hold the truth, 0."""
    rng = np.random.default_rng(seeds)
    of_seed, of_item, rest = deviations
    covered = 0
    for _ in range(simulations):
        values = of_seed * rng.normal(size=(seeds, 1)) + of_item * rng.normal(size=(1, 8))
        values = values + rest * rng.normal(size=(seeds, 8))
        interval = hierarchical_bootstrap(values, items, resamples=800)
        covered += interval.low <= 0 <= interval.high
    return covered / simulations


# The tolerances are four standard errors.
def test_bootstrap_of_three_seeds_claims_95_percent_and_covers_75():
    assert coverage(3, (1, 0, 0)) == pytest.approx(0.75, abs=0.045)
    assert coverage(3, (1, 1, 1)) == pytest.approx(0.88, abs=0.035)


def test_bootstrap_of_twenty_seeds_nearly_covers_what_it_claims():
    assert coverage(20, (1, 0, 0), simulations=1000) == pytest.approx(0.93, abs=0.035)
    assert coverage(20, (1, 1, 1), simulations=1000) == pytest.approx(0.92, abs=0.035)


def test_shared_items_drawn_within_each_seed_claim_too_much():
    assert coverage(20, (1, 1, 1), "own", simulations=1000) < 0.8


def test_a_diverged_seed_is_left_out_and_a_partly_finite_one_is_an_error():
    differences = np.random.default_rng(0).normal(size=(4, 5))
    differences[2] = math.nan
    assert hierarchical_bootstrap(differences) == hierarchical_bootstrap(differences[[0, 1, 3]])
    differences[1, 0] = math.inf
    with pytest.raises(ValueError, match=r"rows \[1\] have items with and without"):
        hierarchical_bootstrap(differences)


def test_one_seed_has_a_mean_and_no_interval():
    one, none = (hierarchical_bootstrap(np.ones((seeds, 3))) for seeds in (1, 0))
    assert (one.mean, one.n, none.n) == (1.0, 1, 0)
    assert all(map(math.isnan, (one.low, one.high, none.mean, none.low)))


@pytest.mark.parametrize("level", [0.0, 95.0])
def test_bootstrap_rejects_a_level_outside_0_to_1(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        hierarchical_bootstrap(np.ones((3, 3)), level=level)


def test_a_bootstrap_of_nothing_or_of_equal_differences_decides_nothing():
    for shape in ((0, 5), (3, 0), (1, 5)):
        interval = hierarchical_bootstrap(np.ones(shape))
        assert math.isnan(interval.low)
        assert interval.sign == 0
    equal = hierarchical_bootstrap(np.full((2, 5), 20.6))
    assert (equal.low, equal.high) == pytest.approx((20.6, 20.6))
    with pytest.raises(ValueError, match="resamples must be 1 or more; got 0"):
        hierarchical_bootstrap(np.ones((3, 5)), resamples=0)


@pytest.mark.parametrize("differences", [[], [2.0], [math.nan, 2.0]])
def test_a_sign_flip_test_of_fewer_than_two_differences_has_no_p_value(differences):
    found = sign_flip_test(differences)
    assert math.isnan(found.p)
    assert found.smallest_p == 1.0
