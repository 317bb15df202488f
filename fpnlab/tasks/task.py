"""The interface of a task: loss, augmentation, evaluation, pictures, metric names."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float

from fpnlab.data.dataset import Dataset
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.resnet import ResNet
from fpnlab.tasks.predictions import Prediction
from fpnlab.train.step import Trainable
from fpnlab.types import Key, Mode

GALLERY_IMAGES = 12
"""Test images whose predictions a run keeps as pictures."""


class Measured(NamedTuple):
    """Everything that is measured of a trained model on the test images."""

    metrics: dict[str, dict[str, float]]
    """Shares from 0 to 1 by source of batch-norm statistics (``running``, ``precise``, ``batch``)
    and by name of the metric."""
    test_loss: dict[str, float] | None
    """Mean cross-entropy of a classifier in nats, by source; None for other tasks."""
    gallery: dict[str, np.ndarray]
    """The first test images with truth and predictions, as ``Task.pictures`` returns them."""
    items: dict[str, np.ndarray]
    """For each test image whether a classifier is correct, by ``METRIC_SOURCE``; empty for other
    tasks."""
    population: Any
    """The state with population statistics."""


@runtime_checkable
class Task(Trainable, Protocol):
    """Loss, augmentation, evaluation, pictures and metric names of a kind of problem.

    A value of it holds a model and an objective that fit each other; ``kinds.task_of`` makes it.
    """

    data_kinds: ClassVar[tuple[type, ...]]
    """Data specs of this task."""
    truth: ClassVar[str]
    """The annotation of its images, in words: "boxes"."""
    spec_kinds: ClassVar[Mapping[str, str]]
    """The ``kind`` of the config's ``model``, ``objective`` and ``augment``."""
    metrics: ClassVar[tuple[str, ...]]
    """Metrics that a study can compare; the first is the default."""

    @property
    def model(self) -> Any:
        """The model, with the ``norm_batch`` of every batch norm filled in."""

    @property
    def objective(self) -> Any:
        """The loss function."""

    @property
    def backbone(self) -> ResNet:
        """The backbone of the model."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels over which the head keeps separate statistics; empty without a pyramid."""

    def augment(self, augmentation: Any, keys: Key, batch: Any) -> Any:
        """Returns ``batch`` with each image in a random view, which depends on its key alone.

        Args:
          augmentation: The augmentation spec of this task.
          keys: ``[b]``, one an image.
          batch: Images of this task.

        Raises:
          TypeError: Augmentation or batch belong to another task.
        """

    def evaluate(
        self,
        evaluate: Evaluate,
        params: Any,
        state: Any,
        *,
        population: Any,
        dataset: Dataset,
        precision: str,
    ) -> Measured:
        """Returns the metrics of a trained model on the test images, by source of statistics.

        Args:
          evaluate: Batch size and number of images.
          params: Trained parameters.
          state: Running statistics.
          population: Training images as training saw them, for population statistics.
          dataset: The data.
          precision: Dtype of the computation.
        """

    def predict(
        self,
        params: Any,
        state: Any,
        batch: Any,
        *,
        mode: Mode,
        batch_size: int,
        precision: str,
    ) -> Any:
        """Returns predictions for all images of ``batch``, as NumPy arrays.

        Detections of a detector, logits ``[n, k]`` of a classifier.
        """

    def batch_of(self, images: Sequence[np.ndarray], image_size: tuple[int, int]) -> Any:
        """Returns images of any size as a batch of this task without annotations.

        Args:
          images: ``[h, w, 3]`` uint8 each.
          image_size: Height and width that the model was trained on.
        """

    def image_predictions(
        self,
        predicted: Any,
        sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        class_names: Sequence[str],
    ) -> Sequence[Prediction]:
        """Returns the predictions for each image of ``batch_of``, in pixels of the original.

        Args:
          predicted: As ``predict`` returns it for the batch.
          sizes: Height and width of each original image.
          image_size: Height and width that the model was trained on.
          class_names: Names of the classes.
        """

    def pictures(self, batch: Any, predicted: Any = None) -> dict[str, np.ndarray]:
        """Returns images, truth and, where given, predictions as named arrays to draw."""

    def backbone_inputs(
        self, batch: Any, precision: str
    ) -> tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"] | None]:
        """Returns standardized images, and the mask of the pixels that enter statistics."""

    def check_shapes(self, image_size: tuple[int, int], batch_size: int) -> None:
        """Traces a training step on shapes alone.

        Raises:
          ValueError: The model cannot be applied to such images.
        """
