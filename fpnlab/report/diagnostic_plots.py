"""Plots of diagnostics: layer by layer, by depth, and over a study's axis."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from fpnlab.records.json_files import AxisValue
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

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

ROW_INCHES = 0.17
"""Height of a row for one layer in inches."""
NAMED_ROWS = 50
"""Largest number of rows that are all labeled; of more rows, every second, third, ... is."""
DECADE = 10.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
Line = list[tuple[int | float | str, float]]
"""Points of a line: x, a number or a name, and y."""
Cloud = list[tuple[AxisValue, list[float]]]
"""Axis value of each trial with its numbers, one per layer."""


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """The row of a layer in a figure."""

    name: str
    """Name of the layer."""
    numbers: tuple[float, ...]
    """Values, one per series."""


def plot_spread(
    clouds: Mapping[str, Cloud],
    axis_values: list[AxisValue],
    axis_label: str,
    title: str,
    unit: str,
    path: pathlib.Path,
) -> None:
    """Draws the median and the maximum over layers against the study's axis, for each arm.

    Lines connect the means over seeds; a dot is the median of one seed.

    Args:
      clouds: The numbers of the trials by arm.
      axis_values: The values of the axis.
      axis_label: The axis in words.
      title: Title of the figure.
      unit: Label of the y axis.
      path: The PNG file.
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
                (line,) = axes.plot(x, means, marker + style, color=color, linewidth=1.6)
                if pick is max:
                    line.set_markerfacecolor("white")
                    continue
                line.set_label(arm)
                dots = [(at + 0.09, seed) for at, of in zip(x, seeds) for seed in of]
                aside, y = zip(*dots)
                axes.scatter(aside, y, s=14, color=color, alpha=0.55, linewidths=0, zorder=3)
        axes.plot([], [], "o:", markerfacecolor="white", color="#606060", label="largest")
        _scale(axes.yaxis, numbers)
        show_values(axes, axis_values, axis_label)
        axes.set_ylabel(unit)
        _legend(axes)


def plot_lines(
    bundles: Mapping[str, Sequence[Line]], title: str, unit: str, x_label: str, path: pathlib.Path
) -> None:
    """Draws the median of each bundle of lines, and shades its range.

    Numbers on the x axis have a logarithmic scale; names are evenly spaced in order.

    Args:
      bundles: The lines of the trials by label.
      title: Title of the figure.
      unit: Label of the y axis.
      x_label: Label of the x axis.
      path: The PNG file.
    """
    lines = [line for bundle in bundles.values() for line in bundle]
    stops = [x for x, _ in max(lines, key=len)]
    names = [x for x in stops if isinstance(x, str)]
    with panel(path, title) as axes:
        for i, (label, bundle) in enumerate(bundles.items()):
            if not bundle:
                continue
            at: dict[float, list[float]] = {}
            for line in bundle:
                for rank, (x, y) in enumerate(line):
                    place = rank if isinstance(x, str) else math.log2(x)
                    at.setdefault(place, []).append(y)
            color = ARM_COLORS[i % len(ARM_COLORS)]
            marker = MARKERS[i % len(MARKERS)]
            middle = [median(of) for of in at.values()]
            axes.plot(list(at), middle, label=label, marker=marker, linewidth=1.6, color=color)
            low, high = ([pick(of) for of in at.values()] for pick in (min, max))
            axes.fill_between(list(at), low, high, alpha=0.18, linewidth=0, color=color)
        _scale(axes.yaxis, [y for line in lines for _, y in line])
        if names:
            _mark_stages(axes, names)
        else:
            numbers = [x for x in stops if not isinstance(x, str)]
            axes.set_xticks([math.log2(x) for x in numbers], [str(x) for x in numbers])
        axes.set(xlabel=x_label, ylabel=unit)
        if len(bundles) > 1:
            _legend(axes)


def plot_rows(
    rows: Sequence[LayerRow], names: Sequence[str], title: str, unit: str, path: pathlib.Path
) -> None:
    """Draws one row per layer, the first one on top, with a marker for each of its numbers.

    Args:
      rows: The layers, each with one number per name.
      names: Names of the series of numbers.
      title: Title of the figure.
      unit: Label of the x axis.
      path: The PNG file.
    """
    every = math.ceil(len(rows) / NAMED_ROWS)
    with panel(path, title, height=1.1 + ROW_INCHES * len(rows) / every) as axes:
        y = range(len(rows))
        for i, name in enumerate(names):
            numbers = [row.numbers[i] for row in rows]
            color, marker = ARM_COLORS[i], MARKERS[i]
            axes.plot(numbers, y, marker, label=name, color=color, markersize=5, clip_on=False)
        _scale(axes.xaxis, [number for row in rows for number in row.numbers])
        axes.set_yticks(y[::every], [row.name for row in rows[::every]], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(unit)
        if len(names) > 1:
            _legend(axes)


def plot_course(
    line: Sequence[tuple[float, float]], title: str, unit: str, path: pathlib.Path
) -> None:
    """Draws a number against the training examples."""
    with panel(path, title) as axes:
        examples, y = zip(*line)
        axes.plot(examples, y, color=ARM_COLORS[0], linewidth=1.6)
        axes.set(xlabel="training examples", ylabel=unit)
        axes.set_ylim(bottom=0)
        count_examples(axes)


def _scale(axis: "matplotlib.axis.Axis", numbers: Sequence[float]) -> None:
    """Sets a logarithmic scale if numbers span a decade or more, otherwise from zero."""
    if min(numbers) > 0 and max(numbers) >= DECADE * min(numbers):
        log_scale(axis, crowded=max(numbers) >= DECADE**2 * min(numbers))
    else:
        axis.set_view_interval(0, 1.1 * max(numbers) or 1, ignore=True)


def _legend(axes: "matplotlib.axes.Axes") -> None:
    """Adds a legend below the axes, where it covers nothing."""
    axes.figure.legend(loc="outside lower center", ncols=4)


def _mark_stages(axes: "matplotlib.axes.Axes", names: list[str]) -> None:
    """Labels the stem and the first block of each stage; other blocks have unlabeled ticks."""
    label = lambda name: name.removesuffix(" block 0")
    marks = [label(name) if label(name) != name or name == "stem" else "" for name in names]
    axes.set_xticks(range(len(names)), marks)
