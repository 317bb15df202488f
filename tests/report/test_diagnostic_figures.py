"""Figures of diagnostics: their selection, their content, and unusual values."""

import contextlib
import io
import json

import numpy as np
import pytest

from fpnlab.report import diagnostic_plots as plots
from fpnlab.report.diagnostic_figures import run_sketches, study_sketches
from fpnlab.report.figures import panel
from fpnlab.report.study_folder import read_study, read_trial


@pytest.fixture
def drawn(monkeypatch):
    """Function that draws a figure and returns its axes."""
    made = []

    @contextlib.contextmanager
    def recorded(*args, **settings):
        with panel(*args, **settings) as axes:
            yield axes
        made.append(axes)

    monkeypatch.setattr(plots, "panel", recorded)

    def look(draw):
        file = io.BytesIO()
        draw(file)
        assert len(file.getvalue()) < 300_000
        return made[-1]

    return look


def sketch(sketches, name):
    (found,) = [one for one in sketches if one.name == name]
    return found.draw


def change(trial_dir, **diagnostics):
    path = trial_dir / "result.json"
    result = json.loads(path.read_text())
    result["diagnostics"] |= diagnostics
    path.write_text(json.dumps(result))


def curves(axes):
    """The style and values of each line with points."""
    lines = [line for line in axes.lines if len(line.get_xdata())]
    return [(line.get_linestyle(), line.get_ydata()) for line in lines]


def test_drift_figures_show_median_and_maximum_at_each_axis_value(study_dir, drawn):
    study = read_study(study_dir)
    axes = drawn(sketch(study_sketches(study, "batch size"), "drift_mean"))
    expected = {}
    for style, pick in (("-", np.median), (":", np.max)):
        found = {
            (t.result.axis_value, t.result.seed): pick(
                [row.mean_shift for row in t.result.diagnostics.drift]
            )
            for t in study.trials
            if t.result.arm == "BN"
        }
        expected[style] = [np.mean([found[b, seed] for seed in (0, 1)]) for b in (2, 8, 32)]
    for style, y in curves(axes):
        np.testing.assert_allclose(y, expected.pop(style))
    assert expected == {}
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["BN", "largest"]


def test_an_arm_without_the_axis_is_drawn_at_every_axis_value(study_dir, drawn):
    for batch_size in (8, 32):
        for seed in (0, 1):
            (study_dir / "trials" / f"BN-{batch_size}-{seed}" / "result.json").unlink()
    for seed in (0, 1):
        path = study_dir / "trials" / f"BN-2-{seed}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"axis_value": None}))
    study = read_study(study_dir)
    axes = drawn(sketch(study_sketches(study, "batch size"), "drift_mean"))
    (_, middle), _ = curves(axes)
    assert len(middle) == 3
    assert len(set(middle)) == 1


def test_a_study_without_batch_norm_has_no_drift_and_noise_figures(study_dir):
    for seed in (0, 1):
        for batch_size in (2, 8, 32):
            change(study_dir / "trials" / f"BN-{batch_size}-{seed}", drift=[], gradient_noise=None)
    names = [one.name for one in study_sketches(read_study(study_dir), "batch size")]
    assert names == ["rates_axis", "signals_arms"]


def test_diverged_trials_are_not_drawn(study_dir, refresh):
    gone = {"status": "diverged", "error": "loss is nan"}
    refresh(study_dir, **{f"BN_{b}_{s}": gone for b in (2, 8, 32) for s in (0, 1)})
    names = [one.name for one in study_sketches(read_study(study_dir), "batch size")]
    assert names == ["rates_axis", "signals_arms"]


def test_signals_are_the_median_over_trials_with_the_range_shaded(study_dir, drawn):
    study = read_study(study_dir)
    axes = drawn(sketch(study_sketches(study, "batch size"), "signals_arms"))
    for arm, line, shade in zip(("BN", "LN"), axes.lines, axes.collections):
        found = [
            [row.variance for row in trial.result.diagnostics.signals]
            for trial in study.trials
            if trial.result.arm == arm
        ]
        assert line.get_label() == arm
        np.testing.assert_allclose(line.get_ydata(), np.median(found, axis=0))
        edge = shade.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([edge.min(), edge.max()], [np.min(found), np.max(found)])
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["stem", "stage 0", "", "stage 1"]


def test_networks_of_different_depth_share_a_figure(study_dir, drawn):
    trial = study_dir / "trials" / "BN-2-0"
    signals = json.loads((trial / "result.json").read_text())["diagnostics"]["signals"]
    longer = [*signals, {"name": "stage 1 block 1", "squared_mean": 0.1, "variance": 3.0}]
    change(trial, signals=longer)
    axes = drawn(sketch(study_sketches(read_study(study_dir), "batch size"), "signals_arms"))
    bn, ln = (line.get_ydata() for line in axes.lines)
    assert (len(bn), bn[-1], len(ln)) == (5, 3.0, 4)
    assert axes.get_yscale() == "log"


def test_noise_is_drawn_at_the_binary_logarithm_of_the_norm_batch(study_dir, drawn):
    trial = read_trial(study_dir / "trials" / "BN-8-1")
    axes = drawn(sketch(run_sketches(trial), "noise"))
    rows = trial.result.diagnostics.gradient_noise.rows
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [row.noise for row in rows])


def test_a_run_figure_has_a_row_for_each_layer_and_level_from_the_top(study_dir, drawn):
    trial = read_trial(study_dir / "trials" / "BN-8-1")
    axes = drawn(sketch(run_sketches(trial), "drift"))
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[:2] == ["stem", "stage 0/0/branch/0"]
    assert names[-2:] == ["head/class_tower/0  P3", "head/class_tower/0  P4"]
    bottom, top = axes.get_ylim()
    assert bottom > top
    rows = trial.result.diagnostics.drift
    means, ratios = axes.lines
    np.testing.assert_allclose(means.get_xdata(), [row.mean_shift for row in rows])
    np.testing.assert_allclose(ratios.get_xdata(), [row.log_variance_ratio for row in rows])


def test_non_finite_values_are_not_drawn(study_dir, drawn):
    path = study_dir / "trials" / "BN-8-1"
    result = json.loads((path / "result.json").read_text())["diagnostics"]
    result["drift"][1]["mean_shift"] = None
    result["signals"][2]["variance"] = None
    result["effective_rates"]["rates"]["backbone/stem"] = None
    result["gradient_noise"]["rows"][0]["noise"] = None
    change(path, **result)
    sketches = run_sketches(read_trial(path))
    sizes = {one.name: len(drawn(one.draw).lines[0].get_ydata()) for one in sketches}
    assert sizes == {"drift": 4, "rates": 2, "signals": 3, "rates_course": 12, "noise": 2}


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 4.0], [1e-9, 3e4], [2.0, 2.0]])
def test_values_of_any_magnitude_can_be_drawn(values, drawn):
    line = list(zip((2, 4), values))
    axes = drawn(lambda path: plots.plot_lines({"": [line]}, "t", "u", "x", path))
    low, high = axes.get_ylim()
    assert low <= values[0] <= values[1] < high
    axes = drawn(
        lambda path: plots.plot_rows([plots.LayerRow("a", tuple(values))], "mv", "t", "u", path)
    )
    low, high = axes.get_xlim()
    assert low <= values[0] <= values[1] < high


@pytest.mark.parametrize("values", [[2, 8, 32], ["small", "large"], [0, 1, 2]])
def test_spread_can_be_drawn_over_any_axis(values, drawn):
    cloud = [(value, [0.5, 1.0]) for value in values]
    axes = drawn(lambda path: plots.plot_spread({"A": cloud}, values, "x", "t", "u", path))
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(v) for v in values]


@pytest.mark.parametrize(("layers", "named"), [(50, 50), (51, 26), (200, 50)])
def test_a_network_with_many_layers_labels_only_some_rows(layers, named, drawn):
    rows = [plots.LayerRow(f"stage 2/{i}/branch/0", (0.1 + i, 0.2 + i)) for i in range(layers)]
    axes = drawn(lambda path: plots.plot_rows(rows, ("mean", "variance"), "t", "u", path))
    assert len(axes.get_yticklabels()) == named
    assert len(axes.lines[0].get_ydata()) == layers
