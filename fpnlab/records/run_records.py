"""Files of a run folder: ``result.json`` and ``metrics.jsonl``."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import (
    MOST_JSON_BYTES,
    AxisValue,
    JsonObject,
    json_line,
    read_record,
    replace_file,
    write_json,
    writing,
)
from fpnlab.records.regular_files import open_regular, read_regular

LARGEST_INTEGER = 2**63
"""Bound of the integers of a log, which go into arrays."""
TAIL_BYTES = 65536
"""Length of the end of a log that `last_record` reads; longer than any record."""
Metrics = dict[str, dict[str, float | None]]
"""Metrics from 0 to 1 (None: undefined), by source of statistics and name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """One line of ``metrics.jsonl``: the state of training after some steps."""

    step: int
    """Number of optimizer steps done."""
    examples: int
    """Number of training images seen, repeats included."""
    pack: int = 1
    """Number of trials that the program trains together."""
    seconds: float = 0.0
    """Training time of all sessions so far; in a pack, this trial's share."""
    examples_per_second: float = 0.0
    """Speed since the previous record, without the first step of a session, which compiles (0 if
    that is the only one); in a pack, based on this trial's share of the time."""
    logs: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """``loss`` and its parts, ``gradient_norm``, ``learning_rate``; None: not finite."""
    effective_rate: float | None = None
    """Median over kernels of ``|update| / |kernel|`` in the last step."""
    effective_rates: dict[str, float | None] | None = None
    """``|update| / |kernel|`` by kernel; only in the record halfway through training."""

    def value(self, name: str) -> float | None:
        """Returns a number of the record by its name in the file; None if it is absent."""
        return getattr(self, name) if name in _OWN else self.logs.get(name)


_OWN = {field.name for field in dataclasses.fields(MetricRecord)} - {"logs"}
_INTEGERS = ("step", "examples", "pack")
_SPEEDS = ("seconds", "examples_per_second")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftRow:
    """Distance of running from population statistics of a norm at a pyramid level."""

    name: str
    """Path of the norm in the state."""
    level: int | None
    """Pyramid level; None without levels, or if they share statistics."""
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
    """Name of the stem, or of stage and block."""
    squared_mean: float | None
    """Mean over channels of the squared channel mean."""
    variance: float | None
    """Mean over channels of the channel variance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffectiveRates:
    """Relative size of one update of each kernel, halfway through training."""

    step: int
    """Number of optimizer steps done."""
    examples: int
    """Number of training images seen."""
    learning_rate: float | None
    """Learning rate of the step."""
    rates: dict[str, float | None]
    """``|update| / |kernel|`` by kernel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseRow:
    """Gradient noise at one ``norm_batch``."""

    norm_batch: int
    """Number of images in a statistics group."""
    noise: float | None
    """Trace of the gradient's covariance over the squared norm of its mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Variance of the gradient due to the random assignment of images to statistics groups."""

    images: int
    """Number of images of each gradient."""
    draws: int
    """Number of gradients for each ``norm_batch``."""
    rows: list[NoiseRow]
    """One row per ``norm_batch``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Measurements inside a trained model."""

    drift: list[DriftRow]
    """One row per batch norm and pyramid level."""
    signals: list[SignalRow]
    """One row for the stem and each block, in order of depth."""
    effective_rates: EffectiveRates | None
    """None if training ended before halfway."""
    gradient_noise: GradientNoise | None
    """None if it was not requested, or without a batch norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of ``result.json``: a trial that has ended.

    For a failed trial, the fields after ``error`` have their defaults.
    """

    trial: str
    """Name of the trial."""
    config_hash: str = ""
    """SHA-256 of the resolved config."""
    arm: str
    """The arm of the study."""
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
    """Number of training images seen, repeats included."""
    steps: int = 0
    """Number of optimizer steps done."""
    class_names: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes."""
    norm_batch: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """Number of images in a statistics group by position; None for other norms."""
    smallest_count: int | None = None
    """Fewest values per channel in a statistics group; None without a batch norm."""
    final_loss: float | None = None
    """Loss of the last record."""
    parameters: int = 0
    """Number of trained parameters."""
    pack: int = 1
    """Number of trials that were trained together."""
    metrics: Metrics = dataclasses.field(default_factory=dict)
    """Metrics on the test images."""
    test_loss: dict[str, float | None] | None = None
    """Mean cross-entropy of a classifier in nats, by source of statistics."""
    diagnostics: Diagnostics | None = None
    """Diagnostics of the model; None if they were not measured."""
    seconds: float = 0.0
    """Training time of all sessions; in a pack, this trial's share."""


class LineProblem(NamedTuple):
    """A line of a log that is not a complete record."""

    number: int
    """Number of the line, from 1."""
    torn: bool
    """True if its writing was interrupted: it is the last line and has no newline."""


def read_result(path: pathlib.Path) -> RunResult:
    """Returns the content of a ``result.json``.

    Raises:
      RunFolderError: The file cannot be read, lacks a field, or has an impossible metric.
    """
    result = read_record(path, RunResult, "the result of a run")
    if result.status == "done" and not result.metrics.get("running"):
        raise RunFolderError(f"{path}: not the result of a run (metrics.running: no metrics)")
    names = result.metrics.get("running", {}).keys()
    for source, numbers in result.metrics.items():
        if numbers.keys() != names:
            raise RunFolderError(
                f"{path}: not the result of a run (metrics.{source}: other metrics than running)"
            )
        for name, value in numbers.items():
            if value is not None and not 0.0 <= value <= 1.0:
                raise RunFolderError(
                    f"{path}: not the result of a run (metrics.{source}.{name}: {value:g}; "
                    "expected a number from 0 to 1)"
                )
    return result


def write_result(path: pathlib.Path, result: RunResult) -> None:
    """Writes a ``result.json`` atomically."""
    write_json(path, dataclasses.asdict(result))


def append_record(path: pathlib.Path, record: MetricRecord) -> None:
    """Appends a record to a log, and flushes it to the operating system."""
    with writing(path.parent), open(path, "a", encoding="utf-8", opener=_not_a_link) as file:
        file.write(json_line(_flat(record)))


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_records(path: pathlib.Path, records: Iterable[MetricRecord]) -> None:
    """Replaces a log atomically."""
    replace_file(path, "".join(json_line(_flat(record)) for record in records))


def read_records(path: pathlib.Path) -> list[MetricRecord]:
    """Returns the records of a log without a torn last line; an empty list for a missing log.

    Raises:
      RunFolderError: The file cannot be read, or another line is not a record.
    """
    records, problems = scan_records(path)
    if damaged := [problem.number for problem in problems if not problem.torn]:
        raise RunFolderError(
            f"{path}, line {damaged[0]}: not a complete record; remove the line, or remove the "
            "folder of this run to start it again"
        )
    return records


def scan_records(path: pathlib.Path) -> tuple[list[MetricRecord], list[LineProblem]]:
    """Returns the complete records of a log, and its other lines as problems.

    Raises:
      RunFolderError: It cannot be read.
    """
    try:
        content = read_regular(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        content = b""
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error})") from error
    lines = content.splitlines(keepends=True)
    try:
        # Parse all lines at once, which is faster: a study may have hundreds of thousands.
        return [_record(row) for row in json.loads(b"[" + b",".join(lines) + b"]")], []
    except (ValueError, RecursionError):
        pass
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, RecursionError):
            torn = number == len(lines) and not line.endswith(b"\n")
            problems.append(LineProblem(number, torn))
    return records, problems


def last_record(path: pathlib.Path) -> MetricRecord | None:
    """Returns the last complete record of a log that may be growing; None if there is none."""
    try:
        with open_regular(path, MOST_JSON_BYTES) as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
        return _record(json.loads(lines[-1])) if lines else None
    except (OSError, ValueError, RecursionError):
        return None


def _record(row: object) -> MetricRecord:
    """Returns a line of a log as a record.

    Raises:
      ValueError: It is not a record.
    """
    if not isinstance(row, dict):
        raise ValueError("expected a table")
    own = {name: row[name] for name in _OWN if row.get(name) is not None}
    logs = {name: value for name, value in row.items() if name not in _OWN}
    # Spelled out, because pydantic would take several times as long for hundreds of thousands.
    rates = own.get("effective_rates") or {}
    if not isinstance(rates, dict):
        raise ValueError("effective_rates is not a table")
    if not all(_is_integer(own.get(name, 1 if name == "pack" else None)) for name in _INTEGERS):
        raise ValueError("expected integers")
    if not all(_is_number(own.get(name, 0.0)) for name in _SPEEDS):
        raise ValueError("expected numbers")
    rest = (own.get("effective_rate"), *logs.values(), *rates.values())
    if not all(value is None or _is_number(value) for value in rest):
        raise ValueError("expected numbers or null")
    return MetricRecord(**own, logs=logs)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and abs(value) < LARGEST_INTEGER


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _flat(record: MetricRecord) -> JsonObject:
    """Returns a record in the flat form of a line, with the logs among the other fields."""
    table: JsonObject = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == "logs":
            table |= value
        elif value is not None or field.name == "effective_rate":
            table[field.name] = value
    return table
