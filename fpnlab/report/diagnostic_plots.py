"""Plots of diagnostics: layer by layer, by depth, and over a study's axis."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from fpnlab.records.json_files import AxisValue
from fpnlab.report.figure_text import drawable, shortened
from fpnlab.report.figure_text import names as short_names
from fpnlab.report.figures import count_examples, log_scale, panel
from fpnlab.report.series import (
    ARM_COLORS,
    INSIDE,
    MARKERS,
    add_legend,
    arm_style,
    positions,
    show_values,
    step,
    width,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

ROW_INCHES = 0.17
"""Height of a row for one layer in inches."""
NAMED_ROWS = 50
"""Largest number of rows that are all labeled; of more rows, every second, third, ... is."""
LONGEST_LAYER = 48
"""Columns of the name of a layer at most."""
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
    file: io.BytesIO,
) -> None:
    """Draws the median and the maximum over layers against the study's axis, for each arm.

    Lines connect the means over seeds; a dot is the median of one seed.

    Args:
      clouds: The numbers of the trials by arm.
      axis_values: The values of the axis.
      axis_label: The axis in words.
      title: Title of the figure.
      unit: Label of the y axis.
      file: Receives the PNG.
    """
    place, between = positions(axis_values), step(len(clouds), axis_values)
    handles, numbers = {}, []
    size = 1.6 if len(clouds) <= INSIDE else 0.8
    with panel(file, title, width=width(len(clouds), axis_values)) as axes:
        for i, (label, cloud) in enumerate(zip(short_names(list(clouds)), clouds.values())):
            if not cloud:
                continue
            color, marker, _ = arm_style(i)
            values = [value for value in axis_values if any(value == at for at, _ in cloud)]
            x = [place[value] + between * (i - (len(clouds) - 1) / 2) for value in values]
            for pick, dashes in ((median, "-"), (max, ":")):
                seeds = [[pick(found) for at, found in cloud if at == value] for value in values]
                numbers += [number for of in seeds for number in of]
                means = [fmean(of) for of in seeds]
                (line,) = axes.plot(x, means, marker + dashes, color=color, lw=size, ms=4 * size)
                if pick is max:
                    line.set_markerfacecolor("white")
                    continue
                handles[label] = line
                dots = [(at + 0.45 * between, seed) for at, of in zip(x, seeds) for seed in of]
                aside, y = zip(*dots)
                settings = {"color": color, "alpha": 0.55, "linewidths": 0, "zorder": 3}
                axes.scatter(aside, y, s=14 if size > 1 else 5, **settings)
        (largest,) = axes.plot([], [], "o:", markerfacecolor="white", color="#606060")
        _scale(axes.yaxis, numbers)
        show_values(axes, axis_values, axis_label)
        axes.set_ylabel(unit)
        shown = [*handles.values(), largest], [*handles, "largest"]
        add_legend(axes, *shown, inside=None)


def plot_lines(
    bundles: Mapping[str, Sequence[Line]], title: str, unit: str, x_label: str, file: io.BytesIO
) -> None:
    """Draws the median of each bundle of lines, and shades its range.

    Numbers on the x axis have a logarithmic scale; names are evenly spaced in order.

    Args:
      bundles: The lines of the trials by label.
      title: Title of the figure.
      unit: Label of the y axis.
      x_label: Label of the x axis.
      file: Receives the PNG.
    """
    lines = [line for bundle in bundles.values() for line in bundle]
    stops = [x for x, _ in max(lines, key=len)]
    names = [x for x in stops if isinstance(x, str)]
    few = len(bundles) <= INSIDE
    handles = {}
    with panel(file, title, width=width(len(bundles), ())) as axes:
        for i, (label, bundle) in enumerate(zip(short_names(list(bundles)), bundles.values())):
            if not bundle:
                continue
            at: dict[float, list[float]] = {}
            for line in bundle:
                for rank, (x, y) in enumerate(line):
                    place = rank if isinstance(x, str) else math.log2(x)
                    at.setdefault(place, []).append(y)
            color, marker, dashes = arm_style(i)
            middle = [median(of) for of in at.values()]
            size = {"lw": 1.6, "ms": 6.0} if few else {"lw": 0.8, "ms": 3.0}
            (line,) = axes.plot(list(at), middle, marker + dashes, color=color, label=label)
            line.set(**size)
            handles[label] = line
            if few:  # Of more arms, the ranges would cover the lines.
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
            add_legend(axes, [*handles.values()], [*handles], inside=None)


def plot_rows(
    rows: Sequence[LayerRow], names: Sequence[str], title: str, unit: str, file: io.BytesIO
) -> None:
    """Draws one row per layer, the first one on top, with a marker for each of its numbers.

    Args:
      rows: The layers, each with one number per name.
      names: Names of the series of numbers.
      title: Title of the figure.
      unit: Label of the x axis.
      file: Receives the PNG.
    """
    every = math.ceil(len(rows) / NAMED_ROWS)
    shown, handles = short_names([row.name for row in rows], LONGEST_LAYER), []
    with panel(file, title, height=1.1 + ROW_INCHES * len(rows) / every) as axes:
        y = range(len(rows))
        for i in range(len(names)):
            numbers = [row.numbers[i] for row in rows]
            settings = {"color": ARM_COLORS[i], "markersize": 5, "clip_on": False}
            handles += axes.plot(numbers, y, MARKERS[i], **settings)
        _scale(axes.xaxis, [number for row in rows for number in row.numbers])
        axes.set_yticks(y[::every], shown[::every], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(unit)
        if len(names) > 1:
            add_legend(axes, handles, names, inside=None)


def plot_course(
    line: Sequence[tuple[float, float]], title: str, unit: str, file: io.BytesIO
) -> None:
    """Draws a number against the training examples."""
    with panel(file, title) as axes:
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


def _mark_stages(axes: "matplotlib.axes.Axes", names: list[str]) -> None:
    """Labels the stem and the first block of each stage; other blocks have unlabeled ticks."""
    label = lambda name: name.removesuffix(" block 0")
    marks = [label(name) if label(name) != name or name == "stem" else "" for name in names]
    axes.set_xticks(range(len(names)), [drawable(shortened(mark)) for mark in marks])
