"""Text of users is shown verbatim, and told apart where it cannot be: figures, pages, tables."""

import csv
import dataclasses
import html
import io
import os
import warnings

import numpy as np
import pytest
from rich.console import Console

from fpnlab.records.run_records import read_result, write_result
from fpnlab.records.study_records import read_study_file, write_record
from fpnlab.report import figure_text, figures, write_report, write_run_report
from fpnlab.report.draw import draw_labels
from fpnlab.report.figure_text import MISSING, columns, drawable, names, shortened, wrapped
from fpnlab.report.terminal import summary_table

from .conftest import make_study, write_summary

NAMES = (
    "$x^2_{i}",
    "$\\frac{a}$",
    "_hidden",
    "^{",
    "a\\b",
    "[bold]x[/nothing]",
    "层" * 90,
    "  lead and trail  ",
    ".",
    "👩\u200d🔬",
    "עברית",
    "two\nlines",
    "<b>&amp;",
    "\x1b[31m\u202egnp.exe",
    "batch norm over " * 12,
    "=1+1",
)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The page of a study whose arms have all of these names, and its summary."""
    folder = make_study(tmp_path_factory.mktemp("named") / "study", (2, 8), records=3, side=16)
    first = folder / "trials" / "BN-2-0"
    plan = read_study_file(folder / "study.json")
    question = "Does $x_1$ hold for <i>層</i>?"
    write_record(
        folder / "study.json",
        dataclasses.replace(plan, arms=list(NAMES), question=question, metric="AP"),
    )
    result = read_result(first / "result.json")
    for path in folder.glob("trials/*/result.json"):
        path.unlink()
    for i, arm in enumerate(NAMES):
        for value, seed in ((2, 0), (2, 1), (8, 0), (8, 1)):
            run = folder / "trials" / f"{i}-{value}-{seed}"
            run.mkdir()
            changed = {"arm": arm, "axis_value": value, "seed": seed, "class_names": list(NAMES)}
            write_result(run / "result.json", dataclasses.replace(result, **changed))
            os.link(first / "metrics.jsonl", run / "metrics.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_report(write_summary(folder))


@pytest.mark.slow
def test_a_page_of_odd_names_lacks_nothing(named):
    text = named.read_text(encoding="utf-8")
    assert "Left out" not in text
    for name in NAMES:
        shown = name.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
        assert f"<td>{html.escape(shown).replace('&#x27;', '&#39;')}</td>" in text
    assert "<h1>Does $x_1$ hold for &lt;i&gt;層&lt;/i&gt;?</h1>" in text
    files = list((named.parent / "figures").iterdir())
    assert len(files) == text.count("data:image/png;base64")


@pytest.mark.slow
def test_no_text_of_a_table_is_a_formula(named):
    with (named.parent / "table.csv").open(encoding="utf-8", newline="") as file:
        arms = {row["arm"] for row in csv.DictReader(file)}
    assert "'=1+1" in arms
    assert arms - {"'=1+1"} == {*NAMES} - {"=1+1"} | {""}


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_verbatim_without_a_warning():
    plain = ("$x^2_{i}", "_hidden", "^{", "a\\b", "[bold]x[/nothing]", "  lead and trail  ")
    with figures.panel(io.BytesIO(), "$\\frac{a}$ _x_ 层") as axes:
        lines = [axes.plot([0, 1], label=name)[0] for name in plain]
        figures.add_legend(axes, lines, names(plain), inside=None)
        axes.set_xticks([0.0, 1.0], names(["$a", "层"]))
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(plain)
    assert axes.get_title("left") == drawable("$\\frac{a}$ _x_ 层")


def test_a_character_that_no_font_has_is_a_square_and_its_name_is_numbered(monkeypatch):
    monkeypatch.setattr(figure_text, "families", lambda: [figure_text.FONT])
    figure_text._characters.cache_clear()
    try:
        assert drawable("a层b") == f"a{MISSING}b"
        assert names(["BN", "层", "归"]) == ["BN", f"2: {MISSING}", f"3: {MISSING}"]
    finally:
        figure_text._characters.cache_clear()


def test_an_installed_font_with_the_characters_is_used():
    if figure_text.families() == [figure_text.FONT]:
        pytest.skip("no other font is installed")
    assert names(["层"]) == ["层"]


def test_long_names_keep_both_ends_and_stay_different():
    long = [f"batch norm with many options, momentum 0.{i}" for i in range(3)]
    short = names(long)
    assert len(set(short)) == 3
    assert all(name.startswith("batch norm with") and columns(name) <= 32 for name in short)
    same = names(["x" * 50 + "1" + "y" * 50, "x" * 50 + "2" + "y" * 50])
    assert [name[:3] for name in same] == ["1: ", "2: "]


@pytest.mark.parametrize("text", ["", "short", "层" * 90, "x" * 90, "e\u0301" * 50])
def test_shortened_text_fits(text):
    assert columns(shortened(text, 20)) <= 20
    assert shortened(text, 400) == text


def test_wrapped_text_has_few_lines_that_fit():
    lines = wrapped("word " * 60 + "层" * 60, 40).split("\n")
    assert len(lines) == 3
    assert max(map(columns, lines)) <= 40
    assert wrapped("AP by batch size", 40) == "AP by batch size"


def test_class_names_are_drawn_below_pictures():
    images = np.zeros((len(NAMES), 8, 8, 3), np.uint8)
    classes = [*NAMES, "half a pair \ud83d"]
    assert draw_labels(images, np.arange(len(NAMES)), classes, np.eye(len(NAMES))).width > 0


def test_the_table_of_the_terminal_is_verbatim_without_escapes(study_dir):
    from fpnlab.analysis.summary import summarize

    plan = read_study_file(study_dir / "study.json")
    results = [read_result(path) for path in sorted(study_dir.glob("trials/*/result.json"))]
    odd = {"BN": "[bold]x[/nothing]", "LN": "\x1b[31mred"}
    results = [dataclasses.replace(result, arm=odd[result.arm]) for result in results]
    plan = dataclasses.replace(plan, arms=list(odd.values()))
    console = Console(file=io.StringIO(), width=160)
    console.print(summary_table(summarize(plan, results)))
    shown = console.file.getvalue()
    assert "[bold]x[/nothing]" in shown
    assert r"\x1b[31mred" in shown
    assert "\x1b" not in shown


def test_two_studies_are_told_apart_by_the_name_of_their_folder(study_dir):
    other = study_dir.rename(study_dir.with_name("lr_sweep"))
    text = write_report(other).read_text()
    question = read_study_file(other / "study.json").question
    assert f"<title>lr_sweep: {question}</title>" in text
    assert "<b>lr_sweep</b>" in text


def test_a_run_has_its_question_and_the_name_of_its_folder(study_dir):
    run = study_dir / "trials" / "BN-2-0"
    text = write_run_report(run).read_text()
    assert "<title>study/BN-2-0: report of a run</title>" in text
    (run / "config.json").write_text('{"experiment": {"question": "Is 2 < 3?"}}')
    alone = run.rename(study_dir.parent / "quick")
    text = write_run_report(alone).read_text()
    assert "<title>quick: Is 2 &lt; 3?</title>" in text
    assert "<h1>Is 2 &lt; 3?</h1>" in text
    assert "fpnlab run <b>quick</b>" in text


def test_a_folder_whose_name_is_not_utf_8_has_a_page(study_dir):
    odd = study_dir.parent / os.fsdecode(b"caf\xe9")
    try:
        os.rename(study_dir, odd)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    os.rename(odd / "trials" / "BN-2-0", odd / "trials" / os.fsdecode(b"BN-\xff"))
    text = write_report(odd).read_text(encoding="utf-8")
    assert r"caf\xe9" in text
    assert r"BN-\xff" in text
    assert "Left out" not in text
