"""Slurm itself: a cluster of this machine, which the tests start, runs a study's workers."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time

import pytest

from fpnlab.study.executors.remote import Unavailable
from fpnlab.study.executors.slurm import Slurm
from fpnlab.study.plan import Axis, Study
from fpnlab.study.run import run_study
from fpnlab.study.signals import Stop
from fpnlab.study.worker import Watcher

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of one machine, this one, for as long as the tests of this file run."""
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"Slurm is not installed (no {', '.join(missing)}); Debian: slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons must be started by root")
    folder = tmp_path_factory.mktemp("slurm")
    host, ports = socket.gethostname().partition(".")[0], free_ports(2)
    text = CONFIG.format(folder=folder, host=host, ports=ports, cores=os.cpu_count())
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
        wait_for(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), folder)
        yield
        said("scancel", "--user=root")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(condition, folder):
    begun = time.monotonic()
    while not condition():
        logs = {path.name: path.read_text()[-500:] for path in folder.glob("*.out")}
        assert time.monotonic() - begun < 60, logs
        time.sleep(0.2)


def test_without_slurm_the_remedy_is_named(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unavailable, match="no sbatch here; start the study where jobs are"):
        Slurm(1, tmp_path, {})


class Disturber(Watcher):
    """Cancels the first job that it sees at work, once."""

    def __init__(self):
        self.cancelled, self.ended = None, []

    def record(self, trial, record):
        if self.cancelled is None:
            self.cancelled = said("squeue", "--noheader", "--states=R", "--format=%i").split()[0]
            said("scancel", "--signal=KILL", "--full", self.cancelled)

    def end(self, trial, result):
        self.ended.append((trial.name, result["status"]))


def test_a_study_by_slurm_ends_although_one_of_its_jobs_is_killed(
    cluster, experiment, dataset, tmp_path
):
    grid = Study(
        axes=(Axis(field="train.batch_size", values=(2, 4)),), seeds=(0, 1), arms={"BN": {}}
    )
    train = dataclasses.replace(experiment.train, examples=480)
    study = dataclasses.replace(experiment, train=train, study=grid)
    watcher = Disturber()
    executor = Slurm(2, tmp_path / "jobs", {"timeout_min": "30"})
    summary = run_study(
        study,
        dataset,
        tmp_path / "study",
        command="fpnlab study",
        stop=Stop(),
        watcher=watcher,
        executor=executor,
    )
    assert watcher.cancelled is not None
    assert summary["counts"] == {"planned": 4, "missing": 0, "done": 4}
    assert sorted(status for _, status in watcher.ended) == ["done"] * 4
