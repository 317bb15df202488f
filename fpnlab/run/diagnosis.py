"""What went on inside a trained network: the ``diagnostics`` of ``result.json``.

``drift``: the distance of running from population statistics, for each batch norm and level.
``signals``: the moments of the backbone's maps, by depth. ``effective_rates``: how far one update
turned each kernel, halfway through training. ``gradient_noise``: what the batch norms' groups do
to the gradient, by norm batch; only where ``Evaluate.gradient_draws`` asks for it.
"""

import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from fpnlab.config.experiment import Experiment
from fpnlab.diagnostics.activations import resnet_signals
from fpnlab.diagnostics.drift import statistics_drift
from fpnlab.diagnostics.gradients import effective_rates, gradient_noise
from fpnlab.evaluate.bn_statistics import has_batch_norm, whole_groups
from fpnlab.nn.detector import Detector
from fpnlab.nn.norm_layer import grouped, replace_batch_norms
from fpnlab.ops.random import named_key
from fpnlab.train.model_loss import model_loss
from fpnlab.types import Batch, LabelledBatch, Mode


def diagnose(
    experiment: Experiment,
    params: Any,
    state: Any,
    *,
    population: Any,
    views: Batch | LabelledBatch,
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the diagnostics of a trained network, as JSON values.

    Args:
      experiment: how it was trained.
      params: its parameters, those that are measured.
      state: its running statistics.
      population: the same with population statistics.
      views: training images as training saw them, a training batch or more.
      records: those of ``metrics.jsonl``.
    """
    return {
        "drift": _drift(experiment, state, population),
        "signals": _signals(experiment, params, state, views),
        "effective_rates": _halfway(records),
        "gradient_noise": _noise(experiment, params, state, views),
    }


def rate_logs(before: Any, after: Any, *, halfway: bool) -> dict[str, Any]:
    """Returns what a record says of one update's effective rates.

    The median over kernels, and halfway through training also each kernel's: later the schedule
    brings all of them to zero, and earlier the kernels have not found their length.
    """
    rates = _rounded(effective_rates(before, after))
    logs: dict[str, Any] = {"effective_rate": statistics.median(rates.values())}
    return logs | ({"effective_rates": rates} if halfway else {})


def _drift(experiment, state, population):
    model = experiment.model
    levels = model.neck.levels if isinstance(model, Detector) else ()
    rows = []
    for drift in statistics_drift(state, population):
        level = None if drift.level is None else levels[drift.level]
        rows.append(_rounded(dataclasses.asdict(drift) | {"level": level}))
    return rows


def _signals(experiment, params, state, views):
    """The moments as training makes them: by batch statistics, in whole groups."""
    train = experiment.train
    model = grouped(experiment.model, train.statistics_group)
    size = min(experiment.evaluate.batch_size, len(views.images))
    batch = _first(views, whole_groups(size, train.batch_size))
    images = jnp.asarray(batch.images).astype(train.precision)
    masked = isinstance(model, Detector) and model.mask_padding
    signals = resnet_signals(
        model.backbone,
        params.backbone,
        state.backbone,
        (images - model.pixel_mean) / model.pixel_deviation,
        Mode(stats=train.statistics, update="none", stochastic=False),
        mask=batch.mask if masked else None,
    )
    return [_rounded(dataclasses.asdict(signal)) for signal in signals]


def _halfway(records):
    """The record that has them; none where training ended before."""
    for record in records:
        if "effective_rates" in record:
            return {name: record[name] for name in ("step", "examples", "learning_rate")} | {
                "rates": record["effective_rates"]
            }
    return None


def _noise(experiment, params, state, views):
    """Over the same images for all trials of a study, whatever their training batch."""
    draws = experiment.evaluate.gradient_draws
    if draws is None or not has_batch_norm(experiment.model):
        return None
    size = 2 ** (min(experiment.evaluate.batch_size, len(views.images)).bit_length() - 1)
    batch = _first(views, size)

    def gradient(order, norm_batch):
        model = replace_batch_norms(
            experiment.model, lambda norm: dataclasses.replace(norm, norm_batch=norm_batch)
        )
        return _gradient(
            model, experiment.objective, mode, train.precision, params, state, batch, order
        )

    train = experiment.train
    mode = Mode(stats=train.statistics, update="running", stochastic=False)
    norm_batches = [2**k for k in range(1, size.bit_length() - 1)]
    key = named_key(jax.random.key(experiment.seed), "gradient noise")
    noise = gradient_noise(gradient, key, size, norm_batches, draws=draws)
    rows = [_rounded({"norm_batch": k, "noise": value}) for k, value in noise.items()]
    return {"images": size, "draws": draws, "rows": rows}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _gradient(model, objective, mode, precision, params, state, batch, order):
    """Returns the gradient of the loss of all images together, dealt out in this order."""
    batch = jax.tree.map(lambda leaf: leaf[order], batch)
    unused = jax.random.key(0)  # The mode draws nothing.
    loss = lambda params: model_loss(
        model, objective, params, state, batch, mode, precision=precision, key=unused
    )
    return jax.grad(loss, has_aux=True)(params)[0]


def _first(batch, count):
    return jax.tree.map(lambda leaf: leaf[:count], batch)


def _rounded(row):
    """Returns a row whose floats have as many digits as anyone reads."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
