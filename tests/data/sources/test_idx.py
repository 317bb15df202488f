"""IDX files: written here byte by byte, plain and compressed, whole and damaged."""

import gzip
import struct

import numpy as np
import pytest

from fpnlab.data.load_data import load
from fpnlab.data.sources.idx import Idx
from fpnlab.data.split import Split

SIZE = (5, 4)


def idx(array, magic=None):
    array = np.asarray(array, np.uint8)
    head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images(count, start=0):
    return (np.arange(count * 20).reshape(count, *SIZE) + start) % 256


@pytest.fixture
def make(tmp_path):
    """Writes 30 training and 10 test images of three classes; returns the spec."""

    def write(files=None, **fields):
        contents = {
            "train-images-idx3-ubyte": idx(images(30)),
            "train-labels-idx1-ubyte": idx(np.arange(30) % 3),
            "t10k-images-idx3-ubyte": idx(images(10, 7)),
            "t10k-labels-idx1-ubyte": idx(np.arange(10) % 3),
        } | (files or {})
        for name, content in contents.items():
            if content is not None:
                (tmp_path / name).write_bytes(content)
        fields = {"image_size": SIZE, "class_names": ("a", "b", "c")} | fields
        return Idx(root=str(tmp_path), **fields)

    return write


def check(data):
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32
    for split, count, start in ((data.train, 30, 0), (data.test, 10, 7)):
        np.testing.assert_array_equal(np.sort(split.index), np.arange(count))
        np.testing.assert_array_equal(split.labels, split.index % 3)
        for channel in range(3):
            np.testing.assert_array_equal(
                split.images[..., channel], images(count, start)[split.index]
            )


def test_gray_is_repeated_over_three_channels(make, tmp_path):
    data = load(make())
    check(data)
    assert data.name == tmp_path.name
    assert data.class_names == ("a", "b", "c")


def test_the_files_that_were_read_are_fingerprinted(make, fingerprints):
    spec = make({"train-images-idx3-ubyte.gz": gzip.compress(idx(images(30)))})
    read = [f"{s}-{w}-ubyte" for s in ("train", "t10k") for w in ("images-idx3", "labels-idx1")]
    assert load(spec).files == fingerprints(spec.root, read)
    validated = make(split=Split(validation=0.2))
    assert load(validated).files == fingerprints(spec.root, read[:2])
    # The bytes on disk, not those that they decompress to.
    packed = make({"train-images-idx3-ubyte": gzip.compress(idx(images(30)))})
    assert load(packed).files == fingerprints(spec.root, read)


def test_other_separators_in_names_and_compressed_files_are_read(make):
    packed = gzip.compress(idx(images(30)))
    check(
        load(
            make(
                {
                    "train-images-idx3-ubyte": None,
                    "train-images-idx3-ubyte.gz": packed,
                    "train-labels-idx1-ubyte": None,
                    "train-labels.idx1-ubyte": idx(np.arange(30) % 3),
                    # A name that hides that it is (not) compressed.
                    "t10k-labels-idx1-ubyte": None,
                    "t10k-labels-idx1-ubyte.gz": idx(np.arange(10) % 3),
                    "t10k-images-idx3-ubyte": gzip.compress(idx(images(10, 7))),
                }
            )
        )
    )


def test_other_splits_are_found_by_the_prefix_of_their_names(make):
    files = {
        f"emnist-{side}-{what}-idx{dims}-ubyte": content
        for side in ("train", "test")
        for what, dims, content in (
            ("images", 3, idx(images(30 if side == "train" else 10, 7 * (side == "test")))),
            ("labels", 1, idx(np.arange(30 if side == "train" else 10) % 3)),
        )
    }
    check(load(make(files, train="emnist-train", test="emnist-test")))


def test_with_validation_the_test_files_are_not_read(make):
    absent = {"t10k-images-idx3-ubyte": None, "t10k-labels-idx1-ubyte": b"damaged"}
    data = load(make(absent, split=Split(validation=0.2, test_images=3)))
    assert len(data.train.labels) == 24
    assert np.sort(data.test.labels).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", idx(images(30))[:-1], "has 599 bytes after its header"),
        ("train-images-idx3-ubyte", idx(images(30)) + b"x", r"601 bytes .* 30 x 5 x 4 = 600"),
        ("train-images-idx3-ubyte", idx(np.arange(30)), "begins with 00 00 08 01, not with 00 00"),
        (
            "train-images-idx3-ubyte",
            idx(images(30), magic=bytes((0, 0, 13, 3))),
            r"begins with 00 00 0d 03, not with 00 00 08 03 and 3 sizes",
        ),
        ("train-labels-idx1-ubyte", b"", "begins with nothing"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0", "begins with 00 00 08 01, not with"),
        ("train-labels-idx1-ubyte", b"<html>", "begins with 3c 68 74 6d"),
        (
            "t10k-images-idx3-ubyte",
            gzip.compress(idx(images(10)), mtime=0)[:-9],
            "does not decompress",
        ),
        (
            "t10k-images-idx3-ubyte",
            gzip.compress(b"", mtime=0)[:-8] + b"12345678",
            "does not decompress",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.arange(9) % 3),
            "t10k-labels: has 9 labels for the 10 images of t10k-images",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx(1 + np.arange(10) % 3),
            r"has labels from 1 to 3, but class_names has 3 names, for 0 to 2",
        ),
        (
            "train-images-idx3-ubyte",
            idx(np.zeros((30, 4, 5))),
            r"train-images: has images of 4 x 5 pixels, .*set image_size = \[4, 5\]",
        ),
    ],
)
def test_a_damaged_file_or_one_of_another_format_is_an_error(make, name, content, says):
    with pytest.raises(ValueError, match=says):
        load(make({name: content}))


def test_a_file_without_images_is_an_error(make):
    files = {
        "train-images-idx3-ubyte": idx(np.zeros((0, *SIZE))),
        "train-labels-idx1-ubyte": idx(np.zeros(0)),
    }
    with pytest.raises(ValueError, match="0 labels for the 0 images of train-images"):
        load(make(files))


def test_all_errors_are_raised_at_once_and_name_the_files_that_exist(make, tmp_path):
    spec = make({"train-labels-idx1-ubyte": None, "t10k-labels-idx1-ubyte": None})
    with pytest.raises(FileNotFoundError, match="2 errors") as caught:
        load(spec)
    assert (
        "train-labels-idx1-ubyte (or .gz): missing; there are: t10k-images-idx3-ubyte, "
        "train-images-idx3-ubyte"
    ) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such root"):
        load(Idx(root=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"class_names": ("a", "a")},
            "class_names is .*; it must be one or more different names",
        ),
        ({"class_names": ()}, "class_names is .*; it must be one or more different names"),
        ({"test": "train"}, "Idx: test is 'train', as is train; .* split.validation above 0"),
    ],
)
def test_idx_rejects_empty_class_names_and_equal_splits(fields, says):
    with pytest.raises(ValueError, match=says):
        Idx(root=".", **fields)
    assert Idx(root=".", test="train", split=Split(validation=0.1)).image_size == (28, 28)
