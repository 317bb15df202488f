"""A Slurm cluster on this machine, started by the tests, runs the workers of a study."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time

import pytest

from fpnlab.config.study import Axis, Study
from fpnlab.errors import UnavailableError
from fpnlab.run.interrupts import Stop
from fpnlab.study.context import StudyListener
from fpnlab.study.executors.slurm import Slurm
from fpnlab.study.ledger import Ledger
from fpnlab.study.runner import run_study

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ReturnToService=2
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of this machine alone, running for the tests of this file."""
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"Slurm is not installed (no {', '.join(missing)}); Debian: slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons must be started by root")
    folder = tmp_path_factory.mktemp("slurm")
    host, ports = socket.gethostname().partition(".")[0], free_ports(2)
    text = CONFIG.format(folder=folder, host=host, ports=ports)
    (folder / "slurm.conf").write_text(text)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge = {"key-file": key, "socket": f"{folder}/munge.socket", "pid-file": f"{folder}/pid"}
    munge |= {"log-file": f"{folder}/munge.log", "seed-file": f"{folder}/seed"}
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        options = [f"--{name}={value}" for name, value in munge.items()]
        for command in (
            ["munged", "--foreground", "--force", *options],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            time.sleep(1)
        wait_for(lambda: "idle" in output_of("sinfo", "--noheader", "--format=%T"), folder)
        yield
        output_of("scancel", "--user=root")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(condition, folder):
    started = time.monotonic()
    while not condition():
        logs = {path.name: path.read_text()[-500:] for path in folder.glob("*.out")}
        assert time.monotonic() - started < 60, logs
        time.sleep(0.2)


def test_slurm_without_sbatch_raises_an_error_with_a_remedy(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UnavailableError, match="no sbatch on this machine; start the study on"):
        Slurm(1, tmp_path, {})


class Disturber(StudyListener):
    """Requeues one job and cancels the other once both are running."""

    def __init__(self):
        self.requeued, self.canceled, self.ended = None, None, []

    def record(self, trial, record):
        running = output_of("squeue", "--array", "--noheader", "--states=R", "--format=%i").split()
        if self.requeued is None and len(running) == 2:
            self.requeued, self.canceled = sorted(running)
            output_of("scontrol", "requeue", self.requeued)
            output_of("scancel", self.canceled)

    def end(self, trial, result):
        self.ended.append((trial.name, result.status))


def test_a_job_array_finishes_a_study_with_one_job_requeued_and_one_canceled(
    cluster, experiment, dataset, tmp_path
):
    grid = Study(
        axes=(Axis(field="train.batch_size", values=(2, 4)),), seeds=(0, 1, 2), arms={"BN": {}}
    )
    train = dataclasses.replace(experiment.train, examples=960)
    study = dataclasses.replace(experiment, train=train, study=grid, log_examples=4)
    listener, jobs, folder = Disturber(), tmp_path / "jobs", tmp_path / "study"
    summary = run_study(
        study,
        dataset,
        folder,
        command="fpnlab study",
        stop=Stop(),
        listener=listener,
        executor=Slurm(2, jobs, {"timeout_min": "30"}),
    )
    # Two tasks of one array, and one job that replaces the canceled one.
    array = listener.requeued.removesuffix("_0")
    assert listener.canceled == f"{array}_1"
    submitted = {path.name.partition("_submitted")[0] for path in jobs.glob("*_submitted.pkl")}
    (other,) = submitted - {listener.requeued, listener.canceled}
    assert other.isdecimal()
    # The requeued task is the same worker twice.
    assert (jobs / f"{listener.requeued}_0_log.out").read_text().count("Starting with") == 2

    assert summary.counts == {"planned": 6, "missing": 0, "done": 6}
    assert sorted(status for _, status in listener.ended) == ["done"] * 6
    rows = Ledger(folder / "ledger.sqlite").rows()
    assert [row.attempts for row in rows.values()] == [1] * 6
    for log in folder.glob("trials/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == sorted(set(steps))
        assert steps[-1] * (2 if "size-2" in str(log) else 4) == 960
