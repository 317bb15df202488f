"""A study from its config to its report's data: every trial run once, whatever interrupts it."""

import pathlib
import traceback
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from fpnlab.config import Experiment, Trial, config_hash, resolved, trials
from fpnlab.data.dataset import Dataset
from fpnlab.study.environment import environment
from fpnlab.study.files import RunFolderError, locked, write_json, writing
from fpnlab.study.ledger import Ledger
from fpnlab.study.signals import Stop
from fpnlab.study.summary import summarize
from fpnlab.study.trial import Interrupted, run_trial


@runtime_checkable
class Watcher(Protocol):
    """Who is told how a study goes: the progress bar of the command line, or nobody."""

    def start(self, plan: list[Trial]) -> None:
        """These trials will be run, in this order."""

    def begin(self, trial: Trial) -> None:
        """A trial starts or goes on."""

    def record(self, record: dict[str, Any]) -> None:
        """The current trial has logged."""

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has ended."""


def run_study(
    experiment: Experiment,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    command: str,
    stop: Stop,
    watcher: Watcher,
) -> dict[str, Any]:
    """Returns the summary of a study, after running what is missing of it in ``folder``.

    The folder then holds ``study.json``, ``ledger.sqlite``, ``summary.json`` and one run folder
    a trial. A trial that raises is a row with its error, and the study goes on; running the
    study again tries it again.

    Args:
      experiment: with its ``study``.
      dataset: its data.
      folder: where results are; made if absent.
      command: what the user typed, for the report.
      stop: asked after each step of each trial.
      watcher: told about progress.

    Raises:
      ConfigError: the experiment has no study, or trials are refused; before the first starts.
      Interrupted: ``stop`` was set; the running trial saved first.
      RunFolderError: ``folder`` cannot be written, holds another study or a run, or another
        process is running it.
    """
    plan = trials(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "config.json").exists():
            raise RunFolderError(f"{folder}: it holds a run; choose another folder with --out")
        ledger = Ledger(folder / "ledger.sqlite")
        ledger.expect({trial.name: config_hash(trial.experiment) for trial in plan})
        study = _describe(experiment, dataset, plan, command)
        write_json(folder / "study.json", study)
        watcher.start(plan)
        return _run(plan, study, dataset, folder, ledger, stop, watcher)


def _run(plan, study, dataset, folder, ledger, stop, watcher):
    results = []
    for trial in plan:
        watcher.begin(trial)
        ledger.begin(trial.name)
        result = _attempt(trial, dataset, folder / "trials" / trial.name, stop, watcher.record)
        if result["status"] == "failed":
            ledger.fail(trial.name, result["error"])
        else:
            ledger.finish(trial.name, result)
        results.append(result)
        watcher.end(trial, result)
        write_json(folder / "summary.json", summarize(study, results))
    return summarize(study, results)


def _attempt(
    trial: Trial, dataset: Dataset, folder: pathlib.Path, stop: Stop, report: Callable
) -> dict[str, Any]:
    try:
        return run_trial(trial, dataset, folder, stop=stop, report=report)
    except Interrupted:
        raise
    except Exception as error:
        # One trial's failure must not cost the others: it becomes a row of the report.
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())
        return {
            "trial": trial.name,
            "arm": trial.arm,
            "axis_value": trial.axis_value,
            "seed": trial.seed,
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "metrics": {},
        }


def _describe(experiment, dataset, plan, command):
    study = experiment.study
    return {
        "name": dataset.name,
        "question": experiment.question,
        "command": command,
        "trials": len(plan),
        "seeds": study.seeds,
        "arms": list(study.arms),
        "axis": study.axis,
        "axis_values": study.values,
        "metric": study.metric,
        "examples": experiment.train.examples,
        "dataset": {
            "name": dataset.name,
            "class_names": dataset.class_names,
            "train_images": len(dataset.train.images),
            "test_images": len(dataset.test.images),
            "problems": [
                {"file": p.file, "where": p.where, "what": p.what} for p in dataset.problems
            ],
        },
        "env": environment(),
        "config": resolved(experiment),
    }
