"""Files are whole or absent, and a system that refuses to write is quoted with a remedy."""

import json
import os

import pytest

from fpnlab.run.folder import (
    RunFolderError,
    append_line,
    locked,
    read_lines,
    write_json,
    write_lines,
)


def test_json_comes_back_with_nan_as_null(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": [1.5, float("nan"), {"c": float("inf")}], "a": (1, "x", None, True)})
    assert json.loads(path.read_text()) == {
        "b": [1.5, None, {"c": None}],
        "a": [1, "x", None, True],
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == 1


def test_lines_come_back_without_a_torn_last_one(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    append_line(path, {"step": 1, "loss": float("nan")})
    append_line(path, {"step": 2})
    with path.open("a") as log:
        log.write('{"step": 3, "lo')
    assert read_lines(path) == [{"step": 1, "loss": None}, {"step": 2}]
    write_lines(path, read_lines(path)[:1])
    append_line(path, {"step": 4})
    assert [record["step"] for record in read_lines(path)] == [1, 4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_with_a_remedy(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"cannot be written .*No space left.*free space"):
        append_line(tmp_path / "log.jsonl", {"step": 1})
    (tmp_path / ".a.json.tmp").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"No space left"):
        write_json(tmp_path / "a.json", 1)
    assert not (tmp_path / "a.json").exists()


def test_a_lock_is_held_once_and_given_back(tmp_path):
    with locked(tmp_path):
        with pytest.raises(RunFolderError, match="another process is running this"):
            with locked(tmp_path):
                pass
    with locked(tmp_path):
        pass
