"""Figures of a study, each a single panel that is legible on a phone.

Means have Student-t confidence intervals, and each seed is a dot beside its mean. Matplotlib is
imported when the first figure is drawn, and used without its global state.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow
from fpnlab.report.figure_text import draw_every_text, families, names, shortened, wrapped
from fpnlab.report.series import (
    ARM_COLORS,
    INSIDE,
    PAGE_WIDE,
    WIDTH,
    ArmStyle,
    add_legend,
    arm_style,
    positions,
    show_values,
    step,
    width,
)
from fpnlab.report.study_folder import TrialFiles

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

TITLE_LETTERS = 9
"""Columns of a title per inch."""
STATISTICS = {
    "running": ("running", "#0072b2", "o"),
    "precise": ("precise (re-estimated)", "#009e73", "^"),
    "batch": ("of the test batch", "#cc79a7", "D"),
}
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#606060",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": 180,
    "text.parse_math": False,  # A dollar sign in a name is a dollar sign.
}


@contextlib.contextmanager
def panel(
    file: io.BytesIO, title: str, height: float = 3.8, width: float = WIDTH
) -> Iterator["matplotlib.axes.Axes"]:
    """Yields axes, and writes the figure to ``file`` on leaving.

    Args:
      file: Receives the PNG.
      title: Title of the figure.
      height: Height of the figure in inches.
      width: Width of the figure in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.family": families()}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(wrapped(title, round(TITLE_LETTERS * width)))
        yield axes
        draw_every_text(figure)
        # Without the version of matplotlib in its metadata, the file depends on the numbers alone.
        # `print_png` draws once, `savefig` twice.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def plot_metric(summary: Summary, metric: str, file: io.BytesIO) -> None:
    """Draws a metric of each arm against the study's axis, with running statistics."""
    series = [
        Series(label, arm_style(i), _rows(summary.rows, metric, "running", arm))
        for i, (arm, label) in enumerate(zip(summary.arms, names(summary.arms)))
    ]
    with _metric_panel(file, f"{metric} by {summary.axis_label}", summary, series) as axes:
        _draw(axes, summary, series)
        axes.set_ylabel(f"{shortened(metric)} (points)")


def plot_evaluations(summary: Summary, arm: str, file: io.BytesIO) -> None:
    """Draws an arm's metric with running, precise and batch statistics."""
    metric = summary.metric
    series = [
        Series(label, ArmStyle(color, marker, "-"), _rows(summary.rows, metric, evaluation, arm))
        for evaluation, (label, color, marker) in STATISTICS.items()
    ]
    title = f"{shortened(arm)}: {metric} by batch-norm statistics"
    with _metric_panel(file, title, summary, series) as axes:
        _draw(axes, summary, series)
        axes.set_ylabel(f"{shortened(metric)} (points)")


def plot_differences(summary: Summary, file: io.BytesIO) -> None:
    """Draws each other arm minus the baseline, paired by seed, with a line at zero."""
    reference, *labels = names(summary.arms)
    series = [
        Series(label, arm_style(i), _rows(summary.differences, summary.metric, "running", arm))
        for i, (arm, label) in enumerate(zip(summary.arms[1:], labels), 1)
    ]
    subject = labels[0] if len(labels) == 1 else "Each arm"
    title = f"{subject} minus {reference}, paired by seed"
    with _metric_panel(file, title, summary, series) as axes:
        axes.axhline(0, color="#303030", linewidth=1.2)
        _draw(axes, summary, series)
        axes.set_ylabel(f"difference in {shortened(summary.metric)} (points)")


def plot_losses(
    trials: Sequence[TrialFiles],
    axis_values: list[AxisValue],
    axis_label: str,
    title: str,
    file: io.BytesIO,
    limits: tuple[float, float],
) -> None:
    """Draws the smoothed training loss of trials against examples, colored by axis value.

    The curve of a diverged trial ends in a cross. Trials of an arm to which the axis does not apply
    are gray.

    Args:
      trials: The trials.
      axis_values: The values of the axis.
      axis_label: The axis in words.
      title: Title of the figure.
      file: Receives the PNG.
      limits: Limits of the loss, as from ``loss_limits``.
    """
    import matplotlib
    from matplotlib.collections import LineCollection

    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(axis_values)))
    labels = names([*map(str, axis_values), "any"], 20)
    shown = {}
    with panel(file, title) as axes:
        for value, color, label in zip([*axis_values, None], [*colors, "#606060"], labels):
            curves = [
                (trial, *smooth_loss(trial))
                for trial in trials
                if trial.result is not None and repr(trial.result.axis_value) == repr(value)
            ]
            curves = [(trial, x, loss) for trial, x, loss in curves if len(loss)]
            if not curves:
                continue
            # One artist for all curves: thousands of lines would dominate the time of a report.
            lines = LineCollection([np.stack([x, loss], 1) for _, x, loss in curves])
            lines.set(colors=[color], linewidths=1.2, alpha=0.85)
            lines.set_label(label)
            shown[label] = lines
            axes.add_collection(lines)
            ends = [(x[-1], loss[-1]) for trial, x, loss in curves if trial.status == "diverged"]
            if ends:
                x, y = zip(*ends)
                axes.plot(x, y, "X", color="#a33e00", markersize=9, clip_on=False, zorder=4)
        axes.set_ylim(limits)
        _finish_losses(axes, logarithmic=limits[0] > 0)
        # Losses fall, so that the upper right corner is empty; "best" would be slow.
        add_legend(axes, [*shown.values()], [*shown], title=axis_label, inside="upper right")


def plot_run_losses(trial: TrialFiles, file: io.BytesIO) -> None:
    """Draws the smoothed training loss of a trial and its parts against examples."""
    parts = {"loss": "total", "loss_class": "classes", "loss_box": "boxes"}
    curves = {label: smooth_loss(trial, field) for field, label in parts.items()}
    with panel(file, "Training loss") as axes:
        for i, (label, (examples, loss)) in enumerate(curves.items()):
            if len(loss):
                axes.plot(examples, loss, color=ARM_COLORS[i], label=label)
        losses = np.concatenate([loss for _, loss in curves.values()])
        _finish_losses(axes, logarithmic=len(losses) > 0 and bool(losses.min() > 0))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()


def loss_limits(trials: Sequence[TrialFiles]) -> tuple[float, float]:
    """Returns common limits for the smoothed losses of all trials, so that figures compare.

    The lower one is positive if all losses are, so that the scale can be logarithmic.
    """
    losses = np.concatenate([np.ones(0), *(smooth_loss(trial)[1] for trial in trials)])
    if not len(losses):
        return 0.1, 10.0
    low, high = float(losses.min()), float(losses.max())
    if low > 0:
        return low / 1.1, high * 1.1
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def smooth_loss(trial: TrialFiles, field: str = "loss") -> tuple[np.ndarray, np.ndarray]:
    """Returns examples and a loss, averaged over a centered window of 5 % of the records.

    The window is cut off at both ends.
    """
    examples, loss = trial.curve(field)
    half = len(loss) // 40
    index = np.arange(len(loss))
    first, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(loss))
    total = np.concatenate([[0.0], np.cumsum(loss)])
    return examples, (total[end] - total[first]) / (end - first)


def _rows(rows: list[SummaryRow], metric: str, evaluation: str, arm: str) -> list[SummaryRow]:
    key = (metric, evaluation, arm)
    return [row for row in rows if (row.metric, row.evaluation, row.arm) == key]


class Series(NamedTuple):
    """Means over seeds of one arm, or of one source of statistics."""

    label: str
    """Its name in the legend."""
    style: ArmStyle
    """Its look."""
    rows: list[SummaryRow]
    """One row per axis value."""


def _metric_panel(
    file: io.BytesIO, title: str, summary: Summary, series: Sequence[Series]
) -> contextlib.AbstractContextManager["matplotlib.axes.Axes"]:
    """Returns a panel with room for all series beside each tick."""
    inches = width(len(series), summary.axis_values)
    return panel(file, title, height=3.8 if inches < PAGE_WIDE else 6.5, width=inches)


def _draw(axes: "matplotlib.axes.Axes", summary: Summary, series: Sequence[Series]) -> None:
    """Draws means with intervals, connected by a line, and each seed as a dot."""
    from matplotlib.container import ErrorbarContainer

    values = summary.axis_values
    place, between = positions(values), step(len(series), values)
    few = len(series) <= INSIDE
    line_width, marker_size, cap = (1.6, 6.0, 4.0) if few else (0.8, 4.0, 1.5)
    handles: list[ErrorbarContainer] = []
    for i, (label, style, rows) in enumerate(series):
        rows = [row for row in rows if row.mean is not None]
        x = [place[row.axis_value] + between * (i - (len(series) - 1) / 2) for row in rows]
        half = [_half_width(row) for row in rows]
        means = [math.nan if row.mean is None else row.mean for row in rows]
        bars = axes.errorbar(
            x,
            means,
            half,
            fmt=style.marker + style.dashes,
            label=label,
            color=style.color,
            ecolor=style.color,
            linewidth=line_width,
            markersize=marker_size,
            capsize=cap,
        )
        if not few:  # Many lines would cover the means, to which they only lead.
            bars.lines[0].set(color=(style.color, 0.45), mfc=style.color, mec=style.color)
        handles.append(bars)
        dots = [(at + 0.45 * between, value) for row, at in zip(rows, x) for value in _seeds(row)]
        if dots:
            settings = {"color": style.color, "alpha": 0.55, "linewidths": 0, "zorder": 3}
            axes.scatter(*zip(*dots), s=14 if few else 5, **settings)
    if not few:
        for a, b in itertools.pairwise(sorted(place.values())):
            axes.axvline((a + b) / 2, color="#d0d0d0", lw=0.8, zorder=0)
    _limit(axes, [row for one in series for row in one.rows])
    show_values(axes, values, summary.axis_label)
    if len(series) > 1:
        add_legend(axes, handles, [one.label for one in series])


def _half_width(row: SummaryRow) -> float:
    """Returns the half width of the interval; NaN without an interval."""
    return math.nan if row.high is None or row.mean is None else row.high - row.mean


def _seeds(row: SummaryRow) -> list[float]:
    return [value for value in row.values.values() if value is not None]


def _limit(axes: "matplotlib.axes.Axes", rows: list[SummaryRow]) -> None:
    """Limits the y axis around the seeds, since the interval of two seeds can be very wide.

    Error bars are shown up to a distance of the range of all seeds; longer ones are cut off.
    """
    seeds = [value for row in rows for value in _seeds(row)]
    if not seeds:
        return
    low, high = min(seeds), max(seeds)
    room = max(high - low, 1.0)
    lows = [row.low for row in rows if row.low is not None]
    highs = [row.high for row in rows if row.high is not None]
    low = max(min([low, *lows]), low - room)
    high = min(max([high, *highs]), high + room)
    axes.set_ylim(low - 0.05 * room, high + 0.05 * room)


def _finish_losses(axes: "matplotlib.axes.Axes", *, logarithmic: bool) -> None:
    axes.set(xlabel="training examples", ylabel="training loss")
    if logarithmic:
        log_scale(axes.yaxis)
    count_examples(axes)


def log_scale(axis: "matplotlib.axis.Axis", *, crowded: bool = False) -> None:
    """Makes an axis logarithmic, with labels such as 0.5, 1 and 2 instead of powers of ten.

    Args:
      axis: The x or y axis.
      crowded: If true, only powers of ten are labeled.
    """
    from matplotlib import ticker

    if axis is axis.axes.xaxis:
        axis.axes.set_xscale("log")
    else:
        axis.axes.set_yscale("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1.0,) if crowded else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def count_examples(axes: "matplotlib.axes.Axes") -> None:
    """Labels the x axis, which counts examples, with a few integers."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
