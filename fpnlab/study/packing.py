"""Measurement that decides whether trials are trained together, as a pack."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset
from fpnlab.run.programs import initial_state, program_of, training_of

WORTH_SECONDS = 120.0
"""Total time of trials below which compiling another program does not pay."""
GAIN = 0.9
"""Largest time of a pack relative to the trials in sequence; closer to 1, noise would decide."""
ROUNDS = 5
"""Number of timed steps of both ways, alternately; the medians are compared."""


def packing_pays(experiments: Sequence[Experiment], dataset: Dataset) -> bool:
    """Returns whether training as a pack takes less than 90 % of the time in sequence.

    The result is False without a measurement if the experiments have different programs or a batch
    is sharded over several devices. It is also False if training in sequence takes less than two
    minutes, or if the pack does not fit in memory.

    Args:
      experiments: Two or more experiments.
      dataset: The data of the experiments.
    """
    if len(set(map(program_of, experiments))) > 1 or jax.local_device_count() > 1:
        return False
    one, alone = experiments[0], stepper(experiments[:1], dataset)
    alone()
    in_turn = len(experiments) * alone()
    if in_turn * one.train.steps < WORTH_SECONDS:
        return False
    try:
        together = stepper(experiments, dataset)
        together()
        times = [(alone(), together()) for _ in range(ROUNDS)]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return False
        raise
    single, packed = map(statistics.median, zip(*times))
    return packed < GAIN * len(experiments) * single


def stepper(experiments: Sequence[Experiment], dataset: Dataset) -> Callable[[], float]:
    """Returns a function that runs one step of all experiments and returns its seconds."""
    states = [initial_state(experiment) for experiment in experiments]
    training = training_of(experiments, dataset, states, 0)
    carried, batch = [training.state], next(training.batches)

    def seconds() -> float:
        started = time.perf_counter()
        carried[0], logs = training.step(carried[0], batch)
        jax.block_until_ready((carried, logs))
        return time.perf_counter() - started

    return seconds
