"""What a few seeds allow one to say: intervals, tests, and how many seeds a question needs.

Everything here is about the mean of one value a seed: a metric, a difference of two arms of the
same seed, or a difference of such differences. Seeds are few (three to ten), so that the normal
quantile would claim far too much: with three values the factor is 4.30 and not 1.96.

The Student-t interval is the primary answer. `fpnlab.study.resampling` has two second opinions
that assume no normal distribution, `fpnlab.study.survival` the times that a run may never reach.

One rule for values that are missing: a value that is not finite (a diverged run, or a metric
without any object of its kind) is no measurement. It is left out, and ``n`` counts the rest.
Who shows the mean must say so, because the seeds that survive flatter an arm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

Alternative = Literal["two-sided", "greater", "less"]


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    """Mean of the finite values; nan when there are none."""
    low: float
    """Lower bound; nan for fewer than two values."""
    high: float
    """Upper bound; nan for fewer than two values."""
    n: int
    """Number of finite values."""

    @property
    def sign(self) -> int:
        """1 or -1 when the whole interval lies on that side of zero, otherwise 0."""
        return int(self.low > 0) - int(self.high < 0)


class PairedDifference(NamedTuple):
    """The differences of two arms, seed by seed, with the interval of their mean."""

    interval: Interval
    """Interval of the mean difference."""
    by_seed: dict[int, float]
    """The difference of each seed that both arms have, in ascending order of the seeds."""


class EquivalenceTest(NamedTuple):
    """Whether a mean difference was shown to lie within a margin of zero."""

    interval: Interval
    """Interval at level ``1 - 2 * alpha``; within the margins exactly when `equivalent`."""
    p: float
    """The larger p-value of the two one-sided tests; nan for fewer than two values."""
    equivalent: bool
    """Whether `p` is below ``alpha``. If not, nothing is shown: neither equal nor different."""


def t_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Returns the mean of ``values`` and its Student-t confidence interval.

    ``mean ± t(n - 1; (1 + level) / 2) * s / sqrt(n)``, with ``s`` the standard deviation that
    divides by ``n - 1`` (Student, 1908). The interval holds its level exactly for independent
    values of one normal distribution. One value has a mean but no interval.

    Args:
        values: One value a seed; those that are not finite are left out.
        level: The share of such intervals that cover the true mean.

    Raises:
        ValueError: If ``level`` is not between 0 and 1.
    """
    _check_share("t_interval", "level", level, "0.95")
    mean, error, n = _mean_and_error(values)
    half_width = float(special.stdtrit(n - 1, (1 + level) / 2)) * error if n > 1 else math.nan
    return Interval(mean, mean - half_width, mean + half_width, n)


def t_test(
    values: Iterable[float], threshold: float = 0.0, alternative: Alternative = "two-sided"
) -> float:
    """Returns the p-value of Student's t test that the mean of ``values`` is ``threshold``.

    ``t = (mean - threshold) / (s / sqrt(n))`` with ``n - 1`` degrees of freedom (Student, 1908);
    of paired differences it is the paired t test. The two-sided p is below ``alpha`` exactly
    when ``t_interval(values, 1 - alpha)`` leaves the threshold out.

    Args:
        values: One value a seed; those that are not finite are left out. Of fewer than two the
            p-value is nan. Values that are all equal decide with certainty.
        threshold: The mean of the null hypothesis, or its border where it is one-sided.
        alternative: What a small p-value speaks for: a mean other than the threshold, a
            greater, or a smaller one.
    """
    mean, error, n = _mean_and_error(values)
    if n < 2:
        return math.nan
    distance = mean - threshold
    if error > 0:
        t = distance / error
    else:
        t = math.copysign(math.inf, distance) if distance else 0.0
    match alternative:
        case "greater":
            return float(special.stdtr(n - 1, -t))
        case "less":
            return float(special.stdtr(n - 1, t))
        case _:
            return 2 * float(special.stdtr(n - 1, -abs(t)))


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> PairedDifference:
    """Returns the mean of ``b - a`` over the seeds that both have, with its interval.

    ``d_s = b_s - a_s`` for each common seed ``s``, then :func:`t_interval` of the ``d_s``: the
    interval of the paired t test. Arms that share initial weights and data order share much of
    their seed's luck, which the difference cancels. A seed counts only if both values are finite.

    Args:
        a: Value of the reference arm by seed.
        b: Value of the other arm by seed.
        level: The share of such intervals that cover the true difference.

    Raises:
        ValueError: If ``level`` is not between 0 and 1.
    """
    by_seed = {seed: b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())}
    by_seed = {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
    return PairedDifference(t_interval(by_seed.values(), level), by_seed)


def difference_in_differences(
    a: tuple[Mapping[int, float], Mapping[int, float]],
    b: tuple[Mapping[int, float], Mapping[int, float]],
    level: float = 0.95,
) -> PairedDifference:
    """Returns by how much ``b`` changes more than ``a``, with the interval of the mean.

    ``d_s = (b_end_s - b_start_s) - (a_end_s - a_start_s)`` for each seed ``s`` that has all four
    values, then :func:`t_interval` of the ``d_s``. It answers whether the batch size moves one
    arm more than the other, which two separate intervals do not: that one change is
    significant and another is not does not make the two different (Gelman and Stern, 2006).

    Args:
        a: Values of the reference arm by seed, at the start and at the end.
        b: Values of the other arm by seed, at the start and at the end.
        level: The share of such intervals that cover the true difference.

    Raises:
        ValueError: If ``level`` is not between 0 and 1.
    """
    change_a, change_b = (paired_difference(start, end).by_seed for start, end in (a, b))
    return paired_difference(change_a, change_b, level)


def tost(values: Iterable[float], margin: float, alpha: float = 0.05) -> EquivalenceTest:
    """Returns whether the mean of ``values`` lies within ``margin`` of zero.

    Two one-sided t tests (Schuirmann, 1987): the mean is above ``-margin`` and it is below
    ``margin``; each at ``alpha``, and the larger of the two p-values counts. The same verdict
    comes from the interval at level ``1 - 2 * alpha``: equivalent if it lies within the
    margins. With a mean exactly on a margin it errs in at most a share ``alpha`` of all cases.

    Args:
        values: One paired difference a seed; those that are not finite are left out.
        margin: The largest difference that does not matter, chosen before the run.
        alpha: The accepted share of false claims of equivalence.

    Raises:
        ValueError: If ``margin`` is not positive or ``alpha`` not between 0 and 0.5.
    """
    if not margin > 0:
        raise ValueError(f"tost: margin must be above 0, in the unit of the values; got {margin}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"tost: alpha must lie between 0 and 0.5, as 0.05 does; got {alpha}")
    values = list(values)
    above, below = t_test(values, -margin, "greater"), t_test(values, margin, "less")
    p = max(above, below)
    return EquivalenceTest(t_interval(values, 1 - 2 * alpha), p, p < alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number, in the order given.

    Holm's step-down procedure (1979): the ``i``-th smallest of ``m`` is multiplied by
    ``m - i + 1``, no adjusted value is below that of a smaller one, and none is above 1.
    Rejecting those below ``alpha`` makes a false rejection among all ``m`` in at most a share
    ``alpha`` of all families, however the tests depend on each other. It is never weaker than
    Bonferroni's correction.

    Args:
        p_values: Those of the whole family as it was fixed before the run. A test that could
            not be made stays in it with p = 1.

    Raises:
        ValueError: If a value is not between 0 and 1, or nan.
    """
    p = np.array(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(
            f"holm: p-values lie between 0 and 1; got {list(p_values)}; give a test without "
            "a result as 1"
        )
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def paired_power(effect: float, deviation: float, n: int, alpha: float = 0.05) -> float:
    """Returns how often the two-sided paired t test finds a true difference of ``effect``.

    ``t`` then has a noncentral t distribution with ``n - 1`` degrees of freedom and
    noncentrality ``effect / deviation * sqrt(n)``. The power is the share of it beyond
    ``± t(n - 1; 1 - alpha / 2)``, here by its square, which is noncentral F with 1 and ``n - 1``
    degrees: one tail, and accurate where that of the noncentral t underflows to nan.

    Args:
        effect: The true mean difference.
        deviation: Standard deviation of the paired differences over seeds.
        n: Number of seeds, at least two.
        alpha: Level of the test.

    Raises:
        ValueError: If ``deviation`` is not positive, ``n`` is below 2 or ``alpha`` not between
            0 and 1.
    """
    _check_share("paired_power", "alpha", alpha, "0.05")
    if not deviation > 0 or n < 2:
        raise ValueError(
            f"paired_power: deviation must be above 0 and n at least 2; got {deviation} and {n}"
        )
    noncentrality = (effect / deviation) ** 2 * n
    critical = special.stdtrit(n - 1, 1 - alpha / 2) ** 2
    return 1 - float(special.ncfdtr(1, n - 1, noncentrality, critical))


def seeds_needed(effect: float, deviation: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Returns the smallest number of seeds with which the paired t test has this power.

    The smallest ``n`` for which :func:`paired_power` reaches ``power``, found by bisection,
    since power rises with ``n``. It is a plan, not a promise: the 95 % interval of a deviation
    estimated from three seeds reaches from half of it to six times it.

    Args:
        effect: The smallest true mean difference that is to be found, of either sign.
        deviation: Standard deviation of the paired differences over seeds.
        power: The share of studies that are to find it.
        alpha: Level of the two-sided test.

    Raises:
        ValueError: If ``effect`` is 0, ``deviation`` not positive, or a share not between 0
            and 1.
    """
    _check_share("seeds_needed", "power", power, "0.8")
    if effect == 0:
        raise ValueError("seeds_needed: no number of seeds finds an effect of 0; see tost")
    enough = 2
    while paired_power(effect, deviation, enough, alpha) < power:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if paired_power(effect, deviation, middle, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def _mean_and_error(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean of the finite values, its standard error, and their number; nan where there is none."""
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    n = len(finite)
    if n < 2:
        return (float(finite[0]) if n else math.nan), math.nan, n
    return float(finite.mean()), float(finite.std(ddof=1)) / math.sqrt(n), n


def _check_share(where: str, name: str, value: float, example: str) -> None:
    if not 0 < value < 1:
        raise ValueError(
            f"{where}: {name} must lie between 0 and 1, as {example} does; got {value}"
        )
