"""Training images as training sees them, each at its place in the stream of a run."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, stream_order, take
from fpnlab.ops.random import named_key
from fpnlab.tasks.task import random_views
from fpnlab.types import Batch, Key, LabelledBatch

VIEW_CHUNK = 64


def positions(
    experiment: Experiment, size: int, at: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, from step ``at`` on, the indices of a batch's images and their places in the stream.

    Args:
      experiment: whose training it is.
      size: images of the training split.
      at: steps already done.
    """
    train = experiment.train
    for step in range(at, train.steps):
        start = step * train.batch_size
        places = np.arange(start, start + train.batch_size, dtype=np.uint32)
        yield stream_order(experiment.seed, size, start, train.batch_size), places


def view(model: Any, augmentation: Any, batch: Any, places: Any, key: Key) -> Any:
    """Returns a batch as training sees it at these places of its stream."""
    if augmentation is None:
        return batch
    # A view depends on the place in the stream only, not on the batch it is in.
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(places)
    return random_views(augmentation, keys, batch, model.classes)


def augment_key(experiment: Experiment) -> Key:
    """Returns the key of all views of a run."""
    return named_key(jax.random.key(experiment.seed), "augment")


def batch_at(experiment: Experiment, dataset: Dataset, step: int) -> Batch | LabelledBatch:
    """Returns the batch that the step after ``step`` others sees."""
    order, places = next(positions(experiment, len(dataset.train.images), step))
    batch = jax.tree.map(jnp.asarray, take(dataset.train, order))
    return view(experiment.model, experiment.augment, batch, places, augment_key(experiment))


def population_size(experiment: Experiment) -> int:
    """Returns how many images population statistics and diagnostics are taken over."""
    return max(experiment.evaluate.population_examples, experiment.train.batch_size)


def training_view(experiment: Experiment, dataset: Dataset, count: int) -> Batch | LabelledBatch:
    """Returns the first ``count`` images of training, as training sees them, in host memory."""
    order = stream_order(experiment.seed, len(dataset.train.images), 0, count)
    places = np.arange(count, dtype=np.uint32)
    key = augment_key(experiment)
    chunks = range(0, count, VIEW_CHUNK)
    parts = [
        jax.device_get(
            view(
                experiment.model,
                experiment.augment,
                jax.tree.map(jnp.asarray, take(dataset.train, order[i : i + VIEW_CHUNK])),
                places[i : i + VIEW_CHUNK],
                key,
            )
        )
        for i in chunks
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
