"""The config of an experiment as a spec."""

from typing import Annotated

from fpnlab.config.study import Study
from fpnlab.data.load_data import Data
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes
from fpnlab.evaluate.options import Evaluate
from fpnlab.spec import Bounds, NonNegative, spec
from fpnlab.tasks.kinds import AnyAugment, AnyObjective, Model, task_of
from fpnlab.tasks.task import Task
from fpnlab.train.objective import Objective
from fpnlab.train.step import Train


@spec
class Experiment:
    """Config of one training run or, with `study`, of a grid of runs.

    The kinds of `model`, `objective` and `augment` follow from the data.
    """

    question: str = ""
    """Question that the experiment answers, in a sentence; the heading of its report."""
    seed: Annotated[int, Bounds(least=0.0, below=2.0**32)] = 0
    """Seed of the initial parameters, the order of the training images, and the augmentation."""
    data: Data
    """Training and test images, annotated with boxes or with a label each."""
    augment: AnyAugment | None = None
    """Random changes of the training images; none: the images are used as they are."""
    model: Model
    """Model to train: a detector for images with boxes, a classifier for images with labels."""
    objective: AnyObjective = Objective()
    """Loss function that training minimizes."""
    train: Train
    """Training recipe: length, batch size, optimizer and learning rate."""
    initial_run: str | None = None
    """Folder of a run of the same model whose last weights are the initial ones; none: random."""
    evaluate: Evaluate = Evaluate()
    """Options of the evaluation on the test images after training."""
    log_examples: Annotated[int, Bounds(least=1.0)] = 256
    """Training examples between two records in metrics.jsonl."""
    checkpoint_seconds: Annotated[float, NonNegative] = 60.0
    """Seconds between two checkpoints."""
    study: Study | None = None
    """Grid of runs that differ in arm, swept fields and seed; none: a single run."""

    @property
    def task(self) -> Task:
        """The task of model and objective, with the ``norm_batch`` of `train` filled in."""
        return task_of(self.model, self.objective, norm_batch=self.train.statistics_group)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the data's classes."""
        return CLASS_NAMES if isinstance(self.data, Scenes) else self.data.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        size = self.data.image_size
        return (size, size) if isinstance(size, int) else size
