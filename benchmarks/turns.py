"""Training steps in processes that take turns, to compare settings that a process reads once.

Each process makes steps for a second, the others waiting, and each round of turns gives a ratio:
medians of those do not see a machine that gets slower or faster.
"""

import functools
import json
import resource
import subprocess
import sys
import time

TURN_SECONDS = 1.0


def training_step(network: str, batch_size: int):
    """Returns a function that makes one training step and waits for it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fpnlab.config.load import load_config
    from fpnlab.nn.classifier import Classifier
    from fpnlab.nn.norm_specs import BatchNorm
    from fpnlab.nn.published_networks import cifar_resnet
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
        row = {name: 1e3 * value / steps for name, value in times.items()}
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(row), flush=True)


def started(command: list[str]) -> subprocess.Popen:
    """Returns a process that serves steps."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def rounds(processes: list[subprocess.Popen], count: int) -> list[list[dict[str, float]]]:
    """Returns the step times of each process in each of ``count`` rounds, and ends them."""
    found = []
    for _ in range(count):
        times = []
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            times.append(json.loads(process.stdout.readline()))
        found.append(times)
    for process in processes:
        process.stdin.close()
        process.wait()
    return found
