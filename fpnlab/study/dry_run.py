"""Estimates the time of a study from a few training steps of each kind of trial."""

import contextlib
import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import Trial, trials
from fpnlab.data.dataset import Dataset
from fpnlab.evaluate.bn_statistics import whole_groups
from fpnlab.run.batches import population_size, training_view
from fpnlab.run.diagnosis import diagnose, rounded_rates
from fpnlab.run.hooks import log_interval
from fpnlab.run.measure import evaluate as evaluate_state
from fpnlab.run.measure import weights
from fpnlab.run.programs import initial_state, program_of, training_of

SECONDS = 1.0
"""Approximate duration of timing the steps of one kind of trial."""
STEPS = 3
"""Smallest number of timed steps."""
ENDLESS = 1_000_000
"""Number of training steps that is not reached during the measurement."""
BATCHES = 3
"""Largest number of batches of test and of training images in a timed evaluation."""


class TrainingTime(NamedTuple):
    """Time of the training of one kind of trial, in seconds."""

    seconds: float
    """Time of a step, with its share of the logging."""
    compilation: float
    """Time of compilation."""
    cpu: float
    """CPU seconds per second, compilation excluded."""


class EvaluationTime(NamedTuple):
    """Time after the training of one kind of trial, in seconds."""

    seconds: float
    """Time of evaluation and diagnostics, compilation excluded."""
    compilation: float
    """Time of compilation."""


class Cost(NamedTuple):
    """Time of a trial of one kind."""

    trial: str
    """Name of the measured trial."""
    step: float
    """Seconds per optimizer step."""
    rest: float
    """Seconds of evaluation and diagnostics after training."""
    compilation: float
    """Seconds of compilation with an empty cache."""
    cpu: float
    """CPU seconds per second, compilation excluded."""

    def seconds(self, trial: Trial) -> float:
        """Returns the time of a trial in seconds, compilation excluded."""
        return self.step * trial.experiment.train.steps + self.rest


@dataclasses.dataclass(frozen=True)
class TimeEstimate:
    """The estimated time of each trial of a study."""

    plan: list[Trial]
    """The trials in order."""
    costs: dict[str, Cost]
    """Cost by trial name."""
    axis: str
    """Name of the first axis."""
    programs: int
    """Number of programs to compile."""
    compilation: float
    """Seconds of all compilation in one process."""

    def seconds(self, trial: Trial) -> float:
        """Returns the time of a trial in seconds, compilation excluded."""
        return self.costs[trial.name].seconds(trial)

    @property
    def total(self) -> float:
        """Seconds of all trials in sequence, compilation excluded."""
        return sum(map(self.seconds, self.plan))

    @property
    def cpu_hours(self) -> float:
        """CPU hours of all trials, compilation included."""
        seconds = sum(self.seconds(trial) * self.costs[trial.name].cpu for trial in self.plan)
        busy = statistics.mean(cost.cpu for cost in self.costs.values())
        return (seconds + self.compilation * busy) / 3600

    def wall(self, workers: int) -> float:
        """Returns the wall-clock seconds with ``workers`` workers, compilation included.

        Assumes that the work is shared evenly; the longest trial is a lower bound.
        """
        longest = max(map(self.seconds, self.plan))
        return max(longest, (self.total + self.compilation) / workers)


def estimate(
    experiment: Experiment, dataset: Dataset, *, report: Callable[[str], object] = lambda line: None
) -> TimeEstimate:
    """Returns the estimated time of a study, measured on the first trial of each kind.

    Trials that differ only in seed, learning rate, weight decay and length are of one kind; those
    that differ only in seed and learning rate share a program. Evaluation is measured once per
    model, because the statistics groups of training hardly change its cost.

    Args:
      experiment: The experiment, with its ``study``.
      dataset: The data of the main trials.
      report: Called with a line of progress before each measurement.

    Raises:
      ConfigError: The experiment has no study, or trials are invalid.
    """
    plan = trials(experiment)
    count = len({_kind(trial.experiment) for trial in plan})
    kinds: dict[Experiment, Cost] = {}
    evaluations: dict[object, EvaluationTime] = {}
    costs, programs, compilation = {}, set(), {}
    with _empty_cache():
        for trial in plan:
            e = trial.experiment
            kind, model = _kind(e), (e.model, e.evaluate, e.augment, e.train.precision)
            if kind not in kinds:
                report(f"measuring a few steps, {len(kinds) + 1} of {count}: {trial.name}")
            if model not in evaluations:
                evaluations[model] = measure_evaluation(e, dataset)
            after = evaluations[model]
            if kind not in kinds:
                steps = measure_steps(e, dataset)
                both = steps.compilation + after.compilation
                kinds[kind] = Cost(trial.name, steps.seconds, after.seconds, both, steps.cpu)
            costs[trial.name] = kinds[kind]
            key = program_of(e)
            programs.add(key)
            compilation[key] = kinds[kind].compilation - after.compilation
            compilation[e.task, *model] = after.compilation
    return TimeEstimate(
        plan=plan,
        costs=costs,
        axis=experiment.study.axes[0].name if experiment.study else "",
        programs=len(programs),
        compilation=sum(compilation.values()),
    )


def measure_steps(experiment: Experiment, dataset: Dataset) -> TrainingTime:
    """Returns the time of training, from about a second of it."""
    endless = dataclasses.replace(experiment.train, examples=None, updates=ENDLESS)
    experiment = dataclasses.replace(experiment, train=endless)
    started = time.monotonic()
    training = training_of([experiment], dataset, [initial_state(experiment)], 0)
    carried = [training.state]

    def advance(count: int = 1) -> None:
        for _ in range(count):
            carried[0], _ = training.step(carried[0], next(training.batches))
        jax.block_until_ready(carried)

    def record() -> None:
        rounded_rates(carried[0].params, carried[0].params)

    advance()
    record()
    first = time.monotonic() - started
    count = max(math.ceil(SECONDS / _seconds(advance)), STEPS)
    busy = time.process_time()
    took = _seconds(functools.partial(advance, count))
    cpu = (time.process_time() - busy) / took
    recorded = _seconds(record)
    return TrainingTime(
        seconds=took / count + recorded / log_interval(experiment),
        compilation=max(first - took / count - recorded, 0.0),
        cpu=cpu,
    )


def measure_evaluation(experiment: Experiment, dataset: Dataset) -> EvaluationTime:
    """Returns the time of evaluation and diagnostics, from a few batches of images."""
    evaluate, train = experiment.evaluate, experiment.train
    state = initial_state(experiment)
    size = whole_groups(evaluate.batch_size, train.statistics_group)
    wanted = population_size(experiment)
    whole = {"test": -(-len(dataset.test.images) // size), "population": max(wanted // size, 1)}
    some = {name: min(batches, BATCHES) for name, batches in whole.items()}

    def follow(test: int, population: int) -> None:
        views = training_view(experiment, dataset, min(population * size, wanted))
        images = jax.tree.map(lambda leaf: leaf[: test * size], dataset.test)
        part, network = dataclasses.replace(dataset, test=images), (weights(state), state.state)
        found = evaluate_state(experiment, part, state, views)
        diagnose(experiment, *network, population=found.population, views=views, records=[])

    timed = lambda **batches: _seconds(functools.partial(follow, **some | batches))
    first, again = timed(), timed()
    seconds = again
    for name, batches in some.items():
        if left := whole[name] - batches:
            less = again - timed(**{name: 1})
            seconds += max(less, 0.0) * left / (batches - 1)
    return EvaluationTime(seconds, max(first - again, 0.0))


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def describe(found: TimeEstimate, workers: int) -> str:
    """Returns the estimate as text: a table of cells, a table of kinds, and the totals."""
    cells: dict[tuple[str, str], list[Trial]] = {}
    for trial in found.plan:
        cells.setdefault((trial.split, trial.cell), []).append(trial)
    trials = [("arm", found.axis, "trials", "examples", "steps", "a trial", "all")]
    for (split, _), own in cells.items():
        first = own[0]
        train = first.experiment.train
        arm = first.arm + (" (tuning)" if split == "validation" else "")
        value = "-" if first.axis_value is None else str(first.axis_value)
        counts = str(len(own)), f"{train.steps * train.batch_size:,}", f"{train.steps:,}"
        total = sum(map(found.seconds, own))
        trials.append((arm, value, *counts, clock(total / len(own)), clock(total)))

    kinds = [("measured", "trials", "ms a step", "examples/s", "evaluation", "compilation")]
    for cost in dict.fromkeys(found.costs.values()):
        same = [trial for trial in found.plan if found.costs[trial.name] == cost]
        speed = same[0].experiment.train.batch_size / cost.step
        numbers = f"{1000 * cost.step:.1f}", f"{speed:.0f}"
        others = f"{cost.rest:.1f} s", f"{cost.compilation:.1f} s"
        kinds.append((cost.trial, str(len(same)), *numbers, *others))

    steps = sum(trial.experiment.train.steps for trial in found.plan)
    many = f"{workers} workers" if workers > 1 else "1 worker"
    programs = "programs" if found.programs > 1 else "program"
    sums = [
        f"{len(found.plan):,} trials of {steps:,} steps: {clock(found.total)} in sequence.",
        f"{found.programs} {programs}: {clock(found.compilation)} of additional compilation.",
        f"With {many}: about {clock(found.wall(workers))}, and {found.cpu_hours:.2f} CPU hours.",
    ]
    return "\n".join([*_columns(trials, 1), "", *_columns(kinds, 1), "", *sums])


def _columns(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Yields rows as aligned lines; the first ``left`` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))
        ]
        yield "  ".join(cells)


def clock(seconds: float) -> str:
    """Returns a duration as "1:02:03" (hours, minutes, seconds), or "2:03" below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _kind(experiment: Experiment) -> Experiment:
    """Returns ``experiment`` without the fields that do not affect its time per step."""
    train = dataclasses.replace(
        experiment.train, examples=None, updates=ENDLESS, learning_rate=1.0, weight_decay=0.0
    )
    return dataclasses.replace(experiment, seed=0, question="", train=train)


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """Uses an empty persistent compilation cache, so that compilation time is measured."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update(name, folder)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            jax.config.update(name, before)
            compilation_cache.reset_cache()
