"""The loop of a worker, which claims and runs trials of a study until none is left.

A claimed trial is held by a `Lease`. Four functions process a claim: ``_claim``, ``_build``,
``_run`` and ``_record``.
"""

import dataclasses
import functools
import os
import pathlib
import socket
import time
import traceback
import uuid
from collections.abc import Callable

from fpnlab.analysis.tuning import score
from fpnlab.config.trials import Trial
from fpnlab.data.dataset import Dataset
from fpnlab.data.load_data import Data, load
from fpnlab.errors import FolderLockedError, Interrupted
from fpnlab.records.json_files import writing
from fpnlab.records.run_records import RunResult
from fpnlab.run.folder import Run, in_use
from fpnlab.run.interrupts import Stop
from fpnlab.run.run import run_trials
from fpnlab.study.context import StudyContext, StudyListener, failed_result
from fpnlab.study.enter_study import move_replaced
from fpnlab.study.lease import TICK_SECONDS, Heartbeats, Lease
from fpnlab.study.ledger import MOST_ATTEMPTS
from fpnlab.study.packing import packing_pays


def owner_name() -> str:
    """Returns a unique owner name for a worker."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def work(
    study: StudyContext,
    owner: str,
    *,
    stop: Stop,
    listener: StudyListener,
    orphaned: Callable[[], bool] = lambda: False,
) -> None:
    """Runs trials of a study until all have ended, in this worker or in others.

    The seeds of an arm and axis value are trained together where that saves time, and so are the
    learning rates tried for them. If a trial raises, its error is recorded. A worker without a
    free trial waits, because the owner of another may die.

    Args:
      study: The study.
      owner: The owner name of this worker.
      stop: Checked after each step of each trial; set if the ledger requests a stop.
      listener: Callbacks for the progress of this worker's trials.
      orphaned: Returns whether the parent process has died, which also stops the worker.

    Raises:
      Interrupted: ``stop`` was requested; the running trials were saved first.
      RunFolderError: The ledger cannot be used.
    """
    heartbeats = Heartbeats(study.ledger)

    def listen() -> bool:
        if not stop.requested and (orphaned() or study.ledger.stopping()):
            stop.requested = True
        heartbeats.look()
        return stop.requested

    while not listen():
        claim = _claim(study, owner, stop, listen)
        if claim is not None:
            _carry_out(study, claim, stop, listener)
        elif study.ledger.open():
            time.sleep(TICK_SECONDS)
        else:
            return
    raise Interrupted(f"{study.folder}: stopped between two trials")


@dataclasses.dataclass
class _Claim:
    """Trials that this worker has claimed: one, or several that may be packed."""

    lease: Lease
    """The lease on the trials."""
    is_pack: bool
    """True if the ledger has already recorded whether they are trained together."""
    trials: list[Trial] = dataclasses.field(default_factory=list)
    """The trials, once built."""
    started: bool = False
    """True if their start was reported to the listener."""


def _claim(
    study: StudyContext, owner: str, stop: Stop, listen: Callable[[], object]
) -> _Claim | None:
    """Returns a claim on a free trial and those of its cell that may be packed with it."""
    name = study.ledger.claim(owner)
    if name is None:
        return None
    names, is_pack = study.ledger.claim_pack(name, owner, study.pack)
    return _Claim(Lease(study.ledger, names, owner, stop, listen), is_pack)


def _carry_out(study: StudyContext, claim: _Claim, stop: Stop, listener: StudyListener) -> None:
    """Runs the trials of a claim, and records, releases or fails them."""
    lease = claim.lease
    with lease:
        try:
            _build(study, claim, listener)
            results = _run(study, claim, listener)
        except FolderLockedError:
            lease.set_aside()
            _release(claim, listener)
            return
        except Interrupted:
            _release(claim, listener)
            if stop.requested:
                raise
            return
        except Exception as error:
            names = lease.names
            if len(names) > 1:
                # Run each trial alone: the one that caused the error will raise again, and only it
                # fails.
                study.ledger.set_pack(names, together=False)
                _release(claim, listener)
                return
            # A trial's failure is recorded, and must not end the other trials of the study.
            results = [failed_result(study.points[names[0]], f"{type(error).__name__}: {error}")]
            _write_trace(study.run_folder(names[0]))
    _record(study, claim, results, listener)


def _build(study: StudyContext, claim: _Claim, listener: StudyListener) -> None:
    """Builds the trials; decides whether to pack them, and if not, releases all but the first."""
    claim.trials = [study.build(name) for name in claim.lease.names]
    if claim.is_pack or len(claim.trials) == 1:
        return
    dataset = _dataset(study, claim.trials[0])
    count = len(claim.trials)
    listener.phase(claim.trials[0], f"measuring whether to train {count} trials together")
    together = packing_pays([trial.experiment for trial in claim.trials], dataset)
    study.ledger.set_pack(claim.lease.names, together=together)
    if not together:
        claim.lease.release(keep=1)
        claim.trials = claim.trials[:1]


def _run(study: StudyContext, claim: _Claim, listener: StudyListener) -> list[RunResult]:
    """Returns the results of the trials, after reporting their start."""
    for trial in claim.trials:
        listener.begin(trial)
    claim.started = True
    runs = [
        Run(
            trial,
            study.run_folder(trial.name),
            functools.partial(listener.record, trial),
            functools.partial(listener.phase, trial),
            list_files=False,
        )
        for trial in claim.trials
    ]
    for run in runs:
        move_replaced(study, run)
    if study.ledger.attempts(runs[0].trial.name) > MOST_ATTEMPTS and _died(runs[0]):
        error = f"{MOST_ATTEMPTS} workers died while running it (killed, or out of memory)"
        return [failed_result(study.points[runs[0].trial.name], error)]
    return run_trials(runs, _dataset(study, claim.trials[0]), stop=claim.lease.stop)


def _died(run: Run) -> bool:
    """Returns whether the last worker of a run has died before it wrote a result."""
    return not in_use(run.folder) and run.files.finished() is None


def _record(
    study: StudyContext, claim: _Claim, results: list[RunResult], listener: StudyListener
) -> None:
    """Records the outcomes of the trials that this worker still owns."""
    trials = {trial.name: trial for trial in claim.trials} if claim.started else {}
    ledger, owner = study.ledger, claim.lease.owner
    for name, result in zip(claim.lease.names, results):
        if result.status == "failed":
            owned = ledger.fail(name, owner, result.error or "")
        else:
            value = score(study.metric, result)
            owned = ledger.finish(name, owner, result.status, result.error, value)
        if name in trials and owned:
            listener.end(trials[name], result)
        elif name in trials:
            listener.pause(trials[name])


def _release(claim: _Claim, listener: StudyListener) -> None:
    claim.lease.release()
    for trial in claim.trials if claim.started else ():
        listener.pause(trial)


def _dataset(study: StudyContext, trial: Trial) -> Dataset:
    return study.dataset if trial.split == "test" else _loaded(trial.experiment.data)


@functools.lru_cache(maxsize=1)
def _loaded(data: Data) -> Dataset:
    """Returns the data with validation images, which all tuning trials of a study share."""
    return load(data)


def _write_trace(folder: pathlib.Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
