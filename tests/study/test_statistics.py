import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from fpnlab.study.statistics import Interval, paired_difference, t_interval

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)
LEVELS = st.sampled_from([0.5, 0.9, 0.95, 0.99])


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
    samples = np.random.default_rng(n).normal(7.0, 2.0, size=(3000, n))
    intervals = [t_interval(sample, 0.9) for sample in samples]
    covered = np.mean([interval.low <= 7.0 <= interval.high for interval in intervals])
    # Four standard errors of a share of 0.9 in 3000 draws.
    assert abs(covered - 0.9) < 0.022


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


def test_equal_values_have_an_interval_without_width():
    assert t_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_interval([1.0, 2.0], level)
