"""What the XLA flags cost that make reductions right: training steps with and without them.

The flags are read once, so that every measurement is a process of its own; those with and without
alternate. Processor time and wall time are medians over the processes, each over its own steps.
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

from fpnlab.compiler import NO_YNN_REDUCTIONS, jaxlib_version

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "speed_compiler_flags.csv"
STEPS = (("resnet20", 32), ("resnet20", 128), ("detector", 8), ("detector", 32))
WITHOUT = "--xla_cpu_experimental_ynn_fusion_type=+reduce"


def measure(network: str, batch_size: int, seconds: float) -> dict[str, float]:
    """Returns milliseconds a step, of the clock and of the processor."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fpnlab.config import load
    from fpnlab.model.backbone import cifar_resnet
    from fpnlab.model.classifier import Classifier
    from fpnlab.model.norm import BatchNorm
    from fpnlab.train.objective import CrossEntropy, Objective
    from fpnlab.train.step import Train, init_train, train_step
    from fpnlab.types import Batch, LabelledBatch

    train = Train(examples=10**6, batch_size=batch_size, learning_rate=0.01)
    random = np.random.default_rng(0)
    index = jnp.arange(batch_size)
    if network == "resnet20":
        model = Classifier(classes=10, backbone=cifar_resnet(20, norm=BatchNorm()))
        images = jnp.asarray(random.integers(0, 256, (batch_size, 32, 32, 3)), jnp.uint8)
        batch, objective = (
            LabelledBatch(images=images, labels=index % 10, index=index),
            CrossEntropy(),
        )
    else:
        model, objective = load("configs/demo.toml").model, Objective()
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
    state = init_train(jax.random.key(0), model, train)
    step = jax.jit(functools.partial(train_step, model, objective, train), donate_argnums=0)
    for _ in range(3):
        state = jax.block_until_ready(step(state, batch))[0]
    walls, cpus, start = [], [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(step(state, batch))[0]
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": 1e3 * statistics.median(walls), "cpu": 1e3 * statistics.median(cpus)}


def main() -> None:
    """Prints a row for each network and batch size; with --save also into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.seconds)))
        return
    rows = []
    for network, batch_size in (
        ("resnet20", 32),
        ("resnet20", 128),
        ("detector", 8),
        ("detector", 32),
    ):
        found = {NO_YNN_REDUCTIONS: [], WITHOUT: []}
        for _ in range(options.rounds):
            for flags, timings in found.items():
                command = [sys.executable, __file__, "--one", network, str(batch_size)]
                done = subprocess.run(
                    [*command, "--seconds", str(options.seconds)],
                    env=os.environ | {"XLA_FLAGS": flags},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                timings.append(json.loads(done.stdout.splitlines()[-1]))
        median = {
            (name, kind): statistics.median(timing[kind] for timing in found[flags])
            for name, flags in (("with", NO_YNN_REDUCTIONS), ("without", WITHOUT))
            for kind in ("wall", "cpu")
        }
        row = {
            "jaxlib": jaxlib_version(),
            "network": network,
            "batch_size": batch_size,
            **{f"{kind}_ms_{name}": round(value, 1) for (name, kind), value in median.items()},
            "wall_ratio": round(median["with", "wall"] / median["without", "wall"], 3),
            "cpu_ratio": round(median["with", "cpu"] / median["without", "cpu"], 3),
        }
        print(row)
        rows.append(row)
    if options.save:
        before = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
        kept = [row for row in before if row["jaxlib"] != jaxlib_version()]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
