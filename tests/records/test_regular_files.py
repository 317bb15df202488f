"""Only regular files up to a size are read, and none of the others blocks."""

import os
import socket
import stat

import pytest

from fpnlab.records.regular_files import read_regular


def test_a_regular_file_or_a_link_to_one_is_read_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 300)
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, 256 * 300) == read_regular(tmp_path / "link", 10**9)
    assert read_regular(path, 256 * 300) == path.read_bytes()


def test_what_is_no_regular_file_is_an_error_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # The name of a socket has at most 108 characters.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, kind in {
        "pipe": "a named pipe",
        "socket": "a socket",
        "link": "a device",
        ".": "a folder",
    }.items():
        with pytest.raises(ValueError, match=f"is {kind}; expected a regular file"):
            read_regular(tmp_path / name, 10**9)


def test_a_file_that_becomes_a_pipe_while_it_is_opened_does_not_block(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    status = os.stat

    def replaced(name, *args, **kwargs):
        found = status(name, *args, **kwargs)
        if name == path and stat.S_ISREG(found.st_mode):
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "stat", replaced)
    with pytest.raises(ValueError, match="is a named pipe"):
        read_regular(path, 100)


def test_a_larger_file_is_an_error_before_it_is_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match=r"has 4,398,046,511,104 bytes; at most 1,000 are read"):
        read_regular(path, 1000)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 10)


def test_what_is_appended_while_a_file_is_read_is_left_out(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_bytes(b"a" * 100)
    status = os.fstat

    def grows(number):
        found = status(number)
        with path.open("ab") as file:
            file.write(b"b")
        return found

    monkeypatch.setattr(os, "fstat", grows)
    assert read_regular(path, 10**6)[:100] == b"a" * 100
    assert len(read_regular(path, 10**6)) < path.stat().st_size
