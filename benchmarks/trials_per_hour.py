"""Trials an hour of a batch-size ablation: a study's trials, and a plain loop in PyTorch.

fpnlab runs each trial whole: records, checkpoints, evaluation by three kinds of statistics,
diagnostics; each by itself, and the seeds of a batch size as a pack (one program). PyTorch trains
the same network on the same images in the same order by the same rule and measures its accuracy on
the same test images by running statistics; nothing else.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import timing
import torch
from torch.nn import functional as F
from torch_networks import TorchClassifier

from fpnlab.config.load import load_config
from fpnlab.config.trials import trials
from fpnlab.data.dataset import Dataset, stream_order
from fpnlab.run.folder import Run
from fpnlab.run.interrupts import Stop
from fpnlab.run.run import run_trials
from fpnlab.train.schedule import scheduled
from fpnlab.types import LabeledBatch

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "claim_04_06_batch_size_linear.toml"
CLASSES = 10
TAIL = 0.2
"""Share of the records at the end whose mean loss is compared."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one trial was and took."""

    seconds: float
    loss: float  # mean of the last records
    accuracy: float
    parameters: int


@dataclasses.dataclass(frozen=True)
class Speed:
    """One way at one batch size, or at all together."""

    case: str
    name: str
    seconds: float  # of a trial, compilation aside; of all: a trial of each size
    trials_per_hour: float  # compilation aside
    with_compilation: float  # of all seeds of a size, the first of which compiles
    ratio: float  # of trials per hour against PyTorch
    ratio_with_compilation: float
    loss: float  # mean of the last records
    accuracy: float


def made_up(train_images, test_images):
    """Returns images of 32x32: a pattern for each class, under noise as strong as it is."""
    draw = np.random.default_rng(0)
    patterns = draw.normal(size=(CLASSES, 8, 8, 3)).repeat(4, 1).repeat(4, 2)

    def split(size):
        labels = draw.integers(CLASSES, size=size)
        images = 127.5 + 25 * patterns[labels] + 50 * draw.normal(size=(size, 32, 32, 3))
        return LabeledBatch(
            images=images.clip(0, 255).astype(np.uint8),
            labels=labels.astype(np.int32),
            index=np.arange(size, dtype=np.int32),
        )

    names = tuple(f"class {i}" for i in range(CLASSES))
    splits = {"train": split(train_images), "test": split(test_images)}
    return Dataset(name="made up", class_names=names, **splits)


def ablation(batch_sizes, seeds, examples):
    """Returns the trials of the config's batch norm at these batch sizes, in a study's order."""
    experiment = load_config(CONFIG)
    grid = experiment.study
    grid = dataclasses.replace(
        grid,
        axes=(dataclasses.replace(grid.axes[0], values=tuple(batch_sizes)),),
        seeds=tuple(range(seeds)),
        arms={"BN": grid.arms["BN"]},
        claims=(),
    )
    train = dataclasses.replace(experiment.train, examples=examples)
    return trials(dataclasses.replace(experiment, train=train, study=grid))


def by_fpnlab(trials, dataset, folder):
    """Returns what each trial of a pack took as a study runs it."""
    begun = time.perf_counter()
    runs = [Run(trial, folder / trial.name) for trial in trials]
    results = run_trials(runs, dataset, stop=Stop())
    seconds = (time.perf_counter() - begun) / len(trials)
    found = []
    for run, result in zip(runs, results):
        losses = [json.loads(line)["loss"] for line in run.log.read_text().splitlines()]
        accuracy = result["metrics"]["running"]["accuracy"]
        found.append(Trial(seconds, end(losses), accuracy, result["parameters"]))
    return found


def by_torch(trial, dataset, memory_format):
    """Returns what a trial took in PyTorch."""
    begun = time.perf_counter()
    e, train = trial.experiment, trial.experiment.train
    network, optimizer = network_of(e, memory_format)
    images, labels = tensors(dataset.train)
    rates = train.peak_rate * share_of_rate(train)
    flips = torch.Generator().manual_seed(e.seed)
    every = max(e.log_examples // train.batch_size, 1)
    losses = []
    for step, rate in enumerate(rates):
        start = step * train.batch_size
        order = torch.from_numpy(stream_order(e.seed, len(images), start, train.batch_size))
        batch = seen(e, images[order], memory_format)
        flip = torch.rand(len(batch), 1, 1, 1, generator=flips) < e.augment.flip
        batch = torch.where(flip, batch.flip(3), batch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(batch), labels[order])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.clip_norm)
        optimizer.step()
        if (step + 1) % every == 0:
            losses.append(loss.item())
    accuracy = accuracy_of(network, e, dataset.test, memory_format)
    size = sum(p.numel() for p in network.parameters())
    return Trial(time.perf_counter() - begun, end(losses), accuracy, size)


def network_of(experiment, memory_format):
    """Returns a network that starts as fpnlab's do, and its optimizer."""
    torch.manual_seed(experiment.seed)
    train = experiment.train
    network = TorchClassifier(experiment.model.backbone, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if hasattr(module, "branch"):
            torch.nn.init.zeros_(module.branch[-1][1].weight)
    torch.nn.init.normal_(network.linear.weight, std=network.linear.in_features**-0.5)
    torch.nn.init.zeros_(network.linear.bias)
    network = network.to(memory_format=memory_format).train()
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": train.weight_decay}, {"params": others}]
    momentum = train.optimizer.momentum
    return network, torch.optim.SGD(groups, train.peak_rate, momentum=momentum, nesterov=True)


def share_of_rate(train):
    """Returns the schedule's share of the peak rate at each step."""
    done = np.arange(train.steps) * train.batch_size
    return np.asarray(jax.vmap(lambda n: scheduled(train.schedule, train.total_examples, n))(done))


def tensors(split):
    """Returns images and labels as PyTorch has them."""
    return torch.from_numpy(split.images).permute(0, 3, 1, 2), torch.from_numpy(split.labels).long()


def seen(experiment, images, memory_format):
    """Returns images as the network sees them."""
    model = experiment.model
    images = (images.float() - model.pixel_mean) / model.pixel_deviation
    return images.contiguous(memory_format=memory_format)


@torch.no_grad()
def accuracy_of(network, experiment, split, memory_format):
    """Returns the accuracy by running statistics."""
    network.eval()
    parts = zip(*(t.split(experiment.evaluate.batch_size) for t in tensors(split)))
    hits = [
        (network(seen(experiment, images, memory_format)).argmax(1) == labels).sum().item()
        for images, labels in parts
    ]
    return sum(hits) / len(split.labels)


def end(losses):
    """Returns the mean of the last losses."""
    return statistics.fmean(losses[-max(math.ceil(TAIL * len(losses)), 1) :])


def faster_format(trial, dataset):
    """Returns the memory order in which PyTorch takes less time for the first steps of a trial."""
    steps = dataclasses.replace(trial.experiment.train, examples=None, updates=256)
    brief = dataclasses.replace(
        trial, experiment=dataclasses.replace(trial.experiment, train=steps)
    )
    formats = (torch.contiguous_format, torch.channels_last)
    taken = [
        statistics.median(by_torch(brief, dataset, one).seconds for _ in range(3))
        for one in formats
    ]
    return formats[int(np.argmin(taken))]


def table(cold, warm):
    """Returns the rows of all trials, by (case, way): with compilation, and those without."""
    names = list(dict.fromkeys(name for _, name in cold))
    cases = list(dict.fromkeys(case for case, _ in cold))
    rows = []
    for case in [*cases, "all"]:
        own = cases if case == "all" else [case]
        seconds, mixed, found = {}, {}, {}
        for name in names:
            seconds[name] = sum(
                statistics.median(trial.seconds for trial in warm[one, name]) for one in own
            )
            found[name] = list(itertools.chain(*(cold[one, name] for one in own)))
            mixed[name] = sum(trial.seconds for trial in found[name]) / len(found[name])
        for name in names:
            rows.append(
                Speed(
                    case=case,
                    name=name,
                    seconds=round(seconds[name], 1),
                    trials_per_hour=round(3600 * len(own) / seconds[name], 1),
                    with_compilation=round(3600 / mixed[name], 1),
                    ratio=round(seconds["PyTorch"] / seconds[name], 2),
                    ratio_with_compilation=round(mixed["PyTorch"] / mixed[name], 2),
                    loss=round(statistics.fmean(trial.loss for trial in found[name]), 3),
                    accuracy=round(statistics.fmean(trial.accuracy for trial in found[name]), 3),
                )
            )
    return rows


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--trials", type=int, default=3, help="seeds of each batch size, 2 or more")
    parser.add_argument("--examples", type=int, default=24064, help="training images a trial")
    parser.add_argument("--images", type=int, nargs=2, default=[10000, 2000], help="train, test")
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    dataset = made_up(*options.images)
    plan = ablation(options.batch, options.trials, options.examples)
    cold, warm = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for size in options.batch:
            seeds = [trial for trial in plan if trial.axis_value == size]
            order = faster_format(seeds[0], dataset)
            ways = {
                "fpnlab": lambda trial: by_fpnlab([trial], dataset, root / "alone")[0],
                "PyTorch": lambda trial, order=order: by_torch(trial, dataset, order),
            }
            for seed, (name, way) in itertools.product(seeds, ways.items()):
                cold.setdefault((f"batch {size}", name), []).append(way(seed))
                print(f"{seed.name} {name}: {cold[f'batch {size}', name][-1]}", flush=True)
            warm |= {(f"batch {size}", name): cold[f"batch {size}", name][1:] for name in ways}
            # The same seeds twice: the second time, their program is there.
            pack = f"batch {size}", f"fpnlab, {len(seeds)} packed"
            cold[pack], warm[pack] = (
                by_fpnlab(seeds, dataset, root / f"{size} {i}") for i in range(2)
            )
            print(
                f"{pack}: {cold[pack][0].seconds:.1f}, then {warm[pack][0].seconds:.1f} s a trial"
            )
            assert len({trial.parameters for case in cold.values() for trial in case}) == 1
    timing.report("speed_trials_per_hour", table(cold, warm), options)


if __name__ == "__main__":
    main()
