"""JSON files and logs that hold anything else are an error of one line that names them."""

import os

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import read_json
from fpnlab.records.run_records import last_record, read_records, read_result

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
