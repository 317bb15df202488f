"""Confidence intervals and tests for a few seeds, and the number of seeds that an effect needs.

All functions are about the mean of one value per seed: a metric, a difference of two arms with the
same seed, or a difference of such differences. With few seeds (three to ten) intervals by the
normal quantile would be far too narrow: with three values the factor is 4.30, not 1.96.

The Student-t interval is the primary method. `fpnlab.stats.resampling` has two others, which
assume no normal distribution.

Values that are not finite (a diverged run, or a metric without any object of its class) count as
missing: they are left out, and ``n`` is the number of the others. A report of such a mean must say
so, because the remaining seeds are biased in favor of the arm (`fpnlab.analysis.contrasts` has
the decisions that this rules out).

From values that are all equal, no deviation can be estimated. They have a mean, but no interval and
no p-value, unless the caller gives a ``least_deviation``: the standard deviation of the rounding of
a metric with discrete steps, as the lower limit of the estimate.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

Alternative = Literal["two-sided", "greater", "less"]
"""Side of the alternative hypothesis."""
MOST_SEEDS = 10**9
"""Largest number of seeds that `seeds_needed` searches."""
ROUNDING = 1e-12
"""Relative standard deviation below which values are equal up to rounding errors."""


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    """Mean of the finite values; nan when there are none."""
    low: float
    """Lower bound; nan for fewer than two values, and for equal ones without a least deviation."""
    high: float
    """Upper bound; nan if `low` is."""
    n: int
    """Number of finite values."""

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is on that side of zero, otherwise 0.

        It is 0 for an interval without width, such as that of a bootstrap of equal values.
        """
        return int(0 < self.low < self.high) - int(self.low < self.high < 0)


class PairedDifference(NamedTuple):
    """The differences of two arms, seed by seed, with the interval of their mean."""

    interval: Interval
    """Interval of the mean difference."""
    by_seed: dict[int, float]
    """The difference by seed, for seeds that both arms have, in ascending order."""


class EquivalenceTest(NamedTuple):
    """Result of a test that a mean difference is within a margin of zero."""

    interval: Interval
    """Interval at level ``1 - 2 * alpha``; within the margins if and only if `equivalent`."""
    p: float
    """The larger p-value of the two one-sided tests; nan where `interval` has no bounds."""
    equivalent: bool
    """True if `p` is below ``alpha``. False is no evidence of a difference."""


def t_interval(
    values: Iterable[float], level: float = 0.95, least_deviation: float = 0.0
) -> Interval:
    """Returns the mean of ``values`` and its Student-t confidence interval.

    ``mean ± t(n - 1; (1 + level) / 2) * s / sqrt(n)``, with ``s`` the standard deviation that
    divides by ``n - 1`` (Student, 1908), or ``least_deviation`` if that is larger. The interval
    has exactly this coverage for independent values of one normal distribution. A single value has
    a mean but no interval, as have values that are all equal, without a ``least_deviation``.

    Args:
        values: One value per seed; values that are not finite are left out.
        level: Confidence level: the share of such intervals that cover the true mean.
        least_deviation: Lower limit of the estimated standard deviation.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or ``least_deviation`` is negative.
    """
    _check_share("t_interval", "level", level, "0.95")
    mean, error, n = _mean_and_error(values, least_deviation)
    half_width = float(special.stdtrit(n - 1, (1 + level) / 2)) * error if n > 1 else math.nan
    return Interval(mean, mean - half_width, mean + half_width, n)


def t_test(
    values: Iterable[float],
    threshold: float = 0.0,
    alternative: Alternative = "two-sided",
    least_deviation: float = 0.0,
) -> float:
    """Returns the p-value of Student's t test that the mean of ``values`` is ``threshold``.

    ``t = (mean - threshold) / (s / sqrt(n))`` with ``n - 1`` degrees of freedom (Student, 1908);
    of paired differences it is the paired t test. The two-sided p is below ``alpha`` if and
    only if ``t_interval(values, 1 - alpha)`` does not contain the threshold.

    Args:
        values: One value per seed; values that are not finite are left out. The p-value is nan for
            fewer than two values, and for equal values without a ``least_deviation``.
        threshold: The mean of the null hypothesis, or its limit if the test is one-sided.
        alternative: The alternative hypothesis: the mean differs from the threshold, is greater, or
            is less.
        least_deviation: Lower limit of the estimated standard deviation.

    Raises:
        ValueError: If ``least_deviation`` is negative.
    """
    mean, error, n = _mean_and_error(values, least_deviation)
    if math.isnan(error):
        return math.nan
    t = (mean - threshold) / error
    match alternative:
        case "greater":
            return float(special.stdtr(n - 1, -t))
        case "less":
            return float(special.stdtr(n - 1, t))
        case _:
            return 2 * float(special.stdtr(n - 1, -abs(t)))


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    level: float = 0.95,
    least_deviation: float = 0.0,
) -> PairedDifference:
    """Returns the mean of ``b - a`` over the seeds that both have, with its interval.

    ``d_s = b_s - a_s`` for each common seed ``s``, then :func:`t_interval` of the ``d_s``: the
    interval of the paired t test. Arms with the same initial weights and data order share much
    of the variation by seed, which the difference cancels. A seed counts if both values are finite.

    Args:
        a: Value of the reference arm by seed.
        b: Value of the other arm by seed.
        level: Confidence level: the share of such intervals that cover the true difference.
        least_deviation: Lower limit of the estimated standard deviation of the differences.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or ``least_deviation`` is negative.
    """
    by_seed = {seed: b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())}
    by_seed = {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
    return PairedDifference(t_interval(by_seed.values(), level, least_deviation), by_seed)


def difference_in_differences(
    a: tuple[Mapping[int, float], Mapping[int, float]],
    b: tuple[Mapping[int, float], Mapping[int, float]],
    level: float = 0.95,
    least_deviation: float = 0.0,
) -> PairedDifference:
    """Returns the change of ``b`` minus the change of ``a``, with the interval of the mean.

    ``d_s = (b_end_s - b_start_s) - (a_end_s - a_start_s)`` for each seed ``s`` that has all four
    values, then :func:`t_interval` of the ``d_s``. It tests whether the batch size affects one
    arm more than the other, which two separate intervals cannot: if one change is significant and
    another is not, the two need not differ significantly (Gelman and Stern, 2006).

    Args:
        a: Values of the reference arm by seed, at the start and at the end.
        b: Values of the other arm by seed, at the start and at the end.
        level: Confidence level: the share of such intervals that cover the true difference.
        least_deviation: Lower limit of the estimated standard deviation of the ``d_s``.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, or ``least_deviation`` is negative.
    """
    change_a, change_b = (paired_difference(start, end).by_seed for start, end in (a, b))
    return paired_difference(change_a, change_b, level, least_deviation)


def tost(
    values: Iterable[float], margin: float, alpha: float = 0.05, least_deviation: float = 0.0
) -> EquivalenceTest:
    """Returns the test that the mean of ``values`` is within ``margin`` of zero.

    Two one-sided t tests (Schuirmann, 1987): the mean is above ``-margin`` and it is below
    ``margin``; each at ``alpha``, and the larger of the two p-values counts. The interval
    at level ``1 - 2 * alpha`` gives the same result: equivalent if it is within the margins. If the
    true mean is exactly on a margin, the probability of an error is at most ``alpha``.

    Args:
        values: One paired difference per seed; values that are not finite are left out.
        margin: The largest difference that does not matter, chosen before the experiment.
        alpha: Significance level: the accepted probability of a false claim of equivalence.
        least_deviation: Lower limit of the estimated standard deviation.

    Raises:
        ValueError: If ``margin`` is not positive, ``alpha`` not between 0 and 0.5, or
            ``least_deviation`` negative.
    """
    if not margin > 0:
        raise ValueError(f"tost: margin must be above 0, in the unit of the values; got {margin}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"tost: alpha must be between 0 and 0.5, such as 0.05; got {alpha}")
    values = list(values)
    above = t_test(values, -margin, "greater", least_deviation)
    below = t_test(values, margin, "less", least_deviation)
    p = max(above, below)
    return EquivalenceTest(t_interval(values, 1 - 2 * alpha, least_deviation), p, p < alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for multiple testing, in the order given.

    Holm's step-down procedure (1979): the ``i``-th smallest of ``m`` is multiplied by
    ``m - i + 1``, no adjusted value is below that of a smaller one, and none is above 1.
    Rejecting the hypotheses with adjusted values below ``alpha`` has a family-wise error rate of at
    most ``alpha``, whatever the dependence of the tests. It is never less powerful than
    Bonferroni's correction.

    Args:
        p_values: P-values of the whole family as it was fixed before the experiment. A test that
            could not be computed remains in it with p = 1.

    Raises:
        ValueError: If a value is not between 0 and 1, or nan.
    """
    p = np.array(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(
            f"holm: p-values must be between 0 and 1; got {list(p_values)}; use 1 for a test "
            "without a result"
        )
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def paired_power(effect: float, deviation: float, n: int, alpha: float = 0.05) -> float:
    """Returns the power of the two-sided paired t test for a true difference of ``effect``.

    ``t`` then has a noncentral t distribution with ``n - 1`` degrees of freedom and
    noncentrality ``d = effect / deviation * sqrt(n)``. With ``U`` the estimated over the true
    deviation, whose square times ``n - 1`` is chi-square, the power is the mean over ``U`` of
    ``P(|Z + d| > t(n - 1; 1 - alpha / 2) U)``, which is integrated numerically: the series of the
    noncentral distributions underflow to nan where ``d`` is large.

    Args:
        effect: The true mean difference, of either sign.
        deviation: Standard deviation of the paired differences over seeds.
        n: Number of seeds, at least two.
        alpha: Significance level of the test.

    Raises:
        ValueError: If ``effect`` is not finite, ``deviation`` not positive and finite, ``n`` below
            2 or ``alpha`` not between 0 and 1.
    """
    _check_share("paired_power", "alpha", alpha, "0.05")
    if not math.isfinite(effect) or not 0 < deviation < math.inf or n < 2:
        raise ValueError(
            "paired_power: effect must be finite, deviation above 0 and finite, and n at least 2; "
            f"got {effect}, {deviation} and {n}"
        )
    shift = abs(effect) / deviation * math.sqrt(n)
    critical = -float(special.stdtrit(n - 1, alpha / 2))
    u, weight = _deviation_ratio(n - 1, [(shift + d) / critical for d in (-10.0, 0.0, 10.0)])
    found = special.ndtr(shift - critical * u) + special.ndtr(-shift - critical * u)
    if (power := float(weight @ found)) < 0.5:
        return power
    # From the complement, which keeps its digits if the power is nearly 1.
    missed = special.ndtr(critical * u - shift) - special.ndtr(-critical * u - shift)
    return 1.0 - float(weight @ missed)


def _deviation_ratio(freedom: int, steep: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns quadrature nodes and weights of a mean over ``chi(freedom) / sqrt(freedom)``.

    The interval is split at the points ``steep``, so that steep integrands have more nodes there.
    """
    # Twelve deviations of U leave out less than 1e-20.
    reach = 12.0 / math.sqrt(2.0 * freedom)
    low, high = max(0.0, 1.0 - reach), 1.0 + reach
    borders = np.unique(np.clip([low, *steep, 1.0, high], low, high))
    nodes, weights = _gauss_legendre()
    half, middle = np.diff(borders)[:, None] / 2, (borders[1:] + borders[:-1])[:, None] / 2
    u = (middle + half * nodes).ravel()
    # The logarithm of the density, 0 at 1, near which freedom * x cancels without loss of digits.
    x = u - 1.0
    log_density = special.xlog1py(freedom - 1, x) - freedom * (x + x * x / 2)
    mass = (half * weights).ravel() * np.exp(log_density)
    return u, mass / mass.sum()


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(100)


def seeds_needed(effect: float, deviation: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Returns the smallest number of seeds for which the paired t test has this power.

    The smallest ``n`` for which :func:`paired_power` reaches ``power``, found by bisection,
    since power increases with ``n``. The result depends on ``deviation``, which is uncertain: the
    95 % interval of a deviation estimated from three seeds is from half of it to six times it.

    Args:
        effect: The smallest true mean difference to detect, of either sign.
        deviation: Standard deviation of the paired differences over seeds.
        power: The probability of detecting it.
        alpha: Significance level of the two-sided test.

    Raises:
        ValueError: If ``effect`` is 0 or not finite, ``deviation`` not positive and finite, a share
            not between 0 and 1, or a billion seeds would be too few.
    """
    _check_share("seeds_needed", "power", power, "0.8")
    if effect == 0:
        raise ValueError(
            "seeds_needed: effect is 0, which no number of seeds detects; it must be another "
            "number; for equivalence use tost"
        )
    enough = 2
    while paired_power(effect, deviation, enough, alpha) < power:
        enough *= 2
        if enough > MOST_SEEDS:
            raise ValueError(
                f"seeds_needed: an effect of {effect} with a deviation of {deviation} needs more "
                f"than {MOST_SEEDS:,} seeds; give the smallest effect that matters"
            )
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if paired_power(effect, deviation, middle, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def _mean_and_error(values: Iterable[float], least_deviation: float) -> tuple[float, float, int]:
    """Returns the mean of the finite values, its standard error, and their number; or nan."""
    if not least_deviation >= 0:
        raise ValueError(f"least_deviation is {least_deviation}; it must be 0 or more")
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    n = len(finite)
    if n < 2:
        return (float(finite[0]) if n else math.nan), math.nan, n
    deviation = max(float(finite.std(ddof=1)), least_deviation)
    # Differences of equal values deviate by rounding errors only, which are no estimate.
    spread = deviation > ROUNDING * float(np.abs(finite).max())
    return float(finite.mean()), deviation / math.sqrt(n) if spread else math.nan, n


def _check_share(where: str, name: str, value: float, example: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{where}: {name} must be between 0 and 1, such as {example}; got {value}")
