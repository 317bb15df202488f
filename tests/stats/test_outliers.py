"""Seeds that lie far from the other seeds of a study."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpnlab.stats.outliers import DISTANCE, outlying_seeds

CALM = [{0: -1.0, 1: 0.0, 2: 1.0}] * 4
"""Four samples with a trimmed spread of 1 / sqrt(2)."""


def with_third(value):
    return [*CALM, {7: 0.0, 8: 1.0, 9: value}]


def test_a_seed_is_outlying_from_ten_times_the_largest_trimmed_spread():
    far = 0.5 + DISTANCE / math.sqrt(2)
    assert outlying_seeds(with_third(far + 1e-9)) == [None] * 4 + [9]
    assert outlying_seeds(with_third(far - 1e-9)) == [None] * 5
    assert outlying_seeds(with_third(1.0 - far - 1e-9)) == [None] * 4 + [9]


def test_no_seed_is_outlying_in_a_study_whose_seeds_lie_far_apart_elsewhere():
    wide = [{0: -100.0, 1: 0.0, 2: 100.0}]
    assert outlying_seeds(with_third(90.0)) == [None] * 4 + [9]
    assert outlying_seeds([*with_third(90.0), *wide]) == [None] * 6


def test_two_outlying_seeds_do_not_hide_each_other():
    assert outlying_seeds([*with_third(90.0), {0: -80.0, 1: 0.5, 2: 0.0}]) == [None] * 4 + [9, 0]


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [{0: 0.0, 1: 50.0}] * 9,
        [{0: 0.0, 1: 0.1, 2: 90.0}],
        [{0: 0.0, 1: 0.1, 2: 90.0}] * 2,
        [{0: 0.0, 1: 0.1, 2: 0.2, 3: 90.0}],
        [{0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0, 4: 3.0}],
        [{0: 3.0, 1: math.nan, 2: 90.0, 3: math.inf}] * 5,
    ],
)
def test_too_few_values_have_no_outlying_seed(samples):
    assert outlying_seeds(samples) == [None] * len(samples)


def test_equal_values_are_compared_with_the_deviation_of_rounding():
    one = [{0: 5.0, 1: 5.0, 2: 5.0, 3: 5.0, 4: 5.9}]
    assert outlying_seeds(one) == [4]
    assert outlying_seeds(one, least_deviation=0.1) == [None]
    assert outlying_seeds(one, least_deviation=0.08) == [4]


@pytest.mark.parametrize(
    ("samples", "seeds", "most"), [(1, 5, 0.04), (3, 3, 0.09), (5, 3, 0.05), (5, 5, 0.01)]
)
def test_false_alarms_are_rare_and_far_seeds_are_found(samples, seeds, most):
    studies = np.random.default_rng(0).normal(size=(1000, samples, seeds))
    named = [outlying_seeds([dict(enumerate(row)) for row in study]) for study in studies]
    assert np.mean([any(seed is not None for seed in found) for found in named]) < most
    studies[:, 0, 1] += 30.0
    named = [outlying_seeds([dict(enumerate(row)) for row in study])[0] for study in studies]
    assert np.mean([seed == 1 for seed in named]) > 0.98


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.sampled_from([-8.0, 0.25, 3.0]))
def test_unit_and_origin_do_not_matter(number, origin, unit):
    rng = np.random.default_rng(number)
    samples = rng.standard_t(1, size=(4, 4)).round(3) + 0.0
    moved = origin + unit * samples
    # Values at the very limit may fall to either side of it after rounding.
    named = [outlying_seeds([dict(enumerate(row)) for row in rows]) for rows in (samples, moved)]
    assert named[0] == named[1]
