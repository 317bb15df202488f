import pydantic
import pytest

from fpnlab.data.load import Data, load
from fpnlab.data.scenes import CLASS_NAMES, Scenes
from fpnlab.data.voc import Voc


def test_each_spec_reaches_its_loader():
    data = load(Scenes(image_size=32, train_size=2, test_size=1))
    assert data.class_names == CLASS_NAMES
    with pytest.raises(FileNotFoundError, match="Voc data in nowhere"):
        load(Voc(root="nowhere", class_names=("a",)))


def test_a_config_names_its_data_by_kind():
    read = pydantic.TypeAdapter(Data).validate_python
    assert read({"kind": "scenes", "seed": 3}) == Scenes(seed=3)
    voc = read({"kind": "voc", "root": "x", "class_names": ["a"], "image_size": [2, 3]})
    assert voc == Voc(root="x", class_names=("a",), image_size=(2, 3))
    with pytest.raises(pydantic.ValidationError, match="Unexpected keyword argument"):
        read({"kind": "scenes", "sise": 3})
