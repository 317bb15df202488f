"""Figures of a study, each a single panel that is legible on a phone.

Means have Student-t confidence intervals, and each seed is a dot beside its mean. Matplotlib is
imported when the first figure is drawn, and used without its global state.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow
from fpnlab.report.study_folder import TrialFiles

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

ARM_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colors of arms, distinguishable by color-blind readers (Okabe and Ito, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
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
}


@contextlib.contextmanager
def panel(path: pathlib.Path, title: str, height: float = 3.8) -> Iterator["matplotlib.axes.Axes"]:
    """Yields axes, and writes the figure to ``path`` on leaving.

    Args:
      path: The PNG file.
      title: Title of the figure.
      height: Height of the figure in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        # Without the version of matplotlib in its metadata, the file depends on the numbers alone.
        # `print_png` draws once, `savefig` twice.
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def plot_metric(summary: Summary, metric: str, path: pathlib.Path) -> None:
    """Draws a metric of each arm against the study's axis, with running statistics."""
    series = {arm: _rows(summary.rows, metric, "running", arm) for arm in summary.arms}
    with panel(path, f"{metric} by {summary.axis_label}") as axes:
        _draw(axes, summary, series, ARM_COLORS, MARKERS)
        axes.set_ylabel(f"{metric} (points)")


def plot_evaluations(summary: Summary, arm: str, path: pathlib.Path) -> None:
    """Draws an arm's metric with running, precise and batch statistics."""
    _, colors, markers = zip(*STATISTICS.values())
    series = {
        name: _rows(summary.rows, summary.metric, evaluation, arm)
        for evaluation, (name, _, _) in STATISTICS.items()
    }
    with panel(path, f"{arm}: {summary.metric} by batch-norm statistics") as axes:
        _draw(axes, summary, series, colors, markers)
        axes.set_ylabel(f"{summary.metric} (points)")


def plot_differences(summary: Summary, path: pathlib.Path) -> None:
    """Draws each other arm minus the baseline, paired by seed, with a line at zero."""
    reference, *arms = summary.arms
    series = {
        f"{arm} minus {reference}": _rows(summary.differences, summary.metric, "running", arm)
        for arm in arms
    }
    subject = arms[0] if len(arms) == 1 else "Each arm"
    with panel(path, f"{subject} minus {reference}, paired by seed") as axes:
        axes.axhline(0, color="#303030", linewidth=1.2)
        _draw(axes, summary, series, ARM_COLORS[1:], MARKERS[1:])
        axes.set_ylabel(f"difference in {summary.metric} (points)")


def plot_losses(
    trials: Sequence[TrialFiles],
    axis_values: list[AxisValue],
    axis_label: str,
    title: str,
    path: pathlib.Path,
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
      path: The PNG file.
      limits: Limits of the loss, as from ``loss_limits``.
    """
    import matplotlib
    from matplotlib.collections import LineCollection

    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(axis_values)))
    with panel(path, title) as axes:
        for value, color in [*zip(axis_values, colors), (None, "#606060")]:
            curves = [
                (trial, *smooth_loss(trial))
                for trial in trials
                if trial.result is not None and trial.result.axis_value == value
            ]
            curves = [(trial, x, loss) for trial, x, loss in curves if len(loss)]
            if not curves:
                continue
            # One artist for all curves: thousands of lines would dominate the time of a report.
            lines = LineCollection([np.stack([x, loss], 1) for _, x, loss in curves])
            lines.set(colors=[color], linewidths=1.2, alpha=0.85)
            lines.set_label("any" if value is None else f"{value}")
            axes.add_collection(lines)
            ends = [(x[-1], loss[-1]) for trial, x, loss in curves if trial.status == "diverged"]
            if ends:
                x, y = zip(*ends)
                axes.plot(x, y, "X", color="#a33e00", markersize=9, clip_on=False, zorder=4)
        axes.set_ylim(limits)
        _finish_losses(axes)
        if axes.get_legend_handles_labels()[0]:
            # Losses fall, so that the upper right corner is empty; "best" would be slow.
            axes.legend(title=axis_label, ncols=2, loc="upper right")


def plot_run_losses(trial: TrialFiles, path: pathlib.Path) -> None:
    """Draws the smoothed training loss of a trial and its parts against examples."""
    parts = {"loss": "total", "loss_class": "classes", "loss_box": "boxes"}
    with panel(path, "Training loss") as axes:
        for i, (field, label) in enumerate(parts.items()):
            examples, loss = smooth_loss(trial, field)
            if len(loss):
                axes.plot(examples, loss, color=ARM_COLORS[i], label=label)
        _finish_losses(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()


def loss_limits(trials: Sequence[TrialFiles]) -> tuple[float, float]:
    """Returns common limits for the smoothed losses of all trials, so that figures compare."""
    losses = np.concatenate([np.ones(0), *(smooth_loss(trial)[1] for trial in trials)])
    return (losses.min() / 1.1, losses.max() * 1.1) if len(losses) else (0.1, 10.0)


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


def offset(i: int, n: int) -> float:
    """Returns the horizontal offset of series ``i`` of ``n``, so that series do not overlap."""
    return 0.2 * (i - (n - 1) / 2)


def _is_logarithmic(values: list[AxisValue]) -> bool:
    return all(isinstance(value, int | float) and value > 0 for value in values)


def positions(values: list[AxisValue]) -> dict[AxisValue, float]:
    """Returns the position of each axis value: its binary logarithm, or its rank."""
    if _is_logarithmic(values):
        return {value: math.log2(float(value or 0)) for value in values}
    return {value: float(i) for i, value in enumerate(values)}


def _draw(
    axes: "matplotlib.axes.Axes",
    summary: Summary,
    series: dict[str, list[SummaryRow]],
    colors: Sequence[str],
    markers: Sequence[str],
) -> None:
    """Draws means with intervals, connected by a line, and each seed as a dot."""
    values = summary.axis_values
    place = positions(values)
    for i, (label, rows) in enumerate(series.items()):
        rows = [row for row in rows if row.mean is not None]
        x = [place[row.axis_value] + offset(i, len(series)) for row in rows]
        half = [_half_width(row) for row in rows]
        color, marker = colors[i % len(colors)], markers[i % len(markers)]
        means = [math.nan if row.mean is None else row.mean for row in rows]
        style = f"{marker}-"
        axes.errorbar(x, means, half, fmt=style, color=color, label=label, capsize=4, linewidth=1.6)
        for row, position in zip(rows, x):
            dots = _seeds(row)
            side = [position + 0.09] * len(dots)
            axes.scatter(side, dots, s=14, color=color, alpha=0.55, linewidths=0, zorder=3)
    _limit(axes, [row for rows in series.values() for row in rows])
    show_values(axes, values, summary.axis_label)
    if len(series) > 1:
        axes.legend()


def show_values(axes: "matplotlib.axes.Axes", values: list[AxisValue], label: str) -> None:
    """Labels the x axis with the axis values at their ``positions``."""
    place = positions(values)
    axes.set_xticks(list(place.values()), [str(value) for value in values])
    axes.set_xlim(min(place.values()) - 0.5, max(place.values()) + 0.5)
    axes.set_xlabel(label + (" (log scale)" if _is_logarithmic(values) else ""))
    axes.grid(visible=False, axis="x")


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


def _finish_losses(axes: "matplotlib.axes.Axes") -> None:
    axes.set(xlabel="training examples", ylabel="training loss")
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
