"""The handwritten digits that scikit-learn includes: real images without a download."""

import importlib
from typing import Literal

import numpy as np

from fpnlab.data.data_folder import data_file
from fpnlab.data.dataset import Dataset, take
from fpnlab.data.split import Split, split_dataset, stratified_order
from fpnlab.spec import spec
from fpnlab.types import LabeledBatch

TEST_SIZE = 360
"""Number of held-out images."""
BRIGHTEST = 16
"""Largest gray level in the data."""


@spec
class Digits:
    """Handwritten digits: 1,437 training and 360 held-out images of 8x8 pixels.

    They are the test set of "Optical Recognition of Handwritten Digits" (UCI).
    """

    kind: Literal["digits"] = "digits"
    split: Split = Split()
    """Split and subset of the images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0 to 9."""
        return tuple("0123456789")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return 8, 8


def load_digits(spec: Digits) -> Dataset[LabeledBatch]:
    """Returns the two splits of ``spec``, gray repeated over three channels.

    The 360 held-out images are a fixed stratified sample, whatever the seed of the split. Gray
    levels 0 to 16 become 0 to 255.

    Args:
      spec: The data set.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: The split needs more images than there are.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            f"digits: the images come with scikit-learn ({error}); pip install scikit-learn"
        ) from None
    found = datasets.load_digits()
    gray = np.rint(np.asarray(found.images) * (255 / BRIGHTEST)).astype(np.uint8)
    labels = np.asarray(found.target, np.int32)
    whole = LabeledBatch(
        images=np.repeat(gray[..., None], 3, axis=-1),
        labels=labels,
        index=np.arange(len(labels), dtype=np.int32),
    )
    order = stratified_order(labels, 0)
    train = take(whole, np.sort(order[TEST_SIZE:]))
    held = train if spec.split.validation else take(whole, np.sort(order[:TEST_SIZE]))
    arrays = np.asarray(found.images, "<f8").tobytes() + np.asarray(found.target, "<i8").tobytes()
    files = (data_file("scikit-learn digits", arrays),)
    return split_dataset("digits", spec.class_names, spec.split, train, held, files)
