"""A look at data and predictions, before or after training."""

import functools
import pathlib

import jax
import numpy as np
from PIL import Image

from fpnlab.config.experiment import Experiment, read_run
from fpnlab.data.dataset import Dataset, take
from fpnlab.evaluate.accuracy import class_logits
from fpnlab.evaluate.average_precision import detections
from fpnlab.report.draw import draw_boxes, draw_labels
from fpnlab.run.batches import training_view
from fpnlab.run.folder import RunFolderError
from fpnlab.run.trial import restored_state, weights
from fpnlab.types import LabelledBatch, Mode

COLUMNS = 4


def draw(
    experiment: Experiment,
    dataset: Dataset,
    run: pathlib.Path | None,
    *,
    split: str,
    count: int,
    score: float,
) -> Image.Image:
    """Returns a sheet of the first images with their truth and with what a run finds in them.

    The truth is boxes or a label, as the data have it.

    Args:
      experiment: whose images, in whose order and views.
      dataset: its data.
      run: folder whose last checkpoint predicts; None to draw the truth alone.
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
    trained = None if run is None else read_run(run)
    if trained and trained.class_names != dataset.class_names:
        raise RunFolderError(
            f"{run}: it was trained to find {', '.join(trained.class_names)}, but the data has "
            f"{', '.join(dataset.class_names)}; give the run's own config"
        )
    draw = _draw_labels if isinstance(batch, LabelledBatch) else _draw_boxes
    return draw(trained, run, batch, dataset.class_names, score)


def _draw_labels(trained, run, batch, class_names, score):
    del score  # Of labels there is always one.
    shares = None
    if trained is not None:
        state = restored_state(run, trained)
        predict = _predicting(class_logits, trained, state, batch)
        shares = np.asarray(jax.nn.softmax(predict(images=batch.images)))
    labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(-1)  # mixed ones
    return draw_labels(batch.images, labels, class_names, shares, columns=COLUMNS)


def _draw_boxes(trained, run, batch, class_names, score):
    if trained is None:
        arrays = (batch.images, batch.boxes, batch.classes, batch.valid)
        return draw_boxes(*arrays, class_names, columns=COLUMNS)
    state = restored_state(run, trained)
    found = _predicting(detections, trained, state, batch)(test=batch)
    scores = np.asarray(found.scores)
    return draw_boxes(
        batch.images,
        np.asarray(found.boxes),
        np.asarray(found.classes),
        np.asarray(found.valid) & (scores >= score),
        class_names,
        scores,
        truth=(batch.boxes, batch.valid),
        columns=COLUMNS,
    )


def _predicting(predict, trained, state, batch):
    """Returns ``predict`` by the weights and running statistics of a run."""
    return functools.partial(
        predict,
        trained.model,
        weights(state),
        state.state,
        mode=Mode.EVAL,
        batch_size=min(len(batch.images), trained.evaluate.batch_size),
        precision=trained.train.precision,
    )
