"""What a study would run and take, from a few steps of each kind of trial; nothing is kept."""

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
import time
from typing import NamedTuple

import jax

from fpnlab.config import Experiment, Trial, trials
from fpnlab.data.dataset import Dataset
from fpnlab.study.signals import Stop
from fpnlab.study.trial import run_trial

STEPS = 8
"""Steps of a measured trial; the speed is that of its second half."""


class Cost(NamedTuple):
    """What trials of one kind take."""

    trial: str
    """The one that was measured."""
    step: float
    """Seconds an optimizer step."""
    rest: float
    """Seconds of what comes after training: evaluation, files."""
    compilation: float
    """Seconds of compilation, once a program."""
    cpu: float
    """CPU seconds a second, while nothing is compiled."""

    def seconds(self, trial: Trial) -> float:
        """Returns what a trial takes, compilation aside."""
        return self.step * trial.experiment.train.steps + self.rest


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The trials of a study in their order, and what they take."""

    plan: list[Trial]
    costs: dict[str, Cost]
    """By trial."""
    axis: str
    programs: int
    compilation: float
    """Seconds of all compilation, by one process."""

    def seconds(self, trial: Trial) -> float:
        """Returns what a trial takes, compilation aside."""
        return self.costs[trial.name].seconds(trial)

    @property
    def total(self) -> float:
        """Seconds of all trials one after another, compilation aside."""
        return sum(map(self.seconds, self.plan))

    @property
    def cpu_hours(self) -> float:
        """CPU hours of all trials, and of compilation by as many cores."""
        seconds = sum(self.seconds(trial) * self.costs[trial.name].cpu for trial in self.plan)
        busy = statistics.mean(cost.cpu for cost in self.costs.values())
        return (seconds + self.compilation * busy) / 3600

    def wall(self, workers: int) -> float:
        """Returns the seconds that so many workers take, compilation included.

        They share the work evenly but for the longest trial, which nobody can share.
        """
        longest = max(map(self.seconds, self.plan))
        return max(longest, (self.total + self.compilation) / workers)


def estimate(experiment: Experiment, dataset: Dataset) -> Estimate:
    """Returns what a study takes, after running the first trial of each kind for a few steps.

    Trials that differ in seed, learning rate, weight decay and length alone are of one kind.

    Raises:
      ConfigError: the experiment has no study, or trials are refused.
    """
    plan = trials(experiment)
    measured: dict[Experiment, Cost] = {}
    programs: dict[tuple[object, ...], Cost] = {}
    costs = {}
    with _without_cache():
        for trial in plan:
            kind = _kind(trial.experiment)
            if kind not in measured:
                measured[kind] = measure(trial, dataset)
            costs[trial.name] = measured[kind]
            e = trial.experiment
            programs[e.model, e.objective, e.train, e.augment] = measured[kind]
    return Estimate(
        plan=plan,
        costs=costs,
        axis=experiment.study.axes[0].name if experiment.study else "",
        programs=len(programs),
        compilation=sum(cost.compilation for cost in programs.values()),
    )


def measure(trial: Trial, dataset: Dataset) -> Cost:
    """Returns what a trial takes, from running it twice for a few steps in a folder of its own."""
    e = trial.experiment
    short = dataclasses.replace(
        e,
        train=dataclasses.replace(e.train, examples=None, updates=STEPS),
        log_examples=STEPS // 2 * e.train.batch_size,
        checkpoint_seconds=1e9,
    )
    brief = dataclasses.replace(trial, experiment=short)
    speeds: list[float] = []
    took = []
    for _ in range(2):
        begun, busy = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            run_trial(
                brief,
                dataset,
                pathlib.Path(folder),
                stop=Stop(),
                report=lambda record: speeds.append(record["examples_per_second"]),
            )
        took.append((time.monotonic() - begun, time.process_time() - busy))
    (first, _), (again, busy) = took
    step = e.train.batch_size / max(speeds[-1], 1e-9)
    return Cost(
        trial=trial.name,
        step=step,
        rest=max(again - STEPS * step, 0.0),
        compilation=max(first - again, 0.0),
        cpu=busy / again,
    )


def describe(found: Estimate, workers: int) -> str:
    """Returns the estimate as text: the trials, the kinds of them, and the sums."""
    trials = [("trial", "arm", found.axis, "seed", "examples", "steps", "time")]
    for trial in found.plan:
        train = trial.experiment.train
        value = "-" if trial.axis_value is None else str(trial.axis_value)
        counts = f"{train.steps * train.batch_size:,}", f"{train.steps:,}"
        place = (trial.name, trial.arm, value, str(trial.seed))
        trials.append((*place, *counts, clock(found.seconds(trial))))

    kinds = [("measured", "trials", "ms a step", "examples/s", "evaluation", "compilation")]
    for cost in dict.fromkeys(found.costs.values()):
        same = [trial for trial in found.plan if found.costs[trial.name] == cost]
        speed = same[0].experiment.train.batch_size / cost.step
        numbers = f"{1000 * cost.step:.1f}", f"{speed:.0f}"
        others = f"{cost.rest:.1f} s", f"{cost.compilation:.1f} s"
        kinds.append((cost.trial, str(len(same)), *numbers, *others))

    steps = sum(trial.experiment.train.steps for trial in found.plan)
    many = f"{workers} workers" if workers > 1 else "1 worker"
    sums = [
        f"{len(found.plan):,} trials of {steps:,} steps: {clock(found.total)} one after another.",
        f"{found.programs} programs: {clock(found.compilation)} of compilation besides.",
        f"With {many}: about {clock(found.wall(workers))}, and {found.cpu_hours:.2f} CPU hours.",
    ]
    return "\n".join([*_columns(trials, 2), "", *_columns(kinds, 1), "", *sums])


def _columns(rows, left):
    """Yields rows as lines; the first ``left`` columns start below each other, others end so."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))
        ]
        yield "  ".join(cells)


def clock(seconds: float) -> str:
    """Returns "1:02:03" for hours, minutes and seconds, "2:03" for less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _kind(experiment):
    train = dataclasses.replace(
        experiment.train, examples=None, updates=STEPS, learning_rate=1.0, weight_decay=0.0
    )
    return dataclasses.replace(experiment, seed=0, question="", train=train)


@contextlib.contextmanager
def _without_cache():
    """What is compiled here is no program of the study, and what was cached takes no time."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)
