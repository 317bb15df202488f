"""Draws what the batch size does to batch norm and group norm: as published, and in our tables."""

import csv
import pathlib
from collections import defaultdict
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure

from fpnlab.report.figures import STYLE
from fpnlab.report.series import ARM_COLORS, MARKERS

RESULTS = pathlib.Path("docs/results")
PANELS = {
    "ImageNet, ResNet-50\n(Wu and He, 2018, table 2)": "published_group_norm",
    "CIFAR-10, ResNet-8\nstatistics alone": "claim_04_norm_batch",
    "CIFAR-10, ResNet-8\nbatch size, linear rule": "claim_04_06_batch_size_linear",
    "CIFAR-10, ResNet-8\nbatch size, tuned rates": "claim_04_06_batch_size_tuned",
}


def accuracies(name: str) -> dict[str, dict[int, float]]:
    """Returns the mean accuracy in points, under running statistics, by arm and batch."""
    found = defaultdict(lambda: defaultdict(list))
    with (RESULTS / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            if "error" in row and "accuracy" not in row:
                found[row["arm"]][int(row["batch_size"])].append(100 - float(row["error"]))
            elif row["evaluation"] == "running":
                batch = row["axis_value"] if "axis_value" in row else row["batch_size"]
                found[row["arm"]][batch and int(batch)].append(100 * float(row["accuracy"]))
    return {arm: {b: fmean(v) for b, v in cells.items()} for arm, cells in found.items()}


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.8, 3.6), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, 4, sharey=True), PANELS.items()):
        for arm, color, marker in zip(("BN", "GN"), ARM_COLORS, MARKERS):
            means = accuracies(name)[arm]
            batches = sorted(batch for batch in accuracies(name)["BN"] if batch)
            values = [means.get(batch, means.get("")) for batch in batches]
            changes = [value - values[-1] for value in values]
            axes.plot(batches, changes, color=color, marker=marker, label=arm)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, map(str, batches))
        axes.minorticks_off()
        axes.set_xlabel("images of a statistics group")
    figure.axes[0].set_ylabel("accuracy, change in points")
    figure.axes[0].legend()
    figure.savefig(RESULTS / "claim_04_published.png", metadata={"Software": None})
