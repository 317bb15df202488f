"""Pipes, devices, endless files and bombs in the place of data end at once, in little memory."""

import gzip
import io
import os
import struct
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fpnlab.data.load_data import load
from fpnlab.data.sources.cifar import CLASS_NAMES, CifarBinary
from fpnlab.data.sources.idx import Idx
from fpnlab.data.sources.image_folder import ImageFolder
from fpnlab.data.sources.voc import Voc

SECONDS = 20
SOME = 100 * 10**6
"""Bytes that the first entities and the first part of a compressed file expand to."""


def idx(array):
    array = np.asarray(array, np.uint8)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def picture(format):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(buffer, format)
    return buffer.getvalue()


XML = (
    b"<annotation><size><width>8</width><height>8</height></size><object><name>a</name><bndbox>"
    b"<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
)
SOURCES = {
    "voc": (
        lambda root: Voc(root=root, class_names=("a",), image_size=(8, 8)),
        {"ImageSets/Main/trainval.txt": b"x\n", "ImageSets/Main/test.txt": b"y\n"}
        | {f"Annotations/{name}.xml": XML for name in "xy"}
        | {f"JPEGImages/{name}.jpg": picture("JPEG") for name in "xy"},
    ),
    "image_folder": (
        lambda root: ImageFolder(root=root, class_names=("a",), image_size=(8, 8)),
        {f"{split}/a/0.png": picture("PNG") for split in ("train", "test")},
    ),
    "cifar": (
        lambda root: CifarBinary(root=root, classes=100),
        {f"{split}.bin": bytes(2 + 3072) for split in ("train", "test")}
        | {"fine_label_names.txt": " ".join(CLASS_NAMES[100]).encode()},
    ),
    "idx": (
        lambda root: Idx(root=root, image_size=(2, 2)),
        {
            f"{split}-{what}-ubyte": idx(np.zeros(shape))
            for split in ("train", "t10k")
            for what, shape in (("images-idx3", (4, 2, 2)), ("labels-idx1", (4,)))
        },
    ),
}
"""The data sets that are read from files: a spec by folder, and the content of each file."""
PLACES = [(kind, file) for kind, (_, files) in SOURCES.items() for file in files]


def write(kind, root):
    make, files = SOURCES[kind]
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return make(str(root))


def outcome(spec):
    """The error or the problems of loading a data set, which must end within seconds."""
    found = []

    def attempt():
        try:
            found.append("; ".join(map(str, load(spec).problems)))
        except (OSError, ValueError) as error:
            found.append(str(error))

    loading = threading.Thread(target=attempt, daemon=True)
    loading.start()
    loading.join(SECONDS)
    assert found, f"it still loads after {SECONDS} seconds"
    return found[0]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_data_sets_are_valid_as_they_are_written_here(kind, tmp_path):
    assert outcome(write(kind, tmp_path)) == ""


@pytest.mark.parametrize(("kind", "file"), PLACES)
def test_what_is_no_regular_file_is_named_at_once(kind, file, tmp_path):
    spec = write(kind, tmp_path)
    path = tmp_path / file
    for make, what in (
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (os.mkdir, "a folder"),
    ):
        path.unlink()
        make(path)
        says = outcome(spec)
        assert f"is {what}; expected a regular file" in says
        assert path.stem in says
        path.rmdir() if path.is_dir() else path.unlink()
        path.touch()


@pytest.mark.parametrize(("kind", "file"), PLACES)
def test_an_endless_file_is_named_before_it_is_read(kind, file, tmp_path):
    spec = write(kind, tmp_path)
    with (tmp_path / file).open("r+b") as content:
        content.truncate(2**42)
    says = outcome(spec)
    assert "has 4,398,046,511,104 bytes; at most" in says
    assert (tmp_path / file).stem in says


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"", "begins with 00 00 00 00"),
        (b"\0\0\x08\x01\0\0\0\4", "has 5 bytes or more after its header, which gives 4 = 4"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "its header gives 4294967295 bytes; at most"),
    ],
)
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(head, says, tmp_path):
    spec = write("idx", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(gzip.compress(head + bytes(SOME)))
    tracemalloc.start()
    found = outcome(spec)
    assert tracemalloc.get_traced_memory()[1] < SOME / 20
    tracemalloc.stop()
    assert f"train-labels-idx1-ubyte: {says}" in found


def test_an_idx_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    spec = write("idx", tmp_path)
    promising = b"\0\0\x08\x03" + struct.pack(">3I", 1000, 1000, 1000) + b"few"
    (tmp_path / "train-images-idx3-ubyte").write_bytes(promising)
    tracemalloc.start()
    found = outcome(spec)
    assert tracemalloc.get_traced_memory()[1] < SOME / 20
    tracemalloc.stop()
    assert "has 3 bytes after its header, which gives 1000 x 1000 x 1000 = 1000000000" in found


def test_the_entities_of_an_annotation_are_not_expanded(tmp_path):
    spec = write("voc", tmp_path)
    entities = [f'<!ENTITY a0 "{"x" * 1000}">']
    entities += [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 8)]
    bomb = f"<!DOCTYPE annotation [{''.join(entities)}]><annotation><b>&a7;</b></annotation>"
    (tmp_path / "Annotations/x.xml").write_text(bomb)
    tracemalloc.start()
    found = outcome(spec)
    assert tracemalloc.get_traced_memory()[1] < SOME / 20
    tracemalloc.stop()
    assert "Annotations/x.xml: declares the document type 'annotation'" in found


def test_a_name_that_the_system_cannot_open_is_an_error_of_its_file(tmp_path):
    spec = write("voc", tmp_path)
    (tmp_path / "ImageSets/Main/test.txt").write_bytes(b"a\0b\n" + b"x" * 5000 + b"\n")
    says = outcome(spec)
    assert "embedded null" in says
    assert "cannot be read (File name too long)" in says
