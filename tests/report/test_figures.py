"""Figures of a study: means, differences, losses."""

import contextlib
import dataclasses
import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fpnlab.records.run_records import MetricRecord, RunResult
from fpnlab.records.study_records import read_summary
from fpnlab.report import figures
from fpnlab.report.study_folder import TrialFiles

MEMORY = io.BytesIO()


def trial_with_losses(losses, axis_value=2, status="done"):
    records = [
        MetricRecord(step=i + 1, examples=10 * (i + 1), logs={"loss": loss})
        for i, loss in enumerate(losses)
    ]
    result = RunResult(trial="t", arm="BN", axis_value=axis_value, seed=0, status=status)
    return TrialFiles("t", status, "", result, records, pathlib.Path(), None)


def test_importing_the_report_loads_neither_matplotlib_nor_jax():
    code = "import fpnlab.report, sys; print([m in sys.modules for m in ('matplotlib', 'jax')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False]"


def test_smooth_loss_is_the_mean_over_the_window():
    losses = np.random.default_rng(0).uniform(1, 2, size=120)
    examples, smooth = figures.smooth_loss(trial_with_losses(losses))
    expected = [losses[max(i - 3, 0) : i + 4].mean() for i in range(120)]
    np.testing.assert_allclose(smooth, expected)
    assert examples[-1] == 1200


def test_smooth_loss_keeps_short_curves():
    losses = [3.0, 1.0, 2.0]
    np.testing.assert_array_equal(figures.smooth_loss(trial_with_losses(losses))[1], losses)


def test_losses_are_one_artist_per_axis_value_and_diverged_ones_end_in_a_cross(monkeypatch):
    drawn = []

    @contextlib.contextmanager
    def panel(file, title):
        drawn.append(Figure().subplots())
        yield drawn[0]

    monkeypatch.setattr(figures, "panel", panel)
    trials = [trial_with_losses([4.0, 2.0]), trial_with_losses([3.0]), trial_with_losses([])]
    other = trial_with_losses([5.0, 1.0, 0.5], axis_value=8, status="diverged")
    limits = figures.loss_limits([*trials, other])
    figures.plot_losses([*trials, other], [2, 8, 32], "batch size", "", MEMORY, limits)
    (axes,) = drawn
    curves = [[path.vertices.tolist() for path in c.get_paths()] for c in axes.collections]
    assert curves == [
        [[[10.0, 4.0], [20.0, 2.0]], [[10.0, 3.0]]],
        [[[10.0, 5.0], [20.0, 1.0], [30.0, 0.5]]],
    ]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[30.0, 0.5]]]
    assert axes.get_legend_handles_labels()[1] == ["2", "8"]
    low, high = axes.get_xlim()
    assert low < 10.0
    assert high > 30.0


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure, which is not written to a file."""
    axes = []

    @contextlib.contextmanager
    def panel(file, title, height=0, width=0):
        axes.append(Figure().subplots())
        axes[-1].set_title(title)
        yield axes[-1]

    monkeypatch.setattr(figures, "panel", panel)
    return axes


def bars(axes):
    """Means and bounds of the error bars by the label of the series."""
    found = {}
    for container in axes.containers:
        line, _, (segments,) = container
        ends = [segment[:, 1] for segment in segments.get_segments()]
        found[container.get_label()] = np.column_stack([line.get_ydata(), ends]).astype(float)
    return found


def expected(rows, **keys):
    """Mean and bounds of each row in the order of the axis."""
    own = [row for row in rows if all(getattr(row, key) == value for key, value in keys.items())]
    assert len(own) == 3
    return [(row.mean, row.low, row.high) for row in own]


@pytest.mark.parametrize("arm", ["BN", "LN"])
def test_plot_evaluations_draws_the_three_kinds_of_statistics_of_its_arm(study_dir, drawn, arm):
    summary = read_summary(study_dir / "summary.json")
    figures.plot_evaluations(summary, arm, MEMORY)
    assert arm in drawn[0].get_title()
    found = bars(drawn[0])
    assert len(found) == 3
    for evaluation, (label, _, _) in figures.STATISTICS.items():
        wanted = expected(summary.rows, metric="AP", evaluation=evaluation, arm=arm)
        np.testing.assert_allclose(found[label], wanted)


def test_error_bars_are_the_confidence_intervals(study_dir, drawn):
    summary = read_summary(study_dir / "summary.json")
    figures.plot_metric(summary, "AP50", MEMORY)
    figures.plot_differences(summary, MEMORY)
    means, differences = map(bars, drawn)
    keys = {"evaluation": "running"}
    for arm in ("BN", "LN"):
        wanted = expected(summary.rows, metric="AP50", arm=arm, **keys)
        np.testing.assert_allclose(means[arm], wanted)
    wanted = expected(summary.differences, metric="AP", arm="LN", **keys)
    assert list(bars(drawn[1])) == ["LN"]
    assert drawn[1].get_title() == "LN minus BN, paired by seed"
    np.testing.assert_allclose(differences["LN"], wanted)


def test_loss_limits_contain_all_curves_and_have_a_default():
    low, high = figures.loss_limits([trial_with_losses([1.0, 4.0]), trial_with_losses([])])
    assert low < 1.0
    assert high > 4.0
    assert figures.loss_limits([]) == (0.1, 10.0)


def test_figure_files_are_wide_enough_and_below_300_kb(study_dir):
    summary = read_summary(study_dir / "summary.json")
    for draw in (
        lambda file: figures.plot_metric(summary, "AP", file),
        lambda file: figures.plot_differences(summary, file),
        lambda file: figures.plot_evaluations(summary, "BN", file),
    ):
        file = io.BytesIO()
        draw(file)
        assert len(file.getvalue()) < 300_000
        with Image.open(file) as picture:
            assert picture.width >= 900


def test_figure_files_are_reproducible(study_dir):
    summary = read_summary(study_dir / "summary.json")
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        figures.plot_metric(summary, "AP", file)
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize("values", [[2, 8, 32], ["small", "middle", "large"], [0, 1, 2]])
def test_plot_metric_can_draw_any_axis(study_dir, drawn, values):
    summary = read_summary(study_dir / "summary.json")
    names = dict(zip(summary.axis_values, values))
    rows = [dataclasses.replace(row, axis_value=names[row.axis_value]) for row in summary.rows]
    figures.plot_metric(dataclasses.replace(summary, axis_values=values, rows=rows), "AP", MEMORY)
    labels = [text.get_text() for text in drawn[0].get_xticklabels()]
    assert labels == [str(value) for value in values]
    assert len(bars(drawn[0])["BN"]) == 3
