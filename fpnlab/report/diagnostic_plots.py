"""Drawings of what goes on inside networks: layer by layer, by depth, over a study's axis."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from fpnlab.report.figures import (
    ARM_COLORS,
    MARKERS,
    count_examples,
    log_scale,
    offset,
    panel,
    positions,
    show_values,
)

ROW_INCHES = 0.17
"""Height of a layer in a figure that has a row for each."""
NAMED_ROWS = 50
"""Layers in such a figure up to which each is named; of more, every second, third, ... is."""
DECADE = 10.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
Line = list[tuple[Any, float]]
"""Points: x, a number or a name, and y."""
Cloud = list[tuple[Any, list[float]]]
"""For each trial its axis value and numbers, one a layer."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer in a figure that has a row for each."""

    name: str
    numbers: tuple[float, ...]


def plot_spread(
    clouds: Mapping[str, Cloud],
    axis_values: list[Any],
    axis_label: str,
    title: str,
    unit: str,
    path: pathlib.Path,
) -> None:
    """Draws the median and the maximum over layers against the study's axis, for each arm.

    Lines join the means over seeds; a dot is the median of one seed.
    """
    place = positions(axis_values)
    numbers = []
    with panel(path, title) as axes:
        for i, (arm, cloud) in enumerate(clouds.items()):
            if not cloud:
                continue
            color = ARM_COLORS[i % len(ARM_COLORS)]
            side = offset(i, len(clouds))
            values = [value for value in axis_values if any(value == at for at, _ in cloud)]
            x = [place[value] + side for value in values]
            for pick, style in ((median, "-"), (max, ":")):
                seeds = [[pick(found) for at, found in cloud if at == value] for value in values]
                numbers += [number for of in seeds for number in of]
                means = [fmean(of) for of in seeds]
                marker = MARKERS[i % len(MARKERS)]
                look = {"color": color, "marker": marker, "linewidth": 1.6, "linestyle": style}
                if pick is max:
                    axes.plot(x, means, markerfacecolor="white", **look)
                    continue
                axes.plot(x, means, label=arm, **look)
                dots = [(at + 0.09, seed) for at, of in zip(x, seeds) for seed in of]
                axes.scatter(*zip(*dots), s=14, color=color, alpha=0.55, linewidths=0, zorder=3)
        axes.plot([], [], "o:", markerfacecolor="white", color="#606060", label="largest")
        _scale(axes.yaxis, numbers)
        show_values(axes, axis_values, axis_label)
        axes.set_ylabel(unit)
        _legend(axes)


def plot_lines(
    bundles: Mapping[str, Sequence[Line]], title: str, unit: str, x_label: str, path: pathlib.Path
) -> None:
    """Draws the median of each bundle of lines, and shades its range.

    Numbers on the x axis are on a logarithmic scale; names stand in their order.
    """
    lines = [line for bundle in bundles.values() for line in bundle]
    stops = [x for x, _ in max(lines, key=len)]
    named = isinstance(stops[0], str)
    with panel(path, title) as axes:
        for i, (label, bundle) in enumerate(bundles.items()):
            if not bundle:
                continue
            at: dict[float, list[float]] = {}
            for line in bundle:
                for rank, (x, y) in enumerate(line):
                    at.setdefault(rank if named else math.log2(x), []).append(y)
            look = {"color": ARM_COLORS[i % len(ARM_COLORS)]}
            marker = MARKERS[i % len(MARKERS)]
            middle = [median(of) for of in at.values()]
            axes.plot(list(at), middle, label=label, marker=marker, linewidth=1.6, **look)
            low, high = ([pick(of) for of in at.values()] for pick in (min, max))
            axes.fill_between(list(at), low, high, alpha=0.18, linewidth=0, **look)
        _scale(axes.yaxis, [y for line in lines for _, y in line])
        if named:
            _mark_stages(axes, stops)
        else:
            axes.set_xticks([math.log2(x) for x in stops], [str(x) for x in stops])
        axes.set(xlabel=x_label, ylabel=unit)
        if len(bundles) > 1:
            _legend(axes)


def plot_rows(
    rows: Sequence[Row], names: Sequence[str], title: str, unit: str, path: pathlib.Path
) -> None:
    """Draws a row for each layer, the first one on top, with a mark for each of its numbers.

    Args:
      rows: the layers; each has as many numbers as there are names.
      names: of the numbers.
      title: of the figure.
      unit: of the numbers.
      path: of the file.
    """
    every = math.ceil(len(rows) / NAMED_ROWS)
    with panel(path, title, height=1.1 + ROW_INCHES * len(rows) / every) as axes:
        y = range(len(rows))
        for i, name in enumerate(names):
            numbers = [row.numbers[i] for row in rows]
            look = {"color": ARM_COLORS[i], "markersize": 5, "clip_on": False}
            axes.plot(numbers, y, MARKERS[i], label=name, **look)
        _scale(axes.xaxis, [number for row in rows for number in row.numbers])
        axes.set_yticks(y[::every], [row.name for row in rows[::every]], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(unit)
        if len(names) > 1:
            _legend(axes)


def plot_course(line: Line, title: str, unit: str, path: pathlib.Path) -> None:
    """Draws a number over the training examples."""
    with panel(path, title) as axes:
        axes.plot(*zip(*line), color=ARM_COLORS[0], linewidth=1.6)
        axes.set(xlabel="training examples", ylabel=unit)
        axes.set_ylim(bottom=0)
        count_examples(axes)


def _scale(axis: Any, numbers: Sequence[float]) -> None:
    """A logarithmic scale where numbers span a decade or more, otherwise one from zero."""
    if min(numbers) > 0 and max(numbers) >= DECADE * min(numbers):
        log_scale(axis, crowded=max(numbers) >= DECADE**2 * min(numbers))
    else:
        axis.set_view_interval(0, 1.1 * max(numbers) or 1, ignore=True)


def _legend(axes: Any) -> None:
    """Below the axes, where it hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=4)


def _mark_stages(axes: Any, names: list[str]) -> None:
    """Labels the stem and the first block of each stage; a tick without a label is a block."""
    label = lambda name: name.removesuffix(" block 0")
    marks = [label(name) if label(name) != name or name == "stem" else "" for name in names]
    axes.set_xticks(range(len(names)), marks)
