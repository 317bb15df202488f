"""The config of an experiment, as a value."""

from fpnlab.config.study import Study
from fpnlab.data.load_data import Data
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes
from fpnlab.evaluate.options import Evaluate
from fpnlab.spec import spec
from fpnlab.tasks.kinds import AnyAugment, AnyObjective, Model, task_of
from fpnlab.tasks.task import Task
from fpnlab.train.objective import Objective
from fpnlab.train.step import Train


@spec
class Experiment:
    """Config of one training run, or with `study` of a grid of them.

    The kinds of `model`, `objective` and `augment` follow from the data.
    """

    question: str = ""
    """The question that the experiment answers; the heading of the report."""
    seed: int = 0
    """Of the parameters, the data order and the augmentation."""
    data: Data
    """Images, with boxes or with a label each."""
    augment: AnyAugment | None = None
    """Random views of the training images; none: the images as they are."""
    model: Model
    """The model."""
    objective: AnyObjective = Objective()
    """The loss function."""
    train: Train
    """The training recipe."""
    evaluate: Evaluate = Evaluate()
    """The evaluation."""
    log_examples: int = 256
    """Examples between two records in metrics.jsonl."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints."""
    study: Study | None = None
    """The grid; none: a single run."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**32")
        if self.log_examples < 1 or self.checkpoint_seconds < 0:
            raise ValueError(
                f"log_examples is {self.log_examples} and checkpoint_seconds "
                f"{self.checkpoint_seconds}; they must be at least 1 and 0"
            )

    @property
    def task(self) -> Task:
        """Model and objective with everything that follows from other fields filled in."""
        return task_of(self.model, self.objective, norm_batch=self.train.statistics_group)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the data's classes."""
        return CLASS_NAMES if isinstance(self.data, Scenes) else self.data.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        size = self.data.image_size
        return (size, size) if isinstance(size, int) else size
