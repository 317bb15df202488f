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

from fpnlab.analysis.tuning import TuningError, best_value
from fpnlab.config.experiment import (
    ConfigError,
    Experiment,
    Trial,
    counted,
    points,
    trial,
    validate,
)
from fpnlab.config.study import Point
from fpnlab.data.dataset import Dataset
from fpnlab.data.load import load
from fpnlab.run.folder import FolderLocked, RunFolderError, writing
from fpnlab.run.interrupts import Stop
from fpnlab.run.programs import Interrupted, Run
from fpnlab.run.trial import run_trials
from fpnlab.study.ledger import Ledger
from fpnlab.study.packing import packing_pays

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
    pack: int = 1
    """Most trials that may be trained by one program, where that pays."""

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


def open_site(folder: pathlib.Path, pack: int = 1) -> Site:
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
    return Site(folder, experiment, plan, dataset, Ledger(folder / "ledger.sqlite"), pack)


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

    Seeds of one arm and axis value are trained by one program where that pays, and so are the
    learning rates that are tried for them. A trial that raises is a row with its error. A worker
    that is left with nothing to claim waits, because another may vanish.

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
    """Runs a trial that was claimed, and those of its cell that share a program with it."""
    names, settled = site.ledger.company(name, owner, LEASE_SECONDS, site.pack)
    begun: list[Trial] = []
    with Lease(site.ledger, names, owner, stop, listen) as lease:

        def put_back(delay: float = 0.0) -> None:
            lease.give_up(delay=delay)
            for one in begun:
                watcher.pause(one)

        try:
            results = _run(site, lease, settled, watcher, begun)
        except (Interrupted, FolderLocked) as error:
            # Whoever lost a folder has not noticed yet: give it the time to.
            put_back(LEASE_SECONDS / 2 if isinstance(error, FolderLocked) else 0.0)
            if stop.requested and isinstance(error, Interrupted):
                raise
            return
        except Exception as error:
            if len(lease.names) > 1:
                # Each by itself, the one whose fault it is will say so.
                site.ledger.settle(lease.names, together=False)
                put_back()
                return
            # One trial's failure must not cost the others: it becomes a row of the report.
            results = [site.failure(name, f"{type(error).__name__}: {error}")]
            _write_trace(site.run_folder(name))
    told = {one.name: one for one in begun}
    for name, result in zip(lease.names, results):
        if result["status"] == "failed":
            kept = site.ledger.fail(name, owner, result["error"])
        else:
            kept = site.ledger.finish(name, owner, _brief(result))
        if name in told and kept:
            watcher.end(told[name], result)
        elif name in told:
            watcher.pause(told[name])


def _run(site, lease, settled, watcher, begun):
    """Returns the results of the trials of a lease; trials that begin are added to ``begun``."""
    built = [_build(site, name) for name in lease.names]
    dataset = site.dataset if built[0].split == "test" else _loaded(built[0].experiment.data)
    if not settled and len(built) > 1:
        together = packing_pays([one.experiment for one in built], dataset)
        site.ledger.settle(lease.names, together=together)
        if not together:
            lease.give_up(but_first=True)
            built = built[:1]
    runs = []
    for one in built:
        watcher.begin(one)
        begun.append(one)
        report = functools.partial(watcher.record, one)
        runs.append(Run(one, site.run_folder(one.name), report))
    return run_trials(runs, dataset, stop=lease.stop)


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
    """Claimed trials that are renewed in the background, until one is lost.

    ``stop`` is their own: it is requested with that of the worker, and when another worker
    has one of the trials.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: list[str],
        owner: str,
        stop: Stop,
        listen: Callable[[], bool],
    ) -> None:
        self.names, self.stop = names, Stop(stop)
        self._ledger, self._owner, self._listen = ledger, owner, listen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def give_up(self, *, delay: float = 0.0, but_first: bool = False) -> None:
        """Gives the trials back, or all but the first one; they wait, for ``delay`` seconds."""
        kept, given = (self.names[:1], self.names[1:]) if but_first else ([], self.names)
        self.names = kept
        for name in given:
            self._ledger.release(name, self._owner, delay=delay)

    def _keep(self):
        renewed = time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            try:
                self._listen()
                if time.monotonic() - renewed < LEASE_SECONDS / 3:
                    continue
                names = self.names
                kept = [self._ledger.renew(name, self._owner, LEASE_SECONDS) for name in names]
                if not all(kept) and names is self.names:
                    self.stop.requested = True
                    return
                renewed = time.monotonic()
            except RunFolderError:
                # A disk that is full or slow for a while: the lease may outlast it.
                continue
