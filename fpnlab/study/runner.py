"""Runs studies from config to summary, each trial once, resuming after interruptions."""

import dataclasses
import pathlib
import time
from typing import Protocol, runtime_checkable

from fpnlab.config.experiment import Experiment
from fpnlab.config.study import study_file
from fpnlab.config.trials import Trial, points, trials
from fpnlab.config.validate import resolved
from fpnlab.data.dataset import Dataset
from fpnlab.errors import Interrupted, RunFolderError, WorkersLostError
from fpnlab.records.data_files import write_fingerprint
from fpnlab.records.json_files import writing
from fpnlab.records.manifest import unseal
from fpnlab.records.run_records import MetricRecord, RunResult, last_record
from fpnlab.records.study_records import (
    DataProblem,
    DatasetInfo,
    StudyFile,
    Summary,
    write_record,
)
from fpnlab.run.environment import environment
from fpnlab.run.folder import in_use, locked
from fpnlab.run.interrupts import Stop
from fpnlab.study.context import StudyContext, StudyListener, failed_result, point_result
from fpnlab.study.enter_study import check_study_data, enter_study
from fpnlab.study.executors.local import worker_command
from fpnlab.study.ledger import OPEN, Ledger
from fpnlab.study.study_summary import seal_study, study_summary
from fpnlab.study.worker import owner_name, work

LOOK_SECONDS = 0.5
"""Interval at which the progress of workers is polled."""
SUMMARY_SHARE = 0.05
"""Largest share of the time that is spent on summaries of an unfinished study."""


@runtime_checkable
class Executor(Protocol):
    """Starts workers, and reports which have ended."""

    workers: int
    """Number of workers."""
    over_network: bool
    """True if workers may run on other machines, for which the ledger cannot use WAL."""

    def start(self, commands: dict[str, list[str]]) -> None:
        """Starts workers by owner name."""

    def ended(self) -> dict[str, int]:
        """Returns the exit codes of the workers that have ended since the last call, by owner."""

    def running(self) -> int:
        """Returns the number of workers that `ended` has not yet returned."""

    def kill(self) -> None:
        """Kills the workers that still run."""

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed."""


def run_study(
    experiment: Experiment,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    command: str,
    stop: Stop,
    listener: StudyListener,
    executor: Executor | None = None,
    pack: int = 1,
) -> Summary:
    """Returns the summary of a study, after running its unfinished trials in ``folder``.

    The folder then holds ``study.json``, ``ledger.sqlite``, ``summary.json`` and one run folder per
    trial: in ``tuning`` for tuning trials, in ``trials`` for all others. If a trial raises, its
    error is recorded and the study continues; running the study again repeats the trial.

    Args:
      experiment: The experiment, with its ``study``.
      dataset: The data of the main trials.
      folder: The study folder; created if absent.
      command: The command line, for the report.
      stop: Checked after each step of each trial.
      listener: Callbacks for progress.
      executor: Starts the workers; None: this process is the only worker.
      pack: Largest number of trials that one program trains together; they are packed only where
        a short measurement shows that it saves time, and only while every worker has a trial.

    Raises:
      ConfigError: The experiment has no study, or trials are invalid; raised before any starts.
      Interrupted: ``stop`` was requested; the running trials were saved first.
      RunFolderError: ``folder`` cannot be written, holds a run or a study with other trials than
        this one has, holds trials that ended under other claims or on other data, or is locked by
        another process.
      WorkersLostError: All workers ended before the last trial.
    """
    plan = trials(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "config.json").exists():
            raise RunFolderError(f"{folder}: this folder holds a run; choose another with --out")
        workers = executor.workers if executor else 1
        over_network = executor is not None and executor.over_network
        study = StudyContext(
            folder,
            experiment,
            {point.name: point for point in points(experiment)},
            dataset,
            Ledger(folder / "ledger.sqlite", journal="delete" if over_network else "wal"),
            max(min(pack, len(plan) // workers), 1),
        )
        description = _describe(experiment, dataset, plan, command)
        check_study_data(folder, dataset)
        description = enter_study(study, plan, description)
        _reopen(study)
        unseal(folder)
        if dataset.fingerprint is not None and not (folder / "data.json").exists():
            write_fingerprint(folder / "data.json", dataset.fingerprint)
        write_record(folder / "study.json", description)
        listener.start(plan, workers)
        progress = _Progress(study, description, plan, listener)
        progress.report_ended()
        ended = False
        try:
            if executor is None:
                work(study, owner_name(), stop=stop, listener=progress)
            else:
                _supervise(study, executor, stop, progress)
            progress.report_ended()
            ended = True
        finally:
            summary = progress.summarize(ended=ended)
        seal_study(folder, study.points)
        return summary


def _reopen(study: StudyContext) -> None:
    """Resets trials that failed, whose worker is gone, or whose result is missing."""
    study.ledger.stop(False)
    again = []
    for name, row in study.ledger.rows().items():
        folder = study.run_folder(name)
        match row.status:
            case "failed":
                again.append(name)
            case "done" | "diverged" if not (folder / "result.json").exists():
                again.append(name)
            case "running" if not in_use(folder):
                again.append(name)
    study.ledger.reopen(again)


class _Progress(StudyListener):
    """Forwards events to a listener, including those of other processes; writes summaries."""

    def __init__(
        self,
        study: StudyContext,
        description: StudyFile,
        plan: list[Trial],
        listener: StudyListener,
    ) -> None:
        self.study, self.description, self.listener = study, description, listener
        self.trials = {trial.name: trial for trial in plan}
        self.results: dict[str, RunResult] = {}
        """Results of ended trials by name, without diagnostics, which would take much memory."""
        self.steps: dict[str, int] = {}
        """Last reported step of each trial that another process runs."""
        self._next_summary = 0.0

    def begin(self, trial: Trial) -> None:
        """Forwards the event."""
        self.listener.begin(trial)

    def phase(self, trial: Trial, phase: str) -> None:
        """Forwards the event."""
        self.listener.phase(trial, phase)

    def record(self, trial: Trial, record: MetricRecord) -> None:
        """Forwards the event."""
        self.listener.record(trial, record)

    def pause(self, trial: Trial) -> None:
        """Forwards the event."""
        self.listener.pause(trial)

    def end(self, trial: Trial, result: RunResult) -> None:
        """Forwards the event; updates the summary unless that took long a short time ago."""
        self.results[trial.name] = dataclasses.replace(result, diagnostics=None)
        self.listener.end(trial, result)
        if time.monotonic() >= self._next_summary:
            self.summarize()

    def report_ended(self) -> None:
        """Reports trials that ended in other processes or earlier sessions."""
        for name, row in self.study.ledger.rows().items():
            if row.status in OPEN or name in self.results:
                continue
            if row.status == "failed":
                result = failed_result(self.study.points[name], row.error)
            else:
                result = point_result(self.study.folder, self.study.points[name])
            self.end(self.trials[name], result)

    def report_workers(self) -> None:
        """Reports trials that other processes started, logged, released or ended."""
        rows = self.study.ledger.rows()
        running = {name for name, row in rows.items() if row.status == "running"}
        ended = {name for name, row in rows.items() if row.status not in OPEN} - set(self.results)
        for name in sorted((running | ended) - self.steps.keys()):
            self.steps[name] = 0
            self.listener.begin(self.trials[name])
        for name in sorted(running | ended):
            record = last_record(self.study.run_folder(name) / "metrics.jsonl")
            if record is not None and record.step > self.steps[name]:
                self.steps[name] = record.step
                self.listener.record(self.trials[name], record)
                if record.step == self.trials[name].experiment.train.steps:
                    self.listener.phase(self.trials[name], "evaluating")
        self.report_ended()
        for name in self.steps.keys() - running:
            del self.steps[name]
            if name not in self.results:
                self.listener.pause(self.trials[name])

    def summarize(self, *, ended: bool = False) -> Summary:
        """Returns the summary of the results so far, after writing it.

        Args:
          ended: If true, adds bootstrap intervals, for which a file of every trial is read.
        """
        started = time.monotonic()
        study = self.study
        summary = study_summary(
            self.description, study.points, self.results, study.folder, bootstrap=ended
        )
        write_record(study.folder / "summary.json", summary)
        self._next_summary = time.monotonic() + (time.monotonic() - started) / SUMMARY_SHARE
        return summary


def _supervise(study: StudyContext, executor: Executor, stop: Stop, progress: _Progress) -> None:
    """Runs the study with workers, and replaces workers that die during a trial."""
    asked = False
    output = ""
    try:
        if count := min(executor.workers, study.ledger.open()):
            executor.start(_commands(study, count))
        while executor.running():
            time.sleep(LOOK_SECONDS)
            if stop.requested and not asked:
                asked = True
                study.ledger.stop(True)
            for owner, code in executor.ended().items():
                if asked or code == 0:
                    continue
                output = f"exit code {code}: {executor.last_output(owner)}"
                # Replace workers that died during a trial and workers that a cluster preempted. The
                # ledger limits the attempts, so that a trial that kills workers does not loop.
                evicted = code == Interrupted.exit_code and executor.over_network
                dead = study.ledger.heartbeats(owner)
                if study.ledger.expire(dead) or evicted:
                    executor.start(_commands(study, 1))
            progress.report_workers()
            # Do not wait for jobs that are still queued: no trial is left for them.
            if executor.over_network and not study.ledger.open():
                break
    finally:
        executor.kill()
    left = study.ledger.open()
    if left and stop.requested:
        raise Interrupted(f"{study.folder}: stopped with {left} trials left, all saved")
    if left:
        raise WorkersLostError(
            f"{study.folder}: all workers have ended with {left} trials left "
            f"({output or 'no error'}); run the same command again to continue"
        )


def _commands(study: StudyContext, count: int) -> dict[str, list[str]]:
    """Returns the commands of ``count`` new workers by owner name."""
    owners = [owner_name() for _ in range(count)]
    return {owner: worker_command(study.folder, owner, study.pack) for owner in owners}


def _describe(
    experiment: Experiment, dataset: Dataset, plan: list[Trial], command: str
) -> StudyFile:
    assert experiment.study is not None
    problems = [DataProblem(file=p.file, where=p.where, what=p.what) for p in dataset.problems]
    return study_file(
        experiment.study,
        name=dataset.name,
        trials=sum(trial.split == "test" for trial in plan),
        question=experiment.question,
        command=command,
        examples=experiment.train.examples,
        updates=experiment.train.updates,
        dataset=DatasetInfo(
            name=dataset.name,
            class_names=list(dataset.class_names),
            train_images=len(dataset.train.images),
            test_images=len(dataset.test.images),
            problems=problems,
        ),
        env=dict(environment()),
        config=resolved(experiment),
    )
