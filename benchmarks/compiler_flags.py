"""Time a training step with and without the XLA flags that make reductions right.

XLA reads its flags once, so that two processes are compared. They take turns of a few steps each,
the other one waiting, and each turn gives a ratio: medians of those do not see a machine that gets
slower or faster. Run it by an interpreter whose jaxlib needs flags (`fpnlab doctor` names them).
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from fpnlab.compiler import NEEDED_FLAGS, jaxlib_version

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "speed_compiler_flags.csv"
STEPS = (("resnet20", 32), ("resnet20", 128), ("detector", 8), ("detector", 32))
TURN_SECONDS = 1.0


def training_step(network: str, batch_size: int):
    """Returns a function that makes one training step and waits for it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fpnlab.config.load import load_config
    from fpnlab.nn.classifier import Classifier
    from fpnlab.nn.norm_specs import BatchNorm
    from fpnlab.nn.resnet import cifar_resnet
    from fpnlab.tasks.kinds import task_of
    from fpnlab.train.objective import CrossEntropy, Objective
    from fpnlab.train.step import Train, init_train, train_step
    from fpnlab.types import Batch, LabeledBatch

    train = Train(examples=10**6, batch_size=batch_size, learning_rate=0.01)
    random = np.random.default_rng(0)
    index = jnp.arange(batch_size)
    if network == "resnet20":
        model = Classifier(classes=10, backbone=cifar_resnet(20, norm=BatchNorm()))
        images = jnp.asarray(random.integers(0, 256, (batch_size, 32, 32, 3)), jnp.uint8)
        batch, objective = (
            LabeledBatch(images=images, labels=index % 10, index=index),
            CrossEntropy(),
        )
    else:
        model, objective = load_config("configs/demo.toml").model, Objective()
        images = jnp.asarray(random.integers(0, 256, (batch_size, 64, 64, 3)), jnp.uint8)
        boxes = jnp.tile(jnp.array([[4.0, 4, 30, 30], [30, 34, 60, 60]]), (batch_size, 1, 1))
        batch = Batch(
            images=images,
            boxes=boxes,
            classes=jnp.zeros((batch_size, 2), jnp.int32),
            valid=jnp.ones((batch_size, 2), bool),
            extent=jnp.full((batch_size, 2), 64.0),
            index=index,
        )
    task = task_of(model, objective, norm_batch=train.statistics_group)
    state = init_train(jax.random.key(0), task, train)
    step = jax.jit(functools.partial(train_step, task, train), donate_argnums=0)
    held = [state]

    def run():
        held[0] = jax.block_until_ready(step(held[0], batch))[0]

    return run


def serve(network: str, batch_size: int) -> None:
    """Makes steps for a second at each line of standard input, and prints their mean times."""
    step = training_step(network, batch_size)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < TURN_SECONDS:
            step()
            steps += 1
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({name: 1e3 * value / steps for name, value in times.items()}), flush=True)


def started(network: str, batch_size: int, flags: str) -> subprocess.Popen:
    """Returns a process that serves steps under these flags."""
    command = [sys.executable, __file__, "--serve", network, str(batch_size), f"--flags={flags}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def compare(network: str, batch_size: int, turns: int) -> dict[str, object]:
    """Returns a row of the table: median times, and medians of the ratios of neighboring turns."""
    needed = " ".join(NEEDED_FLAGS[jaxlib_version()])
    processes = [started(network, batch_size, flags) for flags in (needed, "")]
    pairs = []
    for _ in range(turns):
        pair = []
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            pair.append(json.loads(process.stdout.readline()))
        pairs.append(pair)
    for process in processes:
        process.stdin.close()
        process.wait()
    row: dict[str, object] = {"jaxlib": jaxlib_version(), "network": network}
    row["batch_size"] = batch_size
    for kind in ("wall", "cpu"):
        for place, name in enumerate(("with", "without")):
            times = statistics.median(pair[place][kind] for pair in pairs)
            row[f"{kind}_ms_{name}"] = round(times, 1)
        ratio = statistics.median(with_[kind] / without[kind] for with_, without in pairs)
        row[f"{kind}_ratio"] = round(ratio, 3)
    return row


def main() -> None:
    """Prints a row for each network and batch size; with --save also into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--flags", default="")
    options = parser.parse_args()
    if options.serve:
        os.environ["XLA_FLAGS"] = options.flags  # The import has set what is needed.
        serve(options.serve[0], int(options.serve[1]))
        return
    if jaxlib_version() not in NEEDED_FLAGS:
        parser.exit(message=f"jaxlib {jaxlib_version()} needs no flags: nothing to compare\n")
    rows = []
    for network, batch_size in STEPS:
        rows.append(compare(network, batch_size, options.turns))
        print(rows[-1], flush=True)
    if options.save:
        before = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
        kept = [row for row in before if row["jaxlib"] != jaxlib_version()]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
