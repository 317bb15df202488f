"""Pages say from which files the data came, which have changed, and what was added to a study."""

import dataclasses
import hashlib
import json

import pytest

from fpnlab.records.data_files import DataFile, fingerprint, write_fingerprint
from fpnlab.records.json_files import write_json
from fpnlab.records.study_records import Addition, read_study_file, write_record
from fpnlab.report import data_note, write_report, write_run_report

from .test_page import read


@pytest.fixture
def data(tmp_path):
    """A folder of two files, and their fingerprint."""
    root, files = tmp_path / "data", []
    root.mkdir()
    for name, content in (("a.png", b"one"), ("b.png", b"other")):
        (root / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(DataFile(name=name, size=len(content), sha256=digest))
    return root, fingerprint(files)


def test_the_page_of_a_study_says_which_data_have_changed(study_dir, data, monkeypatch):
    root, found = data
    plan = read_study_file(study_dir / "study.json")
    plan = dataclasses.replace(plan, config={"data": {"root": str(root)}})
    write_record(study_dir / "study.json", plan)
    assert "Loaded from" not in read(write_report(study_dir)).text
    write_fingerprint(study_dir / "data.json", found)
    page = read(write_report(study_dir)).text
    assert "Loaded from 2 files of 8 bytes; SHA-256 over names" in page
    assert f"contents {found.digest[:12]}. They" in page
    assert "have not changed since" in page
    (root / "a.png").write_bytes(b"two")
    page = read(write_report(study_dir)).text
    assert "The data have changed since training: a.png (other content)." in page
    monkeypatch.setattr(data_note, "MOST_CHECKED", 7)
    assert "They were not read again" in read(write_report(study_dir)).text
    root.rename(root.with_name("moved"))
    page = read(write_report(study_dir)).text
    assert f"no longer in {root}, and were not checked" in page
    assert "have changed" not in page


def test_the_page_of_a_run_says_which_data_have_changed(study_dir, data):
    root, found = data
    run = next((study_dir / "trials").iterdir())
    config = {"experiment": {"question": "Why?", "data": {"root": str(root)}}}
    write_json(run / "config.json", config)
    write_fingerprint(run / "data.json", found)
    (root / "b.png").unlink()
    page = read(write_run_report(run)).text
    assert "The data have changed since training: b.png (missing)." in page
    assert "Loaded from 2 files" in page


def test_a_damaged_fingerprint_does_not_cost_the_page(study_dir):
    (study_dir / "data.json").write_text("{")
    page = write_report(study_dir).read_text()
    assert "data.json" in page[page.index("Left out") :]


def test_the_page_says_what_was_added_and_that_late_seeds_are_no_free_lunch(study_dir):
    assert "Later additions" not in read(write_report(study_dir)).text
    plan = read_study_file(study_dir / "study.json")
    early = Addition(date="2026-01-02T03:04:05+00:00", what="arm GN", trials=6, ended=0)
    late = dataclasses.replace(early, what="seeds 3, 4", trials=1200, ended=12, seeds=[3, 4])
    write_record(study_dir / "study.json", dataclasses.replace(plan, additions=[early]))
    page = read(write_report(study_dir)).text
    assert "2026-01-02 03:04" in page
    assert "arm GN" in page
    assert "optional stopping" not in page
    write_record(study_dir / "study.json", dataclasses.replace(plan, additions=[early, late]))
    page = read(write_report(study_dir)).text
    assert "1,200" in page
    assert "Seeds 3, 4 were added after trials had ended" in page
    assert json.loads((study_dir / "study.json").read_text())["additions"][1]["seeds"] == [3, 4]
