"""Evaluation of a trained model: metrics, pictures, diagnostics, and the cause of divergence."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import Trial
from fpnlab.data.dataset import Dataset
from fpnlab.diagnostics.nonfinite import first_not_finite
from fpnlab.errors import RunFolderError
from fpnlab.nn.norm_edit import norm_batches
from fpnlab.nn.norm_layer import NormState
from fpnlab.records.json_files import writing
from fpnlab.records.run_records import RunResult, read_records
from fpnlab.run.batches import batch_at, population_size, training_view
from fpnlab.run.diagnosis import diagnose
from fpnlab.run.folder import RunFolder
from fpnlab.run.programs import initial_state
from fpnlab.tasks.task import Measured
from fpnlab.train.accumulate import split_microbatches
from fpnlab.train.step import LossOutput, TrainState, step_loss
from fpnlab.types import Batch, Intermediates, LabeledBatch


def measure(
    trial: Trial, dataset: Dataset, files: RunFolder, state: TrainState, seconds: float
) -> RunResult:
    """Returns the result of a trained trial, after writing ``gallery.npz`` and ``items.npz``.

    Args:
      trial: The trial.
      dataset: The data of the trial.
      files: The run folder, with the training log.
      state: The state after the last step.
      seconds: Training time in seconds.

    Raises:
      RunFolderError: The folder cannot be written.
    """
    experiment = trial.experiment
    views = training_view(experiment, dataset, population_size(experiment))
    measured = evaluate(experiment, dataset, state, views)
    with writing(files.path):
        for name, arrays in (("gallery.npz", measured.gallery), ("items.npz", measured.items)):
            if arrays:
                np.savez_compressed(files.path / name, **arrays)  # type: ignore[arg-type]
    steps, records = int(state.step), read_records(files.metrics)
    diverged = int(state.skipped) > 0
    return RunResult(
        trial=trial.name,
        config_hash=files.stored().hash,
        arm=trial.arm,
        axis_value=trial.axis_value,
        seed=trial.seed,
        tuned=trial.tuned,
        status="diverged" if diverged else "done",
        error=_divergence(experiment, dataset, state) if diverged else None,
        examples=steps * experiment.train.batch_size,
        steps=steps,
        class_names=list(dataset.class_names),
        norm_batch=norm_batches(experiment.task.model.norm_positions),
        smallest_count=_smallest_count(state.state),
        final_loss=records[-1].logs.get("loss") if records else None,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        pack=records[-1].pack if records else 1,
        metrics={source: dict(numbers) for source, numbers in measured.metrics.items()},
        test_loss=None if measured.test_loss is None else dict(measured.test_loss),
        diagnostics=diagnose(
            experiment,
            weights(state),
            state.state,
            population=measured.population,
            views=views,
            records=records,
        ),
        seconds=seconds,
    )


def evaluate(
    experiment: Experiment, dataset: Dataset, state: TrainState, views: Batch | LabeledBatch
) -> Measured:
    """Returns the metrics on the test images, with the items and pictures to store.

    Args:
      experiment: The experiment.
      dataset: The data of the experiment.
      state: The state after training.
      views: Augmented training images, from which population statistics are estimated.
    """
    return experiment.task.evaluate(
        experiment.evaluate,
        weights(state),
        state.state,
        population=views,
        dataset=dataset,
        precision=experiment.train.precision,
    )


def evaluate_run(folder: pathlib.Path, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Returns the metrics of a run folder's last checkpoint, by source of statistics.

    Raises:
      ConfigError: ``folder`` is not a run folder.
      RunFolderError: The folder has no checkpoint.
      CheckpointError: All checkpoints are damaged.
    """
    experiment, state = restored_run(folder)
    views = training_view(experiment, dataset, population_size(experiment))
    return evaluate(experiment, dataset, state, views).metrics


def restored_run(folder: pathlib.Path) -> tuple[Experiment, TrainState]:
    """Returns the experiment of a run folder and the state in its last checkpoint.

    Raises:
      ConfigError: ``folder`` is not a run folder.
      RunFolderError: The folder has no checkpoint.
      CheckpointError: All checkpoints are damaged.
    """
    files = RunFolder(folder)
    experiment = files.stored().experiment
    like = jax.eval_shape(lambda: initial_state(experiment))
    found = files.checkpoints().restore(like)
    if found is None:
        raise RunFolderError(
            f"{folder}: no checkpoint found; give a folder written by `fpnlab train`"
        )
    return experiment, found[1]


def weights(state: TrainState) -> PyTree:
    """Returns the parameters to evaluate: the averaged ones if training averages them."""
    return state.params if state.average is None else state.average


def _smallest_count(state: PyTree) -> int | None:
    """Returns the fewest values per channel in a statistics group; None without a batch norm."""
    is_state = lambda node: isinstance(node, NormState)
    nodes = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
    return min((int(node.count.min()) for node in nodes), default=None)


def _divergence(experiment: Experiment, dataset: Dataset, state: TrainState) -> str:
    """Returns the step of the first non-finite update, and the first non-finite value in it.

    Updates are skipped from that step on, so that ``state`` differs from the state before it only
    in its counters: replaying one batch from there reproduces the divergence.
    """
    at = int(state.step) - int(state.skipped)
    before = dataclasses.replace(state, step=jnp.asarray(at))
    where = first_of_step(experiment, before, batch_at(experiment, dataset, at)) or "the update"
    return f"loss or gradient not finite at step {at + 1}; first not finite: {where}"


def first_of_step(
    experiment: Experiment, state: TrainState, batch: Batch | LabeledBatch
) -> str | None:
    """Returns the name of the first non-finite value of a training step; None if all are finite.

    Args:
      experiment: The experiment.
      state: The state before the step.
      batch: The batch of the step; it is split into microbatches as in training.
    """
    task, train = experiment.task, experiment.train
    for i, images in enumerate(split_microbatches(batch, train.microbatches)):
        number = jnp.asarray(i, jnp.int32) if train.microbatches > 1 else None
        loss_of = step_loss(task, train, state, images, number)
        inputs = {"batch": images, "state": state.state}
        if first := first_not_finite(_with_intermediates(loss_of), state.params, inputs):
            return first
        _, (_, statistics, _) = jax.jit(loss_of)(state.params)
        state = dataclasses.replace(state, state=statistics)
    return None


def _with_intermediates(
    loss_of: Callable[[PyTree], tuple[Float[Array, ""], LossOutput]],
) -> Callable[[PyTree], tuple[Float[Array, ""], Intermediates]]:
    def run(params: PyTree) -> tuple[Float[Array, ""], Intermediates]:
        loss, output = loss_of(params)
        return loss, output.intermediates

    return run
