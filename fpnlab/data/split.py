"""Stratified splits of labeled images into training and held-out images."""

from typing import Annotated

import numpy as np
from jaxtyping import Int

from fpnlab.data.dataset import Dataset, take
from fpnlab.records.data_files import DataFile
from fpnlab.spec import Count, Fraction, NonNegative, SpecError, spec
from fpnlab.types import LabeledBatch


@spec
class Split:
    """Random stratified choice of the labeled images that are used.

    Training and held-out images are in random order: files are often sorted by class, and batch
    statistics of consecutive images would then be those of one class.
    """

    train_images: Annotated[int | None, Count] = None
    """Number of training images; none: all. A smaller choice is a subset of a larger one."""
    test_images: Annotated[int | None, Count] = None
    """Number of held-out images; none: all. A smaller choice is a subset of a larger one."""
    validation: Annotated[float, Fraction] = 0.0
    """Share of the training images held out in place of the test images, from 0 (none) to 1."""
    seed: Annotated[int, NonNegative] = 0
    """Seed of the random choice and order."""


def check_sources_differ(where: str, train: str, test: str, split: Split) -> None:
    """Checks that the held-out images are not those that are trained on.

    Args:
      where: Name of the data spec, for the message.
      train: Source of the training images.
      test: Source of the held-out images.
      split: The split; one with `Split.validation` does not read the source of held-out images.

    Raises:
      SpecError: Both sources are the same.
    """
    if train == test and not split.validation:
        problem = (
            f"is {test!r}, as is train; it must be another, or split.validation above 0, which "
            "holds out a share of train"
        )
        raise SpecError(where, [("test", problem)])


def split_dataset(
    name: str,
    class_names: tuple[str, ...],
    split: Split,
    train: LabeledBatch,
    held: LabeledBatch,
    files: tuple[DataFile, ...],
) -> Dataset[LabeledBatch]:
    """Returns the data set of the images that ``split`` chooses, with their numbers as ``index``.

    Args:
      name: Name of the data set.
      class_names: Names of classes 0 to k - 1.
      split: The split.
      train: All training images.
      held: All images that held-out images are chosen from, as in ``draw_split``.
      files: The files that were read.
    """
    numbers = draw_split(split, np.asarray(train.labels), np.asarray(held.labels))
    return Dataset(
        name=name,
        class_names=class_names,
        train=take(train, numbers[0]),
        test=take(held, numbers[1]),
        files=files,
    )


def draw_split(
    split: Split, train: Int[np.ndarray, " n"], held: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " h"]]:
    """Returns the numbers of the training images, and of the held-out images.

    The held-out images do not depend on ``train_images``, nor the training images on
    ``test_images``.

    Args:
      split: The split.
      train: Labels of all training images.
      held: Labels of the images that held-out images are chosen from: all test images, or with
        ``validation`` the training images again.

    Raises:
      ValueError: There are fewer images than ``split`` needs, or ``validation`` leaves none for
        training or none held out.
    """
    order = stratified_order(train, split.seed)
    if split.validation:
        count = round(split.validation * len(train))
        if not 0 < count < len(train):
            raise ValueError(
                f"Split.validation = {split.validation}: is {count} of {len(train)} training "
                "images; training and validation need one image or more each"
            )
        pools = {"train_images": order[count:], "test_images": order[:count]}
    else:
        pools = {"train_images": order, "test_images": stratified_order(held, split.seed)}
    picked = []
    for number, (field, pool) in enumerate(pools.items()):
        if (limit := getattr(split, field)) is not None and limit > len(pool):
            raise ValueError(
                f"Split.{field} = {limit}: there are only {len(pool)} images; "
                "use at most as many, or none for all"
            )
        picked.append(np.random.default_rng((split.seed, number)).permutation(pool[:limit]))
    return picked[0], picked[1]


def stratified_order(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """Returns a random order of images in which every interval is stratified by class.

    The image of rank r among the n of its class, in random order, has the position (r + 1/2) / n
    between 0 and 1; ties are broken at random. So the first k are a stratified sample for every k,
    and smaller samples are subsets of larger ones.

    Args:
      labels: Class of each image.
      seed: Seed of the order.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.cumsum(sizes) - sizes
    classes = labels[by_class]
    places = (np.arange(len(labels)) - firsts[classes] + 0.5) / sizes[classes]
    return by_class[np.lexsort((random.random(len(labels)), places))]
