"""Functions to run experiments and studies and to read their results."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fpnlab.config.experiment import Experiment
from fpnlab.config.load import load_config
from fpnlab.config.trials import counted, single
from fpnlab.data.dataset import Dataset
from fpnlab.data.load_data import load
from fpnlab.errors import RunFolderError
from fpnlab.records.run_records import MetricRecord, RunResult, read_result
from fpnlab.records.study_records import Summary
from fpnlab.report.study_folder import read_study
from fpnlab.run.interrupts import Stop
from fpnlab.run.predict import TrainedRun, load_run
from fpnlab.run.run import run_trial
from fpnlab.study import runner
from fpnlab.study.context import StudyListener

if TYPE_CHECKING:
    import pandas

__all__ = [
    "TrainedRun",
    "load_run",
    "read_results",
    "results_frame",
    "run_experiment",
    "run_study",
]

ExperimentLike = Experiment | str | os.PathLike[str]
"""An experiment, or the path of its TOML file."""


def run_experiment(
    experiment: ExperimentLike,
    folder: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    report: Callable[[MetricRecord], None] = lambda record: None,
    stop: Stop | None = None,
) -> RunResult:
    """Returns the result of a training run, resuming from what ``folder`` holds of it.

    Args:
      experiment: The experiment; its ``study`` is ignored.
      folder: The run folder; created if absent. A finished run is not run again, unless the
        experiment is longer and its schedule allows it to continue.
      dataset: The data, if already loaded; None: loaded by the experiment's ``data``.
      report: Called with each record of metrics.
      stop: Checked after each step; as a context manager, it is set by SIGINT and SIGTERM.

    Raises:
      ConfigError: The config is invalid.
      OSError, ValueError: The data cannot be read.
      Interrupted: A stop was requested; a checkpoint was saved first.
      RunFolderError: The folder cannot be used.
      CheckpointError: A checkpoint could not be written, or all checkpoints are damaged.
    """
    path = pathlib.Path(folder)
    trial = single(_experiment(experiment), path.name)
    return run_trial(
        trial,
        dataset or load(trial.experiment.data),
        path,
        stop=stop or Stop(),
        report=report,
    )


def run_study(
    experiment: ExperimentLike,
    folder: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    listener: StudyListener | None = None,
    executor: runner.Executor | None = None,
    pack: int = 1,
    stop: Stop | None = None,
    command: str = "fpnlab.run_study",
) -> Summary:
    """Returns the summary of a study, after running its unfinished trials in ``folder``.

    Args:
      experiment: An experiment with a ``study``.
      folder: The study folder; created if absent. If it has more trials now, only the missing ones
        are run.
      dataset: The data, if already loaded; None: loaded by the experiment's ``data``.
      listener: Callbacks for progress.
      executor: Starts workers in other processes; None: this process is the only worker.
      pack: Largest number of trials that one program trains together; they are packed only where
        a short measurement shows that it saves time.
      stop: Checked after each step; as a context manager, it is set by SIGINT and SIGTERM.
      command: The command that the report shows for running the study again.

    Raises:
      ConfigError: The config is invalid or has no study.
      OSError, ValueError: The data cannot be read.
      Interrupted: A stop was requested; the running trials were saved first.
      RunFolderError: The folder cannot be used.
      WorkersLostError: All workers ended before the last trial.
    """
    experiment = _experiment(experiment)
    return runner.run_study(
        experiment,
        dataset or load(counted(experiment).data),
        pathlib.Path(folder),
        command=command,
        stop=stop or Stop(),
        listener=listener or StudyListener(),
        executor=executor,
        pack=pack,
    )


def read_results(folder: str | os.PathLike[str]) -> list[RunResult]:
    """Returns the results of a run or study folder, ordered by arm, axis value and seed.

    Unfinished trials are left out.

    Raises:
      RunFolderError: The folder holds neither a result nor a study, or a file is damaged.
    """
    path = pathlib.Path(folder)
    if (path / "study.json").is_file():
        return [trial.result for trial in read_study(path).trials if trial.result is not None]
    if not (path / "result.json").is_file():
        raise RunFolderError(
            f"{path}: neither result.json nor study.json found; give the folder of a finished run "
            "or of a study"
        )
    return [read_result(path / "result.json")]


def results_frame(results: Sequence[RunResult]) -> "pandas.DataFrame":
    """Returns results as a table with one row per trial and source of batch-norm statistics.

    Columns are ``source``, the metrics (from 0 to 1), and the scalar fields of
    `fpnlab.records.run_records.RunResult`. A trial without metrics has one row.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError('results_frame needs pandas: pip install "fpnlab[pandas]"') from error
    rows = []
    for result in results:
        fields = {
            field.name: getattr(result, field.name)
            for field in dataclasses.fields(result)
            if isinstance(getattr(result, field.name), str | int | float | None)
        }
        for source, metrics in (result.metrics or {None: {}}).items():
            rows.append(fields | {"source": source} | metrics)
    return pandas.DataFrame(rows)


def _experiment(given: ExperimentLike) -> Experiment:
    return given if isinstance(given, Experiment) else load_config(pathlib.Path(given))
