"""Figures of diagnostics: the drift of statistics, activations, update sizes, noise.

A result without diagnostics, or without one of them, gives no figure of it.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from fpnlab.records.json_files import AxisValue
from fpnlab.records.run_records import Diagnostics, DriftRow
from fpnlab.report.diagnostic_plots import (
    Line,
    Row,
    plot_course,
    plot_lines,
    plot_rows,
    plot_spread,
)
from fpnlab.report.study_folder import StudyFiles, TrialFiles

NOISE_CAPTION = (
    "What the choice of a norm batch alone does to the gradient: under the final weights, the same "
    "training images are dealt into statistics groups anew, and the variance of the gradient is "
    "divided by its squared mean. At 1 the noise is as large as the gradient."
)
CAPTIONS = {
    "drift": "How far the running statistics of each batch norm are from those of the population "
    "under the final weights, averaged over channels; P3 is a pyramid level with statistics of "
    "its own. The mean is in deviations, the variance the logarithm of the ratio (0.1 is ten "
    "percent, 0.7 a factor of two).",
    "drift_mean": "How far running means are from those of the population under the final "
    "weights, in deviations. Solid: the median batch norm of a network; dotted: the worst; a dot "
    "is a seed. Where this is large and precise statistics score better than running ones, the "
    "statistics are at fault and not the weights. An arm without batch norm has no line.",
    "drift_variance": "The same for running variances, as the logarithm of the ratio: 0.1 is ten "
    "percent off, 0.7 a factor of two.",
    "rates": "How far one step turned each kernel, relative to its length, halfway through "
    "training. Before a norm the length of a kernel does not matter, only its direction, so that "
    "this is the speed of a layer. One far below the others hardly learns.",
    "rates_course": "The median over kernels, over training. It follows the schedule of the "
    "learning rate, and falls behind it where kernels grow longer.",
    "rates_axis": "How far one step turned a kernel, relative to its length, halfway through "
    "training. Solid: the median kernel of a network; dotted: the fastest; a dot is a seed. "
    "Before a norm only a kernel's direction matters, so that arms with one learning rate may "
    "learn at different speeds.",
    "signals": "Size of the maps that leave the stem and each residual block, for training images "
    "normalized as in training. Branches add up within a stage. Growth by decades, or a fall to "
    "zero, means that depth is not under control; squared means far above the variance, that "
    "channels carry an offset and little else.",
    "signals_arms": "Variance within the channels of the maps that leave the stem and each "
    "residual block, for training images normalized as in training: the median over an arm's "
    "trials, shaded from the least to the greatest. Branches add up within a stage; growth by "
    "decades, or a fall to zero, means that depth is not under control.",
    "noise": NOISE_CAPTION,
    "noise_arms": f"{NOISE_CAPTION} The line is the median over an arm's trials, shaded from the "
    "least to the greatest. An arm without batch norm has none.",
}
Labels = tuple[str, str]
"""The title of a figure, and what its numbers are."""
DRIFT = ("Drift of running statistics", "distance from the population")
MEANS = ("Drift of running means", "deviations")
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
    """Of its file."""
    draw: Callable[[pathlib.Path], None]
    caption: str
    """Its content, and how to read it."""


def study_sketches(study: StudyFiles, axis_label: str) -> list[Sketch]:
    """Returns the figures that compare the trials of a study that are done."""
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
        draw = lambda path: plot_spread(clouds, values, axis_label, *labels, path)
        return _when(any(clouds.values()), name, draw)

    bundle = lambda line: {arm: [line(trial) for trial in own] for arm, own in arms.items()}
    drift = lambda field: (
        lambda trial: [getattr(row, field) for row in _rows(trial, "drift", field)]
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
        Row(_layer(row), (row.mean_shift, row.log_variance_ratio))
        for row in _rows(trial, "drift", "mean_shift", "log_variance_ratio")
    ]
    kinds = ("mean (deviations)", "variance (|log ratio|)")
    signals = {
        "variance": [_signals("variance")(trial)],
        "squared mean": [_signals("squared_mean")(trial)],
    }
    course = list(zip(*(axis.tolist() for axis in trial.curve("effective_rate"))))
    return [
        *_layers("drift", drift, kinds, DRIFT),
        *_layers("rates", _rates(trial), ("rate",), RATE, _halfway(trial)),
        *_lines("signals", signals, (SIGNAL[0], "mean over channels"), DEPTH),
        *_when(course, "rates_course", lambda path: plot_course(course, *COURSE, path)),
        *_lines("noise", {"": [_noise(trial)]}, NOISE, GROUP),
    ]


def _places(trial: TrialFiles, axis_values: list[AxisValue]) -> list[AxisValue]:
    """Returns where a trial stands; without an axis value, it counts at every one."""
    value = None if trial.result is None else trial.result.axis_value
    return axis_values if value is None else [value]


def _when(found, name, draw, note=""):
    return [Sketch(name, draw, CAPTIONS[name] + note)] if found else []


def _layers(
    name: str, rows: list[Row], kinds: tuple[str, ...], labels: Labels, note: str = ""
) -> list[Sketch]:
    return _when(rows, name, lambda path: plot_rows(rows, kinds, *labels, path), note)


def _lines(name: str, bundles: dict[str, list[Line]], labels: Labels, x_label: str) -> list[Sketch]:
    bundles = {label: [line for line in bundle if line] for label, bundle in bundles.items()}
    draw = lambda path: plot_lines(bundles, *labels, x_label, path)
    return _when(any(bundles.values()), name, draw)


def _diagnostics(trial: TrialFiles) -> Diagnostics | None:
    return None if trial.result is None else trial.result.diagnostics


def _rows(trial: TrialFiles, name: str, *fields: str) -> list[Any]:
    """Returns the rows of a diagnostic in which all of these are numbers."""
    rows = getattr(_diagnostics(trial), name, [])
    return [row for row in rows if None not in [getattr(row, field) for field in fields]]


def _rates(trial: TrialFiles) -> list[Row]:
    found = _diagnostics(trial)
    rates = found.effective_rates.rates if found and found.effective_rates else {}
    return [Row(_short(name), (rate,)) for name, rate in rates.items() if rate is not None]


def _halfway(trial: TrialFiles) -> str:
    found = _diagnostics(trial)
    if found is None or (at := found.effective_rates) is None:
        return ""
    return f" Measured at step {at.step:,}, with a learning rate of {at.learning_rate:.3g}."


def _signals(field: str) -> Callable[[TrialFiles], Line]:
    return lambda trial: [(row.name, getattr(row, field)) for row in _rows(trial, "signals", field)]


def _noise(trial: TrialFiles) -> Line:
    found = _diagnostics(trial)
    rows = found.gradient_noise.rows if found and found.gradient_noise else []
    return [(row.norm_batch, row.noise) for row in rows if row.noise is not None]


def _layer(row: DriftRow) -> str:
    return _short(row.name) + ("" if row.level is None else f"  P{row.level}")


def _short(name: str) -> str:
    return name.removeprefix("backbone/").replace("stages/", "stage ")
