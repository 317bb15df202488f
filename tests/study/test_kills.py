"""Studies whose processes are killed at random moments end like uninterrupted ones.

The environment variable ``FPNLAB_KILLS`` sets the number of kills for each number of workers.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fpnlab.study.ledger import Ledger
from fpnlab.study.verify import verify
from fpnlab.train.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("FPNLAB_KILLS", "12"))
CLOCKS = ("seconds", "examples_per_second")
CONFIG = """
log_examples = 40
checkpoint_seconds = 0.3
data = { kind = "scenes", image_size = 32, train_size = 32, test_size = 8 }
evaluate = { batch_size = 8, population_examples = 8 }
train = { examples = 3000, batch_size = 4, learning_rate = 0.05 }

[model]
classes = 4
backbone = { depths = [1], widths = [4], norm = { kind = "batch_norm" } }
neck = { channels = 8, min_level = 2, max_level = 2 }
head = { depth = 1 }

[study]
seeds = [0]
axes = [{ field = "train.batch_size", values = [4, 8] }]
arms = { BN = {}, LN = { "model.backbone.norm" = { kind = "layer_norm", axes = "hwc" } } }
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(CONFIG)
    return path


@contextlib.contextmanager
def running(config, folder, workers):
    command = [sys.executable, "-m", "fpnlab", "study", str(config), "--out", str(folder)]
    # The study must outlast all kills, and more workers run more steps between two of them.
    examples = 250 * KILLS * workers
    command += ["--workers", str(workers), "--train.examples", str(examples)]
    with (folder.parent / "errors").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def finish(config, folder, workers):
    with running(config, folder, workers) as process:
        assert process.wait(timeout=40 * KILLS) == 0, (folder.parent / "errors").read_text()


def timeless(record):
    return {name: value for name, value in record.items() if name not in CLOCKS}


def outcome(folder):
    """Parameters, records, result and pictures of each trial, without clock times."""
    found = {}
    for run in folder.glob("trials/*"):
        result = json.loads((run / "result.json").read_text())
        checkpoint = run / "checkpoints" / str(result["steps"])
        _, leaves = read_checkpoint(checkpoint)
        with np.load(run / "gallery.npz") as gallery:
            pictures = {name: gallery[name].tobytes() for name in gallery.files}
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found[run.name] = {
            "leaves": {n: hashlib.sha256(leaf.tobytes()).hexdigest() for n, leaf in leaves.items()},
            "records": [timeless(json.loads(line)) for line in lines],
            "result": timeless(result),
            "pictures": pictures,
        }
    return found


def until_it_logs(process, folder, records):
    """Waits for ``records`` new records; resuming from a checkpoint removes some first."""
    before, new = {}, None
    while process.poll() is None and (new is None or new < records):
        with contextlib.suppress(FileNotFoundError):  # A log is replaced when its run resumes.
            logs = folder.glob("trials/*/metrics.jsonl")
            now = {path: path.read_bytes().count(b"\n") for path in logs}
            added = sum(max(count - before.get(path, 0), 0) for path, count in now.items())
            before, new = now, 0 if new is None else new + added
        time.sleep(0.01)


def busy(folder):
    """The names of the trials that are being trained."""
    if not (folder / "ledger.sqlite").exists():
        return set()
    rows = Ledger(folder / "ledger.sqlite").rows()
    started = lambda name: (folder / "trials" / name / "metrics.jsonl").exists()
    done = lambda name: (folder / "trials" / name / "result.json").exists()
    return {n for n, row in rows.items() if row.status == "running" and started(n) and not done(n)}


def worker_ids(folder):
    """The process ids of the workers that run trials, as printed in their logs."""
    owners = {row.owner for row in Ledger(folder / "ledger.sqlite").rows().values() if row.owner}
    logs = [folder / "workers" / f"{owner}.log" for owner in owners]
    found = [re.search(r"process (\d+)", log.read_text()) for log in logs if log.exists()]
    return [int(match[1]) for match in found if match]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_killed_repeatedly_ends_like_an_uninterrupted_one(workers, config, tmp_path):
    """Kills at random moments, each after training has resumed from the one before.

    With two workers, every third kills a worker.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(config, whole, workers)
    draw, kills = random.Random(workers), []
    while len(kills) < KILLS:
        with running(config, broken, workers) as process:
            until_it_logs(process, broken, draw.randint(1, 25))
            time.sleep(draw.uniform(0, 0.3))
            if process.poll() is not None:
                break
            trials = busy(broken)
            victims = worker_ids(broken) if workers > 1 and len(kills) % 3 == 2 else []
            with contextlib.suppress(ProcessLookupError):
                os.kill(victims[0] if victims else process.pid, signal.SIGKILL)
            kills.append(("worker" if victims else "runner", trials))
            print(len(kills), *kills[-1], flush=True)
            if victims:
                time.sleep(0.2)
    assert len(kills) == KILLS, f"the study ended after {len(kills)} kills: {kills}"
    assert sum(bool(trials) for _, trials in kills) > KILLS // 2, kills
    assert len(set.union(*(trials for _, trials in kills))) > 1, kills
    finish(config, broken, workers)
    assert outcome(broken) == outcome(whole)
    assert len(outcome(whole)) == 4
    assert verify(broken).problems == verify(whole).problems == []
