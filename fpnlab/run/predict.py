"""Predictions of a trained model for images of any size."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.data.image_io import decode_rgb
from fpnlab.errors import RunFolderError
from fpnlab.run.measure import restored_run, weights
from fpnlab.tasks.predictions import Prediction
from fpnlab.types import Mode

ImageLike = np.ndarray | str | os.PathLike[str]
"""An image ``[h, w, 3]`` uint8, or the path of an image file."""


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained model, ready to predict."""

    experiment: Experiment
    """The experiment that trained it."""
    params: Any
    """Its parameters, averaged where the experiment averages them."""
    state: Any
    """Its running statistics."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to k - 1."""
        return self.experiment.class_names

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Returns the prediction for each image, in their order.

        Images are brought to the size of training (a detector's letterboxed, a classifier's cut
        around their center), predicted with running statistics, and boxes brought back.

        Args:
          images: Arrays ``[h, w, 3]`` uint8, RGB, of any sizes, or paths of image files, whose
            EXIF orientation is applied; or one array ``[n, h, w, 3]``.

        Raises:
          FileNotFoundError: There is no such file.
          ValueError: An image is not such an array, or a file does not decode.
        """
        return [prediction for _, prediction in self.iterate(images)]

    def iterate(self, images: Iterable[ImageLike]) -> Iterator[tuple[np.ndarray, Prediction]]:
        """Yields each image as an array with its prediction; keeps one batch in memory.

        Args:
          images: As of ``predict``.

        Raises:
          FileNotFoundError: There is no such file.
          ValueError: An image is not such an array, or a file does not decode.
        """
        size, pending = self.experiment.evaluate.batch_size, []
        for number, image in enumerate(images):
            pending.append(_as_array(image, number))
            if len(pending) == size:
                yield from zip(pending, self._predict_batch(pending))
                pending = []
        if pending:
            yield from zip(pending, self._predict_batch(pending))

    def _predict_batch(self, images: list[np.ndarray]) -> Sequence[Prediction]:
        experiment, task = self.experiment, self.experiment.task
        predicted = task.predict(
            self.params,
            self.state,
            task.batch_of(images, experiment.image_size),
            mode=Mode.EVAL,
            batch_size=experiment.evaluate.batch_size,
            precision=experiment.train.precision,
        )
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return task.image_predictions(
            predicted, sizes, experiment.image_size, experiment.class_names
        )


def load_run(folder: str | os.PathLike[str]) -> TrainedRun:
    """Returns the model of a run folder, with the weights of its last checkpoint.

    Args:
      folder: A folder that ``fpnlab train`` has written, or one of a study's ``trials``.

    Raises:
      ConfigError: It is not a run folder.
      RunFolderError: It holds a study, or no checkpoint.
      CheckpointError: No checkpoint is sound.
    """
    path = pathlib.Path(folder)
    if (path / "study.json").exists():
        trials = sorted(trial.name for trial in (path / "trials").glob("*/"))
        examples = f", e.g. {path / 'trials' / trials[0]}" if trials else ""
        raise RunFolderError(f"{path}: it holds a study; give the folder of one trial{examples}")
    experiment, state = restored_run(path)
    return TrainedRun(experiment, weights(state), state.state)


def _as_array(image: ImageLike, number: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        try:
            return decode_rgb(image, upright=True)
        except ValueError as error:
            raise ValueError(f"{os.fspath(image)}: {error}") from error
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"images[{number}] is {array.dtype} of shape {array.shape}; give [h, w, 3] uint8, RGB, "
            "0 to 255"
        )
    return array
