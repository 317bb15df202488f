"""What a few seeds allow one to say: means with Student-t intervals, and paired differences.

Seeds are few (three to ten), so that the normal quantile would claim far too much: with three
values the factor is 4.30 and not 1.96. A bootstrap over so few values is no remedy, because it
resamples the same three numbers and comes out too narrow.

One rule for values that are missing: a value that is not finite (a diverged run, or a metric
without any object of its kind) is no measurement. It is left out, and ``n`` counts the rest.
Who shows the mean must say so, because the seeds that survive flatter an arm.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats


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
    if not 0 < level < 1:
        raise ValueError(f"t_interval: level must lie between 0 and 1, as 0.95 does; got {level}")
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    n = len(finite)
    if n < 2:
        return Interval(float(finite[0]) if n else math.nan, math.nan, math.nan, n)
    mean = float(finite.mean())
    quantile = float(stats.t.ppf((1 + level) / 2, df=n - 1))
    half_width = quantile * float(finite.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half_width, mean + half_width, n)


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
