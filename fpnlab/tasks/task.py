"""The interface of a task: loss, augmentation, evaluation, pictures, metric names."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fpnlab.data.dataset import Dataset
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.backbone import Backbone
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.detector import Detector
from fpnlab.tasks.predictions import Prediction
from fpnlab.train.objective import CrossEntropy, Objective
from fpnlab.train.step import Trainable
from fpnlab.types import Batch, Key, LabeledBatch, Mode

Model = TypeVar("Model", Detector, Classifier)

GALLERY_IMAGES = 12
"""Number of test images with predictions that a run stores as pictures."""


class Measured(NamedTuple):
    """Result of the evaluation of a trained model on the test images."""

    metrics: dict[str, dict[str, float]]
    """Shares from 0 to 1 by source of batch-norm statistics (``running``, ``precise``, ``batch``)
    and by name of the metric."""
    test_loss: dict[str, float] | None
    """Mean cross-entropy of a classifier in nats, by source; None for other tasks."""
    gallery: dict[str, np.ndarray]
    """The first test images with truth and predictions, as ``Task.pictures`` returns them."""
    items: dict[str, np.ndarray]
    """For each test image whether a classifier is correct, by ``METRIC_SOURCE``, such as
    ``accuracy_running``; empty for other tasks."""
    population: PyTree
    """The state with population statistics."""


def scanned(model: Model) -> Model:
    """Returns the model with its equal blocks as one loop, so that their shapes are traced once."""
    backbone = dataclasses.replace(model.backbone, repeat="scanned")
    return dataclasses.replace(model, backbone=backbone)


@runtime_checkable
class Task(Trainable, Protocol):
    """Loss, augmentation, evaluation, pictures and metric names of a kind of problem.

    An instance has a model and an objective that belong together; ``kinds.task_of`` returns it.
    """

    data_kinds: ClassVar[tuple[type, ...]]
    """Classes of the data specs of this task."""
    truth: ClassVar[str]
    """Name of the annotation of its images, for messages: "boxes"."""
    spec_kinds: ClassVar[Mapping[str, str]]
    """The ``kind`` of the config's ``model``, ``objective`` and ``augment``."""
    metrics: ClassVar[tuple[str, ...]]
    """Metrics that a study can compare; the first is the default."""

    @property
    def model(self) -> Detector | Classifier:
        """The model, with the ``norm_batch`` of every batch norm filled in."""

    @property
    def objective(self) -> Objective | CrossEntropy:
        """The loss function."""

    @property
    def backbone(self) -> Backbone:
        """The backbone of the model."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels over which the head keeps separate statistics; empty without a pyramid."""

    def augment(self, augmentation: Any, keys: Key, batch: Any) -> Batch | LabeledBatch:
        """Returns ``batch`` with each image augmented at random, which depends on its key alone.

        Args:
          augmentation: The augmentation spec of this task.
          keys: One key per image, ``[b]``.
          batch: Images of this task.

        Raises:
          TypeError: Augmentation or batch belong to another task.
        """

    def evaluate(
        self,
        evaluate: Evaluate,
        params: PyTree,
        state: PyTree,
        *,
        population: Any,
        dataset: Dataset,
        precision: str,
    ) -> Measured:
        """Returns the metrics of a trained model on the test images, by source of statistics.

        Args:
          evaluate: Options of the evaluation.
          params: Trained parameters.
          state: Running statistics.
          population: Augmented training images, for population statistics.
          dataset: The data set.
          precision: Dtype of the computation.
        """

    def predict(
        self,
        params: PyTree,
        state: PyTree,
        batch: Any,
        *,
        mode: Mode,
        batch_size: int,
        precision: str,
    ) -> PyTree:
        """Returns predictions for all images of ``batch``, as NumPy arrays.

        A detector returns `Detections`, a classifier logits ``[n, k]``.

        Args:
          params: Trained parameters.
          state: Statistics of batch norms.
          batch: Images of this task.
          mode: Source of the statistics of batch norms.
          batch_size: Images per forward pass.
          precision: Dtype of the computation.
        """

    def batch_of(
        self, images: Sequence[np.ndarray], image_size: tuple[int, int]
    ) -> Batch | LabeledBatch:
        """Returns images of any size as a batch of this task without annotations.

        Args:
          images: Pixels of each image, ``[h, w, 3]`` uint8.
          image_size: Height and width that the model was trained on.
        """

    def image_predictions(
        self,
        predicted: PyTree,
        sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        class_names: Sequence[str],
    ) -> Sequence[Prediction]:
        """Returns the predictions for each image of ``batch_of``, in pixels of the original.

        Args:
          predicted: Predictions of ``predict`` for the batch.
          sizes: Height and width of each original image.
          image_size: Height and width that the model was trained on.
          class_names: Names of the classes.
        """

    def pictures(self, batch: Any, predicted: PyTree = None) -> dict[str, np.ndarray]:
        """Returns images, ground truth and, if given, predictions as named arrays for drawing."""

    def backbone_inputs(
        self, batch: Any, precision: str
    ) -> tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"] | None]:
        """Returns standardized images, and the mask of the pixels that enter statistics, if any."""

    def check_shapes(self, image_size: tuple[int, int], batch_size: int) -> None:
        """Traces a training step on shapes alone.

        Raises:
          ValueError: The model cannot be applied to such images.
        """
