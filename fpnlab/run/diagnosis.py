"""Diagnostics of a trained model, in the form that ``result.json`` stores."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence

import jax
from jaxtyping import Array, Int, PyTree

from fpnlab.config.experiment import Experiment
from fpnlab.diagnostics.activations import block_signals
from fpnlab.diagnostics.drift import statistics_drift
from fpnlab.diagnostics.gradients import effective_rates, gradient_noise
from fpnlab.evaluate.bn_statistics import has_batch_norm, whole_groups
from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.ops.random import named_key
from fpnlab.records.run_records import (
    Diagnostics,
    DriftRow,
    EffectiveRates,
    GradientNoise,
    MetricRecord,
    NoiseRow,
    SignalRow,
)
from fpnlab.tasks.kinds import task_of
from fpnlab.tasks.task import Task
from fpnlab.types import Batch, LabeledBatch, Mode


def diagnose(
    experiment: Experiment,
    params: PyTree,
    state: PyTree,
    *,
    population: PyTree,
    views: Batch | LabeledBatch,
    records: Sequence[MetricRecord],
) -> Diagnostics:
    """Returns the diagnostics of a trained model.

    Args:
      experiment: The experiment.
      params: The parameters of the model.
      state: The state with running statistics.
      population: The state with population statistics.
      views: Augmented training images, a training batch or more.
      records: The records of ``metrics.jsonl``.
    """
    return Diagnostics(
        drift=_drift(experiment.task, state, population),
        signals=_signals(experiment, params, state, views),
        effective_rates=halfway_rates(records),
        gradient_noise=_noise(experiment, params, state, views),
    )


def rounded_rates(before: PyTree, after: PyTree) -> dict[str, float | None]:
    """Returns ``|update| / |kernel|`` of one update for each kernel, to six digits."""
    return {name: _rounded(rate) for name, rate in effective_rates(before, after).items()}


def median_rate(rates: dict[str, float | None]) -> float:
    """Returns the median effective learning rate over kernels."""
    return statistics.median(rate for rate in rates.values() if rate is not None)


def _drift(task: Task, state: PyTree, population: PyTree) -> list[DriftRow]:
    return [
        DriftRow(
            name=drift.name,
            level=None if drift.level is None else task.levels[drift.level],
            mean_shift=_rounded(drift.mean_shift),
            log_variance_ratio=_rounded(drift.log_variance_ratio),
            count=_rounded(drift.count),
        )
        for drift in statistics_drift(state, population)
    ]


def _signals(
    experiment: Experiment, params: PyTree, state: PyTree, views: Batch | LabeledBatch
) -> list[SignalRow]:
    """Returns the moments of block outputs, normalized as in training, in whole groups."""
    task, train = experiment.task, experiment.train
    size = min(experiment.evaluate.batch_size, len(views.images))
    batch = _first(views, whole_groups(size, train.batch_size))
    images, mask = task.backbone_inputs(batch, train.precision)
    mode = Mode(stats=train.statistics, update="none", stochastic=False)
    found = block_signals(task.backbone, params.backbone, state.backbone, images, mode, mask=mask)
    return [
        SignalRow(
            name=signal.name,
            squared_mean=_rounded(signal.squared_mean),
            variance=_rounded(signal.variance),
        )
        for signal in found
    ]


def halfway_rates(records: Sequence[MetricRecord]) -> EffectiveRates | None:
    """Returns the rates logged halfway through training; None where it ended before.

    A run that was trained longer has logged them twice; the last ones are those of the whole run.
    """
    for record in reversed(records):
        if record.effective_rates is not None:
            return EffectiveRates(
                step=record.step,
                examples=record.examples,
                learning_rate=record.logs.get("learning_rate"),
                rates=record.effective_rates,
            )
    return None


def _noise(
    experiment: Experiment, params: PyTree, state: PyTree, views: Batch | LabeledBatch
) -> GradientNoise | None:
    """Returns the gradient noise by ``norm_batch``; None without a batch norm or without draws."""
    draws, train = experiment.evaluate.gradient_draws, experiment.train
    if draws is None or not has_batch_norm(experiment.model):
        return None
    # Independent of the training batch size, so that the trials of a study use the same images.
    size = 2 ** (min(experiment.evaluate.batch_size, len(views.images)).bit_length() - 1)
    batch = _first(views, size)
    mode = Mode(stats=train.statistics, update="running", stochastic=False)

    def gradient(order: Int[Array, " b"], norm_batch: int) -> PyTree:
        model = replace_batch_norms(
            experiment.model, lambda norm: dataclasses.replace(norm, norm_batch=norm_batch)
        )
        task = task_of(model, experiment.objective)
        return _gradient(task, mode, train.precision, params, state, batch, order)

    key = named_key(jax.random.key(experiment.seed), "gradient noise")
    sizes = [2**k for k in range(1, size.bit_length() - 1)]
    noise = gradient_noise(gradient, key, size, sizes, draws=draws)
    rows = [NoiseRow(norm_batch=k, noise=_rounded(value)) for k, value in noise.items()]
    return GradientNoise(images=size, draws=draws, rows=rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(
    task: Task,
    mode: Mode,
    precision: str,
    params: PyTree,
    state: PyTree,
    batch: Batch | LabeledBatch,
    order: Int[Array, " b"],
) -> PyTree:
    """Returns the gradient of the loss of all images, assigned to groups in this order."""
    batch = jax.tree.map(lambda leaf: leaf[order], batch)
    unused = jax.random.key(0)  # The mode has no stochastic parts.
    loss = lambda params: task.loss(params, state, batch, mode, precision=precision, key=unused)
    return jax.grad(lambda params: loss(params)[0])(params)


def _first(batch: Batch | LabeledBatch, count: int) -> Batch | LabeledBatch:
    return jax.tree.map(lambda leaf: leaf[:count], batch)


def _rounded(value: float) -> float:
    """Returns ``value`` to six significant digits, which keeps ``result.json`` small."""
    return float(f"{value:.6g}")
