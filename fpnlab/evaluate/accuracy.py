"""A trained classifier's accuracy and loss, with batch norm evaluated three ways."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from fpnlab.evaluate.bn_statistics import filled_batches, three_sources, whole_groups
from fpnlab.nn.classifier import (
    Classifier,
    ClassifierParams,
    ClassifierState,
    apply_classifier,
)
from fpnlab.types import LabeledBatch, Mode


class Accuracy(NamedTuple):
    """Metrics of a trained classifier, with the predictions behind them."""

    metrics: dict[str, dict[str, float]]
    """``accuracy_metrics`` by source of statistics: `running`, `precise`, `batch`."""
    logits: np.ndarray
    """``[n, k]``, those by running statistics."""
    population: ClassifierState
    """The state with population statistics; without a batch norm, the state as it was."""
    correct: dict[str, dict[str, np.ndarray]]
    """``correct_predictions`` by source of statistics."""


def evaluate_classifier(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    *,
    population: LabeledBatch,
    test: LabeledBatch,
    batch_size: int,
    precision: str = "float32",
) -> Accuracy:
    """Returns the metrics on ``test`` by source of statistics, and what they were made from.

    The sources are those of ``three_sources``: ``running``, ``precise`` and ``batch``.

    Args:
      classifier: what was trained.
      params: its parameters.
      state: its running statistics.
      population: training images as training saw them, for ``precise``; what does not fill a
        last batch is left out.
      test: held-out images, their labels class numbers; in random order, because neighbors share
        the statistics of ``batch``.
      batch_size: images per forward pass.
      precision: dtype of the computation.

    Raises:
      ValueError: the population is smaller than a statistics group.
    """

    def measure(spec, statistics, mode, multiple):
        found = class_logits(
            spec,
            params,
            statistics,
            images=test.images,
            mode=mode,
            batch_size=batch_size,
            multiple=multiple,
            precision=precision,
        )
        return found, statistics

    sources = three_sources(
        classifier,
        state,
        measure=measure,
        collect=lambda spec, state, images: _collect(spec, precision, params, state, images),
        population=population.images,
        batch_size=batch_size,
    )
    found = {name: logits for name, (logits, _) in sources.items()}
    correct = {name: correct_predictions(logits, test.labels) for name, logits in found.items()}
    metrics = {name: _metrics(correct[name], found[name], test.labels) for name in found}
    _, exact = sources["precise"]
    return Accuracy(metrics, found["running"], exact, correct)


def class_logits(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    *,
    images: np.ndarray | jax.Array,
    mode: Mode,
    batch_size: int,
    multiple: int = 1,
    precision: str = "float32",
) -> np.ndarray:
    """Returns the logits ``[n, k]`` of all ``images``, in their order, as a numpy array.

    Args:
      classifier: what to compute.
      params: its parameters.
      state: its running statistics.
      images: ``[n, h, w, 3]``, 0 to 255.
      mode: where batch norms take their statistics from.
      batch_size: images per forward pass.
      multiple: batches are made a multiple of so many images (statistics groups).
      precision: dtype of the computation.
    """
    size = whole_groups(batch_size, multiple)
    parts = [
        jax.device_get(_logits(classifier, mode, precision, params, state, images[index]))
        for index in filled_batches(len(images), size)
    ]
    return np.concatenate(parts)[: len(images)]


def accuracy_metrics(logits: np.ndarray, labels: np.ndarray | jax.Array) -> dict[str, float]:
    """Returns ``accuracy``, with more than five classes ``top5``, and ``loss``.

    ``accuracy`` and ``top5`` are the shares of images with a correct prediction, see
    ``correct_predictions``; ``loss`` is the mean cross-entropy in nats.

    Args:
      logits: ``[n, k]``.
      labels: ``[n]``, 0 to k - 1.
    """
    return _metrics(correct_predictions(logits, labels), logits, labels)


def correct_predictions(
    logits: np.ndarray, labels: np.ndarray | jax.Array
) -> dict[str, np.ndarray]:
    """Returns for each image whether it is right for ``accuracy``, with over five classes ``top5``.

    It is if its class has the largest logit, or one of the five largest (between equal ones the
    lower class comes first). An image with a logit that is not finite is wrong.

    Args:
      logits: ``[n, k]``.
      labels: ``[n]``, 0 to k - 1.
    """
    wide = np.asarray(logits, np.float64)
    top = np.argsort(-wide, axis=1, kind="stable")[:, :5]
    hits = (top == np.asarray(labels)[:, None]) & np.isfinite(wide).all(1, keepdims=True)
    return {"accuracy": hits[:, 0]} | ({"top5": hits.any(1)} if wide.shape[1] > 5 else {})


def _metrics(correct, logits, labels):
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # Infinite logits have no loss: NaN says so.
        shifted = wide - wide.max(1, keepdims=True)
    of_class = shifted[np.arange(len(wide)), np.asarray(labels)]
    loss = np.log(np.exp(shifted).sum(1)) - of_class
    shares = {name: float(right.mean()) for name, right in correct.items()}
    return shares | {"loss": float(loss.mean())}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(classifier, mode, precision, params, state, images):
    return apply_classifier(classifier, params, state, images.astype(precision), mode)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _collect(classifier, precision, params, state, images):
    images = images.astype(precision)
    return apply_classifier(classifier, params, state, images, Mode.MOMENTS)[1]
