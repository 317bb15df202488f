"""Figures of diagnostics: drift of statistics, activations, effective learning rates, noise.

Diagnostics that a result lacks have no figure.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Sized
from typing import TypeGuard, TypeVar

from fpnlab.records.json_files import AxisValue
from fpnlab.records.run_records import Diagnostics, DriftRow, SignalRow
from fpnlab.report.diagnostic_plots import (
    LayerRow,
    Line,
    plot_course,
    plot_lines,
    plot_rows,
    plot_spread,
)
from fpnlab.report.study_folder import StudyFiles, TrialFiles

NOISE_CAPTION = (
    "Gradient noise due to the assignment of images to statistics groups: with the final weights, "
    "the same training images are repeatedly assigned to groups at random, and the variance of the "
    "gradient is divided by its squared mean. At 1, the noise is as large as the gradient."
)
CAPTIONS = {
    "drift": "Distance of the running statistics of each batch norm from the population "
    "statistics of the final weights, averaged over channels; P3 is a pyramid level with its own "
    "statistics. For means, in standard deviations; for variances, the absolute log ratio (0.1 is "
    "ten percent, 0.7 a factor of two).",
    "drift_mean": "Distance of running means from the population means of the final weights, in "
    "standard deviations. Solid: the median over the batch norms of a network; dotted: the "
    "maximum; a dot is a seed. If the distance is large and the metric is better with precise than "
    "with running statistics, the loss comes from the statistics and not from the weights. An arm "
    "without batch norm has no line.",
    "drift_variance": "Distance of running variances from the population variances of the final "
    "weights, as the absolute log ratio: 0.1 is ten percent, 0.7 a factor of two.",
    "rates": "Norm of one update of each kernel relative to the norm of the kernel, halfway "
    "through training. Before a norm, only the direction of a kernel matters, so that this is the "
    "effective learning rate of the layer. A layer far below the others hardly learns.",
    "rates_course": "Median effective learning rate over kernels, during training. It follows the "
    "learning-rate schedule, and falls below it where the norms of kernels grow.",
    "rates_axis": "Norm of one update of a kernel relative to the norm of the kernel, halfway "
    "through training. Solid: the median over the kernels of a network; dotted: the maximum; a dot "
    "is a seed. Before a norm, only the direction of a kernel matters, so that arms with equal "
    "learning rates may have different effective ones.",
    "signals": "Moments of the outputs of the stem and of each residual block, for training images "
    "normalized as in training. Residual branches add up within a stage. Growth by orders of "
    "magnitude, or decay to zero, shows that the signal is not stable with depth; squared means "
    "far above the variance show that channels carry little but an offset.",
    "signals_arms": "Variance within channels of the outputs of the stem and of each residual "
    "block, for training images normalized as in training: the median over an arm's trials, with "
    "the range shaded. Residual branches add up within a stage; growth by orders of magnitude, or "
    "decay to zero, shows that the signal is not stable with depth.",
    "noise": NOISE_CAPTION,
    "noise_arms": f"{NOISE_CAPTION} The line is the median over an arm's trials, with the range "
    "shaded. An arm without batch norm has no line.",
}
Labels = tuple[str, str]
"""Title of a figure, and label of its values."""
Diagnosed = TypeVar("Diagnosed", DriftRow, SignalRow)
DRIFT = ("Drift of running statistics", "distance from the population")
MEANS = ("Drift of running means", "standard deviations")
VARIANCES = ("Drift of running variances", "|log(running / population)|")
RATE = ("Effective learning rate, halfway", "|update| / |kernel|")
COURSE = ("Effective learning rate, median", "|update| / |kernel|")
SIGNAL = ("Signal by depth", "variance")
NOISE = ("Gradient noise by norm batch", "variance / squared mean")
DEPTH = "depth"
GROUP = "norm batch (log scale)"


@dataclasses.dataclass(frozen=True)
class Sketch:
    """A figure that can be drawn."""

    name: str
    """Name of the file without its suffix."""
    draw: Callable[[io.BytesIO], None]
    """Function that writes the figure as a PNG."""
    caption: str
    """Content of the figure, and how to read it."""


def study_sketches(study: StudyFiles, axis_label: str) -> list[Sketch]:
    """Returns the figures that compare the finished trials of a study."""
    values = study.plan.axis_values
    arms: dict[str, list[TrialFiles]] = {arm: [] for arm in study.plan.arms}
    for trial in study.trials:
        if trial.status == "done" and trial.result is not None and trial.result.arm in arms:
            arms[trial.result.arm].append(trial)

    def spread(
        name: str, labels: Labels, numbers: Callable[[TrialFiles], list[float]]
    ) -> list[Sketch]:
        clouds = {
            arm: [
                (value, numbers(trial))
                for trial in own
                for value in _places(trial, values)
                if numbers(trial)
            ]
            for arm, own in arms.items()
        }
        draw = lambda file: plot_spread(clouds, values, axis_label, *labels, file)
        return _when(any(clouds.values()), name, draw)

    bundle = lambda line: {arm: [line(trial) for trial in own] for arm, own in arms.items()}
    drift = lambda field: (
        lambda trial: [getattr(row, field) for row in _complete(_drift(trial), field)]
    )
    return [
        *spread("drift_mean", MEANS, drift("mean_shift")),
        *spread("drift_variance", VARIANCES, drift("log_variance_ratio")),
        *spread("rates_axis", RATE, lambda trial: [row.numbers[0] for row in _rates(trial)]),
        *_lines("signals_arms", bundle(_signals("variance")), SIGNAL, DEPTH),
        *_lines("noise_arms", bundle(_noise), NOISE, GROUP),
    ]


def run_sketches(trial: TrialFiles) -> list[Sketch]:
    """Returns the figures of one run, layer by layer."""
    drift = [
        LayerRow(_layer(row), (row.mean_shift, row.log_variance_ratio))
        for row in _drift(trial)
        if _is_number(row.mean_shift) and _is_number(row.log_variance_ratio)
    ]
    kinds = ("mean (standard deviations)", "variance (|log ratio|)")
    signals = {
        "variance": [_signals("variance")(trial)],
        "squared mean": [_signals("squared_mean")(trial)],
    }
    course = list(zip(*(axis.tolist() for axis in trial.curve("effective_rate"))))
    return [
        *_layers("drift", drift, kinds, DRIFT),
        *_layers("rates", _rates(trial), ("rate",), RATE, _halfway(trial)),
        *_lines("signals", signals, (SIGNAL[0], "mean over channels"), DEPTH),
        *_when(course, "rates_course", lambda file: plot_course(course, *COURSE, file)),
        *_lines("noise", {"": [_noise(trial)]}, NOISE, GROUP),
    ]


def _places(trial: TrialFiles, axis_values: list[AxisValue]) -> list[AxisValue]:
    """Returns the axis values of a trial: its own, or all if the axis does not apply."""
    value = None if trial.result is None else trial.result.axis_value
    return axis_values if value is None else [value]


def _when(
    found: Sized | bool, name: str, draw: Callable[[io.BytesIO], None], note: str = ""
) -> list[Sketch]:
    """Returns the figure if there is something to draw."""
    return [Sketch(name, draw, CAPTIONS[name] + note)] if found else []


def _layers(
    name: str, rows: list[LayerRow], kinds: tuple[str, ...], labels: Labels, note: str = ""
) -> list[Sketch]:
    return _when(rows, name, lambda file: plot_rows(rows, kinds, *labels, file), note)


def _lines(name: str, bundles: dict[str, list[Line]], labels: Labels, x_label: str) -> list[Sketch]:
    bundles = {label: [line for line in bundle if line] for label, bundle in bundles.items()}
    draw = lambda file: plot_lines(bundles, *labels, x_label, file)
    return _when(any(bundles.values()), name, draw)


def _diagnostics(trial: TrialFiles) -> Diagnostics | None:
    return None if trial.result is None else trial.result.diagnostics


def _drift(trial: TrialFiles) -> list[DriftRow]:
    found = _diagnostics(trial)
    return found.drift if found else []


def _complete(rows: list[Diagnosed], field: str) -> list[Diagnosed]:
    """Returns the rows in which a field is finite; others are stored as None."""
    return [row for row in rows if _is_number(getattr(row, field))]


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _rates(trial: TrialFiles) -> list[LayerRow]:
    found = _diagnostics(trial)
    rates = found.effective_rates.rates if found and found.effective_rates else {}
    return [LayerRow(_short(name), (rate,)) for name, rate in rates.items() if _is_number(rate)]


def _halfway(trial: TrialFiles) -> str:
    found = _diagnostics(trial)
    if found is None or (at := found.effective_rates) is None:
        return ""
    return f" Measured at step {at.step:,}, with a learning rate of {at.learning_rate:.3g}."


def _signals(field: str) -> Callable[[TrialFiles], Line]:
    def line(trial: TrialFiles) -> Line:
        found = _diagnostics(trial)
        rows = _complete(found.signals, field) if found else []
        return [(row.name, getattr(row, field)) for row in rows]

    return line


def _noise(trial: TrialFiles) -> Line:
    found = _diagnostics(trial)
    rows = found.gradient_noise.rows if found and found.gradient_noise else []
    return [(row.norm_batch, row.noise) for row in rows if _is_number(row.noise)]


def _layer(row: DriftRow) -> str:
    return _short(row.name) + ("" if row.level is None else f"  P{row.level}")


def _short(name: str) -> str:
    return name.removeprefix("backbone/").replace("stages/", "stage ")
