"""The compiled training step of one experiment, or of several that share a program."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, take
from fpnlab.run.batches import augment_key, augmented, positions
from fpnlab.tasks.kinds import AnyAugment, task_of
from fpnlab.tasks.task import Task
from fpnlab.train.parallel import data_mesh, jit_step, one_copy, replicate, shard
from fpnlab.train.step import Train, TrainState, init_train, train_step
from fpnlab.types import Batch, LabeledBatch

Logs = dict[str, Float[Array, "*trials"]]
"""Logs of a step; of a pack, with a leading axis of trials."""
PROGRAMS_KEPT = 64
"""A study goes through all its arms and values for each seed: fewer would compile them anew."""


class Program(NamedTuple):
    """Static arguments of the compiled step; seeds and learning rates are dynamic ones."""

    task: Task
    train: Train
    augmentation: AnyAugment | None


def program_of(experiment: Experiment) -> Program:
    """Returns what is equal for experiments that one program can train."""
    train = dataclasses.replace(
        experiment.train, learning_rate=1.0, rule="constant", reference_batch=1
    )
    return Program(experiment.task, train, experiment.augment)


class Training(NamedTuple):
    """Everything that the loop takes, of one experiment or of a pack."""

    step: Callable[[TrainState, Any], tuple[TrainState, Logs]]
    state: TrainState
    """Of a pack, with a leading axis of experiments."""
    batches: Iterator[Any]
    count: int
    """Number of experiments."""

    def separate(self, tree: Any) -> list[Any]:
        """Returns the part of each experiment in the state, or in a part of it."""
        return [one_copy(tree)] if self.count == 1 else _separated(tree, self.count)


def training_of(
    experiments: Sequence[Experiment], dataset: Dataset, states: Sequence[TrainState], at: int
) -> Training:
    """Returns the step of all experiments, their state, and their batches.

    Args:
      experiments: One, or several that share a program: a pack.
      dataset: Their data.
      states: The state of each.
      at: Steps that they have done.
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
    advance = compiled_step(first, mesh, packed=len(experiments) > 1)
    split = replicate(mesh, dataset.train)
    step = lambda state, batch: advance(state, split, *batch, *own)
    return Training(step, state, batches, len(experiments))


def compiled_step(
    experiment: Experiment, mesh: Mesh | None = None, packed: bool = False
) -> Callable[..., tuple[TrainState, Logs]]:
    """Returns the jitted step ``(state, split, indices, places, key, rate) -> (state, logs)``.

    Gathering, augmentation and update are one program; the memory of the old state is reused; the
    rate is the peak of the schedule. Over the devices of a ``mesh``, state, split, key and rate are
    on each of them, and indices and places are spread. A packed one has a leading axis of
    experiments in state, indices, key, rate and logs.
    """
    return _jitted_step(program_of(experiment), mesh, packed)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_step(
    of: Program, mesh: Mesh | None, packed: bool
) -> Callable[..., tuple[TrainState, Logs]]:
    def step(
        state: TrainState,
        split: Batch | LabeledBatch,
        indices: Any,
        places: Any,
        key: Any,
        rate: Any,
    ) -> tuple[TrainState, Logs]:
        batch = augmented(of.task, of.augmentation, take(split, indices), places, key)
        return train_step(of.task, of.train, state, batch, peak_rate=rate)

    over = (0, None, 0, None, 0, 0)
    return jit_step(jax.vmap(step, in_axes=over) if packed else step, mesh)


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step."""
    # Programs that differ in what the first state does not depend on are compiled once.
    any_length = {"examples": None, "updates": 1, "batch_size": 1}
    any_split = {"micro_batch": None, "norm_batch": None}
    train = dataclasses.replace(experiment.train, **any_length, **any_split, learning_rate=1.0)
    task = task_of(experiment.model, experiment.objective)
    return _jitted_init(task, train)(jax.random.key(experiment.seed))


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_init(task: Task, train: Train) -> Callable[[Any], TrainState]:
    return jax.jit(lambda key: init_train(key, task, train))


@jax.jit
def copied(trees: Any) -> Any:
    """Returns copies of arrays whose memory a step may reuse."""
    return jax.tree.map(jnp.copy, trees)


@jax.jit
def _stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def _separated(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]
