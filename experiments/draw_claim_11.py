"""Writes the tables of claim 11, and draws them: lesions and paths of published ResNets."""

import csv
import pathlib
from collections import defaultdict

import numpy as np

from fpnlab.diagnostics import effective_lengths
from fpnlab.report import residual_plots as plots

RESULTS = pathlib.Path("docs/results")
HEADS = {
    "claim_11_lesions": "layers lesion changes case images error loss",
    "claim_11_paths": "layers length mean_norm share_of_paths contribution norm_of_sum",
}
SOURCES = {"single": "running statistics", "precise": "re-estimated, 500 images"}


def write(*tables):
    """Writes the two tables."""
    for (name, head), rows in zip(HEADS.items(), tables):
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head.split())
            for row in rows:
                writer.writerow(v if isinstance(v, int | str) else f"{v:.6g}" for v in row)


def save(name, plot, *values):
    """Writes a figure."""
    stem = name.lower().replace("-", "")
    with (RESULTS / f"claim_11_{stem}.png").open("wb") as file:
        plot(*values, file)


def draw():
    """Draws the two tables."""
    errors, numbers = defaultdict(dict), defaultdict(list)
    for row in csv.DictReader((RESULTS / "claim_11_lesions.csv").open()):
        at = (int(row["changes"]), int(row["case"]))
        errors[f"ResNet-{row['layers']}", row["lesion"]][at] = 100 * float(row["error"])
    for row in csv.DictReader((RESULTS / "claim_11_paths.csv").open()):
        numbers[f"ResNet-{row['layers']}"].append([float(value) for value in row.values()][2:])
    for name, rows in numbers.items():
        single = {SOURCES[kind]: errors[name, kind] for kind in SOURCES}
        whole = {kind: of.pop((0, -1)) for kind, of in single.items()}
        single = {kind: {i: e for (_, i), e in of.items()} for kind, of in single.items()}
        stages, title = range(0, len(rows) - 1, len(rows) // 3), f"{name} without one block"
        save(f"{name}_deletions", plots.plot_lesions, single, whole, stages, title)
        random = {"deleted": defaultdict(list), "swapped": defaultdict(list)}
        for kind, of in random.items():
            for (count, _), error in errors[name, kind].items():
                of[count].append(error)
        title, label = f"{name}: random blocks deleted or swapped", "deletions, or swaps of two"
        start = whole[SOURCES["single"]]
        save(f"{name}_random", plots.plot_changed_blocks, random, start, label, title)
        _, paths, contributions, sums = np.transpose(rows)
        shares = {"norms of single paths": contributions, "norm of their sum": sums / sums.sum()}
        effective, title = effective_lengths(contributions), f"{name}: paths and gradient by length"
        save(f"{name}_shares", plots.plot_path_shares, paths, shares, effective, title)
    norms = {name: [row[0] for row in rows] for name, rows in numbers.items()}
    title, unit = "Gradient through a single path", "gradient norm at block 0"
    save("norms", plots.plot_path_norms, norms, title, unit)


if __name__ == "__main__":
    draw()
