"""How often studies without any true effect decide, with and without the rules that prevent it.

Writes docs/results/false_verdicts.csv: the share of simulated studies in which a true null
hypothesis is decided for the side that is named, by the test that was, and by the one that is.

* *failed trials*: arms without a difference, of which the worst runs of one or of both diverge.
  Before: the seeds that both have. Now: a failed trial is worse than any number.
* *equal seeds*: arms without a difference on 500 test images, with a spread of a part of an image.
  Before: no least deviation. Now: that of rounding to whole images.
* *four claims*: four arms against one. Before: each by itself. Now: holm_over = "study".

    python benchmarks/false_verdicts.py            # about 5 minutes
"""

import csv
import pathlib

import click
import numpy as np

from fpnlab.analysis.verdict import Evidence, judge, judge_claims
from fpnlab.config.claims import Cell, Claim, Difference

OUTPUT = pathlib.Path(__file__).parents[1] / "docs" / "results" / "false_verdicts.csv"
NOMINAL = 0.025
"""Of one side of the tests, which have level 0.05."""


def cell(arm):
    return Cell("accuracy", "running", 2, arm)


def claimed(side, arm="LN"):
    return Difference(arm=arm, baseline="BN", axis_values=(2,), side=side, metric="accuracy")


def supported(rule, evidence):
    return judge([rule], evidence).verdict == "SUPPORTED"


def failed_trials(rng, studies, seeds, cut, arms, shared):
    """Rows on runs that diverge below ``cut`` deviations; ``shared`` is the seed's own luck."""
    found = {(side, known): 0 for side in ("below", "above") for known in (False, True)}
    for _ in range(studies):
        luck = shared * rng.normal(size=seeds)
        values, failed = {}, {}
        for arm in ("BN", "LN"):
            runs = (luck + rng.normal(size=seeds)) / np.hypot(shared, 1.0)
            lost = runs < cut if arm in arms else np.zeros(seeds, bool)
            kept = np.flatnonzero(~lost).tolist()
            values[cell(arm)] = {seed: 50.0 + float(runs[seed]) for seed in kept}
            failed[arm, 2] = [(arm, 2, seed) for seed in np.flatnonzero(lost).tolist()]
        for side, known in found:
            evidence = Evidence(values, failed=failed if known else {})
            found[side, known] += supported(claimed(side), evidence)
    for side in ("below", "above"):
        what = f"{seeds} seeds, {' and '.join(arms)} diverge below {cut:g}, shared luck {shared:g}"
        before, now = (found[side, known] / studies for known in (False, True))
        yield "failed trials", what, f"LN {side} BN", before, now


def equal_seeds(rng, studies, seeds, spread):
    """Rows on two arms with one expected accuracy of 500 images, in units of an image."""
    found = {(side, step): 0 for side in ("below", "above") for step in (1e-9, 0.2)}
    for _ in range(studies):
        level = rng.uniform(250, 251)
        runs = np.round(level + spread * rng.normal(size=(2, seeds))) / 5.0
        values = {cell(arm): dict(enumerate(row)) for arm, row in zip(("BN", "LN"), runs.tolist())}
        for side, step in found:
            evidence = Evidence(values, steps={"accuracy": step})
            found[side, step] += supported(claimed(side), evidence)
    for side in ("below", "above"):
        what = f"{seeds} seeds, deviation {spread:g} images"
        before, now = (found[side, step] / studies for step in (1e-9, 0.2))
        yield "equal seeds", what, f"LN {side} BN", before, now


def four_claims(rng, studies, seeds):
    """A row on four arms that are compared with one, which makes their tests depend."""
    arms = ("LN", "GN", "IN", "RMS")
    claims = [Claim(statement=arm, rules=(claimed("above", arm),)) for arm in arms]
    found = {"claim": 0, "study": 0}
    for _ in range(studies):
        runs = 50.0 + rng.normal(size=(5, seeds))
        values = {cell(arm): dict(enumerate(r)) for arm, r in zip(("BN", *arms), runs.tolist())}
        for family in found:
            words = [v.verdict for v in judge_claims(claims, Evidence(values), family)]
            found[family] += "SUPPORTED" in words
    before, now = (count / studies for count in found.values())
    yield "four claims", f"{seeds} seeds", "one or more SUPPORTED", before, now


@click.command()
@click.option("--studies", default=4000, help="Simulated studies for each row.")
@click.option("--output", default=OUTPUT, type=click.Path(path_type=pathlib.Path))
def main(studies, output):
    rng = np.random.default_rng(0)
    rows = []
    for seeds in (3, 5, 10):
        for arms in (("BN",), ("BN", "LN")):
            for cut in (-1.0, -0.5):
                for shared in (0.0, 1.0):
                    rows += failed_trials(rng, studies, seeds, cut, arms, shared)
        rows += four_claims(rng, studies, seeds)
    for seeds in (2, 3, 5):
        for spread in (0.1, 0.5, 1.0):
            rows += equal_seeds(rng, studies, seeds, spread)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "studies", "null hypothesis decided", "before", "now"])
        for row in rows:
            writer.writerow(
                [f"{value:.4f}" if isinstance(value, float) else value for value in row]
            )
    worst = max(rows, key=lambda row: row[-1])
    print(f"{len(rows)} rows; the largest share now is {worst[-1]:.4f}: {', '.join(worst[:3])}")


if __name__ == "__main__":
    main()
