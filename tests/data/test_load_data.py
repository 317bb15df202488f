import pydantic
import pytest

from fpnlab.data.load_data import Data, load
from fpnlab.data.sources.cifar import CifarBinary
from fpnlab.data.sources.digits import Digits
from fpnlab.data.sources.idx import Idx
from fpnlab.data.sources.image_folder import ImageFolder
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes
from fpnlab.data.sources.voc import Voc
from fpnlab.data.split import Split


def test_each_spec_reaches_its_loader():
    data = load(Scenes(image_size=32, train_size=2, test_size=1))
    assert data.class_names == CLASS_NAMES
    with pytest.raises(FileNotFoundError, match="Voc data in nowhere"):
        load(Voc(root="nowhere", class_names=("a",)))
    with pytest.raises(FileNotFoundError, match="Image folder nowhere"):
        load(ImageFolder(root="nowhere", class_names=("a",), image_size=(4, 4)))
    with pytest.raises(FileNotFoundError, match="CIFAR-100 data in nowhere"):
        load(CifarBinary(root="nowhere", classes=100))
    with pytest.raises(FileNotFoundError, match="Idx data in nowhere"):
        load(Idx(root="nowhere"))


def test_class_names_and_image_sizes_are_known_without_reading_files():
    for spec, classes, size in (
        (ImageFolder(root="nowhere", class_names=("a", "b"), image_size=(4, 6)), 2, (4, 6)),
        (CifarBinary(root="nowhere"), 10, (32, 32)),
        (CifarBinary(root="nowhere", classes=100), 100, (32, 32)),
        (Idx(root="nowhere"), 10, (28, 28)),
        (Digits(), 10, (8, 8)),
    ):
        assert len(set(spec.class_names)) == classes
        assert spec.image_size == size


def test_the_kind_in_a_config_selects_the_data_spec():
    read = pydantic.TypeAdapter(Data).validate_python
    assert read({"kind": "scenes", "seed": 3}) == Scenes(seed=3)
    voc = read({"kind": "voc", "root": "x", "class_names": ["a"], "image_size": [2, 3]})
    assert voc == Voc(root="x", class_names=("a",), image_size=(2, 3))
    cifar = read({"kind": "cifar", "root": "x", "classes": 100, "split": {"seed": 2}})
    assert cifar == CifarBinary(root="x", classes=100, split=Split(seed=2))
    folder = {"kind": "image_folder", "root": "x", "class_names": ["a"], "image_size": [2, 3]}
    assert read(folder) == ImageFolder(root="x", class_names=("a",), image_size=(2, 3))
    assert read({"kind": "idx", "root": "x"}) == Idx(root="x")
    assert read({"kind": "digits"}) == Digits()
    with pytest.raises(pydantic.ValidationError, match="Unexpected keyword argument"):
        read({"kind": "scenes", "sise": 3})
