"""A trained detector's detections and scores, with batch norm evaluated three ways."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fpnlab.evaluate.coco import coco_metrics
from fpnlab.evaluate.population import forgetful, grouped, has_batch_norm, population_state
from fpnlab.model.detector import Detector, apply_detector, detect, detector_anchors
from fpnlab.types import Batch, Detections, Mode, spec


@spec
class Evaluate:
    """How a trained detector is measured."""

    batch_size: int = 64
    """Images per forward pass; a multiple of the training batch, or the reverse."""
    population_examples: int = 1024
    """Training images from which precise statistics are computed (arXiv:2105.07576)."""
    area_bounds: tuple[float, float] = (32.0**2, 96.0**2)
    """Areas in square pixels that end `small` and `medium`; COCO's suit images of 640 pixels."""

    def __post_init__(self):
        if self.batch_size < 1 or self.population_examples < 1:
            raise ValueError("batch_size and population_examples must be 1 or more")


def evaluate_detector(
    evaluate: Evaluate,
    detector: Detector,
    params: Any,
    state: Any,
    *,
    population: Batch,
    test: Batch,
    class_names: Sequence[str],
    norm_batch: int,
    precision: str = "float32",
) -> tuple[dict[str, dict[str, float]], Detections]:
    """Returns COCO metrics on ``test`` for three sources of statistics, and the detections.

    ``running``: the running averages of training; ``precise``: population statistics computed
    anew over training images with frozen weights; ``batch``: those of test batches of
    ``norm_batch`` images. Without a batch norm there is one result, given three times.

    Args:
      evaluate: batch size, number of images.
      detector: what was trained.
      params: its parameters.
      state: its running statistics.
      population: training images as training saw them, for ``precise``; what does not fill a
        last batch is left out.
      test: held-out images.
      class_names: names of the classes.
      norm_batch: images per statistics group in training, for norms that leave it open.
      precision: dtype of the computation.

    Returns:
      The metrics by source, and the detections by running statistics (numpy).

    Raises:
      ValueError: the population is smaller than ``norm_batch``.
    """
    detector = grouped(detector, norm_batch)
    found = functools.partial(
        detections, detector, test=test, batch_size=evaluate.batch_size, precision=precision
    )
    score = lambda boxes: coco_metrics(boxes, test, class_names, area_bounds=evaluate.area_bounds)
    running = found(params, state, mode=Mode.EVAL)
    metrics = score(running)
    if not has_batch_norm(detector):
        return {source: dict(metrics) for source in ("running", "precise", "batch")}, running

    group = _whole_groups(min(evaluate.batch_size, len(population.images)), norm_batch)
    count = len(population.images) // group * group
    if not count:
        raise ValueError(
            f"evaluate: {len(population.images)} training images do not fill one statistics "
            f"group of norm_batch={norm_batch}; give that many or more"
        )
    collect = functools.partial(_collect, forgetful(detector), precision, params, state)
    chunks = (
        (population.images[i : i + group], population.extent[i : i + group])
        for i in range(0, count, group)
    )
    exact = population_state(collect, chunks, state)
    precise = score(found(params, exact, mode=Mode.EVAL))
    by_batch = score(found(params, state, mode=Mode.BATCH_EVAL, multiple=norm_batch))
    return {"running": metrics, "precise": precise, "batch": by_batch}, running


def detections(
    detector: Detector,
    params: Any,
    state: Any,
    *,
    test: Batch,
    mode: Mode,
    batch_size: int,
    multiple: int = 1,
    precision: str = "float32",
) -> Detections:
    """Returns the detections in all images of ``test``, in their order, as numpy arrays.

    The last batch is filled up with the first images, whose second results are dropped.

    Args:
      detector: what to compute.
      params: its parameters.
      state: its running statistics.
      test: the images.
      mode: where batch norms take their statistics from.
      batch_size: images per forward pass.
      multiple: batches are made a multiple of so many images (statistics groups).
      precision: dtype of the computation.
    """
    size = _whole_groups(batch_size, multiple)
    anchors = detector_anchors(detector, *test.images.shape[1:3])
    parts = [
        jax.device_get(_detect(detector, mode, precision, params, state, images, extent, anchors))
        for images, extent in _filled(test, size)
    ]
    total = len(test.images)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:total], *parts)


def _whole_groups(batch_size: int, group: int) -> int:
    """Returns the largest multiple of ``group`` up to ``batch_size``, and at least one group."""
    return max(batch_size // group, 1) * group


def _filled(split: Batch, size: int) -> Iterator[tuple[Any, Any]]:
    total = len(split.images)
    for start in range(0, total, size):
        index = np.arange(start, start + size) % total
        yield split.images[index], split.extent[index]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _detect(detector, mode, precision, params, state, images, extent, anchors):
    images = images.astype(precision)
    output, _ = apply_detector(detector, params, state, images, mode, extent=extent)
    return detect(detector, output, anchors, extent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _collect(detector, precision, params, state, batch):
    images, extent = batch
    mode = Mode(stats="batch", update=True, stochastic=False)
    images = images.astype(precision)
    return apply_detector(detector, params, state, images, mode, extent=extent)[1]
