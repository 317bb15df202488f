"""Two processes compute the same run as one, and stop and fail together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from fpnlab.cli.main import main
from fpnlab.run.measure import restored_run

from ..small_config import MODEL

CONFIG = (
    """
question = "Do two processes compute what one does?"
log_examples = 4

"""
    + MODEL
    + """
[train]
examples = 800
batch_size = 4
norm_batch = 2
learning_rate = 1e-3
ema_examples = 100

[evaluate]
batch_size = 8
population_examples = 8
"""
)
PATIENCE = 600


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(CONFIG)
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def two(config_file, folder):
    """Starts two processes of one run."""
    where = f"localhost:{free_port()}"
    command = [sys.executable, "-m", "fpnlab", "train", config_file, "--out", folder]
    command += ["--coordinator", where, "--processes", "2", "--process"]
    return [
        subprocess.Popen(
            [*command, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for process in range(2)
    ]


def ends(processes):
    """Exit codes and standard error of the processes."""
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    return [process.returncode for process in processes], errors


def numbers(folder):
    """Parameters, statistics, logs and results of a finished run, without clocks."""
    state = restored_run(folder)[1]
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    clocks = ("seconds", "examples_per_second")
    logs = [{n: v for n, v in record.items() if n not in clocks} for record in records]
    result = json.loads((folder / "result.json").read_text())
    return state, logs, {name: result[name] for name in ("steps", "metrics", "diagnostics")}


@pytest.mark.slow
def test_two_interrupted_processes_end_like_one_uninterrupted_process(config_file, tmp_path):
    folder = tmp_path / "two"
    processes = two(config_file, folder)
    log = folder / "metrics.jsonl"
    while not (log.exists() and log.read_text()):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = ends(processes)
    assert codes == [75, 75], errors
    assert "of 200, saved" in errors[0]
    assert "stopped together with process 0" in errors[1]
    assert not (folder / "result.json").exists()
    # The second call resumes; the third finds the run finished.
    for _ in range(2):
        codes, errors = ends(two(config_file, folder))
        assert codes == [0, 0], errors
    lines = log.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 201))

    one = tmp_path / "one"
    assert CliRunner().invoke(main, ["train", str(config_file), "--out", str(one)]).exit_code == 0
    expected, found = map(numbers, (one, folder))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_an_error_in_process_0_ends_process_1(config_file, tmp_path):
    (tmp_path / "study.json").write_text("{}")
    codes, errors = ends(two(config_file, tmp_path))
    assert codes[0] == 5
    assert "this folder holds a study; choose another" in errors[0]
    assert codes[1] != 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_killed_during_start_up_ends_the_other_within_a_minute(
    killed, config_file, tmp_path
):
    processes = two(config_file, tmp_path)
    time.sleep(0.2)  # It has not yet loaded JAX.
    processes[killed].kill()
    start = time.monotonic()
    codes, errors = ends(processes)
    assert time.monotonic() - start < 60
    (line,) = errors[1 - killed].splitlines()
    if codes[1 - killed] == 5:  # A loaded machine killed it after the processes had connected.
        assert "another process of this run has ended; its own output says why" in line
        return
    assert codes[1 - killed] == 2
    assert "could not connect to each other (not all of them were there after 50 seconds" in line


@pytest.mark.slow
def test_a_process_killed_during_training_gives_the_other_one_sentence(config_file, tmp_path):
    processes = two(config_file, tmp_path)
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_text()):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[1].kill()
    start = time.monotonic()
    codes, errors = ends(processes)
    assert time.monotonic() - start < 60
    assert codes == [5, -signal.SIGKILL], errors[0]
    assert "Traceback" not in errors[0]
    assert (
        errors[0]
        .splitlines()[-1]
        .startswith("fpnlab train: another process of this run has ended; its own output says why")
    )


def listening(port):
    """The addresses at which this machine listens on a port, in hexadecimal."""
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    places = [line[1].split(":") for line in lines if line[3] == "0A"]
    return [address for address, found in places if int(found, 16) == port]


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_the_coordinator_listens_at_its_address_alone(config_file, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "fpnlab", "train", config_file, "--out", tmp_path]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", "0"]
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    try:
        while not (found := listening(port)):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    # 127.0.0.1 in the order of bytes of this machine, also as an address of IPv6.
    assert {address[-8:] for address in found} == {"0100007F"}


@pytest.mark.parametrize("missing", ["--coordinator", "--processes", "--process"])
def test_train_rejects_a_part_of_the_process_options(missing, config_file):
    options = {"--coordinator": "localhost:1", "--processes": "2", "--process": "0"}
    del options[missing]
    words = [word for option in options.items() for word in option]
    result = CliRunner().invoke(main, ["train", str(config_file), *words])
    assert result.exit_code == 2
    assert "--coordinator, --processes and --process go together" in result.output


def test_distributed_outside_a_cluster_asks_for_the_process_options(config_file):
    command = [sys.executable, "-m", "fpnlab", "train", config_file, "--distributed"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "could not connect to each other" in ran.stderr
    assert "start each with --coordinator, --processes and its own --process" in ran.stderr
