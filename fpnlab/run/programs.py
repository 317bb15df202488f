"""The compiled training step of one experiment, or of a pack of experiments."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, UInt32

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, take
from fpnlab.run.batches import augment_key, augmented, positions
from fpnlab.tasks.kinds import AnyAugment, task_of
from fpnlab.tasks.task import Task
from fpnlab.train.parallel import data_mesh, jit_step, one_copy, replicate, shard
from fpnlab.train.step import Train, TrainState, init_train, train_step
from fpnlab.types import Batch, Key, LabeledBatch

Tree = TypeVar("Tree")
Logs = dict[str, Float[Array, "*trials"]]
"""Logs of a step; those of a pack have a leading axis of trials."""
Indices = tuple[Integer[Array | np.ndarray, "*trials b"], UInt32[Array | np.ndarray, " b"]]
"""Image indices of a batch, and their positions in the training stream."""
PROGRAMS_KEPT = 64
"""Size of the caches of compiled programs. A study visits all arms and axis values for each seed:
a smaller cache would compile them again for the next seed."""


class Program(NamedTuple):
    """Static arguments of the compiled step; seed and learning rate are dynamic."""

    task: Task
    train: Train
    augmentation: AnyAugment | None


def program_of(experiment: Experiment) -> Program:
    """Returns the program of an experiment; experiments with equal programs can be packed."""
    train = dataclasses.replace(
        experiment.train, learning_rate=1.0, rule="constant", reference_batch=1
    )
    return Program(experiment.task, train, experiment.augment)


class Training(NamedTuple):
    """Arguments of the training loop for one experiment or a pack."""

    step: Callable[[TrainState, Indices], tuple[TrainState, Logs]]
    """The compiled step."""
    state: TrainState
    """The initial state; that of a pack has a leading axis of experiments."""
    batches: Iterator[Indices]
    """The indices of each batch."""
    count: int
    """Number of experiments."""

    def separate(self, tree: Tree) -> list[Tree]:
        """Returns the state, or a subtree of it, of each experiment."""
        return [one_copy(tree)] if self.count == 1 else _separated(tree, self.count)


def training_of(
    experiments: Sequence[Experiment], dataset: Dataset, states: Sequence[TrainState], at: int
) -> Training:
    """Returns the compiled step of the experiments with their states and batches.

    Args:
      experiments: One experiment, or a pack of several with equal programs.
      dataset: The data of the experiments.
      states: The state of each experiment.
      at: Number of steps already done.
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

    One program gathers, augments and updates. The state is donated, and ``rate`` is the peak of the
    learning-rate schedule. On a ``mesh``, state, split, key and rate are replicated over the
    devices, and indices and places are sharded. With ``packed``, state, indices, key, rate and logs
    have a leading axis of experiments.
    """
    return _jitted_step(program_of(experiment), mesh, packed)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_step(
    of: Program, mesh: Mesh | None, packed: bool
) -> Callable[..., tuple[TrainState, Logs]]:
    def step(
        state: TrainState,
        split: Batch | LabeledBatch,
        indices: Integer[Array, " b"],
        places: UInt32[Array, " b"],
        key: Key,
        rate: Float[Array, ""],
    ) -> tuple[TrainState, Logs]:
        batch = augmented(of.task, of.augmentation, take(split, indices), places, key)
        return train_step(of.task, of.train, state, batch, peak_rate=rate)

    # All trials of a pack have equal batch sizes and step counts, so that they share the stream
    # positions; the images at them differ with the seed.
    over = (0, None, 0, None, 0, 0)
    return jit_step(jax.vmap(step, in_axes=over) if packed else step, mesh)


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step."""
    task = task_of(experiment.model, experiment.objective)
    # Not one program: it would take longer to compile than the draws of all kernels.
    return init_train(jax.random.key(experiment.seed), task, experiment.train)


@jax.jit
def copied(trees: Tree) -> Tree:
    """Returns copies of arrays that the next step would donate."""
    return jax.tree.map(jnp.copy, trees)


@jax.jit
def _stacked(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def _separated(tree: Tree, count: int) -> list[Tree]:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]
