import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpnlab.stats.survival import restricted_mean, restricted_mean_difference

RUNS = st.lists(
    st.tuples(st.integers(1, 9).map(float), st.booleans()), min_size=1, max_size=8
).filter(lambda runs: max(runs)[0] > 1)


@settings(deadline=None, max_examples=50)
@given(times=st.lists(st.integers(1, 20).map(float), min_size=1, max_size=10))
def test_with_one_budget_for_all_it_is_the_mean_of_what_was_spent(times):
    tau = 12.0
    spent = np.minimum(times, tau)
    found = restricted_mean(spent, np.array(times) <= tau, tau)
    assert found.mean == pytest.approx(spent.mean())
    assert found.error == pytest.approx(spent.std() / math.sqrt(len(times)), abs=1e-9)
    assert (found.n, found.events) == (len(times), int(np.sum(np.array(times) <= tau)))


def test_restricted_mean_by_hand():
    # At risk 5 at t = 2: S = 4/5. One is censored at 3. At risk 3 at t = 4: S = 4/5 * 2/3 = 8/15.
    # Area to 6: 2 * 1 + 2 * 4/5 + 2 * 8/15 = 14/3; behind 2 it is 8/3, behind 4 it is 16/15.
    found = restricted_mean([2.0, 3.0, 4.0, 6.0, 7.0], [True, False, True, False, True], 6.0)
    assert found.mean == pytest.approx(14 / 3)
    variance = (8 / 3) ** 2 * 1 / (5 * 4) + (16 / 15) ** 2 * 1 / (3 * 2)
    assert found.error == pytest.approx(math.sqrt(variance))
    assert (found.n, found.events, found.tau) == (5, 2, 6.0)


def test_a_run_censored_when_another_succeeds_was_still_at_risk():
    # 1/3 at t = 2, so that S = 2/3 until 4; it would be 1/2 had the censored run left before.
    found = restricted_mean([2.0, 2.0, 4.0], [True, False, False], 4.0)
    assert found.mean == pytest.approx(2 + 2 * 2 / 3)


def survival_by_definition(runs, t):
    """Kaplan-Meier as a product over the event times up to ``t``."""
    product = 1.0
    for moment in sorted({time for time, event in runs if event and time <= t}):
        at_risk = sum(time >= moment for time, _ in runs)
        product *= 1 - sum(event and time == moment for time, event in runs) / at_risk
    return product


@settings(deadline=None, max_examples=50)
@given(runs=RUNS)
def test_restricted_mean_is_the_area_under_the_product_limit_curve(runs):
    tau = max(time for time, _ in runs) - 0.5
    middles = np.arange(0.05, tau, 0.1)
    area = 0.1 * sum(survival_by_definition(runs, t) for t in middles)
    times, reached = zip(*runs)
    assert restricted_mean(times, reached, tau).mean == pytest.approx(area)


def test_the_curve_is_that_of_statsmodels():
    duration = pytest.importorskip("statsmodels.duration.survfunc")
    rng = np.random.default_rng(0)
    times, ends = rng.exponential(1.0, 40), rng.uniform(0.2, 3.0, 40)
    seen, reached = np.minimum(times, ends), times <= ends
    curve = duration.SurvfuncRight(seen, reached)
    tau = float(seen.max()) - 0.1
    knots = np.append(curve.surv_times[curve.surv_times < tau], tau)
    area = knots[0] + np.sum(np.diff(knots) * curve.surv_prob[: len(knots) - 1])
    assert restricted_mean(seen, reached, tau).mean == pytest.approx(area)


def test_runs_that_never_reach_the_target_cost_their_budget():
    never = restricted_mean([8.0, 8.0], [False, False], 8.0)
    assert never == (8.0, 0.0, 2, 0, 8.0)
    assert (never.interval().mean, never.interval().n) == (8.0, 2)


def test_leaving_out_runs_that_fail_flatters_the_arm():
    times, reached = [2.0, 3.0, 10.0, 10.0], [True, True, False, False]
    assert restricted_mean(times, reached, 10.0).mean == 6.25
    assert restricted_mean(times[:2], reached[:2], 10.0).mean == 2.5


def test_difference_of_two_arms_by_hand():
    a = restricted_mean([2.0, 4.0], [True, True], 5.0)
    b = restricted_mean([1.0, 5.0], [True, False], 5.0)
    # Errors sqrt(1 / 2) and sqrt(4 / 2); z(0.975) = 1.959964.
    half_width = 1.959964 * math.sqrt(0.5 + 2.0)
    found = restricted_mean_difference(a, b)
    np.testing.assert_allclose(found, (0.0, -half_width, half_width, 4), atol=1e-5)
    assert restricted_mean_difference(b, a).mean == -found.mean


def simulate(runs, simulations, cut):
    """Coverage of one arm's interval and of a difference; a share ``cut`` may end before tau."""
    rng = np.random.default_rng(runs)
    tau, rates = 1.5, (0.6, 1.0)
    truth = [(1 - math.exp(-rate * tau)) / rate for rate in rates]
    ends = np.where(
        rng.random((2, simulations, runs)) < cut,
        rng.uniform(0.2, tau, (2, simulations, runs)),
        tau,
    )
    times = rng.exponential(1.0, ends.shape) / np.array(rates)[:, None, None]
    seen, reached = np.minimum(times, ends), times <= ends
    one = both = 0
    for i in range(simulations):
        a, b = (restricted_mean(seen[arm, i], reached[arm, i], tau) for arm in (0, 1))
        single, difference = a.interval(), restricted_mean_difference(a, b)
        one += single.low <= truth[0] <= single.high
        both += difference.low <= truth[1] - truth[0] <= difference.high
    return one / simulations, both / simulations


def test_with_many_runs_the_intervals_cover_what_they_claim():
    # 200 runs an arm: the intervals are asymptotic.
    one, both = simulate(200, 10_000, cut=1 / 3)
    assert abs(one - 0.95) < 0.01
    assert abs(both - 0.95) < 0.01


@pytest.mark.parametrize(("runs", "arm", "difference"), [(3, 0.7, 0.8), (10, 0.9, 0.9)])
def test_with_few_runs_the_intervals_cover_less(runs, arm, difference):
    one, both = simulate(runs, 2000, cut=0)
    assert one == pytest.approx(arm, abs=0.04)
    assert both == pytest.approx(difference, abs=0.04)


def test_a_common_factor_of_the_times_is_one_of_the_mean_and_its_error():
    times, reached = [2.0, 3.0, 4.0, 6.0], [True, False, True, True]
    small, large = (
        restricted_mean([scale * t for t in times], reached, 5.0 * scale) for scale in (1, 1e6)
    )
    assert large.mean == pytest.approx(1e6 * small.mean)
    assert large.error == pytest.approx(1e6 * small.error)


def test_a_curve_that_ends_before_tau_is_refused():
    with pytest.raises(ValueError, match=r"ended at 4 without the event.*choose tau <= 4"):
        restricted_mean([2.0, 4.0, 4.0], [True, True, False], 5.0)
    # With the event there the curve is 0 from then on.
    assert restricted_mean([2.0, 4.0], [True, True], 5.0).mean == 3.0


@pytest.mark.parametrize(
    ("times", "reached", "tau", "fault"),
    [
        ([], [], 1.0, "0 times and 0 events"),
        ([1.0], [True, False], 1.0, "1 times and 2 events"),
        ([0.0], [True], 1.0, "above 0 and finite"),
        ([math.nan], [True], 1.0, "above 0 and finite"),
        ([1.0], [True], math.inf, "above 0 and finite"),
    ],
)
def test_impossible_runs_are_refused(times, reached, tau, fault):
    with pytest.raises(ValueError, match=fault):
        restricted_mean(times, reached, tau)


def test_arms_with_different_horizons_are_refused():
    a, b = (restricted_mean([1.0], [True], tau) for tau in (2.0, 3.0))
    with pytest.raises(ValueError, match=r"at 2\.0 and 3\.0.*at most 2\.0"):
        restricted_mean_difference(a, b)
    with pytest.raises(ValueError, match="level must lie"):
        a.interval(1.0)


@pytest.mark.parametrize(
    ("times", "reached"), [([3.0], [True]), ([3.0, 3.0], [True, True]), ([9.0] * 3, [False] * 3)]
)
def test_runs_that_are_all_alike_have_a_mean_without_an_interval(times, reached):
    alike = restricted_mean(times, reached, 9.0)
    assert (alike.interval().mean, alike.error) == (times[0], 0.0)
    spread = restricted_mean([2.0, 4.0], [True, True], 9.0)
    for interval in (alike.interval(), restricted_mean_difference(alike, alike)):
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert interval.sign == 0
    assert (
        restricted_mean_difference(alike, spread).low
        < restricted_mean_difference(alike, spread).high
    )
