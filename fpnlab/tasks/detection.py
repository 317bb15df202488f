"""Object detection: images with boxes, a one-stage detector, and COCO metrics."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fpnlab.data.augmentation.detector_augment import Augment, augment
from fpnlab.data.dataset import Dataset
from fpnlab.data.fit_image import letterbox, original_boxes
from fpnlab.data.sources.scenes import Scenes
from fpnlab.data.sources.voc import Voc
from fpnlab.evaluate.average_precision import detections, evaluate_detector
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.backbone import Backbone, trained
from fpnlab.nn.detector import (
    Detector,
    DetectorParams,
    DetectorState,
    capture_detector,
    detect,
    detector_anchors,
    init_detector,
)
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.tasks.predictions import ImageDetections
from fpnlab.tasks.task import GALLERY_IMAGES, Measured, scanned
from fpnlab.train.objective import Objective, detection_loss
from fpnlab.train.step import LossOutput
from fpnlab.types import Batch, Detections, Key, Mode

DetectionMetric = Literal["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]


@dataclasses.dataclass(frozen=True)
class Detection:
    """The task of detectors (`fpnlab.tasks.task.Task`)."""

    model: Detector
    objective: Objective

    data_kinds: ClassVar = (Scenes, Voc)
    truth: ClassVar = "boxes"
    spec_kinds: ClassVar = {
        "model": "detector",
        "objective": "detection",
        "augment": "detection",
    }
    metrics: ClassVar = get_args(DetectionMetric)

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise TypeError(
                f"a Detector cannot be trained by {type(self.objective).__name__}; give an "
                "Objective"
            )

    @property
    def backbone(self) -> Backbone:
        """The backbone of the detector."""
        return self.model.backbone

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels of the pyramid, finest first."""
        return tuple(self.model.neck.levels)

    def init(self, key: Key) -> tuple[DetectorParams, DetectorState]:
        """Returns initial parameters and state."""
        return init_detector(key, self.model)

    def trained(self, params: DetectorParams) -> DetectorParams:
        """Returns a tree like ``params`` that is False for the parameters of frozen stages."""
        found = jax.tree.map(lambda _: True, params)
        return dataclasses.replace(found, backbone=trained(self.model.backbone, params.backbone))

    def loss(
        self,
        params: DetectorParams,
        state: DetectorState,
        batch: Batch,
        mode: Mode,
        *,
        precision: str,
        key: Key,
    ) -> tuple[Float[Array, ""], LossOutput]:
        """Returns the loss of a batch, and its parts, the new state and the layers' outputs."""
        _check_batch(batch)
        images = jnp.asarray(batch.images).astype(precision)
        anchors = detector_anchors(self.model, *images.shape[1:3])
        output, new, outputs = capture_detector(
            self.model, params, state, images, mode, extent=batch.extent, key=key
        )
        loss, logs = detection_loss(self.objective, output, anchors, batch)
        return loss, LossOutput(logs, new, outputs)

    def augment(self, augmentation: Augment, keys: Key, batch: Batch) -> Batch:
        """Returns ``batch`` with each image and its boxes augmented at random."""
        _check_batch(batch)
        if not isinstance(augmentation, Augment):
            raise TypeError(
                f"{type(augmentation).__name__} is not for images with boxes; give an Augment"
            )
        return augment(augmentation, keys, batch)

    def evaluate(
        self,
        evaluate: Evaluate,
        params: DetectorParams,
        state: DetectorState,
        *,
        population: Batch,
        dataset: Dataset,
        precision: str,
    ) -> Measured:
        """Returns COCO metrics on the test images by source of statistics, and their pictures."""
        found = evaluate_detector(
            evaluate,
            self.model,
            params,
            state,
            population=population,
            test=dataset.test,
            class_names=dataset.class_names,
            precision=precision,
        )
        first = lambda leaf: np.asarray(leaf[:GALLERY_IMAGES])
        gallery = self.pictures(
            jax.tree.map(first, dataset.test), jax.tree.map(first, found.detections)
        )
        return Measured(found.metrics, None, gallery, {}, found.population)

    def predict(
        self,
        params: DetectorParams,
        state: DetectorState,
        batch: Batch,
        *,
        mode: Mode,
        batch_size: int,
        precision: str,
    ) -> Detections:
        """Returns the detections in all images, boxes in pixels of ``batch.images``."""
        return detections(
            self.model,
            params,
            state,
            test=batch,
            mode=mode,
            batch_size=batch_size,
            precision=precision,
        )

    def batch_of(self, images: Sequence[np.ndarray], image_size: tuple[int, int]) -> Batch:
        """Returns images of any size letterboxed to ``image_size``, without boxes."""
        boxed = [letterbox(image, image_size) for image in images]
        return Batch(
            images=np.stack([picture for picture, _, _ in boxed]),
            boxes=np.zeros((len(boxed), 0, 4), np.float32),
            classes=np.zeros((len(boxed), 0), np.int32),
            valid=np.zeros((len(boxed), 0), bool),
            extent=np.stack([extent for _, _, extent in boxed]),
            index=np.arange(len(boxed), dtype=np.int32),
        )

    def image_predictions(
        self,
        predicted: Detections,
        sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        class_names: Sequence[str],
    ) -> list[ImageDetections]:
        """Returns the detections of each image, boxes in pixels of the original."""
        found = []
        for i, size in enumerate(sizes):
            valid = np.asarray(predicted.valid[i])
            boxes = np.asarray(predicted.boxes[i])[valid]
            classes = np.asarray(predicted.classes[i])[valid]
            found.append(
                ImageDetections(
                    original_boxes(boxes, size, image_size),
                    np.asarray(predicted.scores[i])[valid],
                    classes,
                    tuple(class_names[number] for number in classes),
                )
            )
        return found

    def pictures(self, batch: Batch, predicted: Detections | None = None) -> dict[str, np.ndarray]:
        """Returns images, ground-truth boxes (``truth_*``) and, if given, predicted boxes."""
        truth = {f"truth_{name}": getattr(batch, name) for name in ("boxes", "classes", "valid")}
        found = {} if predicted is None else vars(predicted)
        arrays = {"images": batch.images, **truth, **found}
        return {name: np.asarray(values) for name, values in arrays.items()}

    def backbone_inputs(
        self, batch: Batch, precision: str
    ) -> tuple[Float[Array, "b h w 3"], Bool[Array, "b h w"] | None]:
        """Returns standardized images, and the mask of the pixels that enter statistics."""
        model = self.model
        images = jnp.asarray(batch.images).astype(precision)
        standard = standardize_pixels(images, model.pixel_mean, model.pixel_deviation)
        return standard, batch.mask if model.mask_padding else None

    def check_shapes(self, image_size: tuple[int, int], batch_size: int) -> None:
        """Traces loss and detections on shapes alone.

        Raises:
          ValueError: The model cannot be applied to such images.
        """
        task = dataclasses.replace(self, model=scanned(self.model))
        _trace(task, image_size, batch_size)


def _check_batch(batch: object) -> None:
    if not isinstance(batch, Batch):
        raise TypeError(f"a Detector takes a Batch; got a {type(batch).__name__}")


@functools.lru_cache(maxsize=256)
def _trace(task: Detection, image_size: tuple[int, int], batch_size: int) -> None:
    anchors = detector_anchors(task.model, *image_size)
    zeros = lambda dtype, *axes: jnp.zeros((batch_size, *axes), dtype)
    batch = jax.eval_shape(
        lambda: Batch(
            images=zeros(jnp.float32, *image_size, 3),
            boxes=zeros(jnp.float32, 1, 4),
            classes=zeros(jnp.int32, 1),
            valid=zeros(bool, 1),
            extent=zeros(jnp.float32, 2),
            index=zeros(jnp.int32),
        )
    )

    def run(batch: Batch) -> tuple[Array, Detections]:
        key = jax.random.key(0)
        params, state = task.init(key)
        output, _, _ = capture_detector(
            task.model,
            params,
            state,
            jnp.asarray(batch.images),
            Mode.TRAIN,
            extent=batch.extent,
            key=key,
        )
        loss, _ = detection_loss(task.objective, output, anchors, batch)
        return loss, detect(task.model, output, anchors, batch.extent)

    jax.eval_shape(run, batch)
