"""Time and memory of `fpnlab verify` for a study of 2,000 trials, whose training is made up.

Each trial has two checkpoints of a network of 150,000 parameters. Their arrays are links to one
file, so that they come from the page cache: on a disk, reading 2,000 trials comes on top.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import timing

from fpnlab.config.load import load_config
from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import trials
from fpnlab.config.validate import hash_of, resolved, training_hash_of
from fpnlab.data.load_data import load
from fpnlab.data.sources.scenes import Scenes
from fpnlab.evaluate.bn_statistics import has_batch_norm
from fpnlab.records.json_files import write_json
from fpnlab.records.run_records import (
    Diagnostics,
    DriftRow,
    MetricRecord,
    RunResult,
    SignalRow,
    write_records,
    write_result,
)
from fpnlab.run.diagnosis import halfway_rates
from fpnlab.run.environment import environment
from fpnlab.run.interrupts import Stop
from fpnlab.run.programs import initial_state
from fpnlab.study.context import StudyListener
from fpnlab.study.runner import run_study
from fpnlab.train.checkpoint import MANIFEST, SUMS, Checkpoints

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = 40
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
SOURCES = ("running", "precise", "batch")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took."""

    what: str
    trials: int
    megabytes: float  # of all files, links counted in full
    seconds: float
    cpu_seconds: float  # which a quiet machine takes
    peak_megabytes: float
    bound_seconds: float


def study(seeds):
    """The demo with four norms at five batch sizes."""
    demo = load_config(ROOT / "configs" / "demo.toml")
    norms = {
        "BN": {"kind": "batch_norm"},
        "GN": {"kind": "group_norm", "group_channels": 4},
        "LN hwc": {"kind": "layer_norm", "axes": "hwc"},
        "LN c": {"kind": "layer_norm", "axes": "c"},
    }
    parts = ("backbone", "neck", "head")
    grid = Study(
        axes=(Axis(field="train.batch_size", values=(2, 4, 8, 16, 32)),),
        arms={arm: {f"model.{part}.norm": norm for part in parts} for arm, norm in norms.items()},
        seeds=tuple(range(seeds)),
    )
    return dataclasses.replace(demo, data=Scenes(train_size=32, test_size=8), study=grid)


def records(train, draw):
    """Returns what a training logs, the kernels' rates in one record."""
    steps = np.unique(np.linspace(0, train.steps, RECORDS + 1).astype(int))[1:]
    return [
        MetricRecord(
            step=int(step),
            examples=int(step) * train.batch_size,
            seconds=0.5 * i,
            examples_per_second=400.0,
            logs={"loss": float(draw.uniform()), "gradient_norm": 1.0, "learning_rate": 0.01},
            effective_rate=0.001,
            effective_rates={"backbone/stem": 0.1} if i == len(steps) // 2 else None,
        )
        for i, step in enumerate(steps, 1)
    ]


def write_trial(run, trial, env, saved, draw):
    """Writes the files of a finished run with made-up numbers."""
    experiment, train = trial.experiment, trial.experiment.train
    table = resolved(experiment)
    digest, training = hash_of(table), training_hash_of(table)
    run.mkdir(parents=True)
    content = {"hash": digest, "training_hash": training, "experiment": table}
    write_json(run / "config.json", content)
    write_json(run / "env.json", env)
    logged = records(train, draw)
    write_records(run / "metrics.jsonl", logged)
    np.savez_compressed(run / "gallery.npz", images=draw.integers(0, 9, (12, 64, 64, 3), np.uint8))
    for step in (train.steps - 1, train.steps):
        link_checkpoint(saved, run / "checkpoints" / str(step), training)
    drift = DriftRow(name="stem", level=None, mean_shift=0.1, log_variance_ratio=0.1, count=64.0)
    signal = SignalRow(name="stem", squared_mean=0.2, variance=0.6)
    made = RunResult(
        trial=trial.name,
        config_hash=digest,
        arm=trial.arm,
        axis_value=trial.axis_value,
        seed=trial.seed,
        status="done",
        examples=train.steps * train.batch_size,
        steps=train.steps,
        class_names=["circle", "square", "triangle", "cross"],
        norm_batch={"stem": train.batch_size},
        smallest_count=64,
        final_loss=logged[-1].logs["loss"],
        parameters=150_000,
        metrics={source: {name: float(draw.uniform()) for name in METRICS} for source in SOURCES},
        seconds=float(draw.uniform(20, 30)),
        diagnostics=Diagnostics(
            drift=[drift] if has_batch_norm(experiment.model) else [],
            signals=[signal] * (1 + sum(experiment.model.backbone.depths)),
            effective_rates=halfway_rates(logged),
            gradient_noise=None,
        ),
    )
    write_result(run / "result.json", made)


def link_checkpoint(saved, folder, training):
    """Makes a checkpoint of another config, with links to the arrays of a saved one."""
    lines = (saved / SUMS).read_text().splitlines()[:-1]
    for line in lines:
        path = folder / line[66:]
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(saved / line[66:], path)
    manifest = json.loads((saved / MANIFEST).read_text()) | {"config_hash": training}
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / MANIFEST).write_text(text)
    lines.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}")
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def make(folder, seeds):
    """Makes a finished study, sealed by the study command itself; returns its trials."""
    experiment = study(seeds)
    saved = Checkpoints(folder / "saved", "made up")
    plan, env, draw = trials(experiment), dict(environment()), np.random.default_rng(0)
    saved.save(1, initial_state(plan[0].experiment))
    for trial in plan:
        run = folder / "study" / "trials" / trial.name
        write_trial(run, trial, env, saved.folder / "1", draw)
    stop, listener = Stop(), StudyListener()
    dataset = load(experiment.data)
    run_study(
        experiment, dataset, folder / "study", command="made up", stop=stop, listener=listener
    )
    return plan


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="a twentieth of the trials")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        plan = make(folder, options.seeds)
        sizes = [path.stat().st_size for path in (folder / "study").rglob("*") if path.is_file()]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "fpnlab", "verify", str(folder / "study")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    row = Cost(
        what="fpnlab verify",
        trials=len(plan),
        megabytes=round(sum(sizes) / 1e6),
        seconds=round(seconds, 1),
        cpu_seconds=round(cpu, 1),
        peak_megabytes=round(used.ru_maxrss / 1000),  # From kilobytes, on Linux.
        bound_seconds=60.0,
    )
    timing.report(f"verify_{len(plan)}_trials", [row], options)


if __name__ == "__main__":
    main()
