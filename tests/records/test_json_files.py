"""Atomic writing, and reading of damaged JSON."""

import os

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import read_json, replace_file, write_json
from fpnlab.records.run_records import MetricRecord, append_record, last_record, scan_records


@pytest.fixture
def elsewhere(tmp_path):
    """A file of somebody else, to which a link leads."""
    path = tmp_path / "elsewhere"
    path.write_text("theirs")
    return path


def test_replace_file_replaces_a_link_and_not_what_it_points_to(tmp_path, elsewhere):
    page = tmp_path / "page.html"
    page.symlink_to(elsewhere)
    replace_file(page, "mine")
    assert (page.read_text(), page.is_symlink(), elsewhere.read_text()) == ("mine", False, "theirs")


def test_replace_file_does_not_write_through_a_link_at_its_scratch_file(tmp_path, elsewhere):
    for name in (".page.html.tmp", f".page.html.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(elsewhere)
    replace_file(tmp_path / "page.html", b"mine")
    assert elsewhere.read_text() == "theirs"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    replace_file(page, "good")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        replace_file(page, "half")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text() == "good"


def test_text_is_written_as_utf_8_in_any_locale(tmp_path):
    replace_file(tmp_path / "a", "大小")
    assert (tmp_path / "a").read_bytes() == "大小".encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[" * 100_000, "recursion"),
        (f'{{"seed": 1{"0" * 400}}}', "an integer of 401 digits"),
        (f'{{"seed": 1{"0" * 9000}}}', "digits"),
        ('{"a": "\udcff"}', "utf-8"),
    ],
)
def test_read_json_names_what_no_file_of_the_package_has(tmp_path, content, problem):
    path = tmp_path / "result.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(RunFolderError, match=rf"result\.json: cannot be read .*{problem}"):
        read_json(path)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "3",
        '{"examples": 8}',
        '{"step": null, "examples": 8}',
        '{"step": 1, "examples": 8, "loss": "low"}',
        '{"step": 1, "examples": 8, "effective_rates": [1]}',
        f'{{"step": 1, "examples": 8, "loss": 1{"0" * 400}}}',
        f'{{"step": 1, "examples": 8, "loss": {"[" * 100_000}',
    ],
)
def test_a_line_that_is_no_record_is_a_problem_and_the_others_are_read(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "examples": 8, "loss": 1.5}\n'
    path.write_text(f"{good}{line}\n{good}")
    records, problems = scan_records(path)
    assert [record.logs for record in records] == [{"loss": 1.5}] * 2
    assert problems == [(2, False)]
    path.write_text(f"{line}\n")
    assert last_record(path) is None


def test_a_log_is_not_written_through_a_link(tmp_path, elsewhere):
    (tmp_path / "metrics.jsonl").symlink_to(elsewhere)
    with pytest.raises(RunFolderError, match="cannot be written"):
        append_record(tmp_path / "metrics.jsonl", MetricRecord(step=1, examples=8))
    assert write_json(tmp_path / "metrics.jsonl", 1) is None
    assert elsewhere.read_text() == "theirs"
