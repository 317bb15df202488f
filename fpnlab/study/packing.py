"""Measurement of whether trials that share a program are faster when trained together."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax

from fpnlab.config.experiment import Experiment
from fpnlab.data.dataset import Dataset
from fpnlab.run.programs import initial_state, program_of, training_of

WORTH_SECONDS = 120.0
"""Trials that take less than this in all, one after another, are not worth another program."""
GAIN = 0.9
"""Share of the time that a pack may take; nearer to 1, noise would decide."""
ROUNDS = 5
"""Timed steps of either way, in turn; their medians count."""


def packing_pays(experiments: Sequence[Experiment], dataset: Dataset) -> bool:
    """Returns whether training together takes less than nine tenths of the time in turn.

    Nothing is measured, and the answer is no, where they share no program, where training in turn
    takes less than two minutes, or where a batch is spread over several devices. A pack that does
    not fit in memory pays not.

    Args:
      experiments: two or more.
      dataset: their data.
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
    """Returns a function that takes one step of all in one program and returns its seconds."""
    states = [initial_state(experiment) for experiment in experiments]
    training = training_of(experiments, dataset, states, 0)
    carried, batch = [training.state], next(training.batches)

    def seconds() -> float:
        begun = time.perf_counter()
        carried[0], logs = training.step(carried[0], batch)
        jax.block_until_ready((carried, logs))
        return time.perf_counter() - begun

    return seconds
