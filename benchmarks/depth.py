"""Compile time, memory and training step of CIFAR ResNets by depth, and by form of their blocks."""

import argparse
import csv
import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import cifar_resnet
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import Train, init_train, train_step
from fpnlab.types import LabeledBatch

FORMS = {
    "unrolled": {},
    "rematerialized": {"rematerialize": True},
    "scanned": {"repeat": "scanned"},
    "scanned, rematerialized": {"repeat": "scanned", "rematerialize": True},
}
BATCH = 32
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """One network in one form; times in seconds."""

    layers: int
    form: str
    init_s: float  # compiling and computing the initial state
    trace_s: float  # of the training step
    compile_s: float  # of the training step
    temporary_mib: float  # of the training step, as XLA plans it
    step_s: float  # median
    steps: int


def measured(layers: int, form: str, seconds: float) -> Row:
    """Returns the row of one network."""
    backbone = dataclasses.replace(cifar_resnet(layers, norm=BatchNorm()), **FORMS[form])
    task = task_of(Classifier(classes=10, backbone=backbone), CrossEntropy())
    train = Train(examples=BATCH, batch_size=BATCH, learning_rate=0.01)
    begin = time.perf_counter()
    state = jax.block_until_ready(
        jax.jit(lambda key: init_train(key, task, train))(jax.random.key(0))
    )
    ready = time.perf_counter()
    random = np.random.default_rng(0)
    batch = LabeledBatch(
        images=jnp.asarray(random.integers(0, 256, (BATCH, 32, 32, 3)), jnp.uint8),
        labels=jnp.asarray(random.integers(0, 10, BATCH), jnp.int32),
        index=jnp.arange(BATCH),
    )
    step = jax.jit(lambda state, batch: train_step(task, train, state, batch), donate_argnums=0)
    lowered = step.lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis().temp_size_in_bytes / MIB
    times = []
    while not times or (sum(times) < seconds and len(times) < 20):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - start)
    return Row(
        layers=layers,
        form=form,
        init_s=round(ready - begin, 2),
        trace_s=round(traced - ready, 2),
        compile_s=round(done - traced, 2),
        temporary_mib=round(memory, 1),
        step_s=round(statistics.median(times[1:] or times), 4),
        steps=len(times),
    )


def main() -> None:
    """Prints a row for each network and form, and writes them with ``--save``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 56, 110, 218, 1202])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=20, help="time for the steps of a row")
    parser.add_argument("--save", action="store_true", help="write docs/results/depth.csv")
    options = parser.parse_args()
    sys.setrecursionlimit(100_000)
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for layers in options.layers:
        for form in options.forms:
            rows.append(measured(layers, form, options.seconds))
            print(rows[-1], flush=True)
            jax.clear_caches()
    if options.save:
        with (timing.RESULTS / "depth.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows(map(dataclasses.asdict, rows))


if __name__ == "__main__":
    main()
