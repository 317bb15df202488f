"""Several ways of one computation, timed in turns so that a busy machine disturbs all alike."""

import argparse
import csv
import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

from fpnlab.cli.allocator import keep_freed_memory

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results"


@dataclasses.dataclass(frozen=True)
class Timing:
    """One way in one case; times in milliseconds."""

    case: str
    name: str
    median_ms: float
    best_ms: float
    cpu_ms: float  # median of what all threads of the process used
    ratio: float  # median against that of the last way of the case
    cpu_ratio: float
    calls: int


def arguments(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=10, help="time for each case")
    parser.add_argument("--save", action="store_true", help=f"write a table to {RESULTS.name}/")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch")
    parser.add_argument(
        "--default-malloc", action="store_true", help="leave the C library's allocator as it is"
    )
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Sets the allocator; call it before JAX computes anything."""
    if not options.default_malloc:
        print("freed memory is kept:", keep_freed_memory())


def compare(case: str, ways: Mapping[str, Callable[[], object]], *, seconds: float) -> list[Timing]:
    """Returns the timings of ``ways``; each must wait for its own result.

    They are called in turns. Before each timed call there is an untimed one, because threads of
    one library may still spin when the other starts.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, wall.values())) < 5:
        for name, call in ways.items():
            call()
            start, used = time.perf_counter(), time.process_time()
            call()
            wall[name].append(1e3 * (time.perf_counter() - start))
            cpu[name].append(1e3 * (time.process_time() - used))
    medians = {name: statistics.median(times) for name, times in wall.items()}
    used = {name: statistics.median(times) for name, times in cpu.items()}
    last = list(ways)[-1]
    return [
        Timing(
            case=case,
            name=name,
            median_ms=round(medians[name], 2),
            best_ms=round(min(wall[name]), 2),
            cpu_ms=round(used[name], 2),
            ratio=round(medians[name] / medians[last], 2),
            cpu_ratio=round(used[name] / used[last], 2),
            calls=len(wall[name]),
        )
        for name in ways
    ]


def report(name: str, results: Iterable[Any], options: argparse.Namespace) -> None:
    """Prints a table of dataclasses, and writes it as CSV where the options ask for it."""
    rows = [dataclasses.asdict(result) for result in results]
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("jax", "torch") if installed(p))
    print(f"\n{name}: {os.cpu_count()} cores, {platform.machine()}, {versions}")
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        print("  ".join(f"{row[key]!s:>{width}}" for key, width in widths.items()))
    if options.save:
        path = RESULTS / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(widths), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print("written:", path.relative_to(RESULTS.parents[1]))


def installed(package: str) -> bool:
    """Returns whether ``package`` is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
