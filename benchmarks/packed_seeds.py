"""Seeds of a study trained by one program against the same steps one after the other."""

import dataclasses

import numpy as np
import timing
from scene_batches import CONFIG, demo

from fpnlab.config.experiment import Experiment
from fpnlab.config.load import load_config
from fpnlab.data.dataset import Dataset
from fpnlab.data.load_data import load
from fpnlab.study.packing import stepper
from fpnlab.types import LabeledBatch


def detector(batch_size: int) -> tuple[Experiment, Dataset]:
    """Returns the demo's experiment and scenes."""
    experiment = demo(batch_size)
    return experiment, load(dataclasses.replace(experiment.data, train_size=256, test_size=1))


def classifier(batch_size: int) -> tuple[Experiment, Dataset]:
    """Returns the ResNet-8 of claims 4 and 6, with noise in the place of CIFAR-10."""
    path = CONFIG.with_name("claim_04_06_batch_size_linear.toml")
    experiment = load_config(path, [("train.batch_size", str(batch_size))])
    random = np.random.default_rng(0)
    noise = LabeledBatch(
        images=random.integers(0, 256, (1024, 32, 32, 3), np.uint8),
        labels=random.integers(0, 10, 1024, np.int32),
        index=np.arange(1024, dtype=np.int32),
    )
    names = experiment.class_names
    return experiment, Dataset(name="noise", class_names=names, train=noise, test=noise)


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    timing.prepare(options)
    rows = []
    for make in (detector, classifier):
        for size in options.batch:
            experiment, dataset = make(size)
            seeds = [dataclasses.replace(experiment, seed=i) for i in range(options.seeds)]
            packed = stepper(seeds, dataset)
            alone = [stepper([one], dataset) for one in seeds]
            ways = {"packed": packed, "in turn": lambda alone=alone: [one() for one in alone]}
            case = f"{make.__name__}, {options.seeds} seeds, batch {size}"
            rows += timing.compare(case, ways, seconds=options.seconds)
    timing.report("speed_packed_seeds", rows, options)


if __name__ == "__main__":
    main()
