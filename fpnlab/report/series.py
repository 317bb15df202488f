"""Series of a figure: styles by arm, places along the axis, legends, and labels of ticks."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from fpnlab.records.json_files import AxisValue
from fpnlab.report.figure_text import columns, names

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.container
    import matplotlib.figure

ARM_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colors of arms, distinguishable by color-blind readers (Okabe and Ito, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
WIDTH, PAGE_WIDE, WIDEST = 5.4, 11.0, 14.0
"""Widths of figures in inches: the usual one, that of very many arms, and the largest one."""
SERIES_INCHES = 0.056
"""Width of a mean with its interval in inches, below which those of two arms run together."""
ROOM = 0.7
"""Share of the distance between two ticks that the series of a tick take."""
INSIDE = 6
"""Largest number of series with a legend inside the axes."""
LEGEND_INCHES = 0.2
"""Height of a row of a legend."""
ENTRY, LETTER = 50.0, 6.4
"""Width of an entry of a legend without its text, and of a letter, in points."""
LETTERS = 11.5
"""Columns of text per inch of an axis."""


class ArmStyle(NamedTuple):
    """The look of a series."""

    color: str
    """Color of line and markers."""
    marker: str
    """Shape of the markers."""
    dashes: str
    """Pattern of the line."""


def arm_style(i: int) -> ArmStyle:
    """Returns the style of arm ``i``, different from that of 71 others.

    The first six differ in color and marker alone; each further six have the markers moved by one,
    and other dashes.
    """
    rounds, color = divmod(i, len(ARM_COLORS))
    return ArmStyle(
        ARM_COLORS[color], MARKERS[(i + rounds) % len(MARKERS)], DASHES[rounds % len(DASHES)]
    )


def is_logarithmic(values: Sequence[AxisValue]) -> bool:
    """Returns whether values are placed by their logarithm.

    They are if all are positive numbers whose logarithms lie so far apart that their ticks can be
    told apart; otherwise they are evenly spaced.
    """
    numbers = _numbers(values)
    if len(numbers) < len(values) or not all(0 < number < math.inf for number in numbers):
        return False
    places = sorted({math.log2(number) for number in numbers})
    even = (places[-1] - places[0]) / max(len(places) - 1, 1)
    return all(b - a >= even / 3 for a, b in itertools.pairwise(places))


def _numbers(values: Sequence[AxisValue]) -> list[float]:
    """Returns the values that are numbers; true and false are none."""
    return [
        float(value)
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def positions(values: Sequence[AxisValue]) -> dict[AxisValue, float]:
    """Returns the position of each axis value: its binary logarithm, or its rank."""
    if is_logarithmic(values):
        return {value: math.log2(float(value or 0)) for value in values}
    return {value: float(i) for i, value in enumerate(values)}


def gap(values: Sequence[AxisValue]) -> float:
    """Returns the smallest distance between the positions of two values; 1 for a single one."""
    places = sorted(set(positions(values).values()))
    return min((b - a for a, b in itertools.pairwise(places)), default=1.0)


def step(n: int, values: Sequence[AxisValue]) -> float:
    """Returns the distance between two of ``n`` series at a tick, so that all stay beside it."""
    return min(0.2, ROOM / max(n, 1)) * gap(values)


def width(n: int, values: Sequence[AxisValue]) -> float:
    """Returns the width of a figure of ``n`` series in inches."""
    least = WIDTH if n <= 3 * INSIDE else PAGE_WIDE  # Room for the legend.
    return min(max(least, SERIES_INCHES * n * len(values) / ROOM), WIDEST)


def show_values(axes: "matplotlib.axes.Axes", values: Sequence[AxisValue], label: str) -> None:
    """Labels the x axis with the axis values at their ``positions``.

    Labels that do not fit beside each other are turned, and of very many only some are shown.
    """
    place, between = positions(values), gap(values)
    at: dict[float, list[str]] = {}
    for value in values:  # Equal values, such as 1 and 1.0, share a tick.
        at.setdefault(place[value], []).append(str(value))
    places = list(at)
    figure = whole_figure(axes)
    inches = figure.get_figwidth() - 0.8
    room = inches * between / (max(places) - min(places) + between)
    every = max(math.ceil(0.16 / room), 1)
    texts = names([", ".join(labels) for labels in at.values()], 20)
    shown = [text if i % every == 0 else "" for i, text in enumerate(texts)]
    axes.set_xticks(places, shown)
    longest = max(map(columns, shown))
    if longest + 1 > LETTERS * room * every:
        axes.tick_params("x", rotation=90 if room * every < 0.35 else 40)
        for text in axes.get_xticklabels():
            text.set(ha="right", va="center", rotation_mode="anchor")
        figure.set_figheight(figure.get_figheight() + 0.06 * longest)
    axes.set_xlim(min(places) - between / 2, max(places) + between / 2)
    axes.set_xlabel(f"{label}{_scale_note(values)}")
    axes.grid(visible=False, axis="x")


def _scale_note(values: Sequence[AxisValue]) -> str:
    """Returns a note on how numbers are placed, unless it is in proportion."""
    if is_logarithmic(values):
        return " (log scale)"
    numbers = _numbers(values)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(numbers)}
    return " (not to scale)" if len(numbers) == len(values) and len(steps) > 1 else ""


def whole_figure(axes: "matplotlib.axes.Axes") -> "matplotlib.figure.Figure":
    """Returns the figure of axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def add_legend(
    axes: "matplotlib.axes.Axes",
    handles: "Sequence[matplotlib.artist.Artist | matplotlib.container.Container]",
    labels: Sequence[str],
    *,
    title: str | None = None,
    inside: Literal["best", "upper right"] | None = "best",
) -> None:
    """Adds a legend: inside the axes if it is small, otherwise below, where the figure grows.

    Args:
      axes: The axes.
      handles: One artist for each series.
      labels: The labels, as from `figure_text.names`.
      title: Title of the legend.
      inside: Place of a small legend inside the axes; None: it is below, too.
    """
    if not labels:
        return
    longest = max(map(columns, labels))
    # A label that begins with "_" would be left out; texts are set afterwards.
    numbers = [str(i) for i in range(len(labels))]
    if inside and len(labels) <= INSIDE and longest <= 24:
        legend = axes.legend(handles, numbers, title=title, loc=inside)
    else:
        figure = whole_figure(axes)
        beside = max(int(72 * figure.get_figwidth() / (ENTRY + LETTER * longest)), 1)
        rows = math.ceil(len(labels) / beside)
        figure.set_figheight(figure.get_figheight() + LEGEND_INCHES * (rows - 1))
        across = math.ceil(len(labels) / rows)
        legend = figure.legend(
            handles,  # type: ignore[bad-argument-type]
            numbers,
            title=title,
            loc="outside lower center",
            ncols=across,
        )
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
