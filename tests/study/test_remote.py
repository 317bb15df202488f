"""Workers of Ray and Slurm, and the errors where these are not installed."""

import subprocess
import sys
import time

import pytest

from fpnlab.errors import UnavailableError
from fpnlab.study.executors.ray import Ray
from fpnlab.study.executors.remote import last_line, run_worker
from fpnlab.study.executors.slurm import Slurm

SAY = [sys.executable, "-c", "import os, sys; print(os.environ['PJRT_NPROC']); sys.exit(3)", "#"]


def test_run_worker_sets_threads_folder_and_parent(tmp_path, monkeypatch):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    script = "import os, sys; print(os.environ['PJRT_NPROC'], os.getcwd(), *sys.argv[1:])"
    code, output = run_worker([sys.executable, "-c", script], str(tmp_path), 5)
    parent = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getppid())"], capture_output=True, check=True
    )
    assert (code, output) == (0, f"5 {tmp_path} --parent {int(parent.stdout)}\n")
    monkeypatch.setenv("PJRT_NPROC", "7")
    assert run_worker(SAY, str(tmp_path), 5) == (3, "7\n")
    assert last_line("a\n b \n\n") == "b"
    assert last_line("\n") == "no output"


@pytest.mark.parametrize(
    ("package", "start"),
    [("ray", lambda _: Ray(1, "local")), ("submitit", lambda logs: Slurm(1, logs, {}))],
)
def test_an_executor_without_its_package_names_the_extra(package, start, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"ray": "ray", "submitit": "slurm"}[package]
    with pytest.raises(UnavailableError, match=rf"^{package}: .*; pip install fpnlab\[{extra}\]"):
        start(tmp_path)


def ended(executor):
    codes = {}
    started = time.monotonic()
    while executor.running():
        codes |= executor.ended()
        assert time.monotonic() - started < 120
        time.sleep(0.1)
    return codes


BY_RAY = """
import sys, time
from fpnlab.study.executors.ray import Ray

executor = Ray(2, "local")
executor.start({"one": [sys.executable, "-c", "import sys; print(7); sys.exit(3)", "#"]})
executor.start({"two": [sys.executable, "-c", "pass", "#"]})
codes, started = {}, time.monotonic()
while executor.running() and time.monotonic() - started < 240:
    codes |= executor.ended()
    time.sleep(0.1)
assert codes == {"one": 3, "two": 0}, codes
assert executor.last_output("one") == "7"
executor.start({"three": [sys.executable, "-c", "import time; time.sleep(600)", "#"]})
assert (executor.running(), executor.ended()) == (1, {})
executor.kill()
"""


@pytest.mark.slow
def test_local_ray_runs_workers_and_returns_their_exit_codes():
    """In a separate process, because Ray forks, and a process with JAX's threads must not."""
    pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    done = subprocess.run(
        [sys.executable, "-c", BY_RAY], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_slurm_returns_the_exit_codes_of_jobs(tmp_path):
    """With submitit's local executor, which has the same jobs as its Slurm executor."""
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    executor = Slurm(2, tmp_path, {"timeout_min": "5"}, cluster="local")
    executor.start({"one": SAY})
    executor.start({"two": [sys.executable, "-c", "pass", "#"]})
    assert ended(executor) == {"one": 3, "two": 0}
    assert executor.last_output("one").isdecimal()
    executor.start({"three": [sys.executable, "-c", "import time; time.sleep(600)", "#"]})
    assert (executor.running(), executor.ended()) == (1, {})
    executor.kill()
    assert ended(executor) == {"three": -1}
