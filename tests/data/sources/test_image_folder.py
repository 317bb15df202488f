"""Folders of images: written here, and those of the real CIFAR-10."""

import collections
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from fpnlab.data.load_data import load
from fpnlab.data.sources import cifar
from fpnlab.data.sources.image_folder import ImageFolder
from fpnlab.data.split import Split

NAMES = ("cat", "dog")
SIZE = (6, 8)


def picture(number, size=SIZE):
    y, x, c = np.indices((*size, 3))
    return ((31 * number + 9 * y + 5 * x + 60 * c) % 256).astype(np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """Writes 5 training and 3 test images of each class, numbered through; returns the spec."""

    def write(files=None, **fields):
        contents, number = {}, 0
        for split, count in (("train", 5), ("test", 3)):
            for name in NAMES:
                for i in range(count):
                    contents[f"{split}/{name}/{i}.png"] = png(picture(number))
                    number += 1
        for name, content in (contents | (files or {})).items():
            if content is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(content)
        fields = {"class_names": NAMES, "image_size": SIZE} | fields
        return ImageFolder(root=str(tmp_path), **fields)

    return write


def test_every_image_comes_with_its_class(make, tmp_path):
    data = load(make())
    assert (data.name, data.class_names, data.problems) == (tmp_path.name, NAMES, ())
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == data.train.index.dtype == np.int32
    for split, first, count in ((data.train, 0, 10), (data.test, 10, 6)):
        np.testing.assert_array_equal(np.sort(split.index), np.arange(count))
        np.testing.assert_array_equal(split.labels, split.index >= count // 2)
        for image, index in zip(split.images, split.index):
            np.testing.assert_array_equal(image, picture(first + index))


def test_the_images_of_the_split_are_fingerprinted(make, fingerprints):
    spec = make({"train/cat/0.png": b"damaged", "train/cat/notes.txt": b"x"})
    names = [f"train/{name}/{i}.png" for name in NAMES for i in range(5)]
    names += [f"test/{name}/{i}.png" for name in NAMES for i in range(3)]
    assert load(spec).files == fingerprints(spec.root, names)
    some = load(make(split=Split(train_images=2, test_images=1)))
    chosen = [names[i] for i in some.train.index] + [names[10:][i] for i in some.test.index]
    assert some.files == fingerprints(spec.root, chosen)


def test_each_of_many_images_has_its_own_row(make):
    few = {f"train/cat/{i}.png": None for i in range(5)}
    data = load(make(few | {f"train/cat/{i:03}.png": png(picture(i)) for i in range(150)}))
    cats = data.train.labels == 0
    assert cats.sum() == 150
    for image, index in zip(data.train.images[cats], data.train.index[cats]):
        np.testing.assert_array_equal(image, picture(index))


def test_classes_are_numbered_as_they_are_named_and_others_left_out(make):
    spec = make({"train/ant/0.png": png(picture(0)), "train/bee/0.png": b""})
    data = load(ImageFolder(root=spec.root, image_size=SIZE, class_names=("dog", "cat")))
    np.testing.assert_array_equal(data.train.labels, data.train.index >= 5)
    np.testing.assert_array_equal(data.train.images[data.train.index == 0][0], picture(5))
    (problem,) = data.problems
    assert str(problem) == "train, ant: 2 folders are not in class_names: left out"
    assert problem.count == 2


def test_only_the_images_of_the_split_are_decoded(make):
    broken = {f"train/cat/{i}.png": b"" for i in range(5)}
    spec = make(broken, split=Split(train_images=2))
    data = load(spec)
    assert data.train.labels.tolist() == [1]
    (problem,) = data.problems
    assert problem.what.startswith("does not decode")


def test_validation_comes_from_the_training_folder_and_the_test_folder_is_not_read(make):
    files = {f"test/{name}/{i}.png": None for name in NAMES for i in range(3)}
    data = load(make(files, split=Split(validation=0.4)))
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    assert np.bincount(data.train.labels).tolist() == [3, 3]
    for image, index in zip(data.test.images, data.test.index):
        np.testing.assert_array_equal(image, picture(index))


def test_unreadable_images_and_other_files_are_left_out_and_listed(make):
    whole = png(picture(3))
    spec = make(
        {
            "train/cat/3.png": whole[: len(whole) // 2],
            "train/dog/0.png": b"<html>",
            "test/dog/notes.txt": b"x",
            "test/dog/.hidden": b"x",
        }
    )
    data = load(spec)
    assert np.sort(data.train.index).tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    for image, index in zip(data.train.images, data.train.index):
        np.testing.assert_array_equal(image, picture(index))
    np.testing.assert_array_equal(data.train.labels, data.train.index >= 5)
    lines = sorted(map(str, data.problems))
    assert lines[0] == "test/dog, notes.txt: 1 entries are not .jpg, .jpeg, .png files: left out"
    assert lines[1].startswith("train/cat/3.png, whole file: does not decode (")
    assert lines[2].startswith("train/dog/0.png, whole file: does not decode (")
    assert all(line.endswith("): left out") for line in lines[1:])
    assert len(lines) == 3


def test_a_broken_link_is_left_out_and_listed(make, tmp_path):
    spec = make()
    (tmp_path / "train/cat/9.jpg").symlink_to(tmp_path / "gone")
    (problem,) = load(spec).problems
    assert str(problem) == "train/cat/9.jpg, whole file: is missing: left out"


def test_images_of_other_sizes_are_scaled_and_center_cropped(make):
    tall, wide = np.zeros((24, 16, 3), np.uint8), np.zeros((6, 16, 3), np.uint8)
    tall[6:18] = 200  # Halved, it is 12 pixels tall, of which 6 are left.
    wide[:, 4:12] = 100
    turned = np.zeros((8, 6, 3), np.uint8)  # As many pixels as asked for.
    turned[2:] = 50
    files = {"train/cat/0.png": tall, "train/dog/4.png": wide, "test/cat/0.png": turned}
    data = load(make({name: png(image) for name, image in files.items()}))
    halved = data.train.images[data.train.index == 0][0]
    np.testing.assert_array_equal(halved[1:-1], 200)
    # Scaled before it was cut: the edge knows of the dark beyond it.
    assert np.all((150 < halved[[0, -1]]) & (halved[[0, -1]] < 200))
    np.testing.assert_array_equal(data.train.images[data.train.index == 9], 100)
    np.testing.assert_array_equal(data.test.images[data.test.index == 0][0, 3:], 50)
    problem, other = data.problems
    assert other.where == "1 of 6 images"
    assert str(problem) == (
        "train, 2 of 10 images: of other sizes (6 x 16 to 24 x 16 pixels): scaled to cover 6 x 8 "
        "and center-cropped"
    )
    assert problem.count == 2


def test_downscaling_a_file_averages_instead_of_aliasing(make):
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    data = load(make({"train/cat/0.png": png(stripes)}))
    shrunk = data.train.images[data.train.index == 0].astype(int)
    assert np.all(np.abs(shrunk[:, :, 1:-1] - 127) < 20)


def test_gray_images_are_repeated_over_three_channels(make):
    gray = picture(1)[..., 0]
    data = load(make({"train/cat/1.png": png(gray)}))
    found = data.train.images[data.train.index == 1][0]
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, -1))


def test_the_error_of_missing_folders_names_all_of_them_and_the_nearest_names(make, tmp_path):
    spec = make()
    wrong = ImageFolder(root=spec.root, image_size=SIZE, class_names=("cats", "zebra"), test="val")
    with pytest.raises(FileNotFoundError, match="3 errors") as caught:
        load(wrong)
    for line in (
        "train/cats: no such folder; did you mean 'cat'? there are: cat, dog",
        "train/zebra: no such folder; there are: cat, dog",
        "val: no such folder; there are: test, train",
    ):
        assert f"\n  {line}" in str(caught.value)
    nowhere = ImageFolder(root=str(tmp_path / "no"), image_size=SIZE, class_names=NAMES)
    with pytest.raises(FileNotFoundError, match="train: no such folder; no such root, or it is"):
        load(nowhere)


def test_a_class_without_images_is_an_error(make):
    spec = make({f"train/dog/{i}.png": None for i in range(5)} | {"train/dog/a.gif": b""})
    with pytest.raises(ValueError, match=r"train/dog: has no image; add .jpg, .jpeg, .png file"):
        load(spec)


def test_a_split_without_a_readable_image_is_an_error(make):
    with pytest.raises(ValueError, match=r"test: none of 6 images is readable; test/\w+/\d.png"):
        load(make({f"test/{name}/{i}.png": b"" for name in NAMES for i in range(3)}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"class_names": ("a", "a")}, "class_names is .*; it must be one or more different"),
        ({"class_names": ()}, "class_names is .*; it must be one or more different"),
        ({"image_size": (0, 8)}, "image_size is .*at least 1"),
        ({"image_size": (8, 50_000)}, "image_size is .*at most 8192"),
        ({"test": "train"}, "ImageFolder: test is 'train', as is train"),
    ],
)
def test_image_folder_rejects_empty_class_names_and_equal_splits(fields, says):
    with pytest.raises(ValueError, match=says):
        ImageFolder(**{"root": ".", "class_names": NAMES, "image_size": SIZE} | fields)


@pytest.fixture(scope="module")
def cifar_folder(data_root, tmp_path_factory):
    """Four training and two test images of each class of the real CIFAR-10, unpacked."""
    archive = data_root / "cifar10-images.tar.xz"
    if not archive.is_file():
        pytest.skip(f"real data not found: {archive}")
    folder = tmp_path_factory.mktemp("cifar10")
    wanted, found = {"train": 4, "test": 2}, collections.Counter()
    with tarfile.open(archive, "r|xz") as members:
        for member in members:
            split, *rest = member.name.split("/")
            place = (split, rest[0] if rest else "")
            if member.isfile() and found[place] < wanted[split]:
                found[place] += 1
                members.extract(member, folder, filter="data")
            if found.total() == 10 * sum(wanted.values()):
                break
    return folder


def test_the_real_cifar_10_loads(cifar_folder):
    names = cifar.CLASS_NAMES[10]
    data = load(ImageFolder(root=str(cifar_folder), image_size=(32, 32), class_names=names))
    assert data.problems == ()
    for split, each in ((data.train, 4), (data.test, 2)):
        assert np.bincount(split.labels).tolist() == [each] * 10
        assert split.images.shape == (10 * each, 32, 32, 3)
        assert split.images.std((1, 2, 3)).min() > 5
    first = sorted((cifar_folder / "train" / names[3]).iterdir())[0]
    image = data.train.images[data.train.index == 4 * 3][0]
    np.testing.assert_array_equal(image, np.asarray(Image.open(first)))
