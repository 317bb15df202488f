"""Image classification: images with one label each, a classifier, and accuracy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fpnlab.data.augmentation.classifier_augment import AugmentImages, augment_images
from fpnlab.data.dataset import Dataset
from fpnlab.data.fit_image import center_fit
from fpnlab.data.sources.cifar import CifarBinary
from fpnlab.data.sources.digits import Digits
from fpnlab.data.sources.idx import Idx
from fpnlab.data.sources.image_folder import ImageFolder
from fpnlab.evaluate.accuracy import class_logits, evaluate_classifier
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.backbone import Backbone, trained
from fpnlab.nn.classifier import (
    Classifier,
    ClassifierParams,
    ClassifierState,
    capture_classifier,
    init_classifier,
)
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.tasks.predictions import ImageClass
from fpnlab.tasks.task import GALLERY_IMAGES, Measured, scanned
from fpnlab.train.objective import CrossEntropy, classification_loss
from fpnlab.train.step import LossOutput
from fpnlab.types import Key, LabeledBatch, Mode

ClassificationMetric = Literal["accuracy", "top5"]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task of classifiers (`fpnlab.tasks.task.Task`)."""

    model: Classifier
    objective: CrossEntropy

    data_kinds: ClassVar = (ImageFolder, CifarBinary, Idx, Digits)
    truth: ClassVar = "a label each"
    spec_kinds: ClassVar = {
        "model": "classifier",
        "objective": "cross_entropy",
        "augment": "classification",
    }
    metrics: ClassVar = get_args(ClassificationMetric)

    def __post_init__(self) -> None:
        if not isinstance(self.objective, CrossEntropy):
            raise TypeError(
                f"a Classifier cannot be trained by {type(self.objective).__name__}; give a "
                "CrossEntropy"
            )

    @property
    def backbone(self) -> Backbone:
        """The backbone of the classifier."""
        return self.model.backbone

    @property
    def levels(self) -> tuple[int, ...]:
        """Empty, because a classifier has no pyramid."""
        return ()

    def init(self, key: Key) -> tuple[ClassifierParams, ClassifierState]:
        """Returns initial parameters and state."""
        return init_classifier(key, self.model)

    def trained(self, params: ClassifierParams) -> ClassifierParams:
        """Returns a tree like ``params`` that is False for the parameters of frozen stages."""
        found = jax.tree.map(lambda _: True, params)
        return dataclasses.replace(found, backbone=trained(self.model.backbone, params.backbone))

    def loss(
        self,
        params: ClassifierParams,
        state: ClassifierState,
        batch: LabeledBatch,
        mode: Mode,
        *,
        precision: str,
        key: Key,
    ) -> tuple[Float[Array, ""], LossOutput]:
        """Returns the loss of a batch, and its parts, the new state and the layers' outputs."""
        _check_batch(batch)
        images = jnp.asarray(batch.images).astype(precision)
        logits, new, outputs = capture_classifier(self.model, params, state, images, mode, key=key)
        loss, logs = classification_loss(self.objective, logits, batch)
        return loss, LossOutput(logs, new, outputs)

    def augment(self, augmentation: AugmentImages, keys: Key, batch: LabeledBatch) -> LabeledBatch:
        """Returns ``batch`` with each image augmented at random, and mixed labels for mixup."""
        _check_batch(batch)
        if not isinstance(augmentation, AugmentImages):
            raise TypeError(
                f"{type(augmentation).__name__} is not for images with labels; give AugmentImages"
            )
        return augment_images(augmentation, keys, batch, classes=self.model.classes)

    def evaluate(
        self,
        evaluate: Evaluate,
        params: ClassifierParams,
        state: ClassifierState,
        *,
        population: LabeledBatch,
        dataset: Dataset,
        precision: str,
    ) -> Measured:
        """Returns accuracy on the test images by source of statistics, and their pictures."""
        found = evaluate_classifier(
            self.model,
            params,
            state,
            population=population,
            test=dataset.test,
            batch_size=evaluate.batch_size,
            precision=precision,
        )
        loss = {source: numbers["loss"] for source, numbers in found.metrics.items()}
        metrics = {
            source: {name: value for name, value in numbers.items() if name != "loss"}
            for source, numbers in found.metrics.items()
        }
        items = {
            f"{metric}_{source}": right
            for source, correct in found.correct.items()
            for metric, right in correct.items()
        }
        first = jax.tree.map(lambda leaf: np.asarray(leaf[:GALLERY_IMAGES]), dataset.test)
        gallery = self.pictures(first, found.logits[:GALLERY_IMAGES])
        return Measured(metrics, loss, gallery, items, found.population)

    def predict(
        self,
        params: ClassifierParams,
        state: ClassifierState,
        batch: LabeledBatch,
        *,
        mode: Mode,
        batch_size: int,
        precision: str,
    ) -> Float[np.ndarray, "n k"]:
        """Returns the logits of all images."""
        return class_logits(
            self.model,
            params,
            state,
            images=batch.images,
            mode=mode,
            batch_size=batch_size,
            precision=precision,
        )

    def batch_of(self, images: Sequence[np.ndarray], image_size: tuple[int, int]) -> LabeledBatch:
        """Returns images of any size scaled to cover ``image_size`` and center-cropped."""
        return LabeledBatch(
            images=np.stack([center_fit(image, image_size) for image in images]),
            labels=np.zeros(len(images), np.int32),
            index=np.arange(len(images), dtype=np.int32),
        )

    def image_predictions(
        self,
        predicted: np.ndarray,
        sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        class_names: Sequence[str],
    ) -> list[ImageClass]:
        """Returns the class of each image with the probabilities of all classes."""
        return [
            ImageClass(
                class_names[int(row.argmax())],
                float(row.max()),
                {name: float(value) for name, value in zip(class_names, row)},
            )
            for row in np.asarray(jax.nn.softmax(predicted))
        ]

    def pictures(
        self, batch: LabeledBatch, predicted: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Returns images, labels and, if logits are given, the probabilities of the classes."""
        labels = np.asarray(batch.labels)
        labels = labels if labels.ndim == 1 else labels.argmax(-1)  # Shares, of mixup.
        arrays = {"images": np.asarray(batch.images), "labels": labels}
        if predicted is not None:
            arrays["shares"] = np.asarray(jax.nn.softmax(predicted))
        return arrays

    def backbone_inputs(
        self, batch: LabeledBatch, precision: str
    ) -> tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"] | None]:
        """Returns standardized images, and no mask: all pixels enter statistics."""
        model = self.model
        images = jnp.asarray(batch.images).astype(precision)
        return standardize_pixels(images, model.pixel_mean, model.pixel_deviation), None

    def check_shapes(self, image_size: tuple[int, int], batch_size: int) -> None:
        """Traces the loss on shapes alone.

        Raises:
          ValueError: The model cannot be applied to such images.
        """
        task = dataclasses.replace(self, model=scanned(self.model))
        _trace(task, image_size, batch_size)


def _check_batch(batch: object) -> None:
    if not isinstance(batch, LabeledBatch):
        raise TypeError(f"a Classifier takes a LabeledBatch; got a {type(batch).__name__}")


@functools.lru_cache(maxsize=256)
def _trace(task: Classification, image_size: tuple[int, int], batch_size: int) -> None:
    zeros = lambda *axes: jnp.zeros((batch_size, *axes), jnp.int32)
    batch = jax.eval_shape(
        lambda: LabeledBatch(images=zeros(*image_size, 3), labels=zeros(), index=zeros())
    )

    def run(batch: LabeledBatch) -> tuple[Array, LossOutput]:
        key = jax.random.key(0)
        params, state = task.init(key)
        return task.loss(params, state, batch, Mode.TRAIN, precision="float32", key=key)

    jax.eval_shape(run, batch)
