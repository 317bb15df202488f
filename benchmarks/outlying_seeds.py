"""How often a seed is called outlying: in studies without an outlier, and in those with one.

Writes docs/results/outlying_seeds.csv: the share of simulated studies in which
`fpnlab.stats.outliers.outlying_seeds` names a seed that is none (*false alarm*), and in which it
names the seed that was moved (*found*). Samples are the differences of arms at one axis value.

* *equal*: normal values of one deviation.
* *one noisy*: the first sample has four times the deviation of the others.
* *gradual*: deviations from four times the smallest to it, in equal ratios.
* *heavy tails*: Student's t distribution with five degrees of freedom.
* *moved by D*: equal, and the first seed of the first sample is off by D deviations.
* *two moved by D*: a second seed in the second sample, too, which could hide the first.

    python benchmarks/outlying_seeds.py            # about half a minute
"""

import csv
import pathlib

import click
import numpy as np

from fpnlab.stats.outliers import outlying_seeds

OUTPUT = pathlib.Path(__file__).parents[1] / "docs" / "results" / "outlying_seeds.csv"
MOVED = (10, 30, 100)


def named(study):
    return outlying_seeds([dict(enumerate(sample)) for sample in study.tolist()])


def false_alarm(studies):
    return np.mean([any(seed is not None for seed in named(study)) for study in studies])


def found(studies):
    return np.mean([named(study)[0] == 0 for study in studies])


def rows(rng, studies, samples, seeds):
    """Rows on studies with so many samples of so many seeds: data, kind and share."""
    values = rng.normal(size=(studies, samples, seeds))
    yield "equal", "false alarm", false_alarm(values)
    if samples > 1:
        noisy = values.copy()
        noisy[:, 0] *= 4.0
        yield "one noisy", "false alarm", false_alarm(noisy)
        gradual = values * np.geomspace(4.0, 1.0, samples)[:, None]
        yield "gradual", "false alarm", false_alarm(gradual)
    yield "heavy tails", "false alarm", false_alarm(rng.standard_t(5, size=values.shape))
    for distance in MOVED:
        moved = values.copy()
        moved[:, 0, 0] += distance
        yield f"moved by {distance}", "found", found(moved)
        if samples > 1:
            moved[:, 1, 1] += distance
            yield f"two moved by {distance}", "found", found(moved)


@click.command()
@click.option("--studies", default=4000, help="Simulated studies for each row.")
@click.option("--output", default=OUTPUT, type=click.Path(path_type=pathlib.Path))
def main(studies, output):
    rng = np.random.default_rng(0)
    with output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["samples", "seeds", "studies", "data", "kind", "share"])
        for samples, seeds in ((1, 5), (1, 10), (3, 3), (5, 3), (15, 3), (5, 5), (15, 5), (5, 10)):
            for data, kind, share in rows(rng, studies, samples, seeds):
                writer.writerow([samples, seeds, studies, data, kind, f"{share:.4f}"])


if __name__ == "__main__":
    main()
