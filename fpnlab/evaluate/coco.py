"""Average precision of detections, as the COCO challenge defines it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Array, Bool, Float, Int

from fpnlab.types import Detections

_LARGEST_AREA = 1e10  # The upper limit of COCO's "all" and "large".


@runtime_checkable
class GroundTruth(Protocol):
    """Ground-truth boxes for ``coco_metrics``, such as a ``types.Batch``."""

    @property
    def boxes(self) -> Float[Array | np.ndarray, "n m 4"]:
        """``[n, m, 4]``, ``xyxy`` in pixels."""

    @property
    def classes(self) -> Int[Array | np.ndarray, "n m"]:
        """``[n, m]`` int, 0 to k - 1."""

    @property
    def valid(self) -> Bool[Array | np.ndarray, "n m"]:
        """``[n, m]`` bool: True for rows that are boxes."""


def coco_metrics(
    detections: Detections,
    truth: GroundTruth,
    class_names: Sequence[str],
    *,
    area_bounds: tuple[float, float] = (32.0**2, 96.0**2),
) -> dict[str, float]:
    """Returns COCO's average precisions and recalls of the detections, each 0 to 1.

    See "Microsoft COCO", Lin et al. 2014, arXiv:1405.0312, and its reference implementation,
    pycocotools, which gives the same numbers. The keys: ``AP`` (mean over the IoU
    thresholds 0.50, 0.55, ... 0.95 and over the classes), ``AP50`` and ``AP75`` (at one
    threshold), ``AP_small``, ``AP_medium`` and ``AP_large`` (by the boxes' areas), ``AR100``
    (mean recall with up to 100 detections of each class in an image), and ``AP50/<class>``.

    A number is nan if there is no ground truth of its class and area, and such classes are left out
    of means; it is 0 if there is ground truth, but no detection. Detections that are not finite are
    left out.

    Args:
      detections: Arrays of shape ``[n, d, ...]``, on the host or on a device.
      truth: Arrays of shape ``[n, m, ...]`` for the same images.
      class_names: Names of the k classes.
      area_bounds: Largest areas of small and of medium boxes in square pixels. COCO's are for
        images of about 640 by 480 pixels.

    Raises:
      ValueError: The numbers of images differ, a class is not one of the k, or the bounds do
        not increase.
    """
    small, medium = area_bounds
    if not 0 < small < medium < _LARGEST_AREA:
        raise ValueError(
            f"coco_metrics: area_bounds must be positive and increase; got {area_bounds}"
        )
    images = len(truth.boxes)
    if len(detections.boxes) != images:
        raise ValueError(
            f"coco_metrics: {len(detections.boxes)} images with detections, {images} with ground "
            "truth; give both for the same images, in the same order"
        )
    true_rows = _annotations(truth, len(class_names))
    if not true_rows:
        return dict.fromkeys(_names(class_names), float("nan"))
    index = {
        "info": {},
        "images": [{"id": i + 1} for i in range(images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
    }
    evaluation = COCOeval_faster(
        COCO({**index, "annotations": true_rows}),
        COCO({**index, "annotations": _annotations(detections, len(class_names))}),
        "bbox",
        ranges={"small": [0, small], "medium": [small, medium], "large": [medium, _LARGEST_AREA]},
        print_function=lambda *_: None,
    )
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    # Axes: IoU threshold, recall level, class, area (all, small, medium, large).
    precision = evaluation.eval["precision"][..., 0]
    recall = evaluation.eval["recall"][..., 0]  # The same axes without the recall level.
    values = [
        precision[..., 0],
        precision[0, ..., 0],
        precision[5, ..., 0],
        *np.moveaxis(precision[..., 1:], -1, 0),
        recall[..., 0],
        *np.moveaxis(precision[0, ..., 0], -1, 0),
    ]
    return dict(zip(_names(class_names), map(_mean, values)))


def _names(class_names: Sequence[str]) -> list[str]:
    fixed = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"]
    return fixed + [f"AP50/{name}" for name in class_names]


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are defined: -1 stands for "no ground truth"."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _annotations(rows: GroundTruth | Detections, classes_known: int) -> list[dict[str, object]]:
    """Returns COCO's records of the valid rows; ground truth has a score of 0."""
    boxes_xyxy = np.asarray(rows.boxes, np.float64)
    scores = np.asarray(getattr(rows, "scores", np.zeros(boxes_xyxy.shape[:-1])), np.float64)
    classes = np.asarray(rows.classes)
    keep = np.asarray(rows.valid) & np.isfinite(boxes_xyxy).all(-1) & np.isfinite(scores)
    outside = classes[keep & ((classes < 0) | (classes >= classes_known))]
    if outside.size:
        raise ValueError(
            f"coco_metrics: class {outside[0]} in a valid row, but there are {classes_known} "
            f"class names; classes count from 0 to {classes_known - 1}"
        )
    image = np.nonzero(keep)[0] + 1
    boxes_xywh = np.concatenate(
        [boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]], -1
    )
    columns = (image, classes[keep] + 1, boxes_xywh[keep], scores[keep])
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
            "iscrowd": 0,
        }
        for number, (image_id, category, box, score) in enumerate(
            zip(*(column.tolist() for column in columns)), 1
        )
    ]
