"""The state before the first step: random, or with the weights of another run."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fpnlab.errors import CheckpointError, ConfigError, RunFolderError
from fpnlab.run.enter_folder import write_initial
from fpnlab.run.folder import Run, RunFolder
from fpnlab.run.measure import restored_run, weights
from fpnlab.run.pretrained_state import pretrained_state
from fpnlab.run.programs import initial_state
from fpnlab.train.step import TrainState


def first_state(run: Run) -> TrainState:
    """Returns the state of a run before its first step.

    With ``model.weights``, the weights are those of a file, and the config of the run then has a
    note on what was taken from it.

    With ``initial_run``, parameters and running statistics are those of that run's last checkpoint
    (averaged parameters if it averages them), while optimizer and step start anew. The config of
    the run then names the checkpoint.

    Raises:
      RunFolderError: The other run has no sound checkpoint, or another model.
      WeightsError: The file of weights cannot be read, or does not fit the model.
    """
    experiment = run.trial.experiment
    state = initial_state(experiment)
    if experiment.model.weights is not None:
        params, statistics, note = pretrained_state(experiment.model, state.params, state.state)
        write_initial(run.files, note)
        return _started(state, params, statistics)
    if experiment.initial_run is None:
        return state
    source = RunFolder(pathlib.Path(experiment.initial_run))
    try:
        _, found = restored_run(source.path)
        stored = source.stored()
    except (ConfigError, RunFolderError, CheckpointError) as error:
        raise RunFolderError(f"initial_run: {error}") from error
    params = weights(found)
    if differing := _first_difference((params, found.state), (state.params, state.state)):
        raise RunFolderError(
            f"initial_run: {source.path}: leaf {differing}; give a run of the same model"
        )
    write_initial(
        run.files,
        {
            "run": experiment.initial_run,
            "training_hash": stored.training_hash,
            "step": int(found.step),
        },
    )
    return _started(state, params, found.state)


def _started(state: TrainState, params: PyTree, statistics: PyTree) -> TrainState:
    """Returns the initial state with other weights and running statistics."""
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, state=statistics, average=average)


def _first_difference(source: PyTree, own: PyTree) -> str | None:
    """Returns a phrase on the first leaf that only one tree has, or that differs in its shape."""
    there, here = _shapes(source), _shapes(own)
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
    return None


def _shapes(tree: PyTree) -> dict[str, str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): f"{leaf.dtype}{leaf.shape}"
        for path, leaf in paths
    }
