"""Progress of a run or a study: a bar on a terminal, plain lines elsewhere; on stderr."""

import dataclasses
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fpnlab.cli.command_line import drop_output
from fpnlab.config.trials import Trial
from fpnlab.records.json_files import AxisValue
from fpnlab.records.plain_text import visible
from fpnlab.records.run_records import MetricRecord, RunResult
from fpnlab.study.context import StudyListener
from fpnlab.study.dry_run import clock

SECONDS_BETWEEN_LINES = 15.0
PHASE_SECONDS = 2.0
"""Duration from which a phase without records has a line of its own."""


@dataclasses.dataclass
class Running:
    """A trial that is being run."""

    trial: Trial
    begun: float
    record: MetricRecord | None = None
    """The last that it has logged."""


class TerminalConsole(Console):
    """A console that is silent once nobody reads its output, instead of ending the command."""

    def on_broken_pipe(self) -> None:
        """Drops this and all further output."""
        self.quiet = True
        drop_output(self.file)


class ProgressDisplay(StudyListener):
    """Shows trials done, speed and loss of those that run, and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or TerminalConsole(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, numbers="")
        self.trials, self.workers = 0, 1
        self.later: dict[str, Trial] = {}
        self.running: dict[str, Running] = {}
        self.seconds: dict[AxisValue, list[float]] = {}
        self.done = self.examples_done = 0
        self.printed = 0.0
        self.timer: threading.Timer | None = None

    def __enter__(self) -> "ProgressDisplay":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_phase()
        self.bar.stop()

    def start(self, plan: list[Trial], workers: int = 1) -> None:
        """Takes the trials that are to be run, in order, and by how many workers."""
        self.trials, self.workers = len(plan), workers
        self.later = {trial.name: trial for trial in plan}
        self.bar.update(self.task, total=sum(_examples(trial) for trial in plan))

    def begin(self, trial: Trial) -> None:
        """Shows that a trial starts or goes on."""
        self.later.pop(trial.name, None)
        self.running[trial.name] = Running(trial, time.monotonic())
        self._show("starting")

    def phase(self, trial: Trial, phase: str) -> None:
        """Shows a phase without records; prints a line if it lasts."""
        self._show(phase)
        self._end_phase()
        place = f"{self.done + 1}/{self.trials}  " if self.trials > 1 else ""
        line = f"{place}{trial.name}  {phase} ..."
        self.timer = threading.Timer(PHASE_SECONDS, self._line, [line])
        self.timer.daemon = True
        self.timer.start()

    def _end_phase(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def record(self, trial: Trial, record: MetricRecord) -> None:
        """Shows the speed and loss that a trial has logged."""
        self._end_phase()
        self.running[trial.name].record = record
        if len(self.running) == 1:
            speed = f"{rate:.0f}/s  " if (rate := record.examples_per_second) else ""
            done = f"{record.examples}/{_examples(trial)} examples"
            numbers = f"{done}  {speed}loss {_loss(record)}"
        else:
            # Trials of a pack share a worker, and each has the speed of its share of the time.
            rates = [rate for rate in map(_rate, self.running.values()) if rate]
            busy = min(self.workers, len(self.running))
            numbers = f"{_mean(rates) * busy:.0f} examples/s" if rates else "compiling"
        if (left := self._left()) is not None:
            numbers += f"  {clock(left)} left"
        self._show(numbers)
        if time.monotonic() - self.printed > SECONDS_BETWEEN_LINES:
            self._line(f"{self._title()}  {numbers}")

    def pause(self, trial: Trial) -> None:
        """Takes note that a trial is no longer run."""
        self.running.pop(trial.name, None)
        self.later[trial.name] = trial

    def end(self, trial: Trial, result: RunResult) -> None:
        """Shows what came of a trial; one that was found finished says so."""
        self._end_phase()
        self.later.pop(trial.name, None)
        ran = self.running.pop(trial.name, None)
        took = time.monotonic() - ran.begun if ran and ran.record else None
        if took is not None:
            share = took / result.pack
            self.seconds.setdefault(trial.axis_value, []).append(share)
        self.done += 1
        self.examples_done += _examples(trial)
        title = f"{self.done}/{self.trials}  {trial.name}"
        if result.status == "failed":
            text = f"failed: {result.error}"
        else:
            found = result.metrics["running"]
            first = list(found.items())[:2]
            text = "  ".join([result.status, *(f"{n} {_points(v)}" for n, v in first)])
            text += "  (was finished)" if took is None else f"  in {clock(took)}"
        self.console.print(visible(f"{title}  {text}"), markup=False)
        self.printed = time.monotonic()

    def _left(self) -> float | None:
        """Returns the expected seconds until all trials have ended; None before any was timed.

        Trials are taken to last as those of their kind did; before any has ended, as long as
        their examples take at the speed of those that run.
        """
        every = [s for group in self.seconds.values() for s in group]
        rates = [rate for rate in map(_rate, self.running.values()) if rate]
        if not (every or rates):
            return None

        def whole(trial: Trial) -> float:
            if every:
                return _mean(self.seconds.get(trial.axis_value, every))
            return _examples(trial) / max(_mean(rates), 1e-9)

        def rest(ran: Running) -> float:
            if ran.record is None or not ran.record.examples_per_second:
                return whole(ran.trial)
            return (_examples(ran.trial) - ran.record.examples) / max(_rate(ran), 1e-9)

        work = [*map(rest, self.running.values()), *map(whole, self.later.values())]
        return sum(work, 0.0) / max(min(self.workers, len(work)), 1)

    def _show(self, numbers: str) -> None:
        seen = [ran.record.examples for ran in self.running.values() if ran.record]
        completed = self.examples_done + sum(seen)
        title = visible(self._title())
        self.bar.update(self.task, completed=completed, description=title, numbers=numbers)

    def _title(self) -> str:
        if len(self.running) != 1:
            return f"{self.done}/{self.trials} done, {len(self.running)} running"
        [name] = self.running
        return f"{self.done + 1}/{self.trials}  {name}" if self.trials > 1 else name

    def _line(self, text: str) -> None:
        self.printed = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(visible(text), markup=False, soft_wrap=True)


def _examples(trial: Trial) -> int:
    return trial.experiment.train.total_examples


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _rate(ran: Running) -> float:
    return ran.record.examples_per_second if ran.record else 0.0


def _loss(record: MetricRecord) -> str:
    loss = record.logs.get("loss")
    return "-" if loss is None else f"{loss:.3f}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
