"""The registered tasks. A new task is a new file beside this one, added to the unions below."""

import dataclasses

from fpnlab.data.augmentation.classifier_augment import AugmentImages
from fpnlab.data.augmentation.detector_augment import Augment
from fpnlab.data.load_data import Data
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.detector import Detector
from fpnlab.nn.norm_edit import fill_norm_batch
from fpnlab.tasks.classification import Classification, ClassificationMetric
from fpnlab.tasks.detection import Detection, DetectionMetric
from fpnlab.tasks.task import Task
from fpnlab.train.objective import CrossEntropy, Objective

TaskKind = type[Detection] | type[Classification]
"""Class of a task."""
TASKS: tuple[TaskKind, ...] = (Detection, Classification)
Model = Detector | Classifier
"""Models of all tasks."""
AnyObjective = Objective | CrossEntropy
"""Loss functions of all tasks."""
AnyAugment = Augment | AugmentImages
"""Augmentation specs of all tasks."""
Metric = DetectionMetric | ClassificationMetric
"""Metrics of all tasks by which a study can compare arms."""


def task_of(model: Model, objective: AnyObjective, *, norm_batch: int | None = None) -> Task:
    """Returns the task of a model: its loss, augmentation, evaluation and pictures.

    Args:
      model: The model.
      objective: Its loss function.
      norm_batch: Images per statistics group of the batch norms that leave it unset; None keeps
        it unset: all images of a batch.

    Raises:
      TypeError: The objective is for another kind of model.
    """
    # The same program for any initial weights.
    model = dataclasses.replace(model, weights=None)
    if norm_batch is not None:
        model = fill_norm_batch(model, norm_batch)
    match model:
        case Detector():
            return Detection(model, objective)  # type: ignore[arg-type]
        case Classifier():
            return Classification(model, objective)  # type: ignore[arg-type]


def task_kind(data: Data) -> TaskKind:
    """Returns the class of the task that a data spec belongs to."""
    return next(kind for kind in TASKS if isinstance(data, kind.data_kinds))
