"""One training run in one folder: begun, interrupted, gone on with, measured, and written down.

A run folder holds ``config.json`` (resolved) and ``env.json``, written before the first step;
``metrics.jsonl``, one record a line; ``checkpoints/``; and, when the run has ended,
``gallery.npz``, of a classifier ``items.npz``, and ``result.json``. A run whose ``result.json`` is
there is never run again.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab import compiler
from fpnlab.config.experiment import Experiment, Trial, config_hash, resolved, same_training
from fpnlab.data.dataset import Dataset
from fpnlab.diagnostics.nonfinite import first_not_finite
from fpnlab.nn.norm_layer import NormState
from fpnlab.nn.positions import norm_batches
from fpnlab.run.batches import batch_at, population_size, training_view
from fpnlab.run.diagnosis import diagnose
from fpnlab.run.environment import environment
from fpnlab.run.folder import RunFolderError, locked, read_lines, write_json, writing
from fpnlab.run.interrupts import Stop
from fpnlab.run.programs import Interrupted, Run, checkpoints_of, initial_state, train
from fpnlab.tasks.task import evaluated, measure, without_loss
from fpnlab.train.accumulate import split_passes
from fpnlab.train.parallel import of_first
from fpnlab.train.step import TrainState, step_loss
from fpnlab.types import unwatched


def run_trial(
    trial: Trial,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    stop: Stop,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Returns the result of a trial, going on from whatever ``folder`` holds of it.

    Args:
      trial: what to run.
      dataset: its data.
      folder: the run folder; made if absent.
      stop: asked after each step.
      report: called with each record of metrics.

    Raises: what ``run_trials`` does.
    """
    return run_trials([Run(trial, folder, report)], dataset, stop=stop)[0]


def run_trials(runs: Sequence[Run], dataset: Dataset, *, stop: Stop) -> list[dict[str, Any]]:
    """Returns the results of trials, going on from whatever their folders hold of them.

    A result's ``status`` is ``done``, or ``diverged`` where loss or gradient became
    infinite or NaN: then the last good parameters are kept and measured.

    Args:
      runs: one, or several whose experiments share a ``program``: it trains them together.
      dataset: their data.
      stop: asked after each step.

    Raises:
      Interrupted: ``stop`` was set; a checkpoint of each was saved first.
      RunFolderError: a folder cannot be written, belongs to another config, or another
        process is running it.
      CheckpointError: a checkpoint could not be written, or none is sound.
    """
    with contextlib.ExitStack() as locks:
        for run in runs:
            with writing(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(run.folder))
            _claim(run.folder, run.trial.experiment)
        left = [r for r in runs if not of_first(_measured(r.folder, r.trial.experiment))]
        if left:
            _check_backend([run.folder for run in left])
        for run, (state, seconds) in zip(left, train(left, dataset, stop) if left else ()):
            result = _measure(run.trial, dataset, run.folder, state) | {"seconds": seconds}
            write_json(run.folder / "result.json", result)
        return [json.loads((run.folder / "result.json").read_text()) for run in runs]


def _check_backend(folders):
    """Warns of a wrong backend, and says so in runs that were begun on a right one."""
    compiler.check_backend()
    known_cases = compiler.summary()
    for path in [folder / "env.json" for folder in folders]:
        if known_cases.startswith("wrong") and path.exists():
            write_json(path, json.loads(path.read_text()) | {"known_cases": known_cases})


def follow_trial(trial: Trial, dataset: Dataset, *, stop: Stop) -> None:
    """Takes part in the steps of a trial that process 0 runs with ``run_trial``.

    Raises:
      Interrupted: ``stop`` was set in one of the processes; process 0 saved.
    """
    if of_first(False):
        return
    # What it writes is what process 0 writes, and nobody needs it twice.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            train([Run(trial, pathlib.Path(scratch))], dataset, stop)
        except Interrupted:
            raise Interrupted("stopped together with process 0, which saved") from None


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
    found = checkpoints_of(folder, experiment).restore(like)
    if found is None:
        raise RunFolderError(
            f"{folder}: no checkpoint in it; give a folder that `fpnlab train` has written to"
        )
    return found[1]


def _views(experiment, dataset):
    """The training images behind population statistics and diagnostics."""
    return training_view(experiment, dataset, population_size(experiment))


def weights(state: TrainState) -> Any:
    """Returns the parameters that are measured."""
    return state.params if state.average is None else state.average


def _measure(trial, dataset, folder, state):
    experiment = trial.experiment
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
        "examples": steps * experiment.train.batch_size,
        "steps": steps,
        "class_names": list(dataset.class_names),
        "norm_batch": norm_batches(experiment.model, experiment.train.statistics_group),
        "smallest_count": min(counts, default=None),
        "final_loss": records[-1]["loss"] if records else math.nan,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "pack": records[-1].get("pack", 1) if records else 1,
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
    before = dataclasses.replace(state, step=jnp.asarray(at))
    where = first_of_step(experiment, before, batch_at(experiment, dataset, at)) or "the update"
    return f"loss or gradient not finite at step {at + 1}; first not finite: {where}"


def first_of_step(experiment: Experiment, state: TrainState, batch: Any) -> str | None:
    """Returns what is not finite first in a step, pass by pass as in training; None if nothing is.

    Args:
      experiment: what is trained.
      state: the state before the step.
      batch: its images.
    """
    train = experiment.train
    for i, images in enumerate(split_passes(batch, train.passes)):
        number = jnp.asarray(i, jnp.int32) if train.passes > 1 else None
        run = functools.partial(_pass_loss, experiment, state, images, number)
        loss_of = lambda params, watch, run=run: run(params, watch)[0]
        inputs = {"batch": images, "state": state.state}
        if first := first_not_finite(loss_of, state.params, inputs):
            return first
        _, (_, statistics) = jax.jit(run, static_argnums=1)(state.params, unwatched)
        state = dataclasses.replace(state, state=statistics)
    return None


def _pass_loss(experiment, state, images, number, params, watch):
    spec = experiment.model, experiment.objective, experiment.train
    return step_loss(*spec, state, images, watch, number)(params)


def _claim(folder, experiment):
    """Writes down whose folder this is, or sees to it that it is this run's."""
    digest = config_hash(experiment)
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
    if same:
        return
    here = resolved(experiment)
    changed = ", ".join(differences(there, here))
    if not same_training(there, here):
        raise RunFolderError(
            f"{folder}: it holds a run of another config; it differs in {changed}; choose another "
            "folder with --out, or remove this one"
        )
    logging.getLogger(__name__).warning(
        "%s: its config now differs in %s; the weights do not depend on that and are kept, what is "
        "measured of them is measured anew",
        folder,
        changed,
    )
    write_json(config, {"hash": digest, "experiment": here})


def _measured(folder, experiment):
    """Returns whether a run folder has the result of an experiment, measured as it says now."""
    path = folder / "result.json"
    if not path.exists():
        return False
    return json.loads(path.read_text()).get("config_hash") == config_hash(experiment)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Returns where two values of JSON differ, each place as a dotted path with both values."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{prefix}.{n}")]
    return [] if old == new else [f"{prefix.lstrip('.')} ({old} there, {new} here)"]
