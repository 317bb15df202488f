"""What differs between the trials of detectors and of classifiers: views, numbers, pictures."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.data.augmentation.classifier_augment import AugmentImages, augment_images
from fpnlab.data.augmentation.detector_augment import Augment, augment
from fpnlab.data.dataset import Dataset
from fpnlab.evaluate.accuracy import Accuracy, evaluate_classifier
from fpnlab.evaluate.average_precision import Evaluation, evaluate_detector
from fpnlab.nn.detector import Detector
from fpnlab.types import Batch, Key, LabelledBatch

GALLERY_IMAGES = 12


class Measured(NamedTuple):
    """What a trained network is worth."""

    metrics: dict[str, dict[str, float]]
    """By source of batch norm's statistics, shares from 0 to 1."""
    test_loss: dict[str, float] | None
    """A classifier's mean cross-entropy in nats, by source."""
    gallery: dict[str, np.ndarray]
    """The first test images, and what was found in them by running statistics."""
    items: dict[str, np.ndarray]
    """Whether a classifier is right about each test image, as ``METRIC_SOURCE``; none else."""
    population: Any
    """The state with population statistics."""


def random_views(
    augmentation: Augment | AugmentImages, keys: Key, batch: Batch | LabelledBatch, classes: int
) -> Batch | LabelledBatch:
    """Returns ``batch`` with each image in a random view, which depends on its key alone.

    Args:
      augmentation: that of the batch's task.
      keys: one an image.
      batch: images with boxes, or with labels.
      classes: their number, for labels that are mixed.
    """
    match augmentation, batch:
        case Augment(), Batch():
            return augment(augmentation, keys, batch)
        case AugmentImages(), LabelledBatch():
            return augment_images(augmentation, keys, batch, classes=classes)
    raise TypeError(
        f"{type(augmentation).__name__} gives no views of a {type(batch).__name__}; Augment is for "
        "a Batch, AugmentImages for a LabelledBatch"
    )


def evaluated(
    experiment: Experiment, dataset: Dataset, params: Any, state: Any, views: Any
) -> Evaluation | Accuracy:
    """Returns what the test images say of a trained network.

    Args:
      experiment: how it was trained.
      dataset: its data.
      params: its parameters.
      state: its running statistics.
      views: training images as training saw them, for population statistics.
    """
    evaluate, train, model = experiment.evaluate, experiment.train, experiment.model
    same = {
        "population": views,
        "test": dataset.test,
        "norm_batch": train.statistics_group,
        "precision": train.precision,
    }
    if isinstance(model, Detector):
        return evaluate_detector(
            evaluate, model, params, state, class_names=dataset.class_names, **same
        )
    return evaluate_classifier(model, params, state, batch_size=evaluate.batch_size, **same)


def measure(
    experiment: Experiment, dataset: Dataset, params: Any, state: Any, views: Any
) -> Measured:
    """Returns what a trained network is worth, and what to show of it; see ``evaluated``."""
    found = evaluated(experiment, dataset, params, state, views)
    first = jax.tree.map(lambda leaf: np.asarray(leaf[:GALLERY_IMAGES]), dataset.test)
    gallery, items = {"images": first.images}, {}
    if isinstance(found, Evaluation):
        gallery |= {f"truth_{name}": getattr(first, name) for name in ("boxes", "classes", "valid")}
        boxes = vars(found.detections).items()
        gallery |= {name: np.asarray(values[:GALLERY_IMAGES]) for name, values in boxes}
    else:
        shares = np.asarray(jax.nn.softmax(found.logits[:GALLERY_IMAGES]))
        gallery |= {"labels": first.labels, "shares": shares}
        items = {
            f"{metric}_{source}": right
            for source, correct in found.correct.items()
            for metric, right in correct.items()
        }
    return Measured(*without_loss(found), gallery, items, found.population)


def without_loss(
    found: Evaluation | Accuracy,
) -> tuple[dict[str, dict[str, float]], dict[str, float] | None]:
    """Returns the metrics that are shares, and apart from them a classifier's losses."""
    if isinstance(found, Evaluation):
        return found.metrics, None
    metrics = {
        source: {name: value for name, value in numbers.items() if name != "loss"}
        for source, numbers in found.metrics.items()
    }
    return metrics, {source: numbers["loss"] for source, numbers in found.metrics.items()}
