"""Arms of a figure: told apart, beside their tick, with a legend and legible labels."""

import io
import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from fpnlab.analysis.summary import summarize
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import StudyFile
from fpnlab.report import diagnostic_plots, figures
from fpnlab.report.series import arm_style, gap, is_logarithmic, positions, step


def summary_of(arms, values):
    """The summary of a study of two seeds with artificial numbers."""
    plan = StudyFile(
        name="",
        trials=2 * len(arms) * len(values),
        seeds=[0, 1],
        arms=arms,
        axis="train.batch_size",
        axis_values=values,
        metric="AP",
    )
    results = [
        RunResult(
            trial="",
            arm=arm,
            axis_value=value,
            seed=seed,
            status="done",
            metrics={"running": {"AP": 0.3 + 0.01 * i + 0.01 * j + 0.02 * seed}},
        )
        for (i, arm), (j, value), seed in itertools.product(
            enumerate(arms), enumerate(values), (0, 1)
        )
    ]
    return summarize(plan, results)


@pytest.fixture
def axes(monkeypatch):
    """A function that draws a figure and returns its axes, whose texts lie where they are shown."""
    made = []
    draw = FigureCanvasAgg.print_png

    def keep(canvas, *args, **settings):
        draw(canvas, *args, **settings)
        made.append(canvas.figure.axes[0])

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)

    def drawn(plot, *args):
        plot(*args, io.BytesIO())
        return made[-1]

    return drawn


def test_seventy_two_arms_have_different_styles():
    styles = [arm_style(i) for i in range(72)]
    assert len(set(styles)) == 72
    assert len({style.color for style in styles[:6]}) == 6
    assert {style.dashes for style in styles[:6]} == {"-"}


def looks(axes):
    """Color, marker and dashes of each series."""
    return [
        (to_hex(bars[0].get_color()), bars[0].get_marker(), bars[0].get_linestyle())
        for bars in axes.containers
    ]


@pytest.mark.parametrize("values", [[2, 4, 8, 16, 32], [0.9, 0.99, 0.999], ["a", "b"], [4]])
@pytest.mark.parametrize("n", [2, 7, 50])
def test_every_arm_stays_beside_its_tick_and_in_the_frame(axes, n, values):
    drawn = axes(figures.plot_metric, summary_of([f"arm {i}" for i in range(n)], values), "AP")
    place, between = positions(values), gap(values)
    low, high = drawn.get_xlim()
    assert len(drawn.containers) == len(set(looks(drawn))) == n
    for bars, dots in zip(drawn.containers, drawn.collections[1::2]):
        x = bars[0].get_xdata()
        assert len(x) == len(values)
        for at, value in zip(x, values):
            assert abs(at - place[value]) < between / 2
            assert low < at < high
        assert all(low < at < high for at, _ in dots.get_offsets())


def test_arms_at_a_tick_do_not_share_a_place(axes):
    drawn = axes(figures.plot_metric, summary_of([f"{i}" for i in range(50)], [2, 4]), "AP")
    x = sorted(at for bars in drawn.containers for at in bars[0].get_xdata())
    assert min(b - a for a, b in itertools.pairwise(x)) > 0.9 * step(50, [2, 4])


def overlap(texts, renderer):
    """The pairs of texts that overlap."""
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    boxes = [(text, box) for text, box in boxes if text]
    return [(a, b) for (a, p), (b, q) in itertools.combinations(boxes, 2) if p.overlaps(q)]


@pytest.mark.parametrize("n", [7, 12, 50])
def test_a_legend_names_every_arm_legibly_outside_the_axes(axes, n):
    drawn = axes(figures.plot_metric, summary_of([f"norm {i}" for i in range(n)], [2, 8]), "AP")
    (legend,) = drawn.figure.legends
    texts = legend.get_texts()
    assert [text.get_text() for text in texts] == [f"norm {i}" for i in range(n)]
    renderer = drawn.figure.canvas.get_renderer()
    assert overlap(texts, renderer) == []
    whole = drawn.figure.bbox
    frame = drawn.get_window_extent(renderer)
    for text in texts:
        box = text.get_window_extent(renderer)
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert not box.overlaps(frame)
    assert frame.height > 2.5 * 180


AXES = {
    "batch sizes": [2, 4, 8, 16, 32],
    "many": list(range(2, 120, 2)),
    "uneven": [0.9, 0.99, 0.999, 0.9999, 1000.0],
    "long": [f"a value with a long name, number {i}" for i in range(8)],
    "very many long ones": [f"a value with a long name, number {i}" for i in range(60)],
    "numbers with digits": [0.001 * 3**i for i in range(9)],
}


@pytest.mark.parametrize("values", AXES)
def test_labels_of_ticks_do_not_overlap(axes, values):
    values = AXES[values]
    drawn = axes(figures.plot_metric, summary_of(["BN", "LN"], values), "AP")
    labels = [label for label in drawn.get_xticklabels() if label.get_text()]
    assert len(labels) >= min(len(values), 8)
    if labels[0].get_rotation() == 0:
        assert overlap(labels, drawn.figure.canvas.get_renderer()) == []
    else:  # Boxes of turned texts overlap even where the texts do not.
        x = [drawn.transData.transform((at, 0))[0] for at in sorted(positions(values).values())]
        shown = [at for at, text in zip(x, drawn.get_xticklabels()) if text.get_text()]
        assert min(b - a for a, b in itertools.pairwise(shown)) > 1.1 * 11 / 72 * 180
    assert drawn.get_window_extent().height > 2.0 * 180


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([2, 8, 32], True),
        ([2, 8, 100], True),
        ([0.9, 0.99, 0.999, 1000.0], False),
        ([0, 1, 2], False),
        ([False, True], False),
        ([1.0, float("inf")], False),
        ([3], True),
        (["a", 1], False),
        ([None, 1], False),
    ],
)
def test_values_are_placed_by_their_logarithm_where_they_can_be_told_apart(values, logarithmic):
    assert is_logarithmic(values) == logarithmic


@pytest.mark.parametrize("values", [[1, 1.0], [True, 1], [1, 1.0, 2]])
def test_equal_axis_values_share_a_tick(axes, values):
    drawn = axes(figures.plot_metric, summary_of(["BN", "LN"], values), "AP")
    labels = [label.get_text() for label in drawn.get_xticklabels()]
    assert labels == [f"{values[0]}, {values[1]}", *map(str, values[2:])]


def test_numbers_that_are_evenly_spaced_against_their_scale_say_so(axes):
    summary = summary_of(["BN", "LN"], [0.9, 0.99, 0.999, 1000.0])
    assert axes(figures.plot_metric, summary, "AP").get_xlabel() == "batch size (not to scale)"
    summary = summary_of(["BN", "LN"], [0, 2, 4])
    assert axes(figures.plot_metric, summary, "AP").get_xlabel() == "batch size"


@pytest.mark.parametrize("n", [7, 50])
def test_figures_of_diagnostics_keep_many_arms_beside_their_tick(axes, n):
    values = [2, 4, 8]
    clouds = {f"arm {i}": [(v, [1.0 + i, 2.0 + i]) for v in values] for i in range(n)}
    drawn = axes(diagnostic_plots.plot_spread, clouds, values, "batch size", "", "")
    low, high = drawn.get_xlim()
    lines = [line for line in drawn.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2 * n
    assert all(low < at < high for line in lines for at in line.get_xdata())
    (legend,) = drawn.figure.legends
    assert len(legend.get_texts()) == n + 1
