"""Training batches, and the training images as the model sees them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, stream_order, take
from fpnlab.ops.random import named_key
from fpnlab.tasks.kinds import AnyAugment
from fpnlab.tasks.task import Task
from fpnlab.types import Batch, Key, LabeledBatch

VIEW_CHUNK = 64
"""Images that are augmented at once for measurements."""


def positions(
    experiment: Experiment, size: int, at: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, from step ``at`` on, the indices of a batch's images and their places in the stream.

    Args:
      experiment: The experiment.
      size: Images of the training split.
      at: Steps already done.
    """
    train = experiment.train
    for step in range(at, train.steps):
        start = step * train.batch_size
        places = np.arange(start, start + train.batch_size, dtype=np.uint32)
        yield stream_order(experiment.seed, size, start, train.batch_size), places


def augmented(
    task: Task, augmentation: AnyAugment | None, batch: Any, places: Any, key: Key
) -> Any:
    """Returns a batch as training sees it at these places of its stream."""
    if augmentation is None:
        return batch
    # A view depends on the place in the stream only, not on the batch it is in.
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    return task.augment(augmentation, keys, batch)


def augment_key(experiment: Experiment) -> Key:
    """Returns the key of all augmentations of a run."""
    return named_key(jax.random.key(experiment.seed), "augment")


def batch_at(experiment: Experiment, dataset: Dataset, step: int) -> Batch | LabeledBatch:
    """Returns the batch that the step after ``step`` others sees."""
    order, places = next(positions(experiment, len(dataset.train.images), step))
    return _view(experiment, dataset, order, places)


def population_size(experiment: Experiment) -> int:
    """Returns the number of images for population statistics and diagnostics."""
    return max(experiment.evaluate.population_examples, experiment.train.batch_size)


def training_view(experiment: Experiment, dataset: Dataset, count: int) -> Batch | LabeledBatch:
    """Returns the first ``count`` images of training, as training sees them, in host memory."""
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
