"""A runner follows, stops and replaces workers; the local executor runs real ones."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import trials
from fpnlab.errors import Interrupted, WorkersLostError
from fpnlab.records.run_records import RunResult, last_record, write_result
from fpnlab.run.interrupts import Stop
from fpnlab.study import lease, runner, worker
from fpnlab.study.context import StudyListener, open_study
from fpnlab.study.executors.local import Local, machine_share, worker_command
from fpnlab.study.ledger import Ledger
from fpnlab.study.runner import run_study
from fpnlab.study.worker import work

from ..small_config import MODEL

LAYER = {"kind": "layer_norm", "axes": "hwc"}
GRID = Study(
    axes=(Axis(field="train.batch_size", values=(2, 4)),),
    seeds=(0, 1),
    arms={"BN": {}, "LN": {"model.backbone.norm": LAYER}},
    metric="AP50",
)


@pytest.fixture
def study(experiment):
    return dataclasses.replace(experiment, study=GRID)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 5.0)
    monkeypatch.setattr(worker, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.02)


class Crew:
    """An executor whose workers are threads of this process."""

    over_network = False

    def __init__(self, workers):
        self.workers, self.threads, self.codes, self.killed = workers, {}, {}, False
        self.started = []

    def start(self, commands):
        self.started.append(len(commands))
        for owner, command in commands.items():
            folder = pathlib.Path(command[4])
            assert command == worker_command(folder, owner, 1)
            self.threads[owner] = threading.Thread(target=self._work, args=(owner, folder))
            self.threads[owner].start()

    def _work(self, owner, folder):
        try:
            work(open_study(folder), owner, stop=Stop(), listener=StudyListener())
            self.codes[owner] = 0
        except Interrupted:
            self.codes[owner] = Interrupted.exit_code
        except BaseException:  # Stands for a killed process, which leaves the ledger as it is.
            self.codes[owner] = -9

    def ended(self):
        codes, self.codes = self.codes, {}
        for owner in codes:
            self.threads.pop(owner).join()
        return codes

    def running(self):
        return len(self.threads)

    def kill(self):
        self.killed = True

    def last_output(self, owner):
        return "its last output"


class Recorder(StudyListener):
    """A listener that records its events."""

    def __init__(self):
        self.events = []

    def start(self, plan, workers=1):
        self.events.append(("start", len(plan), workers))

    def begin(self, trial):
        self.events.append(("begin", trial.name))

    def record(self, trial, record):
        self.events.append(("record", trial.name))

    def pause(self, trial):
        self.events.append(("pause", trial.name))

    def end(self, trial, result):
        self.events.append(("end", trial.name, result.status))

    def of(self, kind):
        return [event[1] for event in self.events if event[0] == kind]


def pretended(trial, folder, stop, steps=3):
    """Writes the files of a trial without training."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, steps + 1):
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "examples": 4 * step}) + "\n")
        time.sleep(0.03)
        if stop.requested:
            raise Interrupted("saved")
    metrics = {source: {"AP50": 0.5} for source in ("running", "precise", "batch")}
    names = {"trial": trial.name, "arm": trial.arm, "axis_value": trial.axis_value}
    result = RunResult(
        **names, seed=trial.seed, status="done", metrics=metrics, examples=48, seconds=1.0
    )
    write_result(folder / "result.json", result)
    return result


@pytest.fixture
def pretend(monkeypatch):
    """Replaces training by a function (trial, folder, stop) -> result."""

    def put(run):
        monkeypatch.setattr(
            worker,
            "run_trials",
            lambda runs, dataset, *, stop: [run(each.trial, each.folder, stop) for each in runs],
        )

    return put


def go(study, dataset, folder, crew, stop=None):
    listener = Recorder()
    summary = run_study(
        study, dataset, folder, command="x", stop=stop or Stop(), listener=listener, executor=crew
    )
    return summary, listener


def test_a_runner_reports_the_events_of_its_workers(study, dataset, tmp_path, pretend):
    pretend(pretended)
    summary, listener = go(study, dataset, tmp_path, Crew(3))
    names = [trial.name for trial in trials(study)]
    assert listener.events[0] == ("start", 8, 3)
    for kind in ("begin", "end"):
        assert sorted(listener.of(kind)) == sorted(names)
    assert set(listener.of("record")) == set(names)
    for name in names:
        order = [what for what, *rest in listener.events[1:] if rest[0] == name]
        assert order == ["begin", *["record"] * (len(order) - 2), "end"]
    assert summary.counts == {"planned": 8, "missing": 0, "done": 8}
    assert json.loads((tmp_path / "summary.json").read_text())["counts"] == summary.counts


def test_a_worker_that_dies_during_a_trial_is_replaced_and_the_trial_run_again(
    study, dataset, tmp_path, pretend
):
    died = []

    def run(trial, folder, stop):
        if trial.name == "ln-batch_size-2-seed-0" and not died:
            died.append(trial.name)
            raise SystemExit
        return pretended(trial, folder, stop)

    pretend(run)
    crew = Crew(2)
    summary, _ = go(study, dataset, tmp_path, crew)
    assert summary.counts["done"] == 8
    rows = Ledger(tmp_path / "ledger.sqlite").rows()
    assert rows["ln-batch_size-2-seed-0"].attempts == 2
    assert crew.started == [2, 1]
    assert crew.killed


def test_a_trial_that_kills_every_worker_fails_and_the_others_are_run(
    study, dataset, tmp_path, pretend
):
    def run(trial, folder, stop):
        if trial.name == "bn-batch_size-2-seed-0":
            raise SystemExit
        return pretended(trial, folder, stop)

    pretend(run)
    summary, _ = go(study, dataset, tmp_path, Crew(1))
    assert summary.counts == {"planned": 8, "missing": 0, "done": 7, "failed": 1}
    assert "3 workers died while running it" in summary.left_out[0].error


def test_a_finished_study_does_not_wait_for_queued_jobs(study, dataset, tmp_path, pretend):
    class Queue(Crew):
        over_network = True

        def start(self, commands):
            super().start(dict([commands.popitem()]))

        def running(self):
            return super().running() + 1

    pretend(pretended)
    crew = Queue(2)
    summary, _ = go(study, dataset, tmp_path, crew)
    assert summary.counts["done"] == 8
    assert crew.killed


def test_workers_that_fail_at_start_end_the_study_with_their_last_output(
    study, dataset, tmp_path, monkeypatch
):
    def broken(folder):
        raise ImportError("no such module")

    monkeypatch.setattr(sys.modules[__name__], "open_study", broken)
    with pytest.raises(WorkersLostError, match=r"8 trials left \(exit code -9: its last output\);"):
        go(study, dataset, tmp_path, Crew(2))


def test_a_stop_reaches_all_workers_and_the_study_resumes_later(study, dataset, tmp_path, pretend):
    stop = Stop()

    def run(trial, folder, trial_stop):
        if trial.name == "bn-batch_size-4-seed-0":
            stop.requested = True
            while not trial_stop.requested:
                time.sleep(0.01)
        return pretended(trial, folder, trial_stop)

    pretend(run)
    with pytest.raises(Interrupted, match=r"stopped with \d trials left, all saved"):
        go(study, dataset, tmp_path, Crew(2), stop)
    rows = Ledger(tmp_path / "ledger.sqlite").rows().values()
    assert {row.status for row in rows} == {"done", "waiting"}
    done = sum(row.status == "done" for row in rows)

    pretend(pretended)
    summary, listener = go(study, dataset, tmp_path, Crew(2))
    assert summary.counts["done"] == 8
    assert len(listener.of("begin")) == 8 - done


def test_last_record_skips_an_incomplete_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert last_record(log) is None
    log.write_text('{"st')
    assert last_record(log) is None
    log.write_text('{"step": 1, "examples": 4}\n{"step": 2, "examples": 8}\n{"st')
    assert last_record(log).step == 2
    log.write_text(
        "".join(json.dumps({"step": i, "examples": i}).ljust(1000) + "\n" for i in range(200))
    )
    assert last_record(log).step == 199


def test_each_worker_has_its_own_gpu_and_a_replacement_gets_the_free_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    say = "import os, sys, time; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.stdout.flush()"
    executor = Local(2, tmp_path)
    gpu = lambda owner: executor.last_output(owner).partition(" ")[0]
    executor.start({"one": [sys.executable, "-c", say, "#"]})
    executor.start({"two": [sys.executable, "-c", f"{say}; time.sleep(60)", "#"]})
    while "one" not in executor.ended():
        time.sleep(0.02)
    executor.start({"three": [sys.executable, "-c", say, "#"]})
    while "three" not in executor.ended():
        time.sleep(0.02)
    assert [gpu("one"), gpu("two"), gpu("three")] == ["3", "5", "3"]
    executor.kill()


def test_workers_share_the_cores_unless_the_environment_sets_their_number(monkeypatch, tmp_path):
    monkeypatch.setattr("fpnlab.study.executors.local.cores", lambda: 8)
    assert machine_share(3)["PJRT_NPROC"] == "2"
    assert machine_share(99)["PJRT_NPROC"] == "1"
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    say = [sys.executable, "-c", "import os; print(os.environ['PJRT_NPROC'])", "#"]
    local = Local(4, tmp_path / "logs")
    local.start({"one": say})
    monkeypatch.setenv("PJRT_NPROC", "7")
    local.start({"two": say})
    codes = {}
    while local.running():
        codes |= local.ended()
    assert codes == {"one": 0, "two": 0}
    assert local.last_output("one").startswith("2 (")
    assert local.last_output("two").startswith("7 (")


def test_a_killed_worker_has_ended_with_its_signal(tmp_path):
    local = Local(1, tmp_path / "logs")
    local.start({"one": [sys.executable, "-c", "import time; time.sleep(60)", "#"]})
    assert (local.running(), local.ended()) == (1, {})
    local.kill()
    assert local.ended() == {"one": -signal.SIGKILL}
    assert "no output" in local.last_output("one")


CONFIG = (
    """
log_examples = 4
evaluate = { batch_size = 8, population_examples = 8 }
train = { examples = 800, batch_size = 4, learning_rate = 0.05 }
"""
    + MODEL
    + """
[study]
seeds = [0, 1, 2, 3]
axes = [{ field = "train.batch_size", values = [4] }]
arms = { BN = {} }
"""
)


@pytest.mark.slow
def test_a_study_with_an_interrupt_and_a_killed_worker_still_finishes(tmp_path):
    """Two real workers: Ctrl-C, then the same command again, with one worker killed."""
    (tmp_path / "tiny.toml").write_text(CONFIG)
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "fpnlab", "study", str(tmp_path / "tiny.toml")]
    command += ["--workers", "2", "--out", str(folder)]
    running = lambda: [
        row.owner
        for row in Ledger(folder / "ledger.sqlite").rows().values()
        if row.status == "running"
    ]

    def until(process, condition):
        while not condition():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    logs = lambda: len(list(folder.glob("trials/*/metrics.jsonl")))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(process, lambda: logs() == 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == Interrupted.exit_code, errors
    assert re.search(r"stopped with \d trials left, all saved", errors)
    assert running() == []
    assert len(list(folder.glob("trials/*/checkpoints/*"))) >= 2

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(process, lambda: len(running()) == 2)
        output = (folder / "workers" / f"{running()[0]}.log").read_text()
        os.kill(int(re.search(r"process (\d+)", output)[1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    results = [json.loads(p.read_text()) for p in folder.glob("trials/*/result.json")]
    assert [result["status"] for result in results] == ["done"] * 4
    assert [result["steps"] for result in results] == [200] * 4
    for log in folder.glob("trials/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == list(range(1, 201))
    assert (folder / "report.html").exists()
