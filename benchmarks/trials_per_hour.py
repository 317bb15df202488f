"""The batch-size ablation of batch norm, in trials per hour: a study, and a loop of PyTorch.

Every trial is a ResNet-8 of CIFAR trained on 24,064 images of noise with marks on it, flipped at
random, and measured on 2,000. The study is the whole of ``fpnlab study``, from its processes to its
report, compilation included; the loop keeps nothing, measures once, and has one trial of each batch
size before the study and one after it.
"""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from statistics import fmean

import numpy as np
import timing
import torch
from scene_batches import CONFIG
from torch_networks import TorchClassifier, prepared

from fpnlab import config

SIDE, CLASSES, TRAIN, TEST = 32, 10, 10_000, 2_000


@dataclasses.dataclass(frozen=True)
class Rate:
    """Trials of one batch size, or of all."""

    batch: str
    fpnlab_seconds: (
        float  # a trial's share of a worker's time in training; of all, the study's wall
    )
    torch_seconds: float  # a trial; of all, as many trials as the study has
    fpnlab_per_hour: float | None
    torch_per_hour: float
    ratio: float | None  # of trials an hour
    fpnlab_loss: float  # at the end of training, mean over seeds
    torch_loss: float


def marked_noise(folder: pathlib.Path) -> None:
    """Writes CIFAR's binary files, in which a class is a brighter row of noise."""
    random = np.random.default_rng(0)
    sizes = {f"data_batch_{i}": TRAIN // 5 for i in range(1, 6)} | {"test_batch": TEST}
    for name, count in sizes.items():
        labels = random.integers(0, CLASSES, count, np.uint8)
        images = random.integers(0, 156, (count, 3, SIDE, SIDE), np.uint8)
        images[np.arange(count), :, 3 * labels] += 60
        rows = np.concatenate([labels[:, None], images.reshape(count, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def read(folder: pathlib.Path, pattern: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images, channels last in memory, and labels."""
    raw = np.concatenate([np.fromfile(p, np.uint8) for p in sorted(folder.glob(pattern))])
    rows = raw.reshape(-1, 1 + 3 * SIDE * SIDE)
    images = torch.tensor(rows[:, 1:].reshape(-1, 3, SIDE, SIDE))
    return images.contiguous(memory_format=torch.channels_last), torch.tensor(rows[:, 0]).long()


def torch_trial(experiment, data, seed: int) -> tuple[float, float, int]:
    """Returns the seconds of a trial in PyTorch, its last loss, and its parameters."""
    train, model_spec, begun = experiment.train, experiment.model, time.perf_counter()
    (images, labels), (test_images, test_labels) = data
    torch.manual_seed(seed)
    model = prepared(TorchClassifier(model_spec.backbone, CLASSES))
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": train.weight_decay}, {"params": others}],
        train.peak_rate,
        momentum=0.9,
        nesterov=True,
    )
    mean, deviation = (
        torch.tensor(value).reshape(-1, 1, 1)
        for value in (model_spec.pixel_mean, model_spec.pixel_deviation)
    )
    order = torch.cat([torch.randperm(len(images)) for _ in range(3)])
    last, warmup = [], train.schedule.warmup
    for step in range(train.steps):
        done = step / train.steps
        cosine = 0.5 * (1 + math.cos(math.pi * min(max((done - warmup) / (1 - warmup), 0), 1)))
        for group in optimizer.param_groups:
            group["lr"] = train.peak_rate * min(done / warmup, 1) * cosine
        drawn = order[step * train.batch_size : (step + 1) * train.batch_size]
        x = (images[drawn] - mean) / deviation
        x = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(3), x)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), labels[drawn])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        optimizer.step()
        last = [*last, loss.item()][-max(256 // train.batch_size, 1) :]
    model.eval()
    with torch.no_grad():
        for x, y in zip(test_images.split(256), test_labels.split(256)):
            (model((x - mean) / deviation).argmax(1) == y).float().mean().item()
    parameters = sum(p.numel() for p in model.parameters())
    return time.perf_counter() - begun, float(np.mean(last)), parameters


def toml(root: pathlib.Path, sizes: list[int], seeds: int) -> str:
    """Returns the config of claims 4 and 6 with these files, batch norm alone, and no claims."""
    text = CONFIG.with_name("claim_04_06_batch_size_linear.toml").read_text()
    head = text[: text.index("[study]")]
    data = f'[data]\nkind = "cifar_binary"\nroot = "{root}"\n\n[augment]'
    head = head[: head.index("[data]")] + data + head[head.index("[augment]") + 9 :]
    head = head.replace('shortcut = "pad"', 'shortcut = "projection"')
    axis = f'[[study.axes]]\nfield = "train.batch_size"\nvalues = {sizes}\n\n[study.arms.BN]\n'
    return f'{head}[study]\nmetric = "accuracy"\nseeds = {list(range(seeds))}\n\n{axis}'


def main():
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        marked_noise(root)
        path, out = root / "ablation.toml", root / "study"
        path.write_text(toml(root, options.batch, options.seeds))
        data = read(root, "data_batch_*.bin"), read(root, "test_batch.bin")
        at = lambda size: config.load(path, [("train.batch_size", str(size))])
        in_turn = lambda seed: {size: torch_trial(at(size), data, seed) for size in options.batch}
        before = in_turn(0)
        command = [sys.executable, "-m", "fpnlab", "study", path, "--out", out]
        command += ["--workers", options.workers, "--pack", options.pack]
        begun = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True)
        wall = time.perf_counter() - begun
        after = in_turn(1)
        results = [json.loads(p.read_text()) for p in out.glob("trials/*/result.json")]
    rows = []
    for size in options.batch:
        ours = [result for result in results if result["axis_value"] == size]
        seconds, losses, parameters = zip(before[size], after[size])
        assert {result["parameters"] for result in ours} == set(parameters)
        took = fmean(seconds)
        mine = fmean(result["seconds"] for result in ours)
        loss = fmean(result["final_loss"] for result in ours)
        rows.append(rate(str(size), mine, took, 3600 / took, None, loss, fmean(losses)))
    theirs = options.seeds * sum(row.torch_seconds for row in rows)
    per_hour = 3600 * len(results) / wall, 3600 * len(results) / theirs
    losses = fmean(row.fpnlab_loss for row in rows), fmean(row.torch_loss for row in rows)
    rows.append(rate("all", wall, theirs, per_hour[1], per_hour[0], *losses))
    timing.report("speed_trials_per_hour", rows, options)


def rate(batch, ours, theirs, torch_per_hour, per_hour, loss, torch_loss) -> Rate:
    return Rate(
        batch=batch,
        fpnlab_seconds=round(ours, 1),
        torch_seconds=round(theirs, 1),
        fpnlab_per_hour=per_hour and round(per_hour, 1),
        torch_per_hour=round(torch_per_hour, 1),
        ratio=per_hour and round(per_hour / torch_per_hour, 2),
        fpnlab_loss=round(loss, 3),
        torch_loss=round(torch_loss, 3),
    )


if __name__ == "__main__":
    main()
