"""The files of a data set are fingerprinted while they are read, and checked afterwards."""

import os
import threading

import pytest

from fpnlab.data.data_folder import DataFolder
from fpnlab.data.load_data import load
from fpnlab.data.sources.scenes import Scenes
from fpnlab.records.data_files import check_data_files

NAMES = ["a/1.png", "a/2.png", "b.txt"]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


@pytest.fixture
def files(root):
    folder = DataFolder(root)
    for name in reversed(NAMES):
        folder.read(name, 1000)
    return folder.files


def test_a_folder_keeps_the_fingerprint_of_each_file_that_is_read(root, files, fingerprints):
    assert files == fingerprints(root, NAMES)


def test_the_fingerprint_is_of_the_bytes_that_were_returned(root, fingerprints):
    folder = DataFolder(root)
    before = fingerprints(root, ["b.txt"])
    folder.read("b.txt", 1000)
    (root / "b.txt").write_bytes(b"changed later")
    assert folder.files == before


def test_a_missing_or_unsuitable_file_is_an_error_and_has_no_fingerprint(root):
    folder = DataFolder(root)
    with pytest.raises(FileNotFoundError):
        folder.read("none", 1000)
    with pytest.raises(ValueError, match="has 500 bytes; at most 499 are read"):
        folder.read("b.txt", 499)
    with pytest.raises(ValueError, match="is a folder; expected a regular file"):
        folder.read("a", 1000)
    with pytest.raises(ValueError, match=r"cannot be read \(Not a directory\)"):
        folder.read("b.txt/c", 1000)
    assert folder.files == ()


def test_a_text_that_is_not_utf_8_is_an_error(root):
    (root / "list.txt").write_bytes(b"\xff\xfea\0")
    with pytest.raises(ValueError, match=r"is not text in UTF-8 .*; save it as such"):
        DataFolder(root).read_text("list.txt")
    (root / "list.txt").write_bytes(b"\xef\xbb\xbfa\n")
    assert DataFolder(root).read_text("list.txt") == "a\n"


def test_generated_data_has_no_files():
    assert load(Scenes(image_size=32, train_size=2, test_size=2)).files == ()


def test_files_that_are_equal_have_no_phrase(root, files, tmp_path_factory):
    assert check_data_files(root, files) == []
    moved = tmp_path_factory.mktemp("moved") / "data"
    root.rename(moved)
    assert check_data_files(str(moved), files) == []
    assert check_data_files(None, files) == []


def test_every_change_of_a_file_is_named(root, files):
    (root / "a/1.png").unlink()
    (root / "b.txt").write_bytes(b"b.tx_" * 100)
    (root / "a/2.png").unlink()
    os.mkfifo(root / "a/2.png")
    assert check_data_files(root, files) == [
        "a/1.png (missing)",
        "a/2.png (is a named pipe; expected a regular file)",
        "b.txt (other content)",
    ]
    assert check_data_files(root / "none", files) == [f"{name} (missing)" for name in NAMES]


def test_a_file_of_another_size_is_not_read(root, files):
    with (root / "b.txt").open("r+b") as file:
        file.truncate(2**42)  # Four terabytes without content.
    checked = []
    reader = threading.Thread(
        target=lambda: checked.extend(check_data_files(root, files)), daemon=True
    )
    reader.start()
    reader.join(10)
    assert checked == ["b.txt (other size)"]


def test_home_is_expanded(root, files, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert check_data_files("~", files) == []
    assert DataFolder("~").root == root
