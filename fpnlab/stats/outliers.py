"""Seeds that lie far from all other seeds of a study.

With three to ten seeds, one sample alone seldom shows whether its extreme value is an outlier: of
three normal values, one is as far from the other two as ten times their own standard deviation in
23 % of samples. The samples of one study, such as the differences of its arms at each axis value,
show together how far seeds lie apart, and the rule below compares with all of them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

DISTANCE = 10.0
"""Distance of an outlying value from the mean of the others, in units of the spread."""
LEAST_FREEDOM = 3
"""Fewest degrees of freedom of all trimmed spreads together; with fewer, no seed is outlying."""


def outlying_seeds(
    samples: Sequence[Mapping[int, float]], least_deviation: float = 0.0
) -> list[int | None]:
    """Returns for each sample the seed whose value lies far from the others; None without one.

    The trimmed spread of a sample is the standard deviation of its values without the one that is
    farthest from the mean, so that one outlier per sample does not hide itself or another. That
    value is outlying if its distance from the mean of the others is at least `DISTANCE` times the
    largest trimmed spread of all samples: a sample that is noisier than the others, or an extreme
    value where values are always far apart, is no outlier.

    False alarms, as the share of studies without an outlier that have one or more
    (``benchmarks/outlying_seeds.py``): for normal values of equal deviation 6 % with three samples
    of three seeds, 2 % with five, and at most 2 % with five seeds; if one of five samples has four
    times the deviation of the others, 12 % with three seeds and below 1 % with five. Of seeds that
    are off by 30 standard deviations, 99 % or more are found; of those off by 10, half.

    Args:
        samples: Values by seed; those that are not finite are left out.
        least_deviation: Lower limit of the spread, such as that of rounding.
    """
    found = [_farthest(sample) for sample in samples]
    freedom = sum(n - 2 for *_, n in found if n > 2)
    largest = max([least_deviation, *(spread for _, _, spread, n in found if n > 2)])
    far = max(DISTANCE * largest, math.ulp(0.0))
    return [
        seed if n > 2 and freedom >= LEAST_FREEDOM and distance >= far else None
        for seed, distance, _, n in found
    ]


def _farthest(sample: Mapping[int, float]) -> tuple[int | None, float, float, int]:
    """Returns the farthest seed, its distance from the mean of the others, their spread, and n."""
    values = {seed: value for seed, value in sample.items() if math.isfinite(value)}
    if len(values) < 3:
        return None, 0.0, 0.0, len(values)
    mean = math.fsum(values.values()) / len(values)
    seed = max(values, key=lambda s: abs(values[s] - mean))
    others = np.array([value for s, value in values.items() if s != seed])
    distance = abs(values[seed] - float(others.mean()))
    return seed, distance, float(others.std(ddof=1)), len(values)
