"""The official binary files of CIFAR, written here byte by byte."""

import numpy as np
import pytest

from fpnlab.data.load_data import load
from fpnlab.data.sources.cifar import CLASS_NAMES, CifarBinary
from fpnlab.data.split import Split

FILES = {
    10: [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"],
    100: ["train.bin", "test.bin"],
}


def pixels(number):
    """An image in which every value depends on its image, row, column and channel."""
    y, x, c = np.indices((32, 32, 3))
    return ((7 * number + 5 * y + 3 * x + 80 * c) % 256).astype(np.uint8)


def record(number, classes):
    label = [number % 10] if classes == 10 else [number % 20, number % 100]
    return bytes(label) + pixels(number).transpose(2, 0, 1).tobytes()


@pytest.fixture
def make(tmp_path):
    """Writes files of 20 (CIFAR-10) or 100 records each; returns the spec."""

    def write(classes=10, change=None, names=None, **fields):
        per_file = {10: 20, 100: 100}[classes]
        for f, name in enumerate(FILES[classes]):
            content = b"".join(record(f * per_file + i, classes) for i in range(per_file))
            if name in (change or {}):
                content = change[name](content)
            if content is not None:
                (tmp_path / name).write_bytes(content)
        listed = {10: "batches.meta.txt", 100: "fine_label_names.txt"}[classes]
        (tmp_path / listed).write_text("\n".join(names or CLASS_NAMES[classes]) + "\n\n")
        return CifarBinary(root=str(tmp_path), classes=classes, **fields)

    return write


@pytest.mark.parametrize("classes", [10, 100])
def test_labels_and_pixels_are_those_of_the_records(make, classes):
    spec = make(classes)
    data = load(spec)
    train = 100
    assert (data.name, data.class_names) == (f"cifar{classes}", CLASS_NAMES[classes])
    assert len(set(spec.class_names)) == classes
    assert spec.image_size == data.train.images.shape[1:3] == (32, 32)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == data.train.index.dtype == np.int32
    np.testing.assert_array_equal(np.sort(data.train.index), np.arange(train))
    np.testing.assert_array_equal(data.train.labels, data.train.index % classes)
    for image, index in zip(data.train.images, data.train.index):
        np.testing.assert_array_equal(image, pixels(index))
    for image, label, index in zip(data.test.images, data.test.labels, data.test.index):
        assert label == (train + index) % classes
        np.testing.assert_array_equal(image, pixels(train + index))


def test_the_files_that_were_read_are_fingerprinted(make, fingerprints):
    spec = make()
    assert load(spec).files == fingerprints(spec.root, [*FILES[10], "batches.meta.txt"])
    validated = make(split=Split(validation=0.1))
    read = [*FILES[10][:-1], "batches.meta.txt"]
    assert load(validated).files == fingerprints(spec.root, read)


def test_with_validation_the_test_file_is_not_read(make):
    data = load(make(change={"test_batch.bin": lambda _: None}, split=Split(validation=0.1)))
    assert len(data.test.labels) == 10
    assert not set(data.test.index) & set(data.train.index)
    np.testing.assert_array_equal(np.sort(data.test.labels), np.arange(10))


def test_a_smaller_split_has_every_class_equally_often(make):
    data = load(make(split=Split(train_images=30, test_images=10)))
    assert np.bincount(data.train.labels).tolist() == [3] * 10
    assert np.bincount(data.test.labels).tolist() == [1] * 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b[:-1], "has 61459 bytes, 3072 more than 19 records of 3073; it is truncated"),
        (lambda b: b + b"x", "has 61461 bytes, 1 more than 20 records of 3073"),
        (lambda b: b"", "has 0 bytes, 0 more than 0 records"),
        (
            lambda b: b[:3073] + b"\x0a" + b[3074:],
            r"data_batch_2.bin, record 2: label 10 is not from 0 to 9 \(1 such records\)",
        ),
    ],
    ids=["truncated", "too long", "empty", "label"],
)
def test_a_damaged_file_is_an_error(make, change, says):
    with pytest.raises(ValueError, match=r"CIFAR-10 data in .*\n  data_batch_2.bin.*"):
        load(make(change={"data_batch_2.bin": change}))
    with pytest.raises(ValueError, match=says):
        load(make(change={"data_batch_2.bin": change}))


@pytest.mark.parametrize(("column", "limit"), [(0, 20), (1, 100)])
def test_both_labels_of_cifar_100_are_checked(make, column, limit):
    damage = lambda b: b[:column] + bytes([limit]) + b[column + 1 :]
    with pytest.raises(ValueError, match=f"train.bin, record 1: label {limit} is not from 0 to"):
        load(make(100, change={"train.bin": damage}))


def test_the_error_of_missing_files_names_all_of_them_and_those_that_exist(make, tmp_path):
    spec = make(change=dict.fromkeys(["data_batch_3.bin", "test_batch.bin"], lambda _: None))
    with pytest.raises(FileNotFoundError, match="2 errors") as caught:
        load(spec)
    assert "data_batch_3.bin: missing; there are: batches.meta.txt, data_" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such root, or it is empty"):
        load(CifarBinary(root=str(tmp_path / "nowhere")))


def test_a_list_with_names_of_other_classes_is_an_error(make):
    with pytest.raises(ValueError, match=r"meta.txt: names 100 classes .*set classes = 100"):
        load(make(names=CLASS_NAMES[100]))
    with pytest.raises(ValueError, match=r"names 10 classes \(airplane, car, bird, ...\)"):
        load(make(names=["airplane", "car", *CLASS_NAMES[10][2:]]))
