"""Predictions of a trained model on images of any size."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import PyTree

from fpnlab.config.experiment import Experiment
from fpnlab.data.image_io import read_image
from fpnlab.errors import RunFolderError
from fpnlab.run.measure import restored_run, weights
from fpnlab.tasks.predictions import Prediction
from fpnlab.types import Mode

ImageLike = np.ndarray | str | os.PathLike[str]
"""An image ``[h, w, 3]`` uint8, or the path of an image file."""


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained model with its experiment."""

    experiment: Experiment
    """The experiment that trained it."""
    params: PyTree
    """The parameters; averaged ones if the experiment averages them."""
    state: PyTree
    """The state with running statistics."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to k - 1."""
        return self.experiment.class_names

    def predict(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Returns the prediction for each image, in the order of the images.

        Images are resized to the training size (letterboxed for a detector, center-cropped for a
        classifier) and normalized with running statistics. Boxes are in pixels of the original.

        Args:
          images: Arrays ``[h, w, 3]`` uint8, RGB, of any sizes, or paths of image files, with
            their EXIF orientation applied; or one array ``[n, h, w, 3]``.

        Raises:
          FileNotFoundError: An image file does not exist.
          ValueError: An array has another shape or dtype, or a file cannot be decoded.
        """
        return [prediction for _, prediction in self.iterate(images)]

    def iterate(self, images: Iterable[ImageLike]) -> Iterator[tuple[np.ndarray, Prediction]]:
        """Yields each image as an array with its prediction, holding one batch in memory.

        Args:
          images: Arrays or paths as in ``predict``.

        Raises:
          FileNotFoundError: An image file does not exist.
          ValueError: An array has another shape or dtype, or a file cannot be decoded.
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
      folder: A folder written by ``fpnlab train``, or one of a study's ``trials``.

    Raises:
      ConfigError: ``folder`` is not a run folder.
      RunFolderError: The folder holds a study, or has no checkpoint.
      CheckpointError: All checkpoints are damaged.
    """
    path = pathlib.Path(folder)
    if (path / "study.json").exists():
        trials = sorted(trial.name for trial in (path / "trials").glob("*/"))
        examples = f", e.g. {path / 'trials' / trials[0]}" if trials else ""
        raise RunFolderError(f"{path}: this folder holds a study; give one of its trials{examples}")
    experiment, state = restored_run(path)
    return TrainedRun(experiment, weights(state), state.state)


def _as_array(image: ImageLike, number: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        try:
            return read_image(image)
        except ValueError as error:
            raise ValueError(f"{os.fspath(image)}: {error}") from error
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"images[{number}]: {array.dtype} array of shape {array.shape}; expected uint8 RGB of "
            "shape [h, w, 3]"
        )
    return array
