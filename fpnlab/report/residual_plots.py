"""Plots of residual networks taken apart: lesions, paths, and correlations of gradients."""

import io
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from fpnlab.report.figures import log_scale, panel
from fpnlab.report.series import ARM_COLORS, MARKERS, PAGE_WIDE, WIDTH, add_legend, arm_style

if TYPE_CHECKING:
    import matplotlib.axes

ALL_PATHS = "#606060"
"""Color of the distribution of all paths."""
Errors = Mapping[int, float]
"""Error in points by the number of the deleted block."""


def plot_lesions(
    errors: Mapping[str, Errors],
    whole: Mapping[str, float],
    stages: Sequence[int],
    title: str,
    file: io.BytesIO,
) -> None:
    """Draws the error of a network without one block, for each block (arXiv:1605.06431, fig. 3).

    Args:
      errors: Errors in points by network or source of statistics; blocks that cannot be deleted are
        left out.
      whole: Error without a lesion in points, by the same names.
      stages: Number of the first block of each stage.
      title: Title of the figure.
      file: Receives the PNG.
    """
    handles, lines = [], []
    blocks = [block for of in errors.values() for block in of]
    with panel(file, title, width=_width(max(blocks) + 1)) as axes:
        for start in stages[1:]:
            axes.axvline(start - 0.5, color="#909090", linewidth=1, linestyle=":")
        for i, (name, of) in enumerate(errors.items()):
            color, marker, _ = arm_style(i)
            lines.append(axes.axhline(whole[name], color=color, linewidth=1.2, linestyle="--"))
            low = [min(whole[name], error) for error in of.values()]
            high = [max(whole[name], error) for error in of.values()]
            shift = 0.16 * (i - (len(errors) - 1) / 2)
            places = [block + shift for block in of]
            axes.vlines(places, low, high, color=color, linewidth=1.6, alpha=0.6)
            handles += axes.plot(places, [*of.values()], marker, color=color, markersize=5)
        axes.set_xlim(-0.6, max(blocks) + 0.6)
        largest = max(*whole.values(), *(max(of.values()) for of in errors.values()))
        axes.set_ylim(0, 1.08 * largest)
        axes.set(xlabel="deleted block (dotted: a stage begins)", ylabel="error (points)")
        _whole_numbers(axes)
        axes.grid(visible=False, axis="x")
        add_legend(axes, [*handles, lines[-1]], [*errors, "whole network"], inside=None)


def plot_changed_blocks(
    errors: Mapping[str, Mapping[int, Sequence[float]]],
    whole: float,
    label: str,
    title: str,
    file: io.BytesIO,
) -> None:
    """Draws the error against the number of changed blocks, with a dot for each random draw.

    See arXiv:1605.06431, figure 5.

    Args:
      errors: Errors in points of each draw, by network and by the number of changes.
      whole: Error of the whole network in points.
      label: The changes in words.
      title: Title of the figure.
      file: Receives the PNG.
    """
    handles = []
    with panel(file, title) as axes:
        handles.append(axes.axhline(whole, color="#303030", linewidth=1.2))
        for i, of in enumerate(errors.values()):
            color, marker, _ = arm_style(i)
            dots = [(count, error) for count, draws in of.items() for error in draws]
            axes.scatter(*zip(*dots), s=12, color=color, alpha=0.45, linewidths=0, zorder=3)
            middle = [median(draws) for draws in of.values()]
            handles += axes.plot([*of], middle, f"{marker}-", color=color, markersize=5)
        axes.set_ylim(bottom=0)
        axes.set(xlabel=label, ylabel="error (points)")
        _whole_numbers(axes)
        add_legend(axes, handles, ["whole network", *(f"{name}, median" for name in errors)])


def plot_path_norms(
    norms: Mapping[str, Sequence[float]], title: str, unit: str, file: io.BytesIO
) -> None:
    """Draws the norm of the gradient through paths by their length (arXiv:1605.06431, figure 6a).

    Args:
      norms: Norms for the lengths from 0 on by label, above 0.
      title: Title of the figure.
      unit: Label of the y axis.
      file: Receives the PNG.
    """
    with panel(file, title) as axes:
        handles = []
        for i, of in enumerate(norms.values()):
            color, marker, _ = arm_style(i)
            settings = {"color": color, "markersize": 4, "linewidth": 1.4}
            handles += axes.plot(range(len(of)), of, f"{marker}-", **settings)
        lowest, largest = (pick(n for of in norms.values() for n in of) for pick in (min, max))
        log_scale(axes.yaxis, crowded=largest > 100 * lowest)
        axes.set(xlabel="length of the path (branches)", ylabel=unit)
        _whole_numbers(axes)
        add_legend(axes, handles, [*norms])


def plot_path_shares(
    paths: Sequence[float],
    contributions: Mapping[str, Sequence[float]],
    effective: tuple[int, int],
    title: str,
    file: io.BytesIO,
) -> None:
    """Draws the distribution of all paths over lengths beside that of the gradient (figure 6c).

    Args:
      paths: Share of all paths for the lengths from 0 on.
      contributions: Shares of the gradient for the same lengths, by label.
      effective: First and last length of the interval that is shaded.
      title: Title of the figure.
      file: Receives the PNG.
    """
    lengths = range(len(paths))
    with panel(file, title) as axes:
        first, last = effective
        span = axes.axvspan(first - 0.5, last + 0.5, color=ARM_COLORS[0], alpha=0.1, linewidth=0)
        handles = [
            span,
            *axes.plot(lengths, [100 * share for share in paths], "--", color=ALL_PATHS),
        ]
        for i, shares in enumerate(contributions.values()):
            percent = [100 * share for share in shares]
            settings = {"color": ARM_COLORS[i], "markersize": 4}
            handles += axes.plot(lengths, percent, f"{MARKERS[i]}-", **settings)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="length of the path (branches)", ylabel="share (percent)")
        _whole_numbers(axes)
        add_legend(axes, handles, ["effective lengths", "all paths", *contributions], inside=None)


def plot_correlation(
    correlations: Mapping[str, Sequence[float]], title: str, file: io.BytesIO
) -> None:
    """Draws the correlation of gradients by the distance of inputs (arXiv:1702.08591, figure 2).

    Args:
      correlations: Correlation at distances of 0, 1, ... steps on a line, by network.
      title: Title of the figure.
      file: Receives the PNG.
    """
    with panel(file, title) as axes:
        axes.axhline(0, color="#303030", linewidth=1)
        handles = []
        for i, of in enumerate(correlations.values()):
            color, marker, _ = arm_style(i)
            handles += axes.plot(range(len(of)), of, f"{marker}-", color=color, markersize=4)
        axes.set_ylim(top=1.05)
        axes.set(xlabel="distance of the inputs (steps)", ylabel="correlation of the gradients")
        _whole_numbers(axes)
        add_legend(axes, handles, [*correlations])


def _width(blocks: int) -> float:
    """Returns the width of a figure with a place for each block in inches."""
    return min(max(WIDTH, 0.3 * blocks), PAGE_WIDE)


def _whole_numbers(axes: "matplotlib.axes.Axes") -> None:
    """Labels the x axis, which counts, with integers."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
