"""What a study of 10,000 trials costs besides its training, which is made up: ledger and report."""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import timing

from fpnlab.config.load import load_config
from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import points, trials
from fpnlab.config.validate import config_hash, resolved
from fpnlab.data.load_data import load
from fpnlab.data.sources.scenes import Scenes
from fpnlab.records.json_files import write_json
from fpnlab.records.run_records import (
    Diagnostics,
    DriftRow,
    EffectiveRates,
    MetricRecord,
    RunResult,
    SignalRow,
    write_records,
    write_result,
)
from fpnlab.run.interrupts import Stop
from fpnlab.study.context import StudyListener, run_path
from fpnlab.study.ledger import Ledger, LedgerRow
from fpnlab.study.runner import run_study

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = 40
METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
LAYERS = tuple(f"backbone/stages/{s}/{b}" for s in range(4) for b in range(2))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What something took."""

    what: str
    median_seconds: float
    best_seconds: float
    calls: int
    bound_seconds: float | None  # what the project allows itself


def study(seeds):
    """The demo with four norms and 25 batch sizes."""
    demo = load_config(ROOT / "configs" / "demo.toml")
    norms = {
        "BN": {"kind": "batch_norm"},
        "GN": {"kind": "group_norm", "group_channels": 4},
        "LN hwc": {"kind": "layer_norm", "axes": "hwc"},
        "LN c": {"kind": "layer_norm", "axes": "c"},
    }
    parts = ("backbone", "neck", "head")
    grid = Study(
        axes=(Axis(field="train.batch_size", values=tuple(range(2, 52, 2))),),
        arms={arm: {f"model.{part}.norm": norm for part in parts} for arm, norm in norms.items()},
        seeds=tuple(range(seeds)),
    )
    return dataclasses.replace(demo, data=Scenes(train_size=32, test_size=8), study=grid)


def result(trial, digest, draw):
    """Returns the result of a trial, from a generator instead of a network."""
    shares = lambda: {name: float(draw.uniform()) for name in METRICS}
    drift = {"level": None, "mean_shift": 0.01, "log_variance_ratio": 0.1, "count": 64.0}
    rates = {layer: float(draw.uniform()) for layer in LAYERS}
    return RunResult(
        trial=trial.name,
        config_hash=digest,
        arm=trial.arm,
        axis_value=trial.axis_value,
        seed=trial.seed,
        status="done",
        examples=10240,
        steps=10240 // trial.experiment.train.batch_size,
        class_names=["circle", "square", "triangle", "cross"],
        norm_batch={"stem": trial.experiment.train.batch_size},
        smallest_count=64,
        final_loss=float(draw.uniform()),
        parameters=150_000,
        metrics={source: shares() for source in ("running", "precise", "batch")},
        seconds=float(draw.uniform(20, 30)),
        diagnostics=Diagnostics(
            drift=[DriftRow(name=layer, **drift) for layer in LAYERS],
            signals=[SignalRow(name=n, squared_mean=0.2, variance=0.6) for n in LAYERS],
            effective_rates=EffectiveRates(
                step=640, examples=5120, learning_rate=0.01, rates=rates
            ),
            gradient_noise=None,
        ),
    )


def records(trial, draw):
    """Returns what a training logs."""
    every = 10240 // RECORDS
    losses = np.exp(-np.arange(RECORDS) / RECORDS) + draw.normal(scale=0.1, size=RECORDS)
    return [
        MetricRecord(
            step=i * every // trial.experiment.train.batch_size,
            examples=i * every,
            seconds=0.5 * i,
            examples_per_second=400.0,
            logs={
                "loss": round(float(loss), 6),
                "loss_class": round(float(loss) / 2, 6),
                "loss_box": round(float(loss) / 2, 6),
                "gradient_norm": 1.0,
                "learning_rate": 0.01,
            },
            effective_rate=0.001,
        )
        for i, loss in enumerate(losses, 1)
    ]


def make(folder, experiment):
    """Writes the study's trials into its ledger and their folders; returns seconds of claims."""
    plan = trials(experiment)
    paths = {point.name: run_path(point) for point in points(experiment)}
    digests = {trial.name: config_hash(trial.experiment) for trial in plan}
    ledger = Ledger(folder / "ledger.sqlite", journal="wal")
    ledger.expect(LedgerRow(t.name, digests[t.name], t.cell, t.split, paths[t.name]) for t in plan)
    by_name, claims = {trial.name: trial for trial in plan}, []
    draw = np.random.default_rng(0)
    while True:
        begun = time.perf_counter()
        name = ledger.claim("made up", 60.0)
        if name is None:
            return claims
        claims.append(time.perf_counter() - begun)
        made, run = result(by_name[name], digests[name], draw), folder / "trials" / name
        run.mkdir(parents=True)
        write_result(run / "result.json", made)
        write_records(run / "metrics.jsonl", records(by_name[name], draw))
        whole = resolved(by_name[name].experiment)
        write_json(run / "config.json", {"hash": digests[name], "experiment": whole})
        write_json(run / "env.json", {"jax": "made up"})
        score = made.metrics["precise"]["AP"]
        assert ledger.finish(name, "made up", "done", None, score)


def seconds(call):
    """Returns how long a call took."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def cost(what, times, bound=None):
    """Returns a row of the table."""
    median, best = round(statistics.median(times), 4), round(min(times), 4)
    return Cost(what, median, best, len(times), bound)


def command(*words):
    """Returns a function that runs a command."""
    return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="a hundredth of the trials")
    parser.add_argument("--repeat", type=int, default=3, help="reports")
    options = parser.parse_args()
    fpnlab = str(pathlib.Path(sys.executable).with_name("fpnlab"))
    with tempfile.TemporaryDirectory() as scratch:
        folder, experiment = pathlib.Path(scratch), study(options.seeds)
        claims = make(folder, experiment)
        dataset, ledger = load(experiment.data), Ledger(folder / "ledger.sqlite")
        again = lambda: run_study(
            experiment, dataset, folder, command="made up", stop=Stop(), listener=StudyListener()
        )
        rows = [
            cost("claim", claims),
            cost("rows of the ledger", [seconds(ledger.rows) for _ in range(5)]),
            cost("study, nothing left to run", [seconds(again)]),
            cost(
                "fpnlab report",
                [seconds(command(fpnlab, "report", scratch)) for _ in range(options.repeat)],
                20.0,
            ),
        ]
    starts = {
        "import fpnlab": (command(sys.executable, "-c", "import fpnlab"), 1.0),
        "fpnlab --help": (command(fpnlab, "--help"), 0.5),
    }
    rows += [cost(what, [seconds(call) for _ in range(5)], b) for what, (call, b) in starts.items()]
    timing.report(f"report_{len(claims)}_trials", rows, options)


if __name__ == "__main__":
    main()
