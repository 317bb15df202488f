import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from fpnlab.stats.intervals import (
    difference_in_differences,
    holm,
    paired_difference,
    paired_power,
    seeds_needed,
    t_interval,
    t_test,
    tost,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)
LEVELS = st.sampled_from([0.5, 0.9, 0.95, 0.99])
ALTERNATIVES = ["two-sided", "greater", "less"]
SIMULATIONS = 10_000
CLOSE = 0.01
"""More than four standard errors of a share of 0.95 or 0.05 in 10,000 simulations."""


def by_seed(values):
    return dict(enumerate(values.tolist()))


def covered(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@settings(deadline=None, max_examples=20)
@given(values=VALUES, level=LEVELS)
def test_interval_is_that_of_scipys_one_sample_t_test(values, level):
    # Scipy returns nan for equal values, whose interval has no width.
    assume(np.std(values) > 1e-6)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    interval = t_interval(values, level)
    np.testing.assert_allclose([interval.low, interval.high], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(interval.mean, np.mean(values), atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(level=LEVELS, seed=st.integers(0, 1000), n=st.integers(2, 8))
def test_paired_difference_is_scipys_paired_t_test(level, seed, n):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    expected = stats.ttest_rel(b, a).confidence_interval(level)
    difference = paired_difference(dict(enumerate(a)), dict(enumerate(b)), level)
    np.testing.assert_allclose(difference.interval[1:3], expected, rtol=1e-9, atol=1e-9)


def test_interval_of_three_values_by_hand():
    # s = 1, t(2; 0.975) = 4.30265, half width = 4.30265 / sqrt(3).
    interval = t_interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose(interval, (2.0, 2 - 2.48414, 2 + 2.48414, 3), atol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_interval_covers_the_true_mean_as_often_as_its_level_says(n):
    samples = np.random.default_rng(n).normal(7.0, 2.0, size=(SIMULATIONS, n))
    assert abs(covered(map(t_interval, samples), 7.0) - 0.95) < CLOSE
    samples = samples[:3000]
    # Four standard errors of a share of 0.9 in 3000 draws.
    assert abs(covered([t_interval(sample, 0.9) for sample in samples], 7.0) - 0.9) < 0.022


@pytest.mark.parametrize("n", [3, 5])
def test_paired_interval_covers_the_true_difference_whatever_the_seeds_luck(n):
    rng = np.random.default_rng(n)
    luck = rng.normal(50, 10, size=(SIMULATIONS, 1, n))
    a, b = np.moveaxis(luck + rng.normal([[0], [3]], [[1], [2]], (SIMULATIONS, 2, n)), 1, 0)
    intervals = [paired_difference(by_seed(x), by_seed(y)).interval for x, y in zip(a, b)]
    assert abs(covered(intervals, 3.0) - 0.95) < CLOSE
    # Far narrower than the luck that it cancels.
    assert np.median([interval.high - interval.low for interval in intervals]) < 20


def test_pairing_cancels_what_a_seed_does_to_both_arms():
    luck = np.random.default_rng(0).normal(0, 10, size=5)
    a = dict(enumerate(luck))
    b = dict(enumerate(luck + 1 + 0.01 * np.arange(5)))
    assert t_interval(b.values()).low < np.mean(luck)
    assert paired_difference(a, b).interval.sign == 1
    assert paired_difference(b, a).interval.sign == -1


def test_only_common_seeds_with_two_finite_values_count():
    a = {3: 1.0, 1: 2.0, 0: math.nan, 2: 5.0, 7: math.inf}
    b = {1: 2.5, 3: 4.0, 0: 1.0, 9: 1.0, 7: 1.0}
    difference = paired_difference(a, b)
    assert list(difference.by_seed.items()) == [(1, 0.5), (3, 3.0)]
    assert difference.interval.n == 2
    assert difference.interval.mean == 1.75


def test_values_that_are_not_finite_are_left_out():
    assert t_interval([1.0, math.nan, 3.0, math.inf]) == t_interval([1.0, 3.0])


def test_fewer_than_two_values_have_no_interval():
    one, none = t_interval([4.0]), t_interval([])
    assert (one.mean, one.n) == (4.0, 1)
    assert none.n == 0
    assert all(map(math.isnan, (one.low, one.high, none.mean, none.low, none.high)))
    assert one.sign == none.sign == 0


@pytest.mark.parametrize("values", [[2.0, 2.0], [0.0] * 5, [20.6 + 1e-14, 20.6]])
def test_equal_values_have_a_mean_but_neither_interval_nor_p_value(values):
    interval = t_interval(values)
    assert (interval.n, interval.sign) == (len(values), 0)
    assert interval.mean == pytest.approx(values[-1])
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    for alternative in ALTERNATIVES:
        assert math.isnan(t_test(values, 1.0, alternative))
    assert not tost(values, 30.0).equivalent
    assert not tost(values, 0.5).equivalent


def test_a_least_deviation_gives_equal_values_an_interval_by_hand():
    # t(1; 0.975) = 12.7062 and t(1; 0.95) = 6.31375, over sqrt(2).
    assert t_interval([20.6, 20.6], 0.95, 0.1) == pytest.approx(
        (20.6, 20.6 - 0.898463, 20.6 + 0.898463, 2), abs=1e-5
    )
    assert t_interval([20.6, 20.6], 0.9, 0.1).high == pytest.approx(20.6 + 0.446449, abs=1e-5)
    same = {0: 1.0, 1: 2.0}, {0: 21.6, 1: 22.6}
    assert paired_difference(*same, 0.95, 0.1).interval == pytest.approx(
        t_interval([20.6, 20.6], 0.95, 0.1)
    )
    flat = {0: 0.0, 1: 0.0}
    found = difference_in_differences((flat, flat), same, 0.95, 0.1)
    assert found.interval == pytest.approx(t_interval([20.6, 20.6], 0.95, 0.1))
    assert not tost([0.0, 0.0], 0.44, 0.05, 0.1).equivalent
    assert tost([0.0, 0.0], 0.45, 0.05, 0.1).equivalent


def test_a_least_deviation_below_that_of_the_values_changes_nothing():
    values = [1.0, 2.0, 4.0]
    assert t_interval(values, 0.95, 1.5) == t_interval(values)
    assert t_test(values, 0.5, "greater", 1.5) == t_test(values, 0.5, "greater")
    assert t_interval(values, 0.95, 1.6).high > t_interval(values).high
    with pytest.raises(ValueError, match="least_deviation is -1"):
        t_interval(values, 0.95, -1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_t_interval_rejects_a_level_outside_0_to_1(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_interval([1.0, 2.0], level)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@settings(deadline=None, max_examples=20)
@given(values=VALUES, threshold=st.floats(-10, 10))
def test_p_value_is_that_of_scipys_t_test(values, threshold, alternative):
    assume(np.std(values) > 1e-6)
    expected = stats.ttest_1samp(values, threshold, alternative=alternative).pvalue
    np.testing.assert_allclose(t_test(values, threshold, alternative), expected, rtol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    values=VALUES,
    threshold=st.floats(-1e3, 1e3),
    alpha=st.floats(0.01, 0.5),
    least=st.floats(1e-3, 10.0),
)
def test_p_is_below_alpha_exactly_when_the_interval_leaves_the_threshold_out(
    values, threshold, alpha, least
):
    p = t_test(values, threshold, least_deviation=least)
    interval = t_interval(values, 1 - alpha, least)
    assume(abs(p - alpha) > 1e-9)
    assert (p < alpha) == (not interval.low <= threshold <= interval.high)


def test_fewer_than_two_values_decide_nothing():
    for values in ([], [2.0], [2.0, math.nan]):
        assert math.isnan(t_test(values, least_deviation=0.1))
        assert not tost(values, 1.0, least_deviation=0.1).equivalent
    assert paired_difference({}, {0: 1.0}).interval.n == 0


def test_difference_in_differences_by_hand():
    a = {0: 10.0, 1: 12.0, 2: 11.0}, {0: 9.0, 1: 10.0, 2: 12.0}
    b = {0: 10.0, 1: 13.0, 2: 11.0}, {0: 4.0, 1: 9.0, 2: 6.0}
    found = difference_in_differences(a, b)
    # Changes -6, -4, -5 of b less -1, -2, 1 of a.
    assert found.by_seed == {0: -5.0, 1: -2.0, 2: -6.0}
    assert found.interval == t_interval([-5.0, -2.0, -6.0])


def test_difference_in_differences_needs_all_four_values_of_a_seed():
    four = [{seed: float(seed) for seed in range(5) if seed != gone} for gone in range(4)]
    four[2][4] = math.nan
    assert list(difference_in_differences((four[0], four[1]), (four[2], four[3])).by_seed) == []
    assert list(difference_in_differences((four[0], four[0]), (four[1], four[1])).by_seed) == [
        2,
        3,
        4,
    ]


def test_difference_in_differences_covers_the_true_one():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 5, size=(SIMULATIONS, 1, 4))
    values = luck + rng.normal([[0], [-1], [0], [-4]], 1.0, size=(SIMULATIONS, 4, 4))
    intervals = [
        difference_in_differences((a, b), (c, d)).interval
        for a, b, c, d in ([by_seed(row) for row in rows] for rows in values)
    ]
    assert abs(covered(intervals, -3.0) - 0.95) < CLOSE


@settings(deadline=None, max_examples=50)
@given(
    values=VALUES,
    margin=st.floats(0.1, 2e3),
    alpha=st.floats(0.01, 0.4),
    least=st.floats(1e-3, 10.0),
)
def test_equivalence_is_shown_exactly_when_its_interval_lies_within_the_margins(
    values, margin, alpha, least
):
    found = tost(values, margin, alpha, least)
    assume(abs(found.p - alpha) > 1e-9)
    assert found.interval == t_interval(values, 1 - 2 * alpha, least)
    assert found.equivalent == (-margin < found.interval.low and found.interval.high < margin)


def test_tost_is_that_of_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    for margin in (0.5, 1.0, 3.0):
        expected, *_ = weightstats.ttost_paired(b, a, -margin, margin)
        np.testing.assert_allclose(tost(b - a, margin).p, expected, rtol=1e-9)


def test_a_difference_as_large_as_the_margin_is_called_equivalent_in_alpha_of_all_cases():
    samples = np.random.default_rng(2).normal(3.0, 1.0, size=(SIMULATIONS, 5))
    samples[::2] *= -1
    equivalent = np.array([tost(sample, 3.0).equivalent for sample in samples])
    assert abs(equivalent.mean() - 0.05) < CLOSE
    assert abs(equivalent[::2].mean() - 0.05) < 2 * CLOSE


def test_no_significant_difference_is_no_equivalence():
    noisy = [-2.0, 3.0, 1.0, -1.0]
    assert t_test(noisy) > 0.5
    assert not tost(noisy, 1.0).equivalent
    one = tost([0.0], 1.0)
    assert math.isnan(one.p)
    assert not one.equivalent


@pytest.mark.parametrize(("margin", "alpha"), [(0.0, 0.05), (math.nan, 0.05), (1.0, 0.5)])
def test_tost_rejects_an_invalid_margin_or_alpha(margin, alpha):
    with pytest.raises(ValueError, match=r"tost: (margin|alpha) must"):
        tost([1.0, 2.0], margin, alpha)


def holm_by_definition(p_values):
    """The smallest alpha at which step-down rejects each, looked for one by one."""
    adjusted = []
    for mine in p_values:
        reached = 0.0
        for p in sorted(p_values):
            rank = sorted(p_values).index(p)
            reached = max(reached, (len(p_values) - rank) * p)
            if p == mine:
                break
        adjusted.append(min(1.0, reached))
    return adjusted


@settings(deadline=None, max_examples=50)
@given(p_values=st.lists(st.floats(0, 1), max_size=8, unique=True))
def test_holm_is_its_definition(p_values):
    np.testing.assert_allclose(holm(p_values), holm_by_definition(p_values), rtol=1e-12)


def test_holm_by_hand():
    # 4 * 0.01, 3 * 0.02, then 2 * 0.022 = 0.044, which may not fall below 0.06, and 0.5.
    np.testing.assert_allclose(holm([0.5, 0.01, 0.022, 0.02]), [0.5, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(0).uniform(size=20) ** 3
    p_values[3] = p_values[8]
    expected = multitest.multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values.tolist()), expected, rtol=1e-12)


def test_holm_makes_a_false_rejection_in_alpha_of_all_families():
    rng = np.random.default_rng(3)
    samples = rng.normal([[0.0], [0.0], [0.0], [9.0]], 1.0, size=(SIMULATIONS // 2, 4, 5))
    families = [holm([t_test(sample) for sample in family]) for family in samples]
    false = np.mean([min(adjusted[:3]) < 0.05 for adjusted in families])
    # Independent tests: 1 - (1 - 0.05 / 3)^3 = 0.049, once the real effect is rejected.
    assert abs(false - 0.049) < 4 * math.sqrt(0.049 / len(families))
    assert np.mean([adjusted[3] < 0.05 for adjusted in families]) > 0.99


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_rejects_values_that_are_not_p_values(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, wrong])


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("effect", [0.0, 0.1, -1.0, 3.0])
def test_power_is_that_of_the_noncentral_t_distribution(n, effect):
    critical, shift = stats.t.ppf(0.975, n - 1), effect / 2 * math.sqrt(n)
    expected = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    np.testing.assert_allclose(paired_power(effect, 2.0, n), expected, rtol=1e-9)


def test_power_is_how_often_the_test_finds_the_effect():
    samples = np.random.default_rng(4).normal(2.0, 2.0, size=(SIMULATIONS, 6))
    found = np.mean([t_test(sample) < 0.05 for sample in samples])
    # Four standard errors of a share of a half.
    assert abs(found - paired_power(2.0, 2.0, 6)) < 0.02


def test_power_of_an_effect_far_beyond_the_noise_is_one():
    assert paired_power(100.0, 1.0, 10) == paired_power(1.0, 1.0, 10**6) == 1.0
    assert paired_power(5.0, 1.0, 60) == pytest.approx(1.0, abs=1e-12)
    assert paired_power(1e300, 1e-300, 2) == paired_power(1e300, 1.0, 3) == 1.0


@pytest.mark.parametrize("alpha", [1e-12, 0.001, 0.05, 0.5])
def test_power_is_a_share_that_rises_with_effect_and_seeds_whatever_their_size(alpha):
    effects = [0.0, 1e-9, *np.geomspace(0.01, 100.0, 25), 1e6]
    seeds = [2, 3, 5, 17, 60, 100, 301, 10_000, 10**8]
    power = np.array([[paired_power(e, 1.0, n, alpha) for n in seeds] for e in effects])
    np.testing.assert_allclose(power[0], alpha, rtol=1e-6)
    assert np.all((power >= alpha * (1 - 1e-6)) & (power <= 1.0))
    assert np.all(np.diff(power, axis=0) >= -1e-12)
    assert np.all(np.diff(power, axis=1)[1:] >= -1e-12)


@pytest.mark.parametrize(("effect", "n", "found"), [(1.0, 10, 0.803097), (0.5, 34, 0.807778)])
def test_power_is_that_of_published_tables(effect, n, found):
    # R: power.t.test(n, delta = effect, type = "one.sample", strict = TRUE).
    assert paired_power(effect, 1.0, n) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("deviation", [1e-300, 1e-3])
def test_an_effect_far_beyond_the_noise_needs_two_seeds(deviation):
    assert seeds_needed(-1.0, deviation) == 2


@pytest.mark.parametrize("effect", [1e-9, 5e-324])
def test_seeds_needed_rejects_an_effect_that_no_study_detects(effect):
    with pytest.raises(ValueError, match="more than 1,000,000,000 seeds"):
        seeds_needed(effect, 1.0)


@settings(deadline=None, max_examples=20)
@given(
    effect=st.floats(0.05, 5), power=st.floats(0.1, 0.99), alpha=st.sampled_from([0.001, 0.05, 0.2])
)
def test_seeds_needed_are_the_fewest_that_reach_the_power(effect, power, alpha):
    n = seeds_needed(-effect, 1.0, power, alpha)
    assert paired_power(effect, 1.0, n, alpha) >= power
    assert n == 2 or paired_power(effect, 1.0, n - 1, alpha) < power


def test_seeds_needed_are_those_of_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for effect in (0.3, 0.5, 1.0, 2.0):
        expected = math.ceil(power.solve_power(effect_size=effect, power=0.9, alpha=0.05))
        assert seeds_needed(3 * effect, 3.0, 0.9) == expected


def test_an_effect_of_one_deviation_needs_ten_seeds():
    # G*Power and R's power.t.test(delta = 1, power = 0.8, type = "paired") say 9.94.
    assert seeds_needed(1.0, 1.0) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "effect is 0"),
        ((1.0, 0.0), "deviation above 0 and finite"),
        ((1.0, math.nan), "deviation above 0 and finite"),
        ((math.nan, 1.0), "effect must be finite"),
        ((math.inf, 1.0), "effect must be finite"),
        ((1.0, 1.0, 1.0), "power must be"),
        ((1.0, 1.0, 0.8, 0.0), "alpha must be"),
    ],
)
def test_power_and_seeds_needed_reject_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        seeds_needed(*arguments)
