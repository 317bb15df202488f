"""Files of a run folder: ``result.json`` and ``metrics.jsonl``."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import (
    AxisValue,
    JsonObject,
    json_line,
    read_record,
    replace_file,
    write_json,
    writing,
)

TAIL_BYTES = 65536
"""End of a log in which its last record is; longer than any record."""
Metrics = dict[str, dict[str, float | None]]
"""Shares from 0 to 1 (None: not defined), by source of statistics and name of the metric."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One line of ``metrics.jsonl``: training after some steps."""

    step: int
    """Optimizer steps done."""
    examples: int
    """Training images seen, repeats included."""
    pack: int = 1
    """Trials that the program trains together."""
    seconds: float = 0.0
    """Training time so far, of all sessions; of a pack, this trial's share."""
    examples_per_second: float = 0.0
    """Speed since the record before; of a pack, of this trial's share of the time."""
    logs: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """``loss`` and its parts, ``gradient_norm``, ``learning_rate``; None: not finite."""
    effective_rate: float | None = None
    """Median over kernels of ``|update| / |kernel|`` in the last step."""
    effective_rates: dict[str, float | None] | None = None
    """The same of each kernel; only in the record halfway through training."""

    def value(self, name: str) -> float | None:
        """Returns a number of the record by its name in the file; None where there is none."""
        return getattr(self, name) if name in _OWN else self.logs.get(name)


_OWN = {field.name for field in dataclasses.fields(MetricRecord)} - {"logs"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftRow:
    """Distance of running from population statistics in one norm, or one level of it."""

    name: str
    """Path of the norm in the state."""
    level: int | None
    """Pyramid level; None where levels share statistics or there are none."""
    mean_shift: float | None
    """Mean over channels of ``|mean - mean_pop| / deviation_pop``."""
    log_variance_ratio: float | None
    """Mean over channels of ``|log(var / var_pop)|``."""
    count: float
    """Values per channel in one statistics group of training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalRow:
    """Moments of the output of the stem or of a block."""

    name: str
    """Stage and block."""
    squared_mean: float | None
    """Mean over channels of the squared channel mean."""
    variance: float | None
    """Mean over channels of the channel variance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectiveRates:
    """Relative size of one update of each kernel, halfway through training."""

    step: int
    """Optimizer steps done."""
    examples: int
    """Training images seen."""
    learning_rate: float | None
    """Learning rate of the step."""
    rates: dict[str, float | None]
    """``|update| / |kernel|`` by kernel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """Gradient noise at one ``norm_batch``."""

    norm_batch: int
    """Images in a statistics group."""
    noise: float | None
    """Trace of the gradient's covariance over the squared norm of its mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Variance of the gradient that comes from the choice of statistics groups alone."""

    images: int
    """Images of each gradient."""
    draws: int
    """Gradients for each ``norm_batch``."""
    rows: list[NoiseRow]
    """By ``norm_batch``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Measurements inside a trained model."""

    drift: list[DriftRow]
    """One row a batch norm, or level of one."""
    signals: list[SignalRow]
    """One row an output of the backbone, in the order of depth."""
    effective_rates: EffectiveRates | None
    """None where training ended before halfway."""
    gradient_noise: GradientNoise | None
    """None where it was not asked for, or there is no batch norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """``result.json``: a trial that has ended.

    A trial that failed has only the fields up to ``error``, the others their defaults.
    """

    trial: str
    """Name of the trial."""
    config_hash: str = ""
    """SHA-256 of the resolved config."""
    arm: str
    """Arm of the study."""
    axis_value: AxisValue
    """Value of the study's first axis; None for an arm to which it does not apply."""
    seed: int
    """Seed of parameters, data order and augmentation."""
    tuned: dict[str, float] | None = None
    """The tuned field with its value."""
    status: Literal["done", "diverged", "failed"]
    """``diverged``: loss or gradient was not finite; the last finite parameters are measured."""
    error: str | None = None
    """Why it diverged or failed."""
    examples: int = 0
    """Training images seen, repeats included."""
    steps: int = 0
    """Optimizer steps done."""
    class_names: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes."""
    norm_batch: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """Images in a statistics group by position; None where the norm is no batch norm."""
    smallest_count: int | None = None
    """Fewest values per channel in a statistics group; None without a batch norm."""
    final_loss: float | None = None
    """Loss of the last record."""
    parameters: int = 0
    """Number of trained parameters."""
    pack: int = 1
    """Trials that were trained together."""
    metrics: Metrics = dataclasses.field(default_factory=dict)
    """Measured on the test images."""
    test_loss: dict[str, float | None] | None = None
    """Mean cross-entropy of a classifier in nats, by source of statistics."""
    diagnostics: Diagnostics | None = None
    """Measurements inside the model; None where there are none."""
    seconds: float = 0.0
    """Training time of all sessions; of a pack, this trial's share."""


class LineProblem(NamedTuple):
    """A line of a log that is not a whole record."""

    number: int
    """Counted from 1."""
    torn: bool
    """True if its writing was interrupted: it is the last one and has no end."""


def read_result(path: pathlib.Path) -> RunResult:
    """Returns the content of a ``result.json``.

    Raises:
      RunFolderError: It cannot be read, or lacks a field.
    """
    return read_record(path, RunResult, "the result of a run")


def write_result(path: pathlib.Path, result: RunResult) -> None:
    """Writes a ``result.json`` in one move."""
    write_json(path, dataclasses.asdict(result))


def append_record(path: pathlib.Path, record: MetricRecord) -> None:
    """Appends one record to a log, and hands it to the system at once."""
    with writing(path.parent), path.open("a") as file:
        file.write(json_line(_flat(record)))


def write_records(path: pathlib.Path, records: Iterable[MetricRecord]) -> None:
    """Writes a log anew, in one move."""
    replace_file(path, "".join(json_line(_flat(record)) for record in records))


def read_records(path: pathlib.Path) -> list[MetricRecord]:
    """Returns the records of a log; none of a missing one, and not a torn last line.

    Raises:
      RunFolderError: Another line is not a record: the file is damaged.
    """
    records, problems = scan_records(path)
    if damaged := [problem.number for problem in problems if not problem.torn]:
        raise RunFolderError(
            f"{path}, line {damaged[0]}: not a whole record; remove the line, or the folder of "
            "this run to start it again"
        )
    return records


def scan_records(path: pathlib.Path) -> tuple[list[MetricRecord], list[LineProblem]]:
    """Returns the whole records of a log, and the lines that are none."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)
    try:
        # In one go: thousands of trials have hundreds of thousands of lines.
        return [_record(row) for row in json.loads(b"[" + b",".join(lines) + b"]")], []
    except (ValueError, KeyError, TypeError):
        pass
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            torn = number == len(lines) and not line.endswith(b"\n")
            problems.append(LineProblem(number, torn))
    return records, problems


def last_record(path: pathlib.Path) -> MetricRecord | None:
    """Returns the last whole record of a log that may be growing; None before there is one."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
        return _record(json.loads(lines[-1])) if lines else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(row: JsonObject) -> MetricRecord:
    own = {name: row[name] for name in _OWN if name in row}
    logs = {name: value for name, value in row.items() if name not in _OWN}
    return MetricRecord(**own, logs=logs)  # type: ignore[arg-type]


def _flat(record: MetricRecord) -> JsonObject:
    """Returns a record as its line has it: the logs among the other fields."""
    table: JsonObject = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == "logs":
            table |= value
        elif value is not None or field.name == "effective_rate":
            table[field.name] = value
    return table
