"""Atomic writing of JSON files and logs, and reading of damaged ones."""

import os

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import read_json, replace_file, write_json
from fpnlab.records.run_records import (
    MetricRecord,
    append_record,
    last_record,
    read_records,
    read_result,
    scan_records,
)


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
        ("[" * 100_000, "nested too deeply"),
        (f'{{"seed": 1{"0" * 400}}}', "an integer has too many digits"),
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


DEEP = b"[" * 200_000
GOOD = b'{"step": 1, "examples": 8, "loss": 0.5}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (DEEP, "nested too deeply"),
        (b'{"a": ' + DEEP, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"[1]", "expected a table; found list"),
        (b"null", "expected a table; found NoneType"),
        (None, "is a named pipe; expected a regular file"),
        (2**42, "has 4,398,046,511,104 bytes; at most"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_without_a_table_is_an_error_of_one_line(content, says, tmp_path):
    path = tmp_path / "result.json"
    if content is None:
        os.mkfifo(path)
    elif isinstance(content, int):
        with path.open("wb") as file:
            file.truncate(content)
    else:
        path.write_bytes(content)
    for read in (read_json, read_result):
        with pytest.raises(RunFolderError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"{}",
        b'{"step": 1}',
        b'{"step": "one", "examples": 8}',
        b'{"step": [], "examples": 8}',
        b'{"step": 1, "examples": {}}',
        b'{"step": 1, "examples": 8, "loss": {"a": []}}',
        b'{"step": 1, "examples": 8, "effective_rates": 5}',
        b'{"step": 1, "examples": 8, "pack": 1.5}',
        b"\x00\xff",
        DEEP,
    ],
    ids=lambda line: line[:50],
)
def test_a_damaged_line_of_a_log_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(RunFolderError, match=r"metrics.jsonl, line 2: not a complete record"):
        read_records(path)
    path.write_bytes(GOOD + line + b"\n")
    assert last_record(path) is None


def test_a_log_that_is_no_regular_file_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(RunFolderError, match=r"cannot be read \(is a named pipe"):
        read_records(path)
    assert last_record(path) is None


def test_numbers_that_were_not_finite_are_read_as_none_or_default(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "examples": 8, "examples_per_second": null, "loss": null, '
        b'"effective_rate": null}\n'
    )
    (record,) = read_records(path)
    assert record.logs == {"loss": None}
    assert record.examples_per_second == 0.0
    assert record.effective_rate is None
