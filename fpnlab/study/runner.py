"""A study from its config to its summary: every trial run once, whatever interrupts it."""

import dataclasses
import pathlib
import time
from typing import Protocol, runtime_checkable

from fpnlab.analysis.bootstrap import with_bootstrap
from fpnlab.analysis.summary import summarize
from fpnlab.config.experiment import Experiment
from fpnlab.config.study import study_file
from fpnlab.config.trials import Trial, points, trials
from fpnlab.config.validate import config_hash, differences, resolved, training_hash, validate
from fpnlab.data.dataset import Dataset
from fpnlab.errors import ConfigError, Interrupted, RunFolderError, WorkersLostError
from fpnlab.records.json_files import writing
from fpnlab.records.run_records import MetricRecord, RunResult, last_record, read_result
from fpnlab.records.study_records import (
    DataProblem,
    DatasetInfo,
    StudyFile,
    Summary,
    read_study_file,
    write_record,
)
from fpnlab.run.environment import environment
from fpnlab.run.folder import in_use, locked
from fpnlab.run.interrupts import Stop
from fpnlab.study.context import StudyContext, StudyListener, run_path
from fpnlab.study.executors.local import worker_command
from fpnlab.study.ledger import OPEN, Entry, Ledger
from fpnlab.study.worker import owner_name, work

LOOK_SECONDS = 0.5
"""Time between two looks at the progress of workers."""
SUMMARY_SHARE = 0.05
"""Share of the time that the runner may spend on summaries of an unfinished study."""


@runtime_checkable
class Executor(Protocol):
    """Starts workers somewhere, and knows which have ended."""

    workers: int
    over_network: bool
    """True if workers may be on other machines, which cannot share memory with the ledger."""

    def start(self, commands: dict[str, list[str]]) -> None:
        """Starts workers, each known by its owner name."""

    def ended(self) -> dict[str, int]:
        """Returns the workers that have ended since it was last asked, with their exit codes."""

    def running(self) -> int:
        """Returns how many have not ended, by what `ended` has said."""

    def kill(self) -> None:
        """Ends those that still run, at once."""

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
    """Returns the summary of a study, after running what is missing of it in ``folder``.

    The folder then holds ``study.json``, ``ledger.sqlite``, ``summary.json`` and one run folder
    a trial: those that tune in ``tuning``, the others in ``trials``. A trial that raises is a row
    with its error, and the study goes on; running the study again tries it again.

    Args:
      experiment: With its ``study``.
      dataset: That of its trials that count.
      folder: Where results are; made if absent.
      command: The command line, for the report.
      stop: Asked after each step of each trial.
      listener: Called on progress.
      executor: Starts the workers; None: this process is the only one.
      pack: Most trials that one program trains, where a short measurement says that it pays; less
        where some of the workers would be left without a trial.

    Raises:
      ConfigError: The experiment has no study, or trials are invalid; before the first starts.
      Interrupted: ``stop`` was requested; the running trials saved first.
      RunFolderError: ``folder`` cannot be written, holds another study or a run, has ended
        trials under other claims, or another process is running it.
      WorkersLostError: The workers ended before the study has.
    """
    plan = trials(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "config.json").exists():
            raise RunFolderError(f"{folder}: it holds a run; choose another folder with --out")
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
        _enter_trials(study, plan, description)
        _reopen(study)
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
        return summary


def _enter_trials(study: StudyContext, plan: list[Trial], description: StudyFile) -> None:
    """Enters the trials in the ledger, or checks that they are those that it holds.

    Trials that differ from those there only in what is measured are open again; the weights stay.

    Raises:
      RunFolderError: The folder holds another study, or trials that have ended under other claims.
    """
    entries = [
        Entry(t.name, config_hash(t.experiment), t.cell, t.split, run_path(study.points[t.name]))
        for t in plan
    ]
    begun = _begun(study.folder)
    if begun == study.experiment:
        # Hashes change with the fields that there are, and not the experiment.
        study.ledger.set_hashes(entries, reopen=False)
        same_weights = False
    else:
        same_weights = begun is not None and _weights_of(begun) == _weights(plan)
    if not same_weights:
        study.ledger.expect(entries)
    _check_claims(study, description)
    if same_weights:
        study.ledger.set_hashes(entries, reopen=True)
        study.ledger.expect(entries)


def _begun(folder: pathlib.Path) -> Experiment | None:
    """Returns the experiment that a study began with; None in a new folder."""
    try:
        return validate(read_study_file(folder / "study.json").config)
    except (RunFolderError, ConfigError):
        return None  # A new folder, or one that the ledger refuses.


def _weights_of(begun: Experiment) -> dict[str, str] | None:
    try:
        return _weights(trials(begun))
    except ConfigError:
        return None  # Trials that were valid when it began.


def _weights(plan: list[Trial]) -> dict[str, str]:
    return {trial.name: training_hash(trial.experiment) for trial in plan}


def _check_claims(study: StudyContext, description: StudyFile) -> None:
    """Raises where claims differ from those that the study had when its first trial ended."""
    path = study.folder / "study.json"
    ended = any(row.status not in OPEN for row in study.ledger.rows().values())
    ended = ended or any(study.folder.glob("trials/*/result.json"))
    if not (ended and path.exists()):
        return
    fixed = lambda plan: {"claims": plan.claims, "holm_over": plan.holm_over}
    if changed := differences(fixed(read_study_file(path)), fixed(description), "study"):
        raise RunFolderError(
            f"{study.folder}: its trials have ended under other claims; they differ in "
            f"{', '.join(changed)}; give the claims back as they were, or choose another folder "
            "with --out"
        )


def _reopen(study: StudyContext) -> None:
    """Lets trials be claimed that failed, that nobody runs any more, or whose result is gone."""
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
    """Passes events on to a listener, also those of other processes, and writes summaries."""

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
        """Of trials that have ended; without diagnostics, which only their folders keep."""
        self.steps: dict[str, int] = {}
        """Last step that was reported of a trial that another process runs."""
        self._next_summary = 0.0

    def begin(self, trial: Trial) -> None:
        """Passes it on."""
        self.listener.begin(trial)

    def record(self, trial: Trial, record: MetricRecord) -> None:
        """Passes it on."""
        self.listener.record(trial, record)

    def pause(self, trial: Trial) -> None:
        """Passes it on."""
        self.listener.pause(trial)

    def end(self, trial: Trial, result: RunResult) -> None:
        """Passes it on, and renews the summary, but not too often where that takes long."""
        self.results[trial.name] = dataclasses.replace(result, diagnostics=None)
        self.listener.end(trial, result)
        if time.monotonic() >= self._next_summary:
            self.summarize()

    def report_ended(self) -> None:
        """Reports the trials that have ended, in other processes or before."""
        for name, row in self.study.ledger.rows().items():
            if row.status in OPEN or name in self.results:
                continue
            if row.status == "failed":
                result = self.study.failed_result(name, row.error)
            else:
                result = read_result(self.study.run_folder(name) / "result.json")
            self.end(self.trials[name], result)

    def report_workers(self) -> None:
        """Reports what workers of other processes have begun, logged, released and ended."""
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
        self.report_ended()
        for name in self.steps.keys() - running:
            del self.steps[name]
            if name not in self.results:
                self.listener.pause(self.trials[name])

    def summarize(self, *, ended: bool = False) -> Summary:
        """Returns the summary of the results so far, after writing it.

        Of an ended study it has bootstrap intervals, for which a file of every trial is read.
        """
        begun = time.monotonic()
        study = self.study
        parts: dict[str, list[RunResult]] = {"test": [], "validation": []}
        for name, point in study.points.items():
            if name in self.results:
                parts[point.split].append(self.results[name])
        summary = summarize(self.description, parts["test"], parts["validation"])
        if ended:
            summary = with_bootstrap(summary, self.description, parts["test"], study.run_folder)
        write_record(study.folder / "summary.json", summary)
        self._next_summary = time.monotonic() + (time.monotonic() - begun) / SUMMARY_SHARE
        return summary


def _supervise(study: StudyContext, executor: Executor, stop: Stop, progress: _Progress) -> None:
    """Has workers run the study, and starts another where one died in the middle of a trial."""
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
                # A cluster stops workers as it likes. A trial that kills them fails after a few.
                evicted = code == Interrupted.exit_code and executor.over_network
                if study.ledger.expire(owner) or evicted:
                    executor.start(_commands(study, 1))
            progress.report_workers()
            # A job that still waits for its machine would find nothing to do there.
            if executor.over_network and not study.ledger.open():
                break
    finally:
        executor.kill()
    left = study.ledger.open()
    if left and stop.requested:
        raise Interrupted(f"{study.folder}: stopped with {left} trials left, all saved")
    if left:
        raise WorkersLostError(
            f"{study.folder}: no worker is left, but {left} trials are ({output or 'all ended'}); "
            "run the same command again to go on"
        )


def _commands(study: StudyContext, count: int) -> dict[str, list[str]]:
    """Returns the commands of so many new workers by owner name."""
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
