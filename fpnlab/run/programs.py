"""The training of a trial in its run folder, or at once of several that share a program."""

import dataclasses
import functools
import operator
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fpnlab.config.experiment import Experiment, Trial, training_hash
from fpnlab.data.augmentation.classifier_augment import AugmentImages
from fpnlab.data.augmentation.detector_augment import Augment
from fpnlab.data.dataset import Dataset, take
from fpnlab.run.batches import augment_key, positions, view
from fpnlab.run.diagnosis import rate_logs
from fpnlab.run.folder import append_line, read_lines, write_lines
from fpnlab.run.interrupts import Stop
from fpnlab.run.loop import fit
from fpnlab.train.checkpoint import Checkpoints
from fpnlab.train.model_loss import Model
from fpnlab.train.objective import CrossEntropy, Objective
from fpnlab.train.parallel import (
    data_mesh,
    in_any,
    jit_step,
    of_first,
    one_copy,
    replicate,
    shard,
)
from fpnlab.train.step import Train, TrainState, init_train, train_step
from fpnlab.types import Batch, LabelledBatch

PROGRAMS_KEPT = 64
"""A study goes through all its arms and values for each seed: fewer would compile them anew."""


class Interrupted(Exception):
    """The run was asked to stop, and saved before it did."""

    exit_code = 75


class Run(NamedTuple):
    """A trial, where it is run, and who hears of it."""

    trial: Trial
    folder: pathlib.Path
    report: Callable[[dict[str, Any]], None] = lambda record: None
    """Called with each record of metrics."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of its folder."""
        return checkpoints_of(self.folder, self.trial.experiment)

    @property
    def log(self) -> pathlib.Path:
        """The file of its records."""
        return self.folder / "metrics.jsonl"


def checkpoints_of(folder: pathlib.Path, experiment: Experiment) -> Checkpoints:
    """Returns the checkpoints of a run folder."""
    return Checkpoints(folder / "checkpoints", training_hash(experiment))


def train(runs: Sequence[Run], dataset: Dataset, stop: Stop) -> list[tuple[TrainState, float]]:
    """Returns the last state of each run, and its seconds of training in all sessions of it.

    Several runs, whose experiments share a ``program``, are a pack: it takes the steps of all. Each
    keeps its own files, as if it were alone, and counts its share of the time.

    Raises:
      Interrupted: ``stop`` was set; all runs saved first.
      CheckpointError: a checkpoint could not be written, or none is sound.
    """
    experiment, count = runs[0].trial.experiment, len(runs)
    steps, every = experiment.train.steps, log_interval(experiment)
    found = _restored(runs)
    books = _Books(runs, [at for at, _ in found])
    live = [i for i, begun in enumerate(found) if not _has_ended(experiment, *begun)]
    ended = {i: (found[i][1], books.spent[i]) for i in range(count) if i not in live}
    if not live:
        return [ended[i] for i in range(count)]
    at = books.marked = found[live[0]][0]
    experiments = [run.trial.experiment for run in runs]
    step, first, batches = stepping(experiments, dataset, [state for _, state in found], at)
    logged = lambda number: number % every == 0 or number == steps
    # The step reuses the memory of the parameters that it is given.
    before = _copied(separate(first.params, count)) if logged(at + 1) else []
    saved = time.monotonic()
    for number, (carried, logs) in enumerate(fit(step, first, batches), at + 1):
        finished, stopping = live if number == steps else [], False
        if logged(number):
            books.write(number, live, logs, before, separate(carried.params, count))
            refused = np.atleast_1d(one_copy(carried.refused))
            finished = finished or [i for i in live if refused[i]]
        # Processes agree where they wait for each other anyway.
        if logged(number) or jax.process_count() == 1:
            stopping = in_any(stop.requested)
        due = stopping or time.monotonic() - saved > experiment.checkpoint_seconds
        if due or finished:
            states = separate(carried, count)
            for i in live if due else finished:
                if jax.process_index() == 0:
                    runs[i].checkpoints.save(number, states[i])
            saved = time.monotonic()
            ended |= {i: (states[i], books.seconds(i)) for i in finished}
            live = [i for i in live if i not in ended]
        if stopping:
            folders = ", ".join(str(run.folder) for run in runs)
            raise Interrupted(f"{folders}: stopped after step {number} of {steps}, saved")
        if not live:
            break
        before = _copied(separate(carried.params, count)) if logged(number + 1) else []
    return [ended[i] for i in range(count)]


class _Books:
    """The records of runs that are trained together, and the time they take."""

    def __init__(self, runs: Sequence[Run], at: Sequence[int]) -> None:
        """Cuts from the logs what came after these steps."""
        self.runs, self.spent = runs, []
        for run, step in zip(runs, at):
            records = [r for r in read_lines(run.log) if r["step"] <= step]
            write_lines(run.log, records)
            self.spent.append(records[-1]["seconds"] if records else 0.0)
        self.begun = self.mark = time.monotonic()
        self.marked = 0

    def seconds(self, i: int) -> float:
        """Returns what a run has taken so far, earlier sessions included."""
        return round(self.spent[i] + (time.monotonic() - self.begun) / len(self.runs), 3)

    def write(
        self, number: int, live: list[int], logs: dict[str, Any], before: list, after: list
    ) -> None:
        """Writes a record of each live run, from the parameters before and after its last step."""
        experiment = self.runs[0].trial.experiment
        train, every = experiment.train, log_interval(experiment)
        last_record = (number - 1) // every * every
        halfway = 2 * last_record < train.steps <= 2 * number
        values = {name: np.atleast_1d(one_copy(value)) for name, value in logs.items()}
        now = time.monotonic()
        # Of its share of the time, as its seconds are.
        examples = (number - self.marked) * train.batch_size * len(self.runs)
        speed = examples / (now - self.mark)
        for i in live:
            record = {
                "step": number,
                "examples": number * train.batch_size,
                "pack": len(self.runs),
                "seconds": self.seconds(i),
                "examples_per_second": round(speed, 2),
                **{name: float(f"{value[i]:.6g}") for name, value in values.items()},
                **rate_logs(before[i], after[i], halfway=halfway),
            }
            append_line(self.runs[i].log, record)
            self.runs[i].report(record)
        self.mark, self.marked = now, number


def log_interval(experiment: Experiment) -> int:
    """Returns the number of steps from one record to the next."""
    return max(experiment.log_examples // experiment.train.batch_size, 1)


def stepping(
    experiments: Sequence[Experiment], dataset: Dataset, states: Sequence[TrainState], at: int
) -> tuple[
    Callable[[TrainState, Any], tuple[TrainState, dict]], TrainState, Iterator[tuple[Any, Any]]
]:
    """Returns the step ``(state, batch)`` of all experiments, their state, and their batches.

    Args:
      experiments: one, or several that share a ``program``: their states are then stacked along
        a new leading axis.
      dataset: with the split that they train on.
      states: the state of each.
      at: steps that they have done.
    """
    first, size = experiments[0], len(dataset.train.images)
    drawn = [positions(experiment, size, at) for experiment in experiments]
    keys = [augment_key(experiment) for experiment in experiments]
    rates = np.array([experiment.train.peak_rate for experiment in experiments], np.float32)
    if len(experiments) == 1:
        mesh = data_mesh(first.train.batch_size)
        state, own = replicate(mesh, states[0]), (keys[0], rates[0])
        batches = map(functools.partial(shard, mesh), drawn[0])
    else:
        mesh = None
        state, own = _stacked(list(states)), (jnp.stack(keys), rates)
        batches = ((np.stack([order for order, _ in one]), one[0][1]) for one in zip(*drawn))
    advance = training_step(first, mesh, packed=len(experiments) > 1)
    split = replicate(mesh, dataset.train)
    return lambda state, batch: advance(state, split, *batch, *own), state, batches


def separate(tree: Any, count: int) -> list[Any]:
    """Returns what each of ``count`` experiments has of a tree that ``stepping`` carries."""
    return [one_copy(tree)] if count == 1 else _separated(tree, count)


def training_step(
    experiment: Experiment, mesh: Mesh | None = None, packed: bool = False
) -> Callable[..., tuple[TrainState, dict]]:
    """Returns the jitted step ``(state, split, indices, positions, key, rate) -> (state, logs)``.

    Gathering, augmentation and update are one program; the old state's memory is reused; the rate
    is the peak of the schedule. Over the devices of a ``mesh``, state, split, key and rate are on
    each of them, and indices and positions are spread. A packed one has a leading axis of
    experiments in state, indices, key, rate and logs.
    """
    return _jitted_step(program(experiment), mesh, packed)


class Program(NamedTuple):
    """What the program of a training step depends on."""

    model: Model
    objective: Objective | CrossEntropy
    train: Train
    augmentation: Augment | AugmentImages | None


def program(experiment: Experiment) -> Program:
    """Returns what is equal for experiments that one program can train.

    Seeds and learning rates are its arguments.
    """
    train = dataclasses.replace(
        experiment.train, learning_rate=1.0, rule="constant", reference_batch=1
    )
    return Program(experiment.model, experiment.objective, train, experiment.augment)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_step(of, mesh, packed):
    def step(state: TrainState, split: Batch | LabelledBatch, indices, positions, key, rate):
        batch = view(of.model, of.augmentation, take(split, indices), positions, key)
        return train_step(of.model, of.objective, of.train, state, batch, peak_rate=rate)

    over = (0, None, 0, None, 0, 0)
    return jit_step(jax.vmap(step, in_axes=over) if packed else step, mesh)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_init(model, train):
    return jax.jit(lambda key: init_train(key, model, train))


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step of ``experiment``."""
    # Programs that differ in what the first state does not depend on are compiled once.
    any_length = {"examples": None, "updates": 1, "batch_size": 1}
    any_split = {"micro_batch": None, "norm_batch": None}
    train = dataclasses.replace(experiment.train, **any_length, **any_split, learning_rate=1.0)
    return _jitted_init(experiment.model, train)(jax.random.key(experiment.seed))


@jax.jit
def _copied(trees):
    return jax.tree.map(jnp.copy, trees)


@jax.jit
def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def _separated(tree, count):
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


def _restored(runs):
    """Returns step and state of each run; those that have not ended are at the same step."""
    experiment = runs[0].trial.experiment
    like = jax.eval_shape(lambda: initial_state(experiment))
    newest = None
    while True:
        found = []
        for run in runs:
            saved = run.checkpoints.restore(like, newest)
            at, state = of_first(saved or (0, initial_state(run.trial.experiment)))
            found.append((int(at), state))
        steps = [at for at, state in found if not _has_ended(experiment, at, state)]
        if len(set(steps)) < 2:
            return found
        # One has saved, or ended, later than another: all go on from where the last of them is.
        newest = min(steps)


def _has_ended(experiment, at, state):
    return at >= experiment.train.steps or (
        int(state.refused) > 0 and at % log_interval(experiment) == 0
    )
