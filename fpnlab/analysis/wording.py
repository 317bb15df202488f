"""Numbers, places and lists in words."""

from collections.abc import Sequence

from fpnlab.records.json_files import AxisValue
from fpnlab.records.study_records import Summary


def number(value: float | None) -> str:
    """Returns ``value`` to one decimal, without the sign of a negative zero."""
    if value is None:
        return "-"
    return f"{value:z.1f}"


def count(n: int, noun: str) -> str:
    """Returns ``n`` with the noun in its singular or plural: "1 seed", "3 seeds"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def metric_unit(summary: Summary) -> str:
    """Returns the unit of the study's metric: "AP", or "points of accuracy"."""
    metric = summary.metric
    return metric if metric.startswith("AP") else f"points of {metric}"


def cell_name(summary: Summary, arm: str, axis_value: AxisValue) -> str:
    """Returns arm and axis value in words; only the arm if the axis does not apply to it."""
    return arm if axis_value is None else f"{arm} at {summary.axis_label} {axis_value}"


def joined(parts: Sequence[str], most: int | None = None) -> str:
    """Returns the parts as a list in words: "a", "a and b", "a, b and c".

    Args:
      parts: The parts.
      most: Number of parts that are named; of more, the others are counted.
    """
    parts = list(parts)
    if most is not None and len(parts) > most + 1:
        parts = [*parts[:most], f"{len(parts) - most} more"]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def anywhere(summary: Summary) -> str:
    """Returns "at any batch size", or "at batch size 2" if the axis has one value."""
    values = summary.axis_values
    value = f" {values[0]}" if len(values) == 1 else ""
    return f"at {'' if value else 'any '}{summary.axis_label}{value}"


def axis_order(summary: Summary) -> list[AxisValue]:
    """Returns the axis values, in ascending order if all are numbers."""
    values = summary.axis_values
    return sorted(values) if _is_numeric(summary) else list(values)  # type: ignore[type-var]


def at_values(summary: Summary, values: Sequence[AxisValue], label: str | None = None) -> str:
    """Returns axis values in words, such as "at batch size 2, 8 to 32 and 128".

    Three or more neighbors on the axis become a range if all axis values are numbers. Empty for the
    value None, of arms to which the axis does not apply.

    Args:
      summary: The study.
      values: Some of its axis values, in any order.
      label: The axis in words, which may be empty; None: that of the summary.
    """
    if list(values) == [None]:
        return ""
    order, numeric = axis_order(summary), _is_numeric(summary)
    if len(values) == len(order) > 1:
        span = f" from {order[0]} to {order[-1]}" if numeric else ""
        return f"at every {summary.axis_label}{span}"
    runs: list[list[AxisValue]] = []
    for previous, value in zip([None, *order], order):
        if value in values:
            if numeric and runs and runs[-1][-1] == previous:
                runs[-1].append(value)
            else:
                runs.append([value])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    name = summary.axis_label if label is None else label
    return " ".join(filter(None, ["at", name, joined(parts)]))


def _is_numeric(summary: Summary) -> bool:
    values = summary.axis_values
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
