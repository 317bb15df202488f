"""Training batches, and the augmented training images that diagnostics use."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, stream_order, take
from fpnlab.ops.random import named_key
from fpnlab.tasks.kinds import AnyAugment
from fpnlab.tasks.task import Task
from fpnlab.types import Batch, Key, LabeledBatch

VIEW_CHUNK = 64
"""Number of images that are augmented at once for evaluation and diagnostics."""


def positions(
    experiment: Experiment, size: int, at: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the image indices and stream positions of each batch from step ``at`` on.

    Args:
      experiment: The experiment.
      size: Number of images in the training split.
      at: Number of steps already done.
    """
    train = experiment.train
    for step in range(at, train.steps):
        start = step * train.batch_size
        places = np.arange(start, start + train.batch_size, dtype=np.uint32)
        yield stream_order(experiment.seed, size, start, train.batch_size), places


def augmented(
    task: Task,
    augmentation: AnyAugment | None,
    batch: Batch | LabeledBatch,
    places: UInt32[Array | np.ndarray, " b"],
    key: Key,
) -> Batch | LabeledBatch:
    """Returns the augmented batch.

    Args:
      task: The task of the experiment.
      augmentation: The augmentation; None returns ``batch`` as it is.
      batch: The images with their annotations.
      places: Position of each image in the training stream.
      key: Key of all augmentations of the run.
    """
    if augmentation is None:
        return batch
    # The key depends on the stream position alone, so that the batch size does not change views.
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    return task.augment(augmentation, keys, batch)


def augment_key(experiment: Experiment) -> Key:
    """Returns the key of all augmentations of a run."""
    return named_key(jax.random.key(experiment.seed), "augment")


def batch_at(experiment: Experiment, dataset: Dataset, step: int) -> Batch | LabeledBatch:
    """Returns the training batch of step number ``step``, counted from 0."""
    order, places = next(positions(experiment, len(dataset.train.images), step))
    return _view(experiment, dataset, order, places)


def population_size(experiment: Experiment) -> int:
    """Returns the number of images for population statistics and diagnostics."""
    return max(experiment.evaluate.population_examples, experiment.train.batch_size)


def training_view(experiment: Experiment, dataset: Dataset, count: int) -> Batch | LabeledBatch:
    """Returns the first ``count`` augmented training images in host memory."""
    order = stream_order(experiment.seed, len(dataset.train.images), 0, count)
    places = np.arange(count, dtype=np.uint32)
    chunks = [slice(i, i + VIEW_CHUNK) for i in range(0, count, VIEW_CHUNK)]
    parts = [jax.device_get(_view(experiment, dataset, order[c], places[c])) for c in chunks]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _view(
    experiment: Experiment, dataset: Dataset, order: np.ndarray, places: np.ndarray
) -> Batch | LabeledBatch:
    batch = jax.tree.map(jnp.asarray, take(dataset.train, order))
    key = augment_key(experiment)
    return augmented(experiment.task, experiment.augment, batch, places, key)
