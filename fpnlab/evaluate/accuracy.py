"""A trained classifier's accuracy and loss, with batch norm evaluated three ways."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

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
    """Logits by running statistics, ``[n, k]``."""
    population: ClassifierState
    """The state with population statistics; without a batch norm, the unchanged state."""
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
    """Returns the metrics on ``test`` by source of statistics, and the predictions.

    The sources are those of ``three_sources``: ``running``, ``precise`` and ``batch``.

    Args:
      classifier: The trained classifier.
      params: Its parameters.
      state: Its running statistics.
      population: Augmented training images, for ``precise``; images that do not fill a last batch
        are left out.
      test: Held-out images with class numbers as labels; in random order, because consecutive
        images share the statistics of ``batch``.
      batch_size: Images per forward pass.
      precision: Dtype of the computation.

    Raises:
      ValueError: The population is smaller than a statistics group.
    """

    def measure(
        spec: Classifier, statistics: ClassifierState, mode: Mode, multiple: int
    ) -> tuple[np.ndarray, ClassifierState]:
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
    images: Num[Array | np.ndarray, "n h w 3"],
    mode: Mode,
    batch_size: int,
    multiple: int = 1,
    precision: str = "float32",
) -> Float[np.ndarray, "n k"]:
    """Returns the logits of all ``images``, in their order, as a NumPy array.

    Args:
      classifier: The classifier.
      params: Its parameters.
      state: Its running statistics.
      images: Pixels, 0 to 255.
      mode: Source of the statistics of batch norms.
      batch_size: Images per forward pass.
      multiple: Images that the size of batches is a multiple of (statistics groups).
      precision: Dtype of the computation.
    """
    size = whole_groups(batch_size, multiple)
    parts = [
        jax.device_get(_logits(classifier, mode, precision, params, state, images[index]))
        for index in filled_batches(len(images), size)
    ]
    return np.concatenate(parts)[: len(images)]


def accuracy_metrics(
    logits: Float[np.ndarray, "n k"], labels: Int[Array | np.ndarray, " n"]
) -> dict[str, float]:
    """Returns ``accuracy``, with more than five classes ``top5``, and ``loss``.

    ``accuracy`` and ``top5`` are the shares of images with a correct prediction, see
    ``correct_predictions``; ``loss`` is the mean cross-entropy in nats.

    Args:
      logits: A logit for each class.
      labels: Class numbers, 0 to k - 1.
    """
    return _metrics(correct_predictions(logits, labels), logits, labels)


def correct_predictions(
    logits: Float[np.ndarray, "n k"], labels: Int[Array | np.ndarray, " n"]
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Returns the images with a correct prediction by metric: ``accuracy``, and maybe ``top5``.

    A prediction is correct if the class has the largest logit, or with more than five classes for
    ``top5`` one of the five largest; of equal logits the lower class comes first. An image with a
    logit that is not finite is wrong.

    Args:
      logits: A logit for each class.
      labels: Class numbers, 0 to k - 1.
    """
    wide = np.asarray(logits, np.float64)
    top = np.argsort(-wide, axis=1, kind="stable")[:, :5]
    hits = (top == np.asarray(labels)[:, None]) & np.isfinite(wide).all(1, keepdims=True)
    return {"accuracy": hits[:, 0]} | ({"top5": hits.any(1)} if wide.shape[1] > 5 else {})


def _metrics(
    correct: dict[str, Bool[np.ndarray, " n"]],
    logits: Float[np.ndarray, "n k"],
    labels: Int[Array | np.ndarray, " n"],
) -> dict[str, float]:
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # Infinite logits give a loss of NaN.
        shifted = wide - wide.max(1, keepdims=True)
    of_class = shifted[np.arange(len(wide)), np.asarray(labels)]
    loss = np.log(np.exp(shifted).sum(1)) - of_class
    shares = {name: float(right.mean()) for name, right in correct.items()}
    return shares | {"loss": float(loss.mean())}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(
    classifier: Classifier,
    mode: Mode,
    precision: str,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
) -> Float[Array, "b k"]:
    return apply_classifier(classifier, params, state, images.astype(precision), mode)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _collect(
    classifier: Classifier,
    precision: str,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
) -> ClassifierState:
    """Returns the state with the moments of a batch merged into it."""
    images = images.astype(precision)
    return apply_classifier(classifier, params, state, images, Mode.MOMENTS)[1]
