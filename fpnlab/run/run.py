"""Training runs that resume after interruptions: restore, train, evaluate, write the result."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax

from fpnlab import compiler
from fpnlab.config.trials import Trial
from fpnlab.data.dataset import Dataset
from fpnlab.errors import Interrupted
from fpnlab.records.json_files import read_json, write_json, writing
from fpnlab.records.manifest import seal, unseal
from fpnlab.records.run_records import MetricRecord, RunResult, read_result, write_result
from fpnlab.run.enter_folder import enter_folder
from fpnlab.run.first_state import first_state
from fpnlab.run.folder import Run, RunFolder, locked
from fpnlab.run.hooks import (
    LogMetrics,
    Pack,
    SaveCheckpoints,
    StopOnDivergence,
    StopOnRequest,
    cut_log,
    log_interval,
)
from fpnlab.run.interrupts import Stop
from fpnlab.run.loop import train_loop
from fpnlab.run.measure import measure
from fpnlab.run.programs import initial_state, training_of
from fpnlab.train.parallel import of_first
from fpnlab.train.step import TrainState


def run_trial(
    trial: Trial,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    stop: Stop,
    report: Callable[[MetricRecord], None],
    phase: Callable[[str], None] = lambda phase: None,
) -> RunResult:
    """Returns the result of a trial, resuming from what ``folder`` holds of it.

    Args:
      trial: The trial.
      dataset: The data of the trial.
      folder: The run folder; created if absent.
      stop: Checked after each step.
      report: Called with each record of metrics.
      phase: Called with the name of each phase without records, such as "evaluating".

    Raises:
      FpnlabError: As in ``run_trials``.
    """
    return run_trials([Run(trial, folder, report, phase)], dataset, stop=stop)[0]


def run_trials(runs: Sequence[Run], dataset: Dataset, *, stop: Stop) -> list[RunResult]:
    """Returns the results of trials, resuming from what their folders hold of them.

    A trial that has a result is not run again. If its loss or gradient becomes infinite or NaN, a
    trial has the status ``diverged``, and its last finite parameters are kept and evaluated.

    Args:
      runs: One trial, or a pack of several with equal programs, which are trained together.
      dataset: The data of the trials.
      stop: Checked after each step.

    Raises:
      Interrupted: ``stop`` was set; a checkpoint of each trial was saved first.
      RunFolderError: A folder cannot be written, belongs to another config, or is locked by
        another process.
      CheckpointError: A checkpoint could not be written, or all checkpoints are damaged.
    """
    with contextlib.ExitStack() as locks:
        for run in runs:
            with writing(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(run.folder))
            enter_folder(run.folder, run.trial.experiment, dataset, list_files=run.list_files)
        left = [run for run in runs if not of_first(run.files.finished() is not None)]
        if left:
            for run in left:
                unseal(run.folder)
            _check_backend([run.files for run in left])
            for run, (state, seconds) in zip(left, _train(left, dataset, stop)):
                run.phase("evaluating")
                result = measure(run.trial, dataset, run.files, state, seconds)
                write_result(run.files.result, result)
        for run in runs:
            # Also after a kill between the result and the manifest.
            if not run.files.manifest.exists():
                seal(run.folder, run.files.sealed_names())
        return [read_result(run.files.result) for run in runs]


def follow_trial(trial: Trial, dataset: Dataset, *, stop: Stop) -> None:
    """Takes part in the training steps of a trial that process 0 runs with ``run_trial``.

    Raises:
      Interrupted: ``stop`` was set in one of the processes, and process 0 has saved.
    """
    # Each collective call here pairs with one in `run_trials` of process 0, in the same order.
    if of_first(False):
        return
    # The hooks write the same files as in process 0; these copies are discarded.
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        enter_folder(folder, trial.experiment, dataset)
        try:
            _train([Run(trial, folder)], dataset, stop)
        except Interrupted:
            raise Interrupted("stopped together with process 0, which saved") from None


def _train(runs: Sequence[Run], dataset: Dataset, stop: Stop) -> list[tuple[TrainState, float]]:
    """Returns each run's last state and its training time over all sessions in seconds."""
    found = _restored(runs)
    steps, states = [step for step, _ in found], [state for _, state in found]
    live = [i for i in range(len(runs)) if not _has_ended(runs[i], steps[i], states[i])]
    if not live:
        return [(state, cut_log(run, step)) for run, (step, state) in zip(runs, found)]
    start = steps[live[0]]
    for run in runs:
        run.phase("compiling")
    training = training_of([run.trial.experiment for run in runs], dataset, states, start)
    pack = Pack(runs, training, live, steps)
    hooks = [
        LogMetrics(pack),
        StopOnDivergence(pack),
        StopOnRequest(pack, stop),
        SaveCheckpoints(pack),
    ]
    train_loop(training.step, training.state, training.batches, hooks, start=start)
    before = dict(enumerate(zip(states, pack.before)))
    return [(before | pack.ended)[i] for i in range(len(runs))]


def _restored(runs: Sequence[Run]) -> list[tuple[int, TrainState]]:
    """Returns the step and state of each run; unfinished runs are at the same step."""
    like = jax.eval_shape(lambda: initial_state(runs[0].trial.experiment))
    checkpoints = [run.files.checkpoints() for run in runs]
    newest = None
    while True:
        found = []
        for run, own in zip(runs, checkpoints):
            saved = own.restore(like, newest)
            step, state = of_first(saved or (0, first_state(run)))
            found.append((int(step), state))
        steps = [
            step for run, (step, state) in zip(runs, found) if not _has_ended(run, step, state)
        ]
        if len(set(steps)) < 2:
            return found
        # The process died between the checkpoints of two trials, so that their steps differ. A
        # pack takes its steps together: restore all from the oldest of the newest checkpoints.
        newest = min(steps)


def _has_ended(run: Run, step: int, state: TrainState) -> bool:
    experiment = run.trial.experiment
    return step >= experiment.train.steps or (
        int(state.skipped) > 0 and step % log_interval(experiment) == 0
    )


def _check_backend(folders: Sequence[RunFolder]) -> None:
    """Warns if the backend computes wrong numbers, and records it in ``env.json`` of old runs."""
    compiler.check_backend()
    known_cases = compiler.summary()
    for path in [files.environment for files in folders]:
        if known_cases.startswith("wrong") and path.exists():
            write_json(path, read_json(path) | {"known_cases": known_cases})
