"""All kinds of problems. A new one is a file beside this, and its names in the unions below."""

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
TASKS: tuple[TaskKind, ...] = (Detection, Classification)
Model = Detector | Classifier
AnyObjective = Objective | CrossEntropy
AnyAugment = Augment | AugmentImages
Metric = DetectionMetric | ClassificationMetric


def task_of(model: Model, objective: AnyObjective, *, norm_batch: int | None = None) -> Task:
    """Returns the task of a model, which knows its loss, evaluation and pictures.

    Args:
      model: The model.
      objective: Its loss function.
      norm_batch: Images in a statistics group of the batch norms that leave it open; None leaves
        it open: the images at hand.

    Raises:
      TypeError: The objective is for other models.
    """
    if norm_batch is not None:
        model = fill_norm_batch(model, norm_batch)
    match model:
        case Detector():
            return Detection(model, objective)  # type: ignore[arg-type]
        case Classifier():
            return Classification(model, objective)  # type: ignore[arg-type]


def task_kind(data: Data) -> TaskKind:
    """Returns the kind of task that a data set is for."""
    return next(kind for kind in TASKS if isinstance(data, kind.data_kinds))
