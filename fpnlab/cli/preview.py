"""Pictures of data and predictions, before or after training."""

import pathlib

import numpy as np
from PIL import Image

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset, take
from fpnlab.errors import RunFolderError
from fpnlab.report.draw import draw_pictures
from fpnlab.run.batches import training_view
from fpnlab.run.folder import RunFolder
from fpnlab.run.measure import restored_run, weights
from fpnlab.types import Mode

COLUMNS = 4
"""Pictures in a row."""


def draw_preview(
    experiment: Experiment,
    dataset: Dataset,
    run: pathlib.Path | None,
    *,
    split: str,
    count: int,
    score: float,
) -> Image.Image:
    """Returns a sheet of the first images with their annotations and the predictions of a run.

    Args:
      experiment: Determines the images, their order and augmentation.
      dataset: Its data.
      run: Folder whose last checkpoint predicts; None to draw the annotations alone.
      split: ``test``, or ``train`` for images in the order and augmentation of training.
      count: Number of images; no more than there are.
      score: Lowest score of a predicted box.

    Raises:
      ConfigError: ``run`` is no run folder.
      RunFolderError: It has no checkpoint, or its classes are not those of the data.
      CheckpointError: No checkpoint is sound.
    """
    if split == "train":
        batch = training_view(experiment, dataset, min(count, len(dataset.train.images)))
    else:
        batch = take(dataset.test, np.arange(min(count, len(dataset.test.images))))
    task, predicted = experiment.task, None
    if run is not None:
        trained = RunFolder(run).stored().experiment
        if trained.class_names != dataset.class_names:
            raise RunFolderError(
                f"{run}: its classes are {', '.join(trained.class_names)}, but those of the data "
                f"are {', '.join(dataset.class_names)}; give the run's own config"
            )
        _, state = restored_run(run)
        predicted = trained.task.predict(
            weights(state),
            state.state,
            batch,
            mode=Mode.EVAL,
            batch_size=min(len(batch.images), trained.evaluate.batch_size),
            precision=trained.train.precision,
        )
    pictures = task.pictures(batch, predicted)
    if "scores" in pictures:
        pictures |= {"valid": pictures["valid"] & (pictures["scores"] >= score)}
    return draw_pictures(pictures, dataset.class_names, columns=COLUMNS)
