"""Files are written whole or not at all, and failed writes name the cause and a remedy."""

import json
import os

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.records import run_records
from fpnlab.records.json_files import write_json
from fpnlab.records.run_records import MetricRecord, append_record, read_records, write_records
from fpnlab.run.folder import in_use, locked


def test_write_json_stores_nan_and_infinity_as_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1.5, float("nan"), {"c": float("inf")}], "a": (1, "x", None, True)})
    assert json.loads(path.read_text()) == {
        "b": [1.5, None, {"c": None}],
        "a": [1, "x", None, True],
    }
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_keeps_the_old_file_if_a_value_is_not_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == 1


def record(step, loss=1.0):
    return MetricRecord(step=step, examples=4 * step, logs={"loss": loss})


def test_read_records_skips_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    append_record(path, record(1, float("nan")))
    append_record(path, record(2))
    with path.open("a") as log:
        log.write('{"step": 3, "lo')
    assert read_records(path) == [record(1, None), record(2)]
    write_records(path, read_records(path)[:1])
    append_record(path, record(4))
    assert [found.step for found in read_records(path)] == [1, 4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_raises_an_error_with_a_remedy(tmp_path, monkeypatch):
    full = lambda path, flags: os.open("/dev/full", flags)
    monkeypatch.setattr(run_records, "_not_a_link", full)
    with pytest.raises(RunFolderError, match=r"cannot be written .*No space left.*free space"):
        append_record(tmp_path / "log.jsonl", record(1))


@pytest.fixture
def linked_lock(tmp_path):
    """A folder whose lock is a link to the file of somebody else."""
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / ".lock").symlink_to("elsewhere")
    return tmp_path


def test_a_lock_is_not_taken_through_a_link(linked_lock):
    with (
        pytest.raises(RunFolderError, match=r"\.lock: a link, which is not followed"),
        locked(linked_lock),
    ):
        pass
    assert not in_use(linked_lock)
    assert (linked_lock / "elsewhere").read_text() == "theirs"


def test_a_lock_does_not_empty_the_file_that_it_finds(tmp_path):
    (tmp_path / "elsewhere").write_text("theirs")
    os.link(tmp_path / "elsewhere", tmp_path / ".lock")
    with locked(tmp_path):
        assert (tmp_path / "elsewhere").read_text() == "theirs"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)


def test_a_folder_lock_is_exclusive_and_released(tmp_path):
    with locked(tmp_path):
        with pytest.raises(RunFolderError, match="locked by another process"):
            with locked(tmp_path):
                pass
    with locked(tmp_path):
        pass
