"""A trained detector's detections and COCO metrics, with batch norm evaluated three ways."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Num

from fpnlab.evaluate.bn_statistics import filled_batches, three_sources, whole_groups
from fpnlab.evaluate.coco import coco_metrics
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.detector import (
    Detector,
    DetectorParams,
    DetectorState,
    apply_detector,
    detect,
    detector_anchors,
)
from fpnlab.types import Batch, Detections, Mode


class Evaluation(NamedTuple):
    """Metrics of a trained detector, with the predictions behind them."""

    metrics: dict[str, dict[str, float]]
    """COCO metrics by source of statistics: `running`, `precise`, `batch`."""
    detections: Detections
    """Detections by running statistics (NumPy)."""
    population: DetectorState
    """The state with population statistics; without a batch norm, the unchanged state."""


def evaluate_detector(
    evaluate: Evaluate,
    detector: Detector,
    params: DetectorParams,
    state: DetectorState,
    *,
    population: Batch,
    test: Batch,
    class_names: Sequence[str],
    precision: str = "float32",
) -> Evaluation:
    """Returns COCO metrics on ``test`` by source of statistics, and the predictions.

    The sources are those of ``three_sources``: ``running``, ``precise`` and ``batch``.

    Args:
      evaluate: Batch size and areas of small and medium boxes.
      detector: The trained detector.
      params: Its parameters.
      state: Its running statistics.
      population: Augmented training images, for ``precise``; images that do not fill a last batch
        are left out.
      test: Held-out images.
      class_names: Names of the classes.
      precision: Dtype of the computation.

    Raises:
      ValueError: The population is smaller than a statistics group.
    """

    def measure(
        spec: Detector, statistics: DetectorState, mode: Mode, multiple: int
    ) -> tuple[dict[str, float], Detections, DetectorState]:
        found = detections(
            spec,
            params,
            statistics,
            test=test,
            mode=mode,
            batch_size=evaluate.batch_size,
            multiple=multiple,
            precision=precision,
        )
        metrics = coco_metrics(found, test, class_names, area_bounds=evaluate.area_bounds)
        return metrics, found, statistics

    sources = three_sources(
        detector,
        state,
        measure=measure,
        collect=lambda spec, state, batch: _collect(spec, precision, params, state, batch),
        population=(population.images, population.extent),
        batch_size=evaluate.batch_size,
    )
    metrics = {source: dict(metrics) for source, (metrics, _, _) in sources.items()}
    _, found, _ = sources["running"]
    _, _, exact = sources["precise"]
    return Evaluation(metrics, found, exact)


def detections(
    detector: Detector,
    params: DetectorParams,
    state: DetectorState,
    *,
    test: Batch,
    mode: Mode,
    batch_size: int,
    multiple: int = 1,
    precision: str = "float32",
) -> Detections:
    """Returns the detections in all images of ``test``, in their order, as NumPy arrays.

    The last batch is filled up with the first images, whose repeated results are dropped.

    Args:
      detector: The detector.
      params: Its parameters.
      state: Its running statistics.
      test: The images.
      mode: Source of the statistics of batch norms.
      batch_size: Images per forward pass.
      multiple: Images that the size of batches is a multiple of (statistics groups).
      precision: Dtype of the computation.
    """
    size = whole_groups(batch_size, multiple)
    total = len(test.images)
    anchors = detector_anchors(detector, *test.images.shape[1:3])
    run = functools.partial(_detect, detector, mode, precision, params, state)
    parts = [
        jax.device_get(run(test.images[index], test.extent[index], anchors))
        for index in filled_batches(total, size)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:total], *parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _detect(
    detector: Detector,
    mode: Mode,
    precision: str,
    params: DetectorParams,
    state: DetectorState,
    images: Num[Array, "b h w 3"],
    extent: Float[Array, "b 2"],
    anchors: Float[Array, "a 4"],
) -> Detections:
    images = images.astype(precision)
    output, _ = apply_detector(detector, params, state, images, mode, extent=extent)
    return detect(detector, output, anchors, extent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _collect(
    detector: Detector,
    precision: str,
    params: DetectorParams,
    state: DetectorState,
    batch: tuple[Num[Array, "b h w 3"], Float[Array, "b 2"]],
) -> DetectorState:
    """Returns the state with the moments of a batch (images, extent) merged into it."""
    images, extent = batch
    images = images.astype(precision)
    return apply_detector(detector, params, state, images, Mode.MOMENTS, extent=extent)[1]
