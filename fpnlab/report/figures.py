"""Figures of a study: each a single panel, narrow enough to stay legible on a telephone.

Means have Student-t intervals, and every seed is shown as a dot beside its mean. Matplotlib is
loaded when the first figure is drawn, and used without its global state.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary, SummaryRow
from fpnlab.report.study_folder import TrialFiles

ARM_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""From Okabe and Ito (2008), told apart by color-blind readers; markers differ as well."""
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
def panel(path: pathlib.Path, title: str, height: float = 3.8) -> Iterator[Any]:
    """Yields axes to draw on, and writes the figure to ``path`` afterwards; height in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        # Without the version of matplotlib in it, the same numbers give the same file. The
        # canvas draws once; savefig would twice.
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def plot_metric(summary: Summary, metric: str, path: pathlib.Path) -> None:
    """Draws a metric of each arm against the study's axis, under running statistics."""
    keys = {"metric": metric, "evaluation": "running"}
    series = {arm: _rows(summary.rows, arm=arm, **keys) for arm in summary.arms}
    with panel(path, f"{metric} by {summary.axis_label}") as axes:
        _draw(axes, summary, series, ARM_COLORS, MARKERS)
        axes.set_ylabel(f"{metric} (points)")


def plot_evaluations(summary: Summary, arm: str, path: pathlib.Path) -> None:
    """Draws an arm's metric under running, precise and batch statistics."""
    keys = {"metric": summary.metric, "arm": arm}
    _, colors, markers = zip(*STATISTICS.values())
    series = {
        name: _rows(summary.rows, evaluation=evaluation, **keys)
        for evaluation, (name, _, _) in STATISTICS.items()
    }
    with panel(path, f"{arm}: {summary.metric} by the statistics at test time") as axes:
        _draw(axes, summary, series, colors, markers)
        axes.set_ylabel(f"{summary.metric} (points)")


def plot_differences(summary: Summary, path: pathlib.Path) -> None:
    """Draws each later arm minus the first, paired by seed, with the line of no difference."""
    reference, *arms = summary.arms
    keys = {"metric": summary.metric, "evaluation": "running"}
    series = {
        f"{arm} minus {reference}": _rows(summary.differences, arm=arm, **keys) for arm in arms
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

    A cross ends the curve of a trial that diverged. A trial without an axis value, because the
    axis does not apply to its arm, is gray.
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
            # One artist: thousands of lines would take most of a report's time.
            lines = LineCollection([np.stack([x, loss], 1) for _, x, loss in curves])
            lines.set(colors=[color], linewidths=1.2, alpha=0.85)
            lines.set_label("any" if value is None else f"{value}")
            axes.add_collection(lines)
            ends = [(x[-1], loss[-1]) for trial, x, loss in curves if trial.status == "diverged"]
            if ends:
                look = {"color": "#a33e00", "markersize": 9, "clip_on": False, "zorder": 4}
                axes.plot(*zip(*ends), "X", **look)
        axes.set_ylim(limits)
        _finish_losses(axes)
        if axes.get_legend_handles_labels()[0]:
            # Losses fall; to find the emptiest corner would mean to look at each point.
            axes.legend(title=axis_label, ncols=2, loc="upper right")


def plot_run_losses(trial: TrialFiles, path: pathlib.Path) -> None:
    """Draws the smoothed training loss of one trial, and its parts, against examples."""
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
    """Returns limits that hold all smoothed losses, so that panels can be compared."""
    losses = np.concatenate([np.ones(0), *(smooth_loss(trial)[1] for trial in trials)])
    return (losses.min() / 1.1, losses.max() * 1.1) if len(losses) else (0.1, 10.0)


def smooth_loss(trial: TrialFiles, field: str = "loss") -> tuple[np.ndarray, np.ndarray]:
    """Returns examples and a loss averaged over a window of 5 % of the trial's records.

    At the ends it is the mean of those records in the window that there are.
    """
    examples, loss = trial.curve(field)
    half = len(loss) // 40
    index = np.arange(len(loss))
    first, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(loss))
    total = np.concatenate([[0.0], np.cumsum(loss)])
    return examples, (total[end] - total[first]) / (end - first)


def _rows(rows: list[SummaryRow], **keys: Any) -> list[SummaryRow]:
    return [row for row in rows if all(getattr(row, k) == value for k, value in keys.items())]


def offset(i: int, n: int) -> float:
    """Returns how far to set series ``i`` of ``n`` aside, so that they do not cover each other."""
    return 0.2 * (i - (n - 1) / 2)


def _is_logarithmic(values: list[AxisValue]) -> bool:
    return all(isinstance(value, int | float) and value > 0 for value in values)


def positions(values: list[AxisValue]) -> dict[AxisValue, float]:
    """Returns the place of each axis value: its binary logarithm, or its rank without one."""
    if _is_logarithmic(values):
        return {value: math.log2(float(value or 0)) for value in values}
    return {value: float(i) for i, value in enumerate(values)}


def _draw(
    axes: Any,
    summary: Summary,
    series: dict[str, list[SummaryRow]],
    colors: Sequence[str],
    markers: Sequence[str],
) -> None:
    """Draws means with intervals, joined by a line, and each seed as a dot."""
    values = summary.axis_values
    place = positions(values)
    for i, (label, rows) in enumerate(series.items()):
        rows = [row for row in rows if row.mean is not None]
        x = [place[row.axis_value] + offset(i, len(series)) for row in rows]
        half = [_half_width(row) for row in rows]
        color, marker = colors[i % len(colors)], markers[i % len(markers)]
        look = {"color": color, "marker": marker, "capsize": 4, "linewidth": 1.6}
        axes.errorbar(x, [row.mean for row in rows], half, label=label, **look)
        for row, position in zip(rows, x):
            dots = _seeds(row)
            side = [position + 0.09] * len(dots)
            axes.scatter(side, dots, s=14, color=color, alpha=0.55, linewidths=0, zorder=3)
    _limit(axes, [row for rows in series.values() for row in rows])
    show_values(axes, values, summary.axis_label)
    if len(series) > 1:
        axes.legend()


def show_values(axes: Any, values: list[AxisValue], label: str) -> None:
    """Marks the axis values where ``positions`` puts them."""
    place = positions(values)
    axes.set_xticks(list(place.values()), [str(value) for value in values])
    axes.set_xlim(min(place.values()) - 0.5, max(place.values()) + 0.5)
    axes.set_xlabel(label + (" (log scale)" if _is_logarithmic(values) else ""))
    axes.grid(visible=False, axis="x")


def _half_width(row: SummaryRow) -> float:
    """Returns half of the interval; nan where there is none."""
    return math.nan if row.high is None or row.mean is None else row.high - row.mean


def _seeds(row: SummaryRow) -> list[float]:
    return [value for value in row.values.values() if value is not None]


def _limit(axes: Any, rows: list[SummaryRow]) -> None:
    """Keeps the frame near the seeds: two seeds can have an interval of fifty points.

    Bars are shown up to one spread of all seeds beyond them; a longer one leaves the frame.
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


def _finish_losses(axes: Any) -> None:
    axes.set(xlabel="training examples", ylabel="training loss")
    log_scale(axes.yaxis)
    count_examples(axes)


def log_scale(axis: Any, *, crowded: bool = False) -> None:
    """Makes an axis logarithmic, labeled with 0.5, 1, 2 and not 5 x 10^-1.

    A ``crowded`` one has labels at powers of ten alone.
    """
    from matplotlib import ticker

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(ticker.LogLocator(subs=(1.0,) if crowded else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def count_examples(axes: Any) -> None:
    """Labels x, which counts examples, with few whole numbers."""
    from matplotlib import ticker

    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
