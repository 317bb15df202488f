"""A look at data and predictions, before or after training."""

import pathlib

import numpy as np
from PIL import Image

from fpnlab.config import Experiment, read_run
from fpnlab.data.dataset import Dataset, take
from fpnlab.evaluate.detection import detections
from fpnlab.report.draw import draw_boxes
from fpnlab.study.files import RunFolderError
from fpnlab.study.trial import restored_state, training_view
from fpnlab.types import Mode


def draw(
    experiment: Experiment,
    dataset: Dataset,
    run: pathlib.Path | None,
    *,
    split: str,
    count: int,
    score: float,
) -> Image.Image:
    """Returns a sheet of the first images with their true boxes and those that a run finds.

    Args:
      experiment: whose images, in whose order and views.
      dataset: its data.
      run: folder whose last checkpoint predicts; None to draw true boxes alone.
      split: ``test``, or ``train`` for images in the order and views of training.
      count: number of images; no more than there are.
      score: lowest score of a predicted box.

    Raises:
      ConfigError: ``run`` is no run folder.
      RunFolderError: it has no checkpoint, or its classes are not those of the data.
      CheckpointError: no checkpoint is sound.
    """
    if split == "train":
        batch = training_view(experiment, dataset, min(count, len(dataset.train.images)))
    else:
        batch = take(dataset.test, np.arange(min(count, len(dataset.test.images))))
    if run is None:
        return draw_boxes(
            batch.images,
            batch.boxes,
            batch.classes,
            batch.valid,
            dataset.class_names,
            columns=4,
        )
    trained = read_run(run)
    if trained.class_names != dataset.class_names:
        raise RunFolderError(
            f"{run}: it was trained to find {', '.join(trained.class_names)}, but the data has "
            f"{', '.join(dataset.class_names)}; give the run's own config"
        )
    state = restored_state(run, trained)
    found = detections(
        trained.model,
        state.params if state.average is None else state.average,
        state.state,
        test=batch,
        mode=Mode.EVAL,
        batch_size=min(len(batch.images), trained.evaluate.batch_size),
        precision=trained.train.precision,
    )
    scores = np.asarray(found.scores)
    return draw_boxes(
        batch.images,
        np.asarray(found.boxes),
        np.asarray(found.classes),
        np.asarray(found.valid) & (scores >= score),
        dataset.class_names,
        scores,
        truth=(batch.boxes, batch.valid),
        columns=4,
    )
