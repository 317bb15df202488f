"""A study from its config to its report's data: every trial run once, whatever interrupts it."""

import json
import pathlib
import time
from typing import Any, Protocol, runtime_checkable

from fpnlab.analysis.bootstrap import with_second_opinions
from fpnlab.analysis.summary import summarize
from fpnlab.config.experiment import (
    Experiment,
    Trial,
    config_hash,
    points,
    resolved,
    training_hash,
    trials,
    validate,
)
from fpnlab.config.study import description
from fpnlab.data.dataset import Dataset
from fpnlab.run.environment import environment
from fpnlab.run.folder import RunFolderError, in_use, locked, write_json, writing
from fpnlab.run.interrupts import EXIT_INTERRUPTED, Stop
from fpnlab.run.programs import Interrupted
from fpnlab.run.trial import differences
from fpnlab.study.executors.local import worker_command
from fpnlab.study.ledger import Entry, Ledger
from fpnlab.study.worker import Site, Watcher, owner_name, work

LOOK_SECONDS = 0.5
"""How often a runner looks at what its workers have done."""
SUMMARY_SHARE = 0.05
"""Share of the time that the runner may spend on summaries of an unfinished study."""
TAIL_BYTES = 65536
"""End of a log in which its last record is; more than any record has."""


OPEN = ("waiting", "running")
"""Status of a trial that has not ended."""


class WorkersGone(Exception):
    """All workers have ended before the study has."""

    exit_code = 5


@runtime_checkable
class Executor(Protocol):
    """Starts workers somewhere, and knows which have ended."""

    workers: int
    over_network: bool
    """Whether workers may be on other machines, which cannot share memory with the ledger."""

    def start(self, commands: dict[str, list[str]]) -> None:
        """Starts workers, each known by its owner name."""

    def ended(self) -> dict[str, int]:
        """Returns the workers that have ended since it was last asked, with their exit codes."""

    def running(self) -> int:
        """Returns how many have not ended, by what `ended` has said."""

    def kill(self) -> None:
        """Ends those that still run, at once."""

    def last_words(self, owner: str) -> str:
        """Returns the last that a worker said."""


def run_study(
    experiment: Experiment,
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    command: str,
    stop: Stop,
    watcher: Watcher,
    executor: Executor | None = None,
    pack: int = 1,
) -> dict[str, Any]:
    """Returns the summary of a study, after running what is missing of it in ``folder``.

    The folder then holds ``study.json``, ``ledger.sqlite``, ``summary.json`` and one run folder
    a trial: those that tune in ``tuning``, the others in ``trials``. A trial that raises is a row
    with its error, and the study goes on; running the study again tries it again.

    Args:
      experiment: with its ``study``.
      dataset: that of its trials that count.
      folder: where results are; made if absent.
      command: what the user typed, for the report.
      stop: asked after each step of each trial.
      watcher: told about progress.
      executor: starts the workers; None: this process is the only one.
      pack: most trials that one program trains, where a short measurement says that it pays; less
        where some of the workers would be left without a trial.

    Raises:
      ConfigError: the experiment has no study, or trials are refused; before the first starts.
      Interrupted: ``stop`` was set; the running trials saved first.
      RunFolderError: ``folder`` cannot be written, holds another study or a run, has ended
        trials under other claims, or another process is running it.
      WorkersGone: the workers ended before the study has.
    """
    plan = trials(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "config.json").exists():
            raise RunFolderError(f"{folder}: it holds a run; choose another folder with --out")
        over_network = executor is not None and executor.over_network
        ledger = Ledger(folder / "ledger.sqlite", journal="delete" if over_network else "wal")
        entries = [Entry(t.name, config_hash(t.experiment), t.cell, t.split) for t in plan]
        measured_otherwise = _measured_otherwise(folder, experiment, plan)
        if not measured_otherwise:
            ledger.expect(entries)
        workers = executor.workers if executor else 1
        pack = max(min(pack, len(plan) // workers), 1)
        all_points = {point.name: point for point in points(experiment)}
        site = Site(folder, experiment, all_points, dataset, ledger, pack)
        study = _describe(experiment, dataset, plan, command)
        _expect_claims(site, study)
        if measured_otherwise:
            ledger.change_hashes(entries)
            ledger.expect(entries)
        _take_up(site)
        write_json(folder / "study.json", study)
        watcher.start(plan, workers)
        books = Books(site, study, plan, watcher)
        books.look()
        ended = False
        try:
            if executor is None:
                work(site, owner_name(), stop=stop, watcher=books)
            else:
                _employ(site, executor, stop, books)
            books.look()
            ended = True
        finally:
            summary = books.summarize(ended=ended)
        return summary


def _measured_otherwise(folder, experiment, plan):
    """Returns whether the folder's trials differ from ``plan`` in what is measured alone."""
    path = folder / "study.json"
    try:
        begun = json.loads(path.read_text())["config"]
        if begun == json.loads(json.dumps(resolved(experiment))):
            return False
        weights = {t.name: training_hash(t.experiment) for t in trials(validate(begun))}
    except (OSError, ValueError, KeyError, TypeError):
        return False  # A new folder, or one that the ledger refuses.
    return weights == {t.name: training_hash(t.experiment) for t in plan}


def _expect_claims(site, study):
    """Refuses claims other than those that the study had when its first trial ended."""
    path = site.folder / "study.json"
    ended = any(row.status not in OPEN for row in site.ledger.rows().values())
    ended = ended or any(site.folder.glob("trials/*/result.json"))
    if not (ended and path.exists()):
        return
    try:
        begun = json.loads(path.read_text())
        fixed = {"claims": begun.get("claims", []), "holm_over": begun.get("holm_over", "claim")}
    except (ValueError, AttributeError) as error:
        raise RunFolderError(f"{path}: not the description of a study ({error})") from None
    if changed := differences(fixed, {name: study[name] for name in fixed}, "study"):
        raise RunFolderError(
            f"{site.folder}: its trials have ended under other claims; they differ in "
            f"{', '.join(changed)}; give the claims back as they were, or choose another folder "
            "with --out"
        )


def _take_up(site):
    """Makes trials free that failed, that nobody runs any more, or whose folder is gone."""
    site.ledger.stop(False)
    again = []
    for name, row in site.ledger.rows().items():
        match row.status:
            case "failed":
                again.append(name)
            case "done" | "diverged" if not (site.run_folder(name) / "result.json").exists():
                again.append(name)
            case "running" if not in_use(site.run_folder(name)):
                again.append(name)
    site.ledger.reopen(again)


class Books(Watcher):
    """What has been told of a study, and its summary so far."""

    def __init__(
        self, site: Site, study: dict[str, Any], plan: list[Trial], watcher: Watcher
    ) -> None:
        self.site, self.study, self.watcher = site, study, watcher
        self.trials = {trial.name: trial for trial in plan}
        self.told: set[str] = set()
        self.steps: dict[str, int] = {}
        self._next_summary = 0.0

    def begin(self, trial: Trial) -> None:
        """Passes it on."""
        self.watcher.begin(trial)

    def record(self, trial: Trial, record: dict[str, Any]) -> None:
        """Passes it on."""
        self.watcher.record(trial, record)

    def pause(self, trial: Trial) -> None:
        """Passes it on."""
        self.watcher.pause(trial)

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """Passes it on, and renews the summary, but not too often where that takes long."""
        self.told.add(trial.name)
        self.watcher.end(trial, result)
        if time.monotonic() >= self._next_summary:
            self.summarize()

    def look(self) -> None:
        """Tells what has ended, in other processes or before."""
        rows = self.site.ledger.rows()
        ended = [name for name, row in rows.items() if row.status not in OPEN]
        new = [name for name in ended if name not in self.told]
        results = self.site.ledger.results(new)
        for name in new:
            result = results.get(name) or self.site.failure(name, rows[name].error)
            self.end(self.trials[name], result)

    def follow(self) -> None:
        """Tells what workers of other processes have begun, logged, laid down and ended."""
        rows = self.site.ledger.rows()
        now = {name for name, row in rows.items() if row.status == "running"}
        ended = {name for name, row in rows.items() if row.status not in OPEN} - self.told
        for name in sorted((now | ended) - self.steps.keys()):
            self.steps[name] = 0
            self.watcher.begin(self.trials[name])
        for name in sorted(now | ended):
            record = last_record(self.site.run_folder(name) / "metrics.jsonl")
            if record is not None and record["step"] > self.steps[name]:
                self.steps[name] = record["step"]
                self.watcher.record(self.trials[name], record)
        self.look()
        for name in self.steps.keys() - now:
            del self.steps[name]
            if name not in self.told:
                self.watcher.pause(self.trials[name])

    def summarize(self, *, ended: bool = False) -> dict[str, Any]:
        """Returns the summary of what there is, after writing it.

        Of an ended study it has second opinions, for which a file of every trial is read.
        """
        begun = time.monotonic()
        rows, site = self.site.ledger.rows(), self.site
        found = site.ledger.results()
        found |= {n: site.failure(n, r.error) for n, r in rows.items() if r.status == "failed"}
        parts: dict[str, list[dict[str, Any]]] = {"test": [], "validation": []}
        for name in rows:
            if name in found:
                parts[site.points[name].split].append(found[name])
        summary = summarize(self.study, parts["test"], parts["validation"])
        if ended:
            told = self.study, parts["test"]
            summary = with_second_opinions(summary, *told, site.run_folder)
        write_json(self.site.folder / "summary.json", summary)
        self._next_summary = time.monotonic() + (time.monotonic() - begun) / SUMMARY_SHARE
        return summary


def last_record(log: pathlib.Path) -> dict[str, Any] | None:
    """Returns the last whole record of a log that may be growing; None before there is one."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None


def _employ(site, executor, stop, books):
    """Has workers run the study, and starts another where one vanished in the middle of a trial."""
    asked = False
    words = ""
    try:
        if count := min(executor.workers, site.ledger.open()):
            executor.start(_commands(site, count))
        while executor.running():
            time.sleep(LOOK_SECONDS)
            if stop.requested and not asked:
                asked = True
                site.ledger.stop(True)
            for owner, code in executor.ended().items():
                if asked or code == 0:
                    continue
                words = f"exit code {code}: {executor.last_words(owner)}"
                # A cluster stops workers as it likes. A trial that kills them fails after a few.
                evicted = code == EXIT_INTERRUPTED and executor.over_network
                if site.ledger.vanished(owner) or evicted:
                    executor.start(_commands(site, 1))
            books.follow()
            # A job that still waits for its machine would find nothing to do there.
            if executor.over_network and not site.ledger.open():
                break
    finally:
        executor.kill()
    left = site.ledger.open()
    if left and stop.requested:
        raise Interrupted(f"{site.folder}: stopped with {left} trials left, all saved")
    if left:
        raise WorkersGone(
            f"{site.folder}: no worker is left, but {left} trials are ({words or 'all ended'}); "
            "run the same command again to go on"
        )


def _commands(site, count):
    """Returns the commands of so many new workers by owner name."""
    owners = [owner_name() for _ in range(count)]
    return {owner: worker_command(site.folder, owner, site.pack) for owner in owners}


def _describe(experiment, dataset, plan, command):
    train = experiment.train
    return {
        "name": dataset.name,
        "question": experiment.question,
        "command": command,
        "trials": sum(trial.split == "test" for trial in plan),
        **description(experiment.study),
        "examples": train.examples,
        "updates": train.updates,
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
