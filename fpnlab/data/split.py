"""Stratified splits: images for training and held-out images, every class by its share."""

from typing import Annotated

import numpy as np
from jaxtyping import Int

from fpnlab.data.dataset import Dataset, take
from fpnlab.spec import Count, Fraction, NonNegative, spec
from fpnlab.types import LabeledBatch


@spec
class Split:
    """The labeled images that are used, drawn at random, every class by its share.

    Training images and held-out ones come in a random order: files often stand class by class,
    and batch statistics of neighbors would then be those of one class.
    """

    train_images: Annotated[int | None, Count] = None
    """Images to train on; none: all. Those of a smaller number are among those of a larger."""
    test_images: Annotated[int | None, Count] = None
    """Held-out images; none: all. Those of a smaller number are among those of a larger."""
    validation: Annotated[float, Fraction] = 0.0
    """Share of the training images that is held out in place of the test images; 0: none."""
    seed: Annotated[int, NonNegative] = 0
    """Names the draw and the order."""


def refuse_same(where: str, train: str, test: str, split: Split) -> None:
    """Refuses to hold out the very images that are trained on."""
    if train == test and not split.validation:
        raise ValueError(
            f"{where}.test = {test!r}: the same as train; give another, or hold out a share of "
            "train by split.validation"
        )


def split_dataset(
    name: str,
    class_names: tuple[str, ...],
    split: Split,
    train: LabeledBatch,
    held: LabeledBatch,
) -> Dataset[LabeledBatch]:
    """Returns the data set of what ``split`` draws; ``index`` says which images those are.

    Args:
      name: what it is called.
      class_names: names of classes 0 to k - 1.
      split: how many of which.
      train: all training images.
      held: what is held out from, as in ``draw_split``.
    """
    numbers = draw_split(split, np.asarray(train.labels), np.asarray(held.labels))
    return Dataset(
        name=name,
        class_names=class_names,
        train=take(train, numbers[0]),
        test=take(held, numbers[1]),
    )


def draw_split(
    split: Split, train: Int[np.ndarray, " n"], held: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " h"]]:
    """Returns the numbers of the images to train on, and of those to hold out.

    The held-out images do not depend on ``train_images``, nor the others on ``test_images``.

    Args:
      split: how many of which.
      train: the labels of all training images.
      held: the labels of what is held out from: all test images, or with ``validation`` the
        training images again.

    Raises:
      ValueError: there are fewer images than asked for, or ``validation`` leaves a side empty.
    """
    order = stratified_order(train, split.seed)
    if split.validation:
        count = round(split.validation * len(train))
        if not 0 < count < len(train):
            raise ValueError(
                f"Split.validation = {split.validation}: is {count} of {len(train)} training "
                "images; both sides need one or more"
            )
        pools = {"train_images": order[count:], "test_images": order[:count]}
    else:
        pools = {"train_images": order, "test_images": stratified_order(held, split.seed)}
    picked = []
    for number, (field, pool) in enumerate(pools.items()):
        if (limit := getattr(split, field)) is not None and limit > len(pool):
            raise ValueError(f"Split.{field} = {limit}: there are only {len(pool)} images")
        picked.append(np.random.default_rng((split.seed, number)).permutation(pool[:limit]))
    return picked[0], picked[1]


def stratified_order(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """Returns a random order in which every stretch has each class by its share.

    The image of rank r among the n of its class, in random order, comes at (r + 1/2) / n of the
    way; chance decides between equal places. So the first k are a stratified sample of every
    size k, and the smaller samples are inside the larger.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.cumsum(sizes) - sizes
    classes = labels[by_class]
    places = (np.arange(len(labels)) - firsts[classes] + 0.5) / sizes[classes]
    return by_class[np.lexsort((random.random(len(labels)), places))]
