"""Number of seeds of a study: power of its paired t tests, trials and time."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from fpnlab.errors import ConfigError
from fpnlab.records.study_records import Summary
from fpnlab.stats.intervals import paired_power, seeds_needed
from fpnlab.study.dry_run import TimeEstimate

USUAL_SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 100)
"""Numbers of seeds in the table, up to the number needed."""


@dataclasses.dataclass(frozen=True)
class PlannedSeeds:
    """A study with some number of seeds."""

    seeds: int
    """Number of seeds."""
    power: float
    """Probability of deciding a true difference of the effect's size, 0 to 1."""
    trials: int
    """Number of trials, those that tune included."""
    seconds: float
    """Time of all workers together to the end, compilation included."""


@dataclasses.dataclass(frozen=True)
class PowerPlan:
    """The number of seeds with which a study finds a difference between two arms."""

    effect: float
    """Smallest difference that matters, in points."""
    deviation: float
    """Standard deviation over seeds of the paired differences, in points."""
    needed: int
    """Smallest number of seeds with the wanted power."""
    rows: tuple[PlannedSeeds, ...]
    """By number of seeds; with the config's and the needed one."""


def plan_seeds(
    found: TimeEstimate,
    seeds: Sequence[int],
    *,
    effect: float,
    deviation: float,
    power: float,
    alpha: float,
    workers: int,
) -> PowerPlan:
    """Returns power, trials and time of a study by its number of seeds.

    Each comparison is a paired Student-t test over seeds (``fpnlab.stats.paired_power``), two-sided
    and without adjustment for several claims. Trials that tune do not depend on the number of
    seeds.

    Args:
      found: Time of the study as configured.
      seeds: Seeds of the config.
      effect: Smallest difference that matters, in points.
      deviation: Standard deviation over seeds of the paired differences, in points.
      power: Wanted probability of deciding a difference of that size.
      alpha: Level of the test.
      workers: Processes that share the trials.

    Raises:
      ConfigError: A number is out of range, or no number of seeds is enough.
    """
    try:
        needed = seeds_needed(effect, deviation, power, alpha)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    counts = {count for count in USUAL_SEEDS if count < needed} | {needed, max(len(seeds), 2)}
    counts |= set([count for count in USUAL_SEEDS if count > needed][:1])
    tuning = [trial for trial in found.plan if trial.split == "validation"]
    counted = [trial for trial in found.plan if trial.split == "test"]
    longest = max(map(found.seconds, found.plan))

    def row(count: int) -> PlannedSeeds:
        share = count / len(seeds)
        work = sum(map(found.seconds, tuning)) + share * sum(map(found.seconds, counted))
        return PlannedSeeds(
            seeds=count,
            power=paired_power(effect, deviation, count, alpha),
            trials=len(tuning) + round(share * len(counted)),
            seconds=max(longest, (work + found.compilation) / workers),
        )

    return PowerPlan(effect, deviation, needed, tuple(row(count) for count in sorted(counts)))


def pooled_deviation(summary: Summary) -> tuple[float, int]:
    """Returns the deviation over seeds of a study's paired differences, and its freedom.

    The root of the mean variance over arms and axis values, each weighted by its degrees of
    freedom, of the study's metric with the first source of statistics; in points.

    Raises:
      ConfigError: No comparison of the study has two seeds.
    """
    rows = [
        [value for value in row.values.values() if value is not None]
        for row in summary.differences
        if row.metric == summary.metric and row.evaluation == summary.evaluations[0]
    ]
    freedom = sum(len(row) - 1 for row in rows if len(row) > 1)
    if not freedom:
        raise ConfigError(
            f"the study of {summary.name} has no difference of {summary.metric} over two or more "
            "seeds; give the spread with --spread"
        )
    return math.sqrt(sum(map(_squares, rows)) / freedom), freedom


def _squares(values: Iterable[float]) -> float:
    values = list(values)
    mean = sum(values) / len(values) if values else 0.0
    return sum((value - mean) ** 2 for value in values)
