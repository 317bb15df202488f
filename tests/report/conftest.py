"""Fixtures: study folders with artificial but plausible numbers."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from fpnlab.analysis.summary import summarize
from fpnlab.config.claims import (
    Claim,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    write_claims,
)
from fpnlab.records.json_files import write_json
from fpnlab.records.run_records import (
    Diagnostics,
    DriftRow,
    EffectiveRates,
    GradientNoise,
    MetricRecord,
    NoiseRow,
    RunResult,
    SignalRow,
    append_record,
    read_result,
    write_result,
)
from fpnlab.records.study_records import (
    DataProblem,
    DatasetInfo,
    StudyFile,
    read_study_file,
    write_record,
)

CLASSES = ("RBC", "WBC", "Platelets")
ENVIRONMENT = {
    "python": "3.12.3",
    "jax": "0.10.2",
    "flax": "0.12.7",
    "device": "cpu",
    "cpu_count": 2,
    "commit": "4f0c2aa",
}


@pytest.fixture
def study_dir(tmp_path):
    """A finished study of two arms, three batch sizes and two seeds."""
    return write_summary(make_study(tmp_path / "study"))


@pytest.fixture
def refresh():
    """Changes fields of results by trial, and updates the summary of the study."""

    def change(folder, **trials):
        for trial, fields in trials.items():
            path = folder / "trials" / trial.replace("_", "-") / "result.json"
            write_json(path, json.loads(path.read_text()) | fields)
        return write_summary(folder)

    return change


CLAIMS = (
    Claim(
        statement="BN changes more & sooner than LN.",
        rules=(
            DifferenceInDifferences(arm="BN", baseline="LN", start=32, end=2, side="below"),
            Difference(
                arm="BN",
                baseline="BN",
                axis_values=(2,),
                evaluation="precise",
                baseline_evaluation="running",
                side="above",
            ),
        ),
    ),
    Claim(
        statement="LN is flat.",
        rules=(
            Equivalence(arm="LN", baseline="LN", axis_values=(2, 8), baseline_value=32, margin=0.1),
        ),
    ),
)


@pytest.fixture
def claiming_dir(study_dir):
    """The same study with two claims, of three rules with four numbers."""
    study = json.loads((study_dir / "study.json").read_text())
    write_json(study_dir / "study.json", study | {"claims": write_claims(CLAIMS, "AP")})
    return write_summary(study_dir)


def write_summary(folder):
    """Writes ``summary.json`` from the existing results."""
    results = [read_result(path) for path in sorted((folder / "trials").glob("*/result.json"))]
    plan = read_study_file(folder / "study.json")
    write_record(folder / "summary.json", summarize(plan, results))
    return folder


def make_study(folder, batch_sizes=(2, 8, 32), seeds=(0, 1), images=2, records=12, side=64):
    """Writes a finished study of BN and LN and returns its folder."""
    folder = pathlib.Path(folder)
    (folder / "trials").mkdir(parents=True)
    problem = DataProblem(
        file="BloodImage_00338.xml",
        where="object 3",
        what="the box has no height (ymin = ymax = 480); left out",
    )
    plan = StudyFile(
        name="batch-size",
        question="How does the batch size change a detector with BatchNorm, and with LayerNorm?",
        command="fpnlab study configs/batch_size.toml",
        trials=2 * len(batch_sizes) * len(seeds),
        seeds=list(seeds),
        arms=["BN", "LN"],
        axis="train.batch_size",
        axis_values=list(batch_sizes),
        metric="AP",
        examples=20_000,
        dataset=DatasetInfo(
            name="BCCD <blood cells>",
            class_names=list(CLASSES),
            train_images=291,
            test_images=73,
            problems=[problem],
        ),
        env=ENVIRONMENT,
    )
    write_record(folder / "study.json", plan)
    for arm, batch_size, seed in itertools.product(plan.arms, batch_sizes, seeds):
        _make_trial(folder, arm, batch_size, seed, images, records, side)
    return folder


def _make_trial(folder, arm, batch_size, seed, images, records, side):
    numbers = np.random.default_rng([seed, batch_size, arm == "LN"])
    trial = folder / "trials" / f"{arm}-{batch_size}-{seed}"
    trial.mkdir()
    level = 0.46 - (0.09 / batch_size * 2 if arm == "BN" else 0.01 * np.log2(batch_size))
    level += 0.02 * np.sin(seed) + numbers.normal(0, 0.008)
    gain = 0.03 / batch_size if arm == "BN" else 0.0
    result = RunResult(
        trial=trial.name,
        arm=arm,
        axis_value=batch_size,
        seed=seed,
        status="done",
        examples=20_000,
        steps=20_000 // batch_size,
        seconds=410.0 + 300 / batch_size + numbers.normal(0, 9),
        norm_batch=dict.fromkeys(("stem", "head"), batch_size if arm == "BN" else None),
        smallest_count=batch_size * 16 if arm == "BN" else 16 * 128,
        final_loss=0.5 + numbers.normal(0, 0.02),
        parameters=1_204_531,
        class_names=list(CLASSES),
        metrics={
            "running": _metrics(level),
            "precise": _metrics(level + gain),
            "batch": _metrics(level - 0.4 * gain),
        },
        diagnostics=_diagnostics(numbers, arm, batch_size),
    )
    write_json(trial / "config.json", {"train": {"batch_size": batch_size}, "seed": seed})
    write_json(trial / "env.json", ENVIRONMENT)
    write_result(trial / "result.json", result)
    for examples in np.linspace(20_000 / records, 20_000, records):
        loss = 0.4 + 1.8 * np.exp(-examples / 4000) + 0.3 / batch_size
        loss *= np.exp(numbers.normal(0, 0.08))
        logs = {
            "loss": loss,
            "loss_class": 0.6 * loss,
            "loss_box": 0.4 * loss,
            "learning_rate": 0.01 * (1 - examples / 20_001),
            "gradient_norm": 2.0,
        }
        record = MetricRecord(
            examples=int(examples),
            step=int(examples) // batch_size,
            seconds=examples / 50,
            logs=logs,
            examples_per_second=50.0,
            effective_rate=0.004 * (1 - examples / 20_001),
        )
        append_record(trial / "metrics.jsonl", record)
    np.savez_compressed(trial / "gallery.npz", **_gallery(numbers, level, images, side))


def _metrics(ap):
    numbers = {"AP": ap, "AP50": ap + 0.3, "AP75": ap - 0.05, "AP_small": None}
    numbers |= {"AP_medium": ap - 0.04, "AP_large": ap + 0.05, "AR100": ap + 0.12}
    return numbers | {f"AP50/{name}": ap + 0.1 * i for i, name in enumerate(CLASSES)}


def _diagnostics(numbers, arm, batch_size):
    """Diagnostics of a stem, two blocks and a head over two levels; fewer without batch norm."""
    layers = ["backbone/stem", "backbone/stages/0/0/branch/0", "backbone/stages/1/0/branch/0"]
    norms = [(name, None) for name in layers] + [("head/class_tower/0", level) for level in (3, 4)]
    signals = ["stem", "stage 0 block 0", "stage 0 block 1", "stage 1 block 0"]
    drift = [
        DriftRow(
            name=name,
            level=level,
            mean_shift=0.01 * numbers.uniform(0.5, 2),
            log_variance_ratio=0.4 / batch_size * numbers.uniform(0.5, 2),
            count=64.0,
        )
        for name, level in norms
    ]
    noise = [NoiseRow(norm_batch=k, noise=numbers.uniform(0.5, 0.6) / k) for k in (2, 4, 8)]
    signals = [
        SignalRow(name=name, squared_mean=0.1, variance=numbers.uniform(0.2, 0.4))
        for name in signals
    ]
    rates = {name: 0.001 * numbers.uniform(1, 9) for name in layers}
    return Diagnostics(
        drift=drift if arm == "BN" else [],
        signals=signals,
        effective_rates=EffectiveRates(
            step=1250, examples=10_000, learning_rate=0.005, rates=rates
        ),
        gradient_noise=GradientNoise(images=16, draws=8, rows=noise) if arm == "BN" else None,
    )


def _gallery(numbers, level, images, side):
    """Discs on a pale background; predicted boxes with an error that shrinks with ``level``."""
    boxes_each, found_each = 6, 12
    rows, columns = np.mgrid[:side, :side]
    pictures = np.full((images, side, side, 3), (238, 226, 216), np.float64)
    truth = np.zeros((images, boxes_each, 4), np.float32)
    classes = numbers.choice(3, (images, boxes_each), p=[0.7, 0.15, 0.15])
    colors = np.array([(214, 130, 120), (110, 80, 160), (150, 110, 170)])
    for i in range(images):
        for j, size in enumerate(np.array([0.22, 0.34, 0.1])[classes[i]] * side):
            x, y = numbers.uniform(size / 2, side - size / 2, 2)
            truth[i, j] = x - size / 2, y - size / 2, x + size / 2, y + size / 2
            disc = (columns - x) ** 2 + (rows - y) ** 2 < (size / 2) ** 2
            pictures[i][disc] = colors[classes[i, j]]
    pictures += numbers.normal(0, 6, pictures.shape)
    boxes = np.concatenate([truth, truth], axis=1)
    boxes += numbers.normal(0, 1.5 * (1 - level), boxes.shape)
    scores = np.sort(numbers.uniform(0.05, 0.98, (images, found_each)))[:, ::-1]
    return {
        "images": np.clip(pictures, 0, 255).astype(np.uint8),
        "truth_boxes": truth,
        "truth_classes": classes.astype(np.int32),
        "truth_valid": np.arange(boxes_each)[None] < [[5]] * images,
        "boxes": boxes.astype(np.float32),
        "scores": scores.astype(np.float32),
        "classes": np.concatenate([classes, classes], axis=1).astype(np.int32),
        "valid": np.arange(found_each)[None] < [[10]] * images,
    }
