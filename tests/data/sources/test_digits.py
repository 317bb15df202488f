"""The digits of scikit-learn, and the error without scikit-learn."""

import hashlib
import sys

import numpy as np
import pytest

from fpnlab.data.load_data import load
from fpnlab.data.sources.digits import Digits
from fpnlab.data.split import Split


def test_the_error_without_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"digits: .*pip install scikit-learn"):
        load(Digits())


def test_the_held_out_digits_are_a_fixed_stratified_sample():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    spec = Digits()
    data, other = load(spec), load(Digits(split=Split(seed=1)))
    assert data.train.images.shape == (1437, *spec.image_size, 3)
    assert data.test.images.shape == (360, 8, 8, 3)
    assert data.class_names == spec.class_names
    np.testing.assert_array_equal(
        np.sort(np.concatenate([data.train.index, data.test.index])), np.arange(1797)
    )
    assert set(data.test.index) == set(other.test.index)
    assert np.any(data.test.index != other.test.index)
    found = datasets.load_digits()
    whole = np.bincount(found.target)
    np.testing.assert_allclose(np.bincount(data.test.labels), whole * 360 / 1797, atol=1)
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.labels, found.target[split.index])
        gray = found.images[split.index] * 255 / 16
        for channel in range(3):
            np.testing.assert_allclose(split.images[..., channel], gray, atol=0.5)
    assert data.train.images.max() == 255


def test_the_digits_are_fingerprinted_whatever_the_split():
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    (file,) = load(Digits()).files
    assert load(Digits(split=Split(validation=0.25))).files == (file,)
    found = datasets.load_digits()
    content = found.images.astype("<f8").tobytes() + found.target.astype("<i8").tobytes()
    assert (file.name, file.size) == ("scikit-learn digits", len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_validation_does_not_use_the_held_out_digits():
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    held = set(load(Digits()).test.index)
    tuning = load(Digits(split=Split(validation=0.25)))
    assert len(tuning.test.labels) == 359
    assert not held & {*tuning.train.index, *tuning.test.index}
