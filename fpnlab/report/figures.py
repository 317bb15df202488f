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

from fpnlab.report.folder import Trial

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""From Okabe and Ito (2008), told apart by colour-blind readers; markers differ as well."""
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
Row = dict[str, Any]


@contextlib.contextmanager
def panel(path: pathlib.Path, title: str) -> Iterator[Any]:
    """Yields axes to draw on, and writes the figure to ``path`` afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        # Without the version of matplotlib in it, the same numbers give the same file.
        figure.savefig(path, metadata={"Software": None})


def plot_metric(summary: dict[str, Any], metric: str, path: pathlib.Path) -> None:
    """Draws a metric of each arm against the study's axis, under running statistics."""
    arms = summary["arms"]
    with panel(path, f"{metric} by {summary['axis_label']}") as axes:
        for i, arm in enumerate(arms):
            rows = _rows(summary["rows"], metric=metric, evaluation="running", arm=arm)
            _draw_series(axes, summary, rows, arm, _offset(i, len(arms)), ARM_COLOURS, MARKERS, i)
        _finish(axes, summary, f"{metric} (points)")


def plot_evaluations(summary: dict[str, Any], arm: str, path: pathlib.Path) -> None:
    """Draws an arm's metric under running, precise and batch statistics."""
    metric = summary["metric"]
    names, colours, markers = zip(*STATISTICS.values())
    with panel(path, f"{arm}: {metric} by the statistics at test time") as axes:
        for i, evaluation in enumerate(STATISTICS):
            rows = _rows(summary["rows"], metric=metric, evaluation=evaluation, arm=arm)
            _draw_series(axes, summary, rows, names[i], _offset(i, 3), colours, markers, i)
        _finish(axes, summary, f"{metric} (points)")


def plot_differences(summary: dict[str, Any], path: pathlib.Path) -> None:
    """Draws each later arm minus the first, paired by seed, with the line of no difference."""
    metric, reference = summary["metric"], summary["arms"][0]
    arms = summary["arms"][1:]
    subject = arms[0] if len(arms) == 1 else "other arms"
    with panel(path, f"{subject} minus {reference}, paired by seed") as axes:
        axes.axhline(0, color="#303030", linewidth=1.2)
        for i, arm in enumerate(arms):
            rows = _rows(summary["differences"], metric=metric, evaluation="running", arm=arm)
            offset = _offset(i, len(arms))
            _draw_series(axes, summary, rows, arm, offset, ARM_COLOURS[1:], MARKERS[1:], i)
        _finish(axes, summary, f"difference in {metric} (points)", legend=len(arms) > 1)


def plot_losses(
    trials: Sequence[Trial],
    axis_values: list[Any],
    axis_label: str,
    title: str,
    path: pathlib.Path,
    limits: tuple[float, float],
) -> None:
    """Draws the smoothed training loss of trials against examples, coloured by axis value.

    A cross ends the curve of a trial that diverged.
    """
    import matplotlib

    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(axis_values)))
    with panel(path, title) as axes:
        for value, colour in zip(axis_values, colours):
            label: str | None = f"{value}"
            for trial in trials:
                examples, loss = smooth_loss(trial)
                if trial.result["axis_value"] != value or len(loss) == 0:
                    continue
                axes.plot(examples, loss, color=colour, linewidth=1.2, alpha=0.85, label=label)
                if trial.status == "diverged":
                    axes.plot(examples[-1], loss[-1], "X", color=colour, markersize=9)
                label = None
        axes.set(yscale="log", ylim=limits, xlabel="training examples", ylabel="training loss")
        _plain_log_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title=axis_label, ncols=2)


def loss_limits(trials: Sequence[Trial]) -> tuple[float, float]:
    """Returns limits that hold all smoothed losses, so that panels can be compared."""
    losses = np.concatenate([np.ones(0), *(smooth_loss(trial)[1] for trial in trials)])
    return (losses.min() / 1.1, losses.max() * 1.1) if len(losses) else (0.1, 10.0)


def smooth_loss(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples and the loss averaged over a window of 5 % of the trial's records.

    The window shrinks towards the ends, so that no value from outside is made up.
    """
    examples, loss = trial.curve("loss")
    half = len(loss) // 40
    index = np.arange(len(loss))
    reach = np.minimum(half, np.minimum(index, len(loss) - 1 - index))
    total = np.concatenate([[0.0], np.cumsum(loss)])
    return examples, (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _rows(rows: list[Row], **keys: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in keys.items())]


def _offset(i: int, n: int) -> float:
    """Sets series apart sideways, so that their intervals do not cover each other."""
    return 0.14 * (i - (n - 1) / 2)


def _is_logarithmic(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and value > 0 for value in values)


def _positions(values: list[Any]) -> dict[Any, float]:
    """The place of each axis value: its binary logarithm, or its rank where it has none."""
    if _is_logarithmic(values):
        return {value: math.log2(value) for value in values}
    return {value: float(i) for i, value in enumerate(values)}


def _draw_series(
    axes: Any,
    summary: dict[str, Any],
    rows: list[Row],
    label: str,
    offset: float,
    colours: Sequence[str],
    markers: Sequence[str],
    i: int,
) -> None:
    colour, marker = colours[i % len(colours)], markers[i % len(markers)]
    rows = [row for row in rows if row["mean"] is not None]
    place = _positions(summary["axis_values"])
    x = np.array([place[row["axis_value"]] + offset for row in rows])
    mean = np.array([row["mean"] for row in rows])
    half = np.array([np.nan if row["low"] is None else row["high"] - row["mean"] for row in rows])
    axes.errorbar(x, mean, half, color=colour, marker=marker, capsize=4, linewidth=1.6, label=label)
    for row, position in zip(rows, x):
        dots = [value for value in row["values"].values() if value is not None]
        side = np.full(len(dots), position + 0.05)
        axes.scatter(side, dots, s=14, color=colour, alpha=0.55, linewidths=0, zorder=3)


def _finish(axes: Any, summary: dict[str, Any], ylabel: str, legend: bool = True) -> None:
    place = _positions(summary["axis_values"])
    axes.set_xticks(list(place.values()), [str(value) for value in place])
    axes.set_xlim(min(place.values()) - 0.35, max(place.values()) + 0.35)
    scale = " (log scale)" if _is_logarithmic(summary["axis_values"]) else ""
    axes.set_xlabel(f"{summary['axis_label']}{scale}")
    axes.set_ylabel(ylabel)
    axes.grid(visible=False, axis="x")
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend()


def _plain_log_ticks(axis: Any) -> None:
    """Labels a logarithmic axis 0.5, 1, 2 and not 5 x 10^-1."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
