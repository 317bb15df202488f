"""How a run or a study is going: a bar on a terminal, plain lines elsewhere; on stderr."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fpnlab.config import Trial

SECONDS_BETWEEN_LINES = 15.0


class Watcher:
    """Shows trials done, the current trial's speed and loss, and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, numbers="")
        self.plan: list[Trial] = []
        self.seconds: dict[Any, list[float]] = {}
        self.done = 0
        self.printed = 0.0

    def __enter__(self) -> "Watcher":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, plan: list[Trial]) -> None:
        """Takes the trials that are to be run, in order."""
        self.plan = plan
        total = sum(trial.experiment.train.examples for trial in plan)
        self.bar.update(self.task, total=total)

    def begin(self, trial: Trial) -> None:
        """Shows that a trial starts or goes on."""
        self.trial = trial
        self.begun = time.monotonic()
        self.logged = False
        self.bar.update(self.task, description=self._title(), numbers="compiling")

    def record(self, record: dict[str, Any]) -> None:
        """Shows the speed and loss that the current trial has logged."""
        self.logged = True
        examples = self.trial.experiment.train.examples
        rate = record["examples_per_second"]
        rest = (examples - record["examples"]) / max(rate, 1e-9)
        numbers = (
            f"{record['examples']}/{examples} examples  {rate:.0f}/s  "
            f"loss {record['loss']:.3f}  {_clock(rest + self._later(rate))} left"
        )
        passed = sum(t.experiment.train.examples for t in self.plan[: self.done])
        self.bar.update(self.task, completed=passed + record["examples"], numbers=numbers)
        if time.monotonic() - self.printed > SECONDS_BETWEEN_LINES:
            self._line(f"{self._title()}  {numbers}")

    def end(self, trial: Trial, result: dict[str, Any]) -> None:
        """Shows what came of a trial; one that was found finished says so."""
        self.done += 1
        took = time.monotonic() - self.begun
        if self.logged:
            self.seconds.setdefault(trial.axis_value, []).append(took)
        title = f"{self.done}/{len(self.plan)}  {trial.name}"
        if result["status"] == "failed":
            text = f"failed: {result['error']}"
        else:
            found = result["metrics"]["running"]
            text = f"{result['status']}  AP {_points(found['AP'])}  AP50 {_points(found['AP50'])}"
            text += f"  in {_clock(took)}" if self.logged else "  (was finished)"
        self.console.print(f"{title}  {text}", markup=False)
        self.printed = time.monotonic()

    def _later(self, rate: float) -> float:
        """Returns the expected seconds of the trials after this one.

        They are taken to last as those of their kind did; before any has ended, as long as their
        examples take at this ``rate``.
        """
        later = self.plan[self.done + 1 :]
        every = [s for group in self.seconds.values() for s in group]
        if not every:
            return sum(trial.experiment.train.examples for trial in later) / max(rate, 1e-9)
        mean = lambda values: sum(values) / len(values)
        return sum((mean(self.seconds.get(t.axis_value, every)) for t in later), 0.0)

    def _title(self) -> str:
        many = f"{self.done + 1}/{len(self.plan)}  " if len(self.plan) > 1 else ""
        return f"{many}{self.trial.name}"

    def _line(self, text: str) -> None:
        self.printed = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
