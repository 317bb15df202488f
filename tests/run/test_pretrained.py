"""Runs that start from the weights of a file: what is taken, left out and frozen, and errors."""

import dataclasses
import hashlib
import json
import logging
import pathlib

import chex
import jax
import numpy as np
import pytest

from fpnlab.errors import WeightsError
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.pretrained import Pretrained
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.run.measure import restored_run
from fpnlab.run.pretrained_state import pretrained_state
from fpnlab.spec import SpecError
from fpnlab.types import Mode
from fpnlab.weights.safetensors_format import write_safetensors
from fpnlab.weights.torch_weights import export_weights

BACKBONE = ResNet(
    depths=(1, 1), widths=(4, 8), stem=Stem(size=3, stride=2, pool=True), norm=BatchNorm()
)
MODEL = Classifier(classes=3, backbone=BACKBONE)


@pytest.fixture(scope="module")
def source():
    """Parameters and state with other values than any initial ones."""
    trees = init_classifier(jax.random.key(7), MODEL)
    shift = lambda leaf: leaf + 0.01 * np.arange(leaf.size).reshape(leaf.shape)
    return jax.tree.map(shift, trees)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    write_safetensors(path, export_weights(MODEL, *source))
    return str(path)


def loaded(model, key):
    return pretrained_state(model, *init_classifier(key, model))


def test_a_classifier_has_the_weights_of_its_file(file, source, key):
    model = dataclasses.replace(MODEL, weights=Pretrained(path=file))
    params, state, note = loaded(model, key)
    chex.assert_trees_all_equal(params, source[0])
    images = jax.random.uniform(key, (2, 16, 16, 3)) * 255
    logits = [apply_classifier(MODEL, *t, images, Mode.EVAL)[0] for t in (source, (params, state))]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)
    assert note["loaded"] == len(jax.tree.leaves(params)) + 3 * 6  # Three statistics of six norms.
    assert note["left_out"] == []
    assert note["sha256"] == hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()


def test_a_dense_layer_of_other_classes_is_left_out_and_drawn(file, source, key, caplog):
    model = dataclasses.replace(MODEL, classes=5, weights=Pretrained(path=file))
    initial, _ = init_classifier(key, model)
    params, _, note = loaded(model, key)
    chex.assert_trees_all_equal(params.backbone, source[0].backbone)
    chex.assert_trees_all_equal(params.dense, initial.dense)
    assert note["left_out"] == ["fc.bias", "fc.weight"]
    assert "left out: fc.bias, fc.weight" in caplog.text


def test_the_log_says_what_is_frozen(file, key, caplog):
    frozen = dataclasses.replace(BACKBONE, frozen_stages=1)
    model = dataclasses.replace(MODEL, backbone=frozen, weights=Pretrained(path=file))
    _, _, note = loaded(model, key)
    assert (note["frozen_stages"], note["frozen_arrays"]) == (1, 9)
    assert "frozen: the stem and 1 stages (9 arrays)" in caplog.text


def test_a_detector_run_starts_from_the_weights_of_its_backbone(
    experiment, dataset, run, file, source, tmp_path, caplog
):
    backbone = dataclasses.replace(BACKBONE, frozen_stages=1)
    model = dataclasses.replace(experiment.model, backbone=backbone, weights=Pretrained(path=file))
    train = dataclasses.replace(experiment.train, examples=8, ema_examples=None)
    caplog.set_level(logging.WARNING)
    run(dataclasses.replace(experiment, model=model, train=train), dataset, tmp_path / "run")
    _, state = restored_run(tmp_path / "run")
    for part in ("stem", "stages"):
        own, of_file = (getattr(p.backbone, part) for p in (state.params, source[0]))
        own, of_file = (own[0], of_file[0]) if part == "stages" else (own, of_file)
        chex.assert_trees_all_equal(own, of_file)
    assert np.abs(state.params.backbone.stages[1][0].branch[0].kernel).max() > 0
    initial = json.loads((tmp_path / "run" / "config.json").read_text())["initial"]
    assert initial["left_out"] == ["fc.bias", "fc.weight"]
    assert initial["weights"] == file


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_another_file_than_the_one_meant_is_an_error(digest, file, key):
    model = dataclasses.replace(MODEL, weights=Pretrained(path=file, sha256=digest))
    with pytest.raises(WeightsError, match=f"expected {digest}; give the file that was meant"):
        loaded(model, key)


def test_the_weights_of_another_network_are_an_error_with_all_names(file, key):
    deeper = dataclasses.replace(BACKBONE, depths=(1, 2))
    model = dataclasses.replace(MODEL, backbone=deeper, weights=Pretrained(path=file))
    with pytest.raises(WeightsError) as caught:
        loaded(model, key)
    assert str(caught.value).count("layer2.1.") == 10


def test_a_missing_file_is_an_error_with_its_path(tmp_path, key):
    path = str(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match=r"absent\.pth: cannot be read"):
        loaded(dataclasses.replace(MODEL, weights=Pretrained(path=path)), key)


@pytest.mark.parametrize("digest", ["abc", "G" * 64, "A" * 64])
def test_a_digest_that_is_none_is_an_error(digest):
    with pytest.raises(SpecError, match="must be 64 hexadecimal digits in lower case"):
        Pretrained(path="x", sha256=digest)
