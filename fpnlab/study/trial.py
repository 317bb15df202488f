"""One training run in one folder: begun, interrupted, gone on with, measured, and written down.

A run folder holds ``config.json`` (resolved) and ``env.json``, written before the first step;
``metrics.jsonl``, one record a line; ``checkpoints/``; and, when the run has ended,
``gallery.npz``, of a classifier ``items.npz``, and ``result.json``. A run whose ``result.json`` is
there is never run again.
"""

import dataclasses
import functools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fpnlab.config import Experiment, Trial, config_hash, resolved
from fpnlab.data.dataset import Dataset, stream_order, take
from fpnlab.model.norm import NormState
from fpnlab.ops.keys import named_key
from fpnlab.probe.finite import first_not_finite
from fpnlab.study.diagnosis import diagnose, rate_logs
from fpnlab.study.environment import environment
from fpnlab.study.files import (
    RunFolderError,
    append_line,
    locked,
    read_lines,
    write_json,
    write_lines,
    writing,
)
from fpnlab.study.signals import Stop
from fpnlab.study.task import evaluated, measure, random_views, without_loss
from fpnlab.train.checkpoint import Checkpoints
from fpnlab.train.fit import fit
from fpnlab.train.parallel import (
    data_mesh,
    in_any,
    jit_step,
    of_first,
    one_copy,
    replicate,
    shard,
)
from fpnlab.train.step import TrainState, init_train, step_loss, train_step
from fpnlab.types import Batch, LabelledBatch

VIEW_CHUNK = 64
PROGRAMS_KEPT = 64
"""A study goes through all its arms and values for each seed: fewer would compile them anew."""


class Interrupted(Exception):
    """The run was asked to stop, and saved before it did."""

    exit_code = 75


def run_trial(
    trial: Trial,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    stop: Stop,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Returns the result of a trial, going on from whatever ``folder`` holds of it.

    The result's ``status`` is ``done``, or ``diverged`` where loss or gradient became
    infinite or NaN: then the last good parameters are kept and measured.

    Args:
      trial: what to run.
      dataset: its data.
      folder: the run folder; made if absent.
      stop: asked after each step.
      report: called with each record of metrics.

    Raises:
      Interrupted: ``stop`` was set; a checkpoint was saved first.
      RunFolderError: the folder cannot be written, belongs to another config, or another
        process is running it.
      CheckpointError: a checkpoint could not be written, or none is sound.
    """
    experiment = trial.experiment
    digest = config_hash(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(folder, experiment, digest)
        if of_first((folder / "result.json").exists()):
            return json.loads((folder / "result.json").read_text())
        checkpoints = Checkpoints(folder / "checkpoints", digest)
        state, seconds = _train(experiment, dataset, folder, checkpoints, stop, report)
        result = _measure(trial, dataset, folder, state) | {"seconds": seconds}
        write_json(folder / "result.json", result)
        return json.loads((folder / "result.json").read_text())


def follow_trial(trial: Trial, dataset: Dataset, *, stop: Stop) -> None:
    """Takes part in the steps of a trial that process 0 runs with ``run_trial``.

    Raises:
      Interrupted: ``stop`` was set in one of the processes; process 0 saved.
    """
    if of_first(False):
        return
    # What it writes is what process 0 writes, and nobody needs it twice.
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        nothing = Checkpoints(folder / "checkpoints", config_hash(trial.experiment))
        try:
            _train(trial.experiment, dataset, folder, nothing, stop, lambda _: None)
        except Interrupted:
            raise Interrupted("stopped together with process 0, which saved") from None


def training_step(
    experiment: Experiment, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict]]:
    """Returns the jitted step ``(state, split, indices, positions, key) -> (state, logs)``.

    Gathering, augmentation and update are one program; the old state's memory is reused.
    Experiments that differ in their seed alone share it. Over the devices of a ``mesh``, state,
    split and key are on each of them, and indices and positions are spread.
    """
    train, model, objective = experiment.train, experiment.model, experiment.objective
    return _jitted_step(model, objective, train, experiment.augment, mesh)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_step(model, objective, train, augmentation, mesh):
    def step(state: TrainState, split: Batch | LabelledBatch, indices, positions, key):
        batch = _view(model, augmentation, take(split, indices), positions, key)
        return train_step(model, objective, train, state, batch)

    return jit_step(step, mesh)


@jax.jit
def _copied(params):
    return jax.tree.map(jnp.copy, params)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _jitted_init(model, train):
    return jax.jit(lambda key: init_train(key, model, train))


def initial_state(experiment: Experiment) -> TrainState:
    """Returns the state before the first step of ``experiment``."""
    return _jitted_init(experiment.model, experiment.train)(jax.random.key(experiment.seed))


def _train(experiment, dataset, folder, checkpoints, stop, report):
    """Returns the last state and the seconds spent in all sessions of this run."""
    train = experiment.train
    like = jax.eval_shape(lambda: initial_state(experiment))
    restored = checkpoints.restore(like)
    at, begin = of_first(restored or (0, initial_state(experiment)))
    at = int(at)
    log = folder / "metrics.jsonl"
    records = [r for r in read_lines(log) if r["step"] <= at]
    write_lines(log, records)
    spent = records[-1]["seconds"] if records else 0.0
    every = max(experiment.log_examples // train.batch_size, 1)
    if at >= train.steps or (int(begin.refused) and at % every == 0):
        return begin, spent

    mesh = data_mesh(train.batch_size)
    split = replicate(mesh, dataset.train)
    advance = training_step(experiment, mesh)
    key = _augment_key(experiment)
    step = lambda state, batch: advance(state, split, *batch, key)
    begun = saved = mark = time.monotonic()
    marked = at
    batches = _positions(experiment, len(dataset.train.images), at)
    batches = map(functools.partial(shard, mesh), batches)
    logged = lambda number: number % every == 0 or number == train.steps
    # The step reuses the memory of the parameters that it is given.
    before = _copied(begin.params) if logged(at + 1) else None
    begin = replicate(mesh, begin)
    for number, (state, logs) in enumerate(fit(step, begin, batches), at + 1):
        last = number == train.steps
        diverged = stopping = False
        if logged(number):
            last_record = (number - 1) // every * every
            halfway = 2 * last_record < train.steps <= 2 * number
            rates = rate_logs(before, one_copy(state.params), halfway=halfway)
            logs = {name: float(value) for name, value in logs.items()}
            now = time.monotonic()
            record = {
                "step": number,
                "examples": number * train.batch_size,
                "seconds": round(spent + now - begun, 3),
                "examples_per_second": round(
                    (number - marked) * train.batch_size / (now - mark), 2
                ),
                **{name: float(f"{value:.6g}") for name, value in logs.items()},
                **rates,
            }
            append_line(log, record)
            report(record)
            mark, marked = now, number
            diverged = bool(state.refused)
        # Processes agree where they wait for each other anyway.
        if logged(number) or jax.process_count() == 1:
            stopping = in_any(stop.requested)
        due = time.monotonic() - saved > experiment.checkpoint_seconds
        if jax.process_index() == 0 and (stopping or last or diverged or due):
            checkpoints.save(number, one_copy(state))
            saved = time.monotonic()
        if stopping:
            raise Interrupted(f"{folder}: stopped after step {number} of {train.steps}, saved")
        if diverged:
            break
        before = _copied(one_copy(state.params)) if logged(number + 1) else None
    return one_copy(state), round(spent + time.monotonic() - begun, 3)


def _positions(experiment, size, at) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    train = experiment.train
    for step in range(at, train.steps):
        start = step * train.batch_size
        positions = np.arange(start, start + train.batch_size, dtype=np.uint32)
        yield stream_order(experiment.seed, size, start, train.batch_size), positions


def evaluate_run(
    folder: pathlib.Path, experiment: Experiment, dataset: Dataset
) -> dict[str, dict[str, float]]:
    """Returns the metrics of a run folder's last checkpoint, by source of statistics.

    Raises:
      RunFolderError: the folder has no checkpoint.
      CheckpointError: none is sound.
    """
    state, views = restored_state(folder, experiment), _views(experiment, dataset)
    found = evaluated(experiment, dataset, weights(state), state.state, views)
    return without_loss(found)[0]


def restored_state(folder: pathlib.Path, experiment: Experiment) -> TrainState:
    """Returns the state in a run folder's last checkpoint; raises like ``evaluate_run``."""
    like = jax.eval_shape(lambda: initial_state(experiment))
    found = Checkpoints(folder / "checkpoints", config_hash(experiment)).restore(like)
    if found is None:
        raise RunFolderError(
            f"{folder}: no checkpoint in it; give a folder that `fpnlab train` has written to"
        )
    return found[1]


def training_view(experiment: Experiment, dataset: Dataset, count: int) -> Batch | LabelledBatch:
    """Returns the first ``count`` images of training, as training sees them, in host memory."""
    order = stream_order(experiment.seed, len(dataset.train.images), 0, count)
    positions = np.arange(count, dtype=np.uint32)
    key = _augment_key(experiment)
    chunks = range(0, count, VIEW_CHUNK)
    parts = [
        jax.device_get(
            _view(
                experiment.model,
                experiment.augment,
                jax.tree.map(jnp.asarray, take(dataset.train, order[i : i + VIEW_CHUNK])),
                positions[i : i + VIEW_CHUNK],
                key,
            )
        )
        for i in chunks
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _view(model, augmentation, batch, positions, key):
    """Returns a batch as training sees it at these positions of its stream."""
    if augmentation is None:
        return batch
    # A view depends on the position in the stream only, not on the batch it is in.
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(positions)
    return random_views(augmentation, keys, batch, model.classes)


def _augment_key(experiment):
    return named_key(jax.random.key(experiment.seed), "augment")


def _views(experiment, dataset):
    """The training images behind population statistics and diagnostics."""
    count = max(experiment.evaluate.population_examples, experiment.train.batch_size)
    return training_view(experiment, dataset, count)


def weights(state: TrainState) -> Any:
    """Returns the parameters that are measured."""
    return state.params if state.average is None else state.average


def _measure(trial, dataset, folder, state):
    experiment = trial.experiment
    train = experiment.train
    views = _views(experiment, dataset)
    measured = measure(experiment, dataset, weights(state), state.state, views)
    files: dict[str, dict[str, Any]] = {
        "gallery.npz": measured.gallery,
        "items.npz": measured.items,
    }
    with writing(folder):
        for name, arrays in files.items():
            if arrays:
                np.savez_compressed(folder / name, **arrays)
    counts = [
        int(node.count.min())
        for node in jax.tree.leaves(state.state, is_leaf=lambda n: isinstance(n, NormState))
        if isinstance(node, NormState)
    ]
    steps = int(state.step)
    records = read_lines(folder / "metrics.jsonl")
    return {
        "trial": trial.name,
        "config_hash": config_hash(experiment),
        "arm": trial.arm,
        "axis_value": trial.axis_value,
        "seed": trial.seed,
        "tuned": trial.tuned,
        "status": "diverged" if int(state.refused) else "done",
        "error": _divergence(experiment, dataset, state) if int(state.refused) else None,
        "examples": steps * train.batch_size,
        "steps": steps,
        "class_names": list(dataset.class_names),
        "norm_batch": _norm_batch(state, experiment) if counts else None,
        "smallest_count": min(counts, default=None),
        "final_loss": records[-1]["loss"] if records else math.nan,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "metrics": measured.metrics,
        "test_loss": measured.test_loss,
        "diagnostics": diagnose(
            experiment,
            weights(state),
            state.state,
            population=measured.population,
            views=views,
            records=records,
        ),
    }


def _divergence(experiment, dataset, state):
    """Returns which update was the first to be refused, and where it went wrong.

    Every later one was refused too, so that the state is the one before it but for its count.
    """
    at = int(state.step) - int(state.refused)
    order, positions = next(_positions(experiment, len(dataset.train.images), at))
    batch = jax.tree.map(jnp.asarray, take(dataset.train, order))
    batch = _view(experiment.model, experiment.augment, batch, positions, _augment_key(experiment))
    before = dataclasses.replace(state, step=jnp.asarray(at))

    def loss_of(params, watch):
        spec = experiment.model, experiment.objective, experiment.train
        return step_loss(*spec, before, batch, watch)(params)[0]

    inputs = {"batch": batch, "state": state.state}
    where = first_not_finite(loss_of, state.params, inputs) or "the update"
    return f"loss or gradient not finite at step {at + 1}; first not finite: {where}"


def _norm_batch(state, experiment):
    norm = experiment.model.backbone.norm
    return getattr(norm, "norm_batch", None) or experiment.train.statistics_group


def _claim(folder, experiment, digest):
    """Writes down whose folder this is, or sees to it that it is this run's."""
    config = folder / "config.json"
    if not config.exists():
        if (folder / "study.json").exists():
            raise RunFolderError(f"{folder}: it holds a study; choose another folder with --out")
        write_json(folder / "env.json", environment())
        write_json(config, {"hash": digest, "experiment": resolved(experiment)})
        return
    try:
        begun = json.loads(config.read_text())
        same, there = begun["hash"] == digest, begun["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{config}: not the config of a run ({error}); choose another folder with --out, or "
            "remove this one"
        ) from None
    if not same:
        changed = differences(there, resolved(experiment))
        raise RunFolderError(
            f"{folder}: it holds a run of another config; it differs in {', '.join(changed)}; "
            "choose another folder with --out, or remove this one"
        )


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Returns where two values of JSON differ, each place as a dotted path with both values."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{prefix}.{n}")]
    return [] if old == new else [f"{prefix.lstrip('.')} ({old} there, {new} here)"]
