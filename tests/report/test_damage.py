"""A damaged file costs what was in it, and never the page."""

import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from fpnlab.errors import RunFolderError
from fpnlab.report import figures, page, page_parts, write_report, write_run_report
from fpnlab.report.page_parts import PageParts
from fpnlab.report.study_folder import read_study, read_trial

from .conftest import make_study, write_summary


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A finished study of eight trials with small pictures."""
    folder = tmp_path_factory.mktemp("sound") / "study"
    return write_summary(make_study(folder, (2, 8), records=6, side=32))


@pytest.fixture
def study_dir(sound, tmp_path):
    """A copy of the study."""
    return pathlib.Path(shutil.copytree(sound, tmp_path / "study"))


def replaced_by(content):
    def damage(path):
        path.write_bytes(content)

    return damage


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path):
    path.unlink()
    path.mkdir()


def dead_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def forbidden(path):
    """Reading raises an OSError also for a superuser: the link leads to itself."""
    path.unlink()
    path.symlink_to(path)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are written, but not drawn, which takes most of the time of a page."""
    figure = PageParts.figure
    blank = lambda file: file.write(b"\x89PNG" + bytes(30))
    fake = lambda parts, name, draw, caption: figure(parts, name, blank, caption)
    monkeypatch.setattr(PageParts, "figure", fake)


DAMAGE = {
    "cut": cut,
    "empty": replaced_by(b""),
    "a list": replaced_by(b"[]\n"),
    "null": replaced_by(b"null\n"),
    "without its fields": replaced_by(b"{}\n"),
    "deeply nested": replaced_by(b"[" * 100_000 + b"\n"),
    "an integer of 400 digits": replaced_by(b'{"step": 1, "examples": 1' + b"0" * 400 + b"}\n"),
    "no UTF-8": replaced_by(b'{"a": "\xff"}\n'),
    "a folder": folder,
    "a dead link": dead_link,
    "a link to itself": forbidden,
    "a pipe": pipe,
}
"""Functions that damage a file, by what it is then."""


def left_out(path):
    """The list of what a page lacks, as text."""
    text = path.read_text(encoding="utf-8")
    return text.split("<h2>Left out</h2>")[1].split("</section>")[0]


CASES = set(itertools.product(("result.json", "metrics.jsonl", "env.json"), DAMAGE))
CASES -= {("env.json", "without its fields")}  # It has none that must be there.


@pytest.mark.parametrize(("name", "damage"), sorted(CASES))
def test_a_damaged_file_of_a_trial_is_named_and_costs_no_other(study_dir, name, damage):
    whole = {trial.name: trial for trial in read_study(study_dir).trials}
    DAMAGE[damage](study_dir / "trials" / "BN-2-0" / name)
    found = {trial.name: trial for trial in read_study(study_dir).trials}
    hurt = found.pop("BN-2-0")
    lines = [hurt.error] if name == "result.json" else list(hurt.problems)
    assert [name in line for line in lines] == [True]
    assert hurt.status == ("unreadable" if name == "result.json" else "done")
    for other, trial in found.items():
        assert (trial.status, trial.result) == ("done", whole[other].result)
        assert (trial.records, trial.problems) == (whole[other].records, ())


def test_a_page_comes_of_trials_that_are_each_damaged_in_another_way(study_dir):
    trials = study_dir / "trials"
    (trials / "BN-2-0" / "result.json").write_text("{")
    replaced_by(b'{"step": 1, "examples": 8, "loss": "low"}\n')(trials / "BN-2-1" / "metrics.jsonl")
    folder(trials / "LN-2-0" / "env.json")
    DAMAGE["deeply nested"](trials / "BN-8-0" / "config.json")
    for path in trials.glob("*/gallery.npz"):
        cut(path)
    path = trials / "LN-8-0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arm": "GN"}))
    path = trials / "LN-8-1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"axis_value": 16}))
    shutil.rmtree(trials / "BN-2-0" / "config.json", ignore_errors=True)
    text = (written := write_report(study_dir)).read_text()
    lacks = left_out(written)
    for part in (
        "BN-2-0/result.json: cannot be read",
        "BN-2-1/metrics.jsonl: 1 of 1 lines are no records, from 1 on",
        "LN-2-0/env.json: not a file",
        "LN-8-0/result.json: arm is &#39;GN&#39;, which is not in study.json",
        "LN-8-1/result.json: axis_value is 16, which is not in study.json",
        "figure gallery_1: BadZipFile",
    ):
        assert part in lacks
        assert text.count(part) >= (1 if "figure" in part else 2)  # In the row of its trial, too.
    assert "5 of 8 trials are done; 3 unreadable." in text
    names = {path.stem for path in (study_dir / "figures").iterdir()}
    assert names >= {"AP", "AP50", "difference", "loss_BN", "loss_LN", "drift_mean", "noise_arms"}


@pytest.mark.parametrize("damage", ["cut", "deeply nested", "a folder"])
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_summary_is_left_out(study_dir, damage):
    DAMAGE[damage](study_dir / "summary.json")
    written = write_report(study_dir)
    assert "summary.json" in left_out(written)
    assert "<code>summary.json</code> is damaged" in written.read_text()
    assert (study_dir / "figures" / "loss_BN.png").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"arms": []},
        {"axis_values": [], "rows": [], "best": None},
        {"arms": ["BN", "GN"], "axis_values": [1, 1.0, True]},
    ],
    ids=str,
)
def test_a_summary_without_sense_costs_its_figures_and_not_the_page(study_dir, change):
    path = study_dir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "8 of 8 trials are done." in write_report(study_dir).read_text()


def test_a_damaged_study_file_is_the_only_error(study_dir):
    DAMAGE["cut"](study_dir / "study.json")
    with pytest.raises(RunFolderError, match=r"study\.json: cannot be read"):
        write_report(study_dir)


@pytest.mark.parametrize("name", ["config.json", "env.json", "gallery.npz", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_left_out_of_its_page(study_dir, name):
    run = study_dir / "trials" / "BN-2-0"
    DAMAGE["deeply nested"](run / name)
    written = write_run_report(run)
    assert name.partition(".")[0].removesuffix(".npz") in left_out(written)
    assert "AP50/Platelets" in written.read_text()


def test_a_gallery_that_unpacks_to_very_much_is_not_unpacked(study_dir, monkeypatch):
    monkeypatch.setattr("fpnlab.report.gallery.LARGEST_GALLERY", 10_000)
    np.savez_compressed(
        study_dir / "trials" / "BN-2-0" / "gallery.npz", images=np.zeros((9, 64, 64, 3), np.uint8)
    )
    lacks = left_out(write_run_report(study_dir / "trials" / "BN-2-0"))
    assert "gallery.npz: 110,720 bytes; expected at most 10,000" in lacks


def test_a_figure_that_cannot_be_drawn_is_left_out_alone(study_dir, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr(figures, "plot_differences", broken)
    written = write_report(study_dir)
    assert left_out(written).count("<li>") == 1
    assert "figure difference: ZeroDivisionError: somewhere deep" in left_out(written)
    assert (study_dir / "figures" / "AP.png").is_file()


@pytest.mark.usefixtures("undrawn")
def test_a_section_that_cannot_be_rendered_is_left_out_alone(study_dir, monkeypatch):
    monkeypatch.setattr(page.tables, "reason", lambda trial: 1 / 0)
    (study_dir / "trials" / "BN-2-0" / "result.json").unlink()
    written = write_report(study_dir)
    assert "section Trials: ZeroDivisionError" in left_out(written)
    assert "<h2>Answer</h2>" in written.read_text()
    assert "<h2>How to reproduce</h2>" in written.read_text()


def test_many_parts_that_are_left_out_are_folded(study_dir):
    parts = [f"part {i}" for i in range(45)]
    text = page._environment().get_template("parts.html").module.left_out(parts)
    assert "<summary>25 more</summary>" in text
    assert [text.count(f"<li>{part}</li>") for part in parts] == [1] * 45
    assert (text.count("<details>"), text.count("</details>")) == (1, 1)


LOSSES = {
    "all zero": [0.0] * 4,
    "some zero": [2.0, 1.0, 0.0],
    "negative": [-1.0, -2.0],
    "nan": [float("nan")] * 4,
    "huge": [3e38, 1e-44],
    "no 32 bits": [1.7e308, 1.0],
    "a single one": [1.0],
}


@pytest.mark.parametrize("losses", LOSSES)
def test_losses_of_any_value_are_drawn(study_dir, losses):
    for path in study_dir.glob("trials/*/metrics.jsonl"):
        records = enumerate(LOSSES[losses], 1)
        lines = [{"step": i, "examples": 8 * i, "loss": loss} for i, loss in records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = read_study(study_dir)
    parts = PageParts(study_dir)
    drawn = page._draw_losses(study, parts) + page._draw_run(study.trials[0], [], parts)["loss"]
    assert (len(drawn), parts.left_out) == (3, [])


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_keeps_the_good_page(study_dir, monkeypatch):
    write_report(study_dir)
    good = {path: path.read_bytes() for path in study_dir.rglob("*") if path.is_file()}

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_report(study_dir)
    assert {path: path.read_bytes() for path in study_dir.rglob("*") if path.is_file()} == good


@pytest.mark.usefixtures("undrawn")
def test_a_page_comes_without_its_figures_folder(study_dir):
    (study_dir / "figures").write_text("no folder")
    written = write_report(study_dir)
    assert "figures/, so that figures are on the page alone" in left_out(written)
    assert written.read_text().count("data:image/png;base64") > 10


@pytest.mark.usefixtures("undrawn")
def test_a_page_comes_without_its_table(study_dir):
    (study_dir / "table.csv").mkdir()
    assert "table.csv: " in left_out(write_report(study_dir))


@pytest.mark.usefixtures("undrawn")
def test_nothing_is_written_through_links_in_the_folder(study_dir, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("report.html", "table.csv"):
        (theirs / name).write_text("theirs")
        (study_dir / name).symlink_to(theirs / name)
    (study_dir / "figures").symlink_to(theirs)
    written = write_report(study_dir)
    assert "figures: a link, which is not followed; remove it" in left_out(written)
    assert sorted(path.name for path in theirs.iterdir()) == ["report.html", "table.csv"]
    assert {path.read_text() for path in theirs.iterdir()} == {"theirs"}


@pytest.mark.parametrize("metric", ["ABSOLUTE", "../../up", "", "difference", "中" * 90], ids=len)
@pytest.mark.usefixtures("undrawn")
def test_no_file_name_comes_from_a_json_value(study_dir, tmp_path, metric):
    before = {path for path in tmp_path.rglob("*") if study_dir not in path.parents}
    metric = metric.replace("ABSOLUTE", str(tmp_path / "evil"))
    path = study_dir / "summary.json"
    path.write_text(path.read_text().replace('"AP"', json.dumps(metric)))
    written = write_report(study_dir)
    assert "Left out" not in written.read_text()
    assert {path for path in tmp_path.rglob("*") if study_dir not in path.parents} == before
    images = written.read_text().count("data:image/png;base64")
    assert len(list((study_dir / "figures").iterdir())) == images


def test_figures_have_file_names_of_their_own(tmp_path):
    parts = PageParts(tmp_path)
    names = ["a b", "a_b", "A_b", "中", "大", "x" * 300, "x" * 301]
    for name in names:
        parts.figure(name, lambda file: file.write(b"\x89PNG" + bytes(30)), "")
    assert parts.left_out == []
    assert len(list((tmp_path / "figures").iterdir())) == len(names)


def test_an_error_is_one_line_of_limited_length(tmp_path):
    parts = PageParts(tmp_path)

    def fails():
        raise ValueError("a\nb" + "c" * 9000)

    assert parts.make("part", fails, otherwise=1) == 1
    [line] = parts.left_out
    assert line.startswith("part: ValueError: a bccc")
    assert len(line) < 320
    assert page_parts.one_line(RunFolderError("known")) == "known"


def test_a_trial_of_a_link_to_nowhere_is_unreadable(study_dir):
    path = study_dir / "trials" / "BN-2-0" / "result.json"
    dead_link(path)
    assert (read_trial(path.parent).status, read_trial(path.parent).error[-10:]) == (
        "unreadable",
        "not a file",
    )
