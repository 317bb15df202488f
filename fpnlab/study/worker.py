"""A worker: it claims trials of a study until none is left, alone or beside others."""

import dataclasses
import functools
import json
import os
import pathlib
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from fpnlab.config import ConfigError, Experiment, Trial, counted, points, trial, validate
from fpnlab.data.dataset import Dataset
from fpnlab.data.load import load
from fpnlab.study.files import FolderLocked, RunFolderError, writing
from fpnlab.study.ledger import Ledger
from fpnlab.study.plan import Point
from fpnlab.study.signals import Stop
from fpnlab.study.training import Interrupted
from fpnlab.study.trial import run_trial
from fpnlab.study.tuning import TuningError, best_value

LEASE_SECONDS = 60.0
"""How long a worker may be silent before its trial is another's."""
TICK_SECONDS = 1.0
"""How often a worker looks whether it is to stop, and an idle one for a trial."""


class Watcher:
    """Who is told how a study goes; this one keeps it to itself."""

    def start(self, plan: list[Trial], workers: int = 1) -> None:
        """These trials are to end, in about this order, by so many workers."""

    def begin(self, trial: Trial) -> None:
        """A trial starts or goes on."""

    def record(self, trial: Trial, record: dict[str, Any]) -> None:
        """A trial has logged."""

    def pause(self, trial: Trial) -> None:
        """A trial is no longer run, and has not ended."""

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has ended."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a study is carried out."""

    folder: pathlib.Path
    experiment: Experiment
    points: dict[str, Point]
    """The study's trials by name, in their order."""
    dataset: Dataset
    """That of the trials that count."""
    ledger: Ledger

    def run_folder(self, name: str) -> pathlib.Path:
        """Returns the folder of a trial; those that tune are apart from those that count."""
        tunes = self.points[name].split == "validation"
        return self.folder / ("tuning" if tunes else "trials") / name

    def failure(self, name: str, error: str | None) -> dict[str, Any]:
        """Returns what stands for the result of a trial that raised."""
        point = self.points[name]
        return {
            "trial": name,
            "arm": point.arm,
            "axis_value": point.axis_value,
            "seed": point.seed,
            "tuned": point.tuned,
            "status": "failed",
            "error": error,
            "metrics": {},
        }


def open_site(folder: pathlib.Path) -> Site:
    """Returns the site of a study that was begun in ``folder``, with its data loaded.

    Raises:
      RunFolderError: there is no study in it.
    """
    try:
        experiment = validate(json.loads((folder / "study.json").read_text())["config"])
        plan = {point.name: point for point in points(experiment)}
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise RunFolderError(
            f"{folder}: no study has begun in it ({error}); give the folder of one"
        ) from None
    dataset = load(counted(experiment).data)
    return Site(folder, experiment, plan, dataset, Ledger(folder / "ledger.sqlite"))


def owner_name() -> str:
    """Returns a name that no other worker has."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def work(
    site: Site,
    owner: str,
    *,
    stop: Stop,
    watcher: Watcher,
    orphaned: Callable[[], bool] = lambda: False,
) -> None:
    """Runs trials of a study until all have ended, by this worker or by others.

    A trial that raises is a row with its error. A worker that is left with nothing to claim
    waits, because another may vanish.

    Args:
      site: the study.
      owner: this worker's name.
      stop: asked after each step of each trial; set where the ledger asks all workers to stop.
      watcher: told about this worker's trials.
      orphaned: asked too; whether nobody waits for this worker any more.

    Raises:
      Interrupted: ``stop`` was set; the running trial saved first.
      RunFolderError: the ledger cannot be used.
    """

    def listen() -> bool:
        if not stop.requested and (orphaned() or site.ledger.stopping()):
            stop.requested = True
        return stop.requested

    while not listen():
        name = site.ledger.claim(owner, LEASE_SECONDS)
        if name is not None:
            _carry_out(site, name, owner, stop, listen, watcher)
        elif site.ledger.open():
            time.sleep(TICK_SECONDS)
        else:
            return
    raise Interrupted(f"{site.folder}: stopped between two trials")


def _carry_out(site, name, owner, stop, listen, watcher):
    """Runs one trial that was claimed, and writes down what came of it."""
    built = None
    with Lease(site.ledger, name, owner, stop, listen) as lease:
        try:
            built = _build(site, name)
            watcher.begin(built)
            result = run_trial(
                built,
                site.dataset if built.split == "test" else _loaded(built.experiment.data),
                site.run_folder(name),
                stop=lease.stop,
                report=lambda record: watcher.record(built, record),
            )
        except Interrupted:
            site.ledger.release(name, owner)
            watcher.pause(built)
            if stop.requested:
                raise
            return
        except FolderLocked:
            # Whoever lost it has not noticed yet: give it the time to.
            site.ledger.release(name, owner, delay=LEASE_SECONDS / 2)
            watcher.pause(built)
            return
        except Exception as error:
            # One trial's failure must not cost the others: it becomes a row of the report.
            result = site.failure(name, f"{type(error).__name__}: {error}")
            _write_trace(site.run_folder(name))
    if result["status"] == "failed":
        kept = site.ledger.fail(name, owner, result["error"])
    else:
        kept = site.ledger.finish(name, owner, _brief(result))
    if built is not None and kept:
        watcher.end(built, result)
    elif built is not None:
        watcher.pause(built)


def _build(site, name):
    """Returns a trial, with the best value of the tuned field where there is one."""
    point, study = site.points[name], site.experiment.study
    if study.tune is None or point.split == "validation":
        return trial(site.experiment, point)
    rows = site.ledger.rows()
    place = (point.arm, point.axis_value)
    names = [
        other.name
        for other in site.points.values()
        if other.split == "validation" and (other.arm, other.axis_value) == place
    ]
    if failed := [other for other in names if rows[other].status == "failed"]:
        raise TuningError(f"the tuning trial {failed[0]} failed: {rows[failed[0]].error}")
    results = site.ledger.results(names).values()
    return trial(site.experiment, point, best_value(study.metric, results))


@functools.lru_cache(maxsize=1)
def _loaded(data):
    """The data with images held out, which all tuning trials of a study share."""
    return load(data)


def _brief(result):
    """A result without what only the run folder keeps: ledgers of thousands are read at once."""
    return {key: value for key, value in result.items() if key != "diagnostics"}


def _write_trace(folder):
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())


class Lease:
    """A claimed trial that is renewed in the background, until it is lost.

    ``stop`` is the trial's own: it is requested with that of the worker, and when another worker
    has the trial.
    """

    def __init__(
        self, ledger: Ledger, name: str, owner: str, stop: Stop, listen: Callable[[], bool]
    ) -> None:
        self.stop = Stop(stop)
        self._ledger, self._name, self._owner, self._listen = ledger, name, owner, listen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self):
        renewed = time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            try:
                self._listen()
                if time.monotonic() - renewed < LEASE_SECONDS / 3:
                    continue
                if not self._ledger.renew(self._name, self._owner, LEASE_SECONDS):
                    self.stop.requested = True
                    return
                renewed = time.monotonic()
            except RunFolderError:
                # A disk that is full or slow for a while: the lease may outlast it.
                continue
