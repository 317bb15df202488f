"""Workers in real processes whose clocks differ or jump, that are stopped, or that are killed."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fpnlab.config.load import load_config
from fpnlab.config.trials import points, trials
from fpnlab.config.validate import config_hash
from fpnlab.records.run_records import read_result
from fpnlab.study import lease
from fpnlab.study.context import run_path
from fpnlab.study.ledger import Ledger, LedgerRow

from ..small_config import MODEL

pytestmark = pytest.mark.slow
CONFIG = (
    """
train = { examples = 8, batch_size = 4, learning_rate = 0.05 }
"""
    + MODEL
    + """
[study]
seeds = %s
axes = [{ field = "train.batch_size", values = [4] }]
arms = { BN = {} }
"""
)
WORKER = """
import os, pathlib, sys, time

folder, owner, skew = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
seconds, lease_seconds, tick, before_lock = map(float, sys.argv[4:])
real = time.time
jump = lambda: 3600.0 * (time.monotonic() // 2 % 2)
time.time = lambda: real() + (jump() if skew == "jumps" else float(skew))

from fpnlab.config.load import load_config
from fpnlab.config.trials import points
from fpnlab.config.validate import config_hash
from fpnlab.data.dataset import Dataset
from fpnlab.errors import Interrupted
from fpnlab.records.run_records import RunResult, write_result
from fpnlab.run.enter_folder import enter_folder
from fpnlab.run.folder import locked
from fpnlab.run.interrupts import Stop
from fpnlab.study import lease, worker
from fpnlab.study.context import StudyContext, StudyListener
from fpnlab.study.ledger import Ledger

for module in (lease, worker):
    module.LEASE_SECONDS, module.TICK_SECONDS = lease_seconds, tick

def note(what, name):
    with (folder / "events").open("a") as events:
        events.write(f"{owner} {what} {name} {time.monotonic()}\\n")

def run_trials(runs, dataset, *, stop):
    [run] = runs
    run.folder.mkdir(parents=True, exist_ok=True)
    note("claimed", run.trial.name)
    time.sleep(before_lock)
    with locked(run.folder):
        enter_folder(run.folder, run.trial.experiment, dataset)
        if result := run.files.finished():
            return [result]
        note("trains", run.trial.name)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
            if stop.requested:
                note("stopped", run.trial.name)
                raise Interrupted("saved")
        point, metrics = run.trial, {s: {"AP50": 0.5} for s in ("running", "precise", "batch")}
        result = RunResult(
            trial=point.name, arm=point.arm, axis_value=point.axis_value, seed=point.seed,
            status="done", metrics=metrics, config_hash=config_hash(point.experiment),
        )
        write_result(run.files.result, result)
        note("finished", run.trial.name)
        return [result]

worker.run_trials = run_trials
experiment = load_config(folder / "config.toml")
plan = {point.name: point for point in points(experiment)}
data = Dataset(name="none", class_names=(), train=None, test=None)
study = StudyContext(folder, experiment, plan, data, Ledger(folder / "ledger.sqlite"))
note("starts", "-")
worker.work(study, owner, stop=Stop(), listener=StudyListener())
"""
"""A worker whose clock is off by a number of seconds, and whose training only takes time."""


@dataclasses.dataclass
class Workers:
    """Workers of one study by owner name."""

    folder: pathlib.Path
    lease: float = 3.0
    tick: float = 0.1
    processes: dict = dataclasses.field(default_factory=dict)

    def start(self, owner, seconds, skew="0", before_lock=0.0):
        """Starts a worker that trains for some seconds, on a clock that is off by others."""
        numbers = map(str, (seconds, self.lease, self.tick, before_lock))
        command = [sys.executable, "-c", WORKER, str(self.folder), owner, skew, *numbers]
        self.processes[owner] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def events(self, *what):
        """The owner, kind, trial and time of the events of some kinds."""
        path = self.folder / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [line.split() for line in lines]
        return [(o, w, n, float(t)) for o, w, n, t in found if w in what]

    def until(self, what, count=1, timeout=120.0):
        """Returns the events of a kind once there are so many."""
        end = time.monotonic() + timeout
        while len(found := self.events(what)) < count:
            assert time.monotonic() < end, (what, self.rows())
            time.sleep(0.01)
        return found

    def send(self, owner, number):
        os.kill(self.processes[owner].pid, number)

    def kill(self):
        """Ends all workers, and closes what they print to."""
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def end(self, timeout=240.0):
        """Waits for all workers that were not killed; each must end without an error."""
        for owner, process in self.processes.items():
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode in (0, -signal.SIGKILL), (owner, errors[-2000:])

    def rows(self):
        return Ledger(self.folder / "ledger.sqlite").rows()


@pytest.fixture
def make_workers(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(count, **fields):
            (tmp_path / "config.toml").write_text(CONFIG % list(range(count)))
            experiment = load_config(tmp_path / "config.toml")
            paths = {point.name: run_path(point) for point in points(experiment)}
            Ledger(tmp_path / "ledger.sqlite", journal="wal").expect(
                LedgerRow(t.name, config_hash(t.experiment), t.cell, t.split, paths[t.name])
                for t in trials(experiment)
            )
            workers = Workers(tmp_path, **fields)
            stack.callback(workers.kill)
            return workers

        yield make


def check_each_trial_ran_once(workers, count):
    """Each trial has one owner that trains it once, in one attempt, and its result is recorded."""
    rows = workers.rows()
    assert [(row.status, row.attempts) for row in rows.values()] == [("done", 1)] * count
    assert workers.events("stopped") == []
    assert sorted(event[2] for event in workers.events("claimed")) == sorted(rows)
    for name in rows:
        assert read_result(workers.folder / "trials" / name / "result.json").status == "done"


SKEWS = ("0", "1.5", "-1.5", "3600", "-3600", "jumps")


def test_workers_whose_clocks_differ_or_jump_run_each_trial_once(make_workers):
    """Six workers for seven trials of two leases each, so that five observe the last one."""
    workers = make_workers(len(SKEWS) + 1)
    for skew in SKEWS:
        workers.start(f"owner{skew}", 6.0, skew)
    workers.end()
    check_each_trial_ran_once(workers, len(SKEWS) + 1)


def test_workers_whose_clocks_differ_run_trials_of_minutes_once(make_workers):
    """The lease of the package: three workers for two trials, so that one only observes."""
    workers = make_workers(2, lease=lease.LEASE_SECONDS, tick=lease.TICK_SECONDS)
    for skew in ("0", "1.5", "-1.5"):
        workers.start(f"owner{skew}", 150.0, skew)
    workers.end(timeout=400)
    check_each_trial_ran_once(workers, 2)


@pytest.mark.parametrize("skew", ["-3600", "-1.5", "0", "1.5", "3600"])
def test_the_trial_of_a_killed_worker_is_claimed_after_one_lease(skew, make_workers):
    workers = make_workers(1)
    workers.start("first", 600.0)
    [(_, _, name, _)] = workers.until("trains")
    workers.start("second", 1.0, skew)
    workers.until("starts", 2)
    time.sleep(workers.lease / 3 + 2 * workers.tick)
    workers.send("first", signal.SIGKILL)
    killed = time.monotonic()
    [_, (owner, _, _, claimed)] = workers.until("trains", 2)
    assert owner == "second"
    # The last heartbeat was up to a third of a lease before the kill. A second is for a busy CPU.
    assert claimed - killed > workers.lease * 2 / 3 - workers.tick
    assert claimed - killed < workers.lease + 2 * workers.tick + 1.0
    workers.end()
    assert (workers.rows()[name].status, workers.rows()[name].attempts) == ("done", 2)


def test_a_stopped_worker_that_holds_the_folder_keeps_its_trial(make_workers):
    workers = make_workers(1)
    workers.start("first", 2.0)
    workers.until("trains")
    workers.send("first", signal.SIGSTOP)
    workers.start("second", 1.0)
    workers.until("starts", 2)
    time.sleep(2.5 * workers.lease)
    workers.send("first", signal.SIGCONT)
    workers.end()
    check_each_trial_ran_once(workers, 1)


def test_a_worker_stopped_before_it_holds_the_folder_records_nothing_when_it_goes_on(make_workers):
    workers = make_workers(1)
    workers.start("first", 1.0, before_lock=1.0)
    workers.until("claimed")
    workers.send("first", signal.SIGSTOP)
    workers.start("second", 1.0)
    workers.until("finished")
    workers.send("first", signal.SIGCONT)
    workers.end()
    assert [(event[0], event[1]) for event in workers.events("trains", "finished")] == [
        ("second", "trains"),
        ("second", "finished"),
    ]
    [row] = workers.rows().values()
    assert (row.status, row.owner, row.attempts) == ("done", None, 2)


def test_workers_that_are_stopped_together_keep_their_trials(make_workers):
    """As on a machine that is suspended: no time passes in which one sees the other silent."""
    workers = make_workers(1)
    workers.start("first", 1.0, before_lock=20.0)
    workers.until("claimed")
    workers.start("second", 1.0)
    workers.until("starts", 2)
    for owner in ("first", "second"):
        workers.send(owner, signal.SIGSTOP)
    time.sleep(2 * workers.lease)
    for owner in ("second", "first"):
        workers.send(owner, signal.SIGCONT)
    workers.end()
    check_each_trial_ran_once(workers, 1)
