"""Figures of lesions, paths and correlations: what they draw, from unusual values too."""

import contextlib
import io

import numpy as np
import pytest

from fpnlab.report import residual_plots as plots
from fpnlab.report.figures import panel


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

    def look(plot, *values):
        file = io.BytesIO()
        plot(*values, file)
        assert 0 < len(file.getvalue()) < 300_000
        return made[-1]

    return look


def legend(axes):
    found = [*axes.figure.legends, *([axes.get_legend()] if axes.get_legend() else [])]
    return [text.get_text() for of in found for text in of.get_texts()]


def test_lesions_are_drawn_at_their_blocks_and_the_whole_network_as_a_line(drawn):
    errors = {"ResNet": {0: 20.0, 1: 50.0, 2: 10.0}, "plain twin": {0: 90.0, 2: 88.0}}
    axes = drawn(plots.plot_lesions, errors, {"ResNet": 18.0, "plain twin": 30.0}, [0, 2], "t")
    stage, whole, first, other, second = axes.lines
    assert set(stage.get_xdata()) == {1.5}
    assert set(whole.get_ydata()) == {18.0}
    assert set(other.get_ydata()) == {30.0}
    for of, line in zip(errors.values(), (first, second)):
        assert np.round(line.get_xdata()).tolist() == [*of]
        assert line.get_ydata().tolist() == [*of.values()]
    # A stem goes from the error of the whole network to that of the lesion.
    stems = [path.vertices[:, 1].tolist() for path in axes.collections[0].get_paths()]
    assert stems == [[18, 20], [18, 50], [10, 18]]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 90
    assert legend(axes) == ["ResNet", "plain twin", "whole network"]


def test_a_network_of_many_blocks_has_a_wider_figure(drawn):
    width = lambda blocks: drawn(
        plots.plot_lesions, {"a": dict.fromkeys(range(blocks), 5.0)}, {"a": 4.0}, [0], "t"
    ).figure.get_figwidth()
    assert width(9) < width(27) < width(54) == width(333)


def test_each_draw_of_changed_blocks_is_a_dot_and_the_line_their_median(drawn):
    errors = {"deleted": {1: [20.0, 30.0, 90.0], 2: [40.0, 50.0, 45.0]}}
    axes = drawn(plots.plot_changed_blocks, errors, 18.0, "deleted blocks", "t")
    (dots,) = axes.collections
    assert dots.get_offsets().tolist() == [[1, 20], [1, 30], [1, 90], [2, 40], [2, 50], [2, 45]]
    assert axes.lines[1].get_ydata().tolist() == [30, 45]
    assert axes.get_xlabel() == "deleted blocks"
    assert legend(axes) == ["whole network", "deleted, median"]


def test_norms_of_paths_have_a_logarithmic_scale(drawn):
    axes = drawn(plots.plot_path_norms, {"a": [1.0, 1e-5, 1e-12], "b": [0.1, 0.2]}, "t", "norm")
    assert axes.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 1e-5, 1e-12], [0.1, 0.2]]
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2]


def test_shares_of_paths_are_percent_with_the_effective_lengths_shaded(drawn):
    shares = {"gradient": [0.5, 0.4, 0.1, 0.0]}
    axes = drawn(plots.plot_path_shares, [1 / 8, 3 / 8, 3 / 8, 1 / 8], shares, (0, 1), "t")
    paths, gradient = axes.lines
    np.testing.assert_allclose(paths.get_ydata(), [12.5, 37.5, 37.5, 12.5])
    np.testing.assert_allclose(gradient.get_ydata(), [50, 40, 10, 0])
    (span,) = axes.patches
    assert (span.get_x(), span.get_width()) == (-0.5, 2)
    assert legend(axes) == ["effective lengths", "all paths", "gradient"]


def test_correlations_are_drawn_by_distance_and_may_be_negative(drawn):
    axes = drawn(plots.plot_correlation, {"plain": [1.0, -0.2], "residual": [1.0, 0.9, 0.8]}, "t")
    assert [line.get_ydata().tolist() for line in axes.lines[1:]] == [[1, -0.2], [1, 0.9, 0.8]]
    low, high = axes.get_ylim()
    assert low < -0.2 < 1 < high
