"""The table of all comparisons, on the page and in the terminal."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from fpnlab.records.json_files import write_json
from fpnlab.records.study_records import OutlyingSeed, read_summary, write_record
from fpnlab.report import answer_text, comparison_table, write_report
from fpnlab.report.comparison_matrix import comparison_matrix


@pytest.fixture
def clear_dir(study_dir, refresh):
    """The study with LN clearly above BN at batch size 2, below at 8, and undecided at 32."""
    levels = {"2": (0.30, 0.40), "8": (0.50, 0.40), "32": (0.40, 0.40)}
    for name in sorted(path.name for path in (study_dir / "trials").iterdir()):
        arm, value, seed = name.split("-")
        level = levels[value][arm == "LN"] + 0.001 * int(seed) * (value != "32" or arm == "LN")
        metrics = {s: {"AP": level} for s in ("running", "precise", "batch")}
        refresh(study_dir, **{name.replace("-", "_"): {"metrics": metrics}})
    return study_dir


def change(folder, **fields):
    """Replaces fields of the answer in ``summary.json``, and returns the summary."""
    summary = read_summary(folder / "summary.json")
    summary = dataclasses.replace(summary, answer=dataclasses.replace(summary.answer, **fields))
    write_record(folder / "summary.json", summary)
    return summary


def show(summary, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(summary))
    return console.file.getvalue()


def test_cells_have_a_mark_that_is_read_without_color(clear_dir):
    matrix = comparison_matrix(read_summary(clear_dir / "summary.json"))
    [line] = matrix.lines
    assert (matrix.corner, line.name) == ("batch size", "LN minus BN")
    assert [cell.verdict for cell in line.cells] == ["above", "below", "undecided"]
    assert [cell.text.split()[0] for cell in line.cells] == ["▲", "▼", "○"]
    # Half the rounding interval of 0.1, over two seeds.
    assert line.cells[0].text == "▲ 10.0 ± 0.4"
    for meaning in ("▲ LN is above BN; ▼ LN is below BN; ○ undecided", "of 3 comparisons", "0.15"):
        assert meaning in matrix.notes[0]
    assert "With Holm's adjustment, 2 of 2 remain decided." in matrix.notes[0]


def test_cells_without_an_interval_or_a_value_say_so(clear_dir, refresh):
    gone = {"status": "failed", "error": "out of memory", "metrics": {}}
    refresh(clear_dir, BN_2_0=gone, BN_2_1=gone, LN_8_1=gone)
    matrix = comparison_matrix(read_summary(clear_dir / "summary.json"))
    assert [cell.text for cell in matrix.lines[0].cells[:2]] == ["-†", "-10.0†"]
    assert "† trials failed" in matrix.notes[0]
    assert "- not measured (without ±: one seed)" in matrix.notes[0]


def test_further_outlying_seeds_follow_the_table(clear_dir):
    seed = OutlyingSeed(
        arm="LN",
        reference="BN",
        axis_value=8,
        seed=1,
        value=9.0,
        mean=3.0,
        mean_without=0.0,
        sentence="Seed 1 <lies> far.",
    )
    matrix = comparison_matrix(change(clear_dir, outlying=[seed]))
    assert matrix.lines[0].cells[1].text.endswith("‡")
    assert len(matrix.notes) == 1
    summary = change(clear_dir, outlying=[seed, dataclasses.replace(seed, axis_value=2)])
    assert comparison_matrix(summary).notes[1:] == [seed.sentence]
    assert "Seed 1 &lt;lies&gt; far." in write_report(clear_dir).read_text(encoding="utf-8")


def test_the_page_and_the_terminal_have_sentences_and_cells(clear_dir):
    summary = read_summary(clear_dir / "summary.json")
    page = write_report(clear_dir).read_text(encoding="utf-8")
    terminal = show(summary)
    assert answer_text(summary).plain.splitlines() == summary.answer.sentences
    assert "LN is above BN at batch size 2 (by 10.0 AP) and below it at 8 (by 10.0" in page
    for cell in comparison_matrix(summary).lines[0].cells:
        assert cell.text in page
        assert cell.text.replace(" ", "") in terminal
    assert page.index(summary.answer.sentences[-1]) < page.index("All comparisons")
    assert page.index("All comparisons") < page.index(summary.findings[0])


def test_a_summary_of_an_older_version_shows_its_findings(clear_dir):
    summary = json.loads((clear_dir / "summary.json").read_text())
    del summary["answer"]
    write_json(clear_dir / "summary.json", summary)
    page = write_report(clear_dir).read_text(encoding="utf-8")
    assert summary["findings"][0] in page
    assert "All comparisons" not in page
    old = read_summary(clear_dir / "summary.json")
    assert comparison_table(old) is None
    assert answer_text(old).plain.splitlines() == summary["findings"]


def test_many_arms_are_rows_of_differences_to_the_baseline(clear_dir):
    summary = read_summary(clear_dir / "summary.json")
    arms = ["BN", *(f"arm {i}" for i in range(49))]
    rows = [
        dataclasses.replace(row, arm=arm) for arm in arms[1:] for row in summary.answer.comparisons
    ]
    answer = dataclasses.replace(summary.answer, comparisons=rows)
    many = dataclasses.replace(summary, arms=arms, answer=answer)
    matrix = comparison_matrix(many)
    assert matrix.corner == "minus BN"
    assert [line.name for line in matrix.lines] == arms[1:]
    assert "Of 50 arms, only the pairs with BN are compared." in matrix.notes[0]
    assert "of 147 comparisons" in matrix.notes[0]
    # No row of the terminal is wrapped.
    assert show(many, width=80).count("arm ") == 49 + matrix.notes[0].count("arm ")


def test_a_damaged_answer_leaves_cells_out_instead_of_the_page(clear_dir):
    summary = read_summary(clear_dir / "summary.json")
    change(clear_dir, comparisons=summary.answer.comparisons[1:])
    assert comparison_matrix(read_summary(clear_dir / "summary.json")).lines[0].cells[0].text == "-"
    assert write_report(clear_dir).exists()
