"""Hooks of the training loop: logging, stopping on divergence and on request, checkpoints.

Trials that share a compiled program can be trained together, as a pack. The loop sees one stacked
state; the hooks split it by trial, and each trial's folder has the same files as if it were trained
alone. All processes of a run execute the same hooks, since every process must call the collective
operations in them, but only process 0 writes files.
"""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.errors import Interrupted
from fpnlab.records.run_records import MetricRecord, append_record, read_records, write_records
from fpnlab.run.diagnosis import median_rate, rounded_rates
from fpnlab.run.folder import Run
from fpnlab.run.interrupts import Stop
from fpnlab.run.loop import Hook
from fpnlab.run.programs import Logs, Training, copied
from fpnlab.train.parallel import in_any, one_copy
from fpnlab.train.step import TrainState


def log_interval(experiment: Experiment) -> int:
    """Returns the number of steps between two records of ``metrics.jsonl``."""
    return max(experiment.log_examples // experiment.train.batch_size, 1)


class Pack:
    """Progress of the trials of one program: which still train, and the results of the others."""

    def __init__(
        self, runs: Sequence[Run], training: Training, live: Sequence[int], steps: Sequence[int]
    ) -> None:
        """Starts a session, and removes records beyond the restored step from each log.

        Args:
          runs: The trials.
          training: The program that trains them.
          live: Indices of the trials that continue, all from the same step.
          steps: Number of steps that each trial has done.
        """
        self.runs, self.training = runs, training
        self.experiment = runs[0].trial.experiment
        self.checkpoints = [run.files.checkpoints() for run in runs]
        self.live = list(live)
        """Indices of the trials that still train."""
        self.ending: list[int] = []
        """Indices of the trials that end at this step."""
        self.stopping = False
        """True if all trials stop at this step, to be resumed later."""
        self.ended: dict[int, tuple[TrainState, float]] = {}
        """Last state and training time in seconds of the trials that ended in this session."""
        self.start = steps[live[0]]
        self.before = [cut_log(run, step) for run, step in zip(runs, steps)]
        """Training time of each trial in earlier sessions, in seconds."""
        self._begun = time.monotonic()

    def seconds(self, i: int) -> float:
        """Returns a trial's share of the training time in seconds, earlier sessions included."""
        return round(self.before[i] + (time.monotonic() - self._begun) / len(self.runs), 3)

    def is_logged(self, step: int) -> bool:
        """Returns whether a step is logged."""
        return step % log_interval(self.experiment) == 0 or self.is_last(step)

    def is_last(self, step: int) -> bool:
        """Returns whether a step is the last one of training."""
        return step == self.experiment.train.steps


def cut_log(run: Run, step: int) -> float:
    """Returns the training time of a run up to ``step``, after removing later records."""
    records = [record for record in read_records(run.files.metrics) if record.step <= step]
    write_records(run.files.metrics, records)
    return records[-1].seconds if records else 0.0


@dataclasses.dataclass
class LogMetrics(Hook[TrainState, Logs]):
    """Writes and reports a record of each trial at every logged step."""

    pack: Pack

    def __post_init__(self) -> None:
        self._params = []
        self._step, self._time = self.pack.start, time.monotonic()

    def before_step(self, step: int, state: TrainState) -> None:
        """Copies the parameters, from which the size of the update is computed."""
        pack = self.pack
        self._params = copied(pack.training.separate(state.params)) if pack.is_logged(step) else []

    def after_step(self, step: int, state: TrainState, logs: Logs) -> bool:
        """Writes the records; never ends training."""
        pack = self.pack
        if step == pack.start + 1:
            # The first step of a session includes compilation, which no speed should.
            jax.block_until_ready(logs)
            self._step, self._time = step, time.monotonic()
        if not pack.is_logged(step):
            return False
        train, every = pack.experiment.train, log_interval(pack.experiment)
        last_record = (step - 1) // every * every
        halfway = 2 * last_record < train.steps <= 2 * step
        after = pack.training.separate(state.params)
        values = {name: np.atleast_1d(one_copy(value)) for name, value in logs.items()}
        now = time.monotonic()
        # Like `seconds`, the speed is based on a trial's share of the pack's time.
        examples = (step - self._step) * train.batch_size * len(pack.runs)
        speed = examples / (now - self._time) if examples else 0.0
        for i in pack.live:
            rates = rounded_rates(self._params[i], after[i])
            record = MetricRecord(
                step=step,
                examples=step * train.batch_size,
                pack=len(pack.runs),
                seconds=pack.seconds(i),
                examples_per_second=round(speed, 2),
                logs={name: float(f"{value[i]:.6g}") for name, value in values.items()},
                effective_rate=median_rate(rates),
                effective_rates=rates if halfway else None,
            )
            append_record(pack.runs[i].files.metrics, record)
            pack.runs[i].report(record)
        self._step, self._time = step, now
        return False


@dataclasses.dataclass
class StopOnDivergence(Hook[TrainState, Logs]):
    """Ends diverged trials, whose updates are skipped, at the next logged step."""

    pack: Pack

    def after_step(self, step: int, state: TrainState, logs: Logs) -> bool:
        """Marks the diverged trials; never ends training of the others."""
        if self.pack.is_logged(step):
            skipped = np.atleast_1d(one_copy(state.skipped))
            self.pack.ending = [i for i in self.pack.live if skipped[i]]
        return False


@dataclasses.dataclass
class StopOnRequest(Hook[TrainState, Logs]):
    """Stops all trials after the step at which any process requested a stop."""

    pack: Pack
    stop: Stop

    def after_step(self, step: int, state: TrainState, logs: Logs) -> bool:
        """Marks the request; ``SaveCheckpoints`` saves and ends training."""
        # `in_any` is a collective operation, which all processes must call at the same steps. At
        # logged steps they synchronize anyway; at every step it would slow training down.
        if self.pack.is_logged(step) or jax.process_count() == 1:
            self.pack.stopping = in_any(self.stop.requested)
        return False


@dataclasses.dataclass
class SaveCheckpoints(Hook[TrainState, Logs]):
    """Saves all trials at intervals and on a stop, and each trial when it ends.

    Must be the last hook: it acts on the marks that the others leave in the pack.
    """

    pack: Pack

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def after_step(self, step: int, state: TrainState, logs: Logs) -> bool:
        """Returns whether all trials have ended.

        Raises:
          Interrupted: A stop was requested, and all trials have been saved.
          CheckpointError: A checkpoint could not be written.
        """
        pack = self.pack
        ending = list(pack.live) if pack.is_last(step) else pack.ending
        elapsed = time.monotonic() - self._saved
        due = pack.stopping or elapsed > pack.experiment.checkpoint_seconds
        if due or ending:
            states = pack.training.separate(state)
            for i in pack.live if due else ending:
                if jax.process_index() == 0:
                    pack.checkpoints[i].save(step, states[i])
            self._saved = time.monotonic()
            pack.ended |= {i: (states[i], pack.seconds(i)) for i in ending}
            pack.live = [i for i in pack.live if i not in ending]
            pack.ending = []
        if pack.stopping:
            folders = ", ".join(str(run.folder) for run in pack.runs)
            steps = pack.experiment.train.steps
            raise Interrupted(f"{folders}: stopped after step {step} of {steps}, saved")
        return not pack.live
