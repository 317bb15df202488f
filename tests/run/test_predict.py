"""Predictions on images of any size with the weights of a run folder."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import fpnlab
from fpnlab.data.fit_image import letterbox
from fpnlab.data.sources.digits import Digits
from fpnlab.errors import ConfigError, RunFolderError
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import cifar_resnet
from fpnlab.run.measure import restored_run, weights
from fpnlab.run.predict import TrainedRun, load_run
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import init_train
from fpnlab.types import Mode


@pytest.fixture(scope="module")
def trained(unbroken):
    """A run of a few steps; its detector returns boxes of any score."""
    run = load_run(unbroken)
    model = run.experiment.model
    model = dataclasses.replace(
        model, postprocess=dataclasses.replace(model.postprocess, score_threshold=0.0)
    )
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=model))


def test_predictions_equal_those_of_the_evaluation(trained, unbroken, dataset):
    _, state = restored_run(unbroken)
    expected = trained.experiment.task.predict(
        weights(state),
        state.state,
        dataset.test,
        mode=Mode.EVAL,
        batch_size=8,
        precision="float32",
    )
    predictions = trained.predict(list(dataset.test.images))
    assert len(predictions) == len(dataset.test.images)
    assert sum(len(found.scores) for found in predictions) == expected.valid.sum() > 0
    for i, found in enumerate(predictions):
        valid = expected.valid[i]
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes[i][valid], atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores[i][valid], atol=1e-5)
        np.testing.assert_array_equal(found.classes, expected.classes[i][valid])
        assert [trained.class_names[k] for k in found.classes] == list(found.labels)


def test_boxes_are_in_pixels_of_the_original_image(trained, dataset):
    large = np.repeat(np.repeat(dataset.test.images[0], 4, axis=0), 4, axis=1)
    small, _, _ = letterbox(large, (32, 32))
    (here,), (there,) = trained.predict([small]), trained.predict([large])
    assert len(here.scores) > 0
    np.testing.assert_allclose(there.boxes_xyxy, 4 * here.boxes_xyxy, atol=1e-3)


def test_predict_accepts_files_and_arrays_of_several_sizes(trained, dataset, tmp_path):
    small, path = dataset.test.images[0], tmp_path / "small.png"
    Image.fromarray(small).save(path)
    wide = np.zeros((20, 70, 3), np.uint8)
    predictions = trained.predict([wide, path, small] * 4)
    assert len(predictions) == 12
    np.testing.assert_array_equal(predictions[1].boxes_xyxy, predictions[2].boxes_xyxy)
    for found in predictions[::3]:
        assert np.all(found.boxes_xyxy <= [70, 20, 70, 20])


def test_above_drops_detections_with_lower_scores(trained, dataset):
    (found,) = trained.predict(dataset.test.images[:1])
    limit = float(np.median(found.scores))
    kept = found.above(limit)
    assert 0 < len(kept.labels) == len(kept.scores) == (found.scores >= limit).sum()
    assert len(found.table()["detections"]) == len(found.scores)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_predict_rejects_an_array_that_is_not_an_image_and_names_its_index(image, trained, dataset):
    with pytest.raises(ValueError, match=r"images\[1\]: .* array of shape .* expected uint8 RGB"):
        trained.predict([dataset.test.images[0], image])


def test_predict_names_a_file_that_cannot_be_decoded(trained, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.png: does not decode"):
        trained.predict([path])


def test_classifier_predictions_have_the_probability_of_each_class(key):
    experiment = fpnlab.Experiment(
        data=Digits(),
        model=Classifier(classes=10, backbone=cifar_resnet(8, norm=BatchNorm())),
        objective=CrossEntropy(),
        train=fpnlab.train.Train(examples=8, batch_size=4, learning_rate=0.1),
    )
    state = init_train(key, experiment.task, experiment.train)
    run = TrainedRun(experiment, state.params, state.state)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((8, 8), (30, 17))]
    for found in run.predict(images):
        assert list(found.probabilities) == list(run.class_names)
        np.testing.assert_allclose(sum(found.probabilities.values()), 1, rtol=1e-5)
        assert found.probability == max(found.probabilities.values())
        assert found.probabilities[found.label] == found.probability


def test_load_run_rejects_folders_without_a_run_or_checkpoint(unbroken, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: not the config of a run"):
        load_run(tmp_path)
    (tmp_path / "trials" / "bn_4_0").mkdir(parents=True)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"holds a study; give one of its trials.*bn_4_0"):
        load_run(tmp_path)
    bare = shutil.copytree(unbroken, tmp_path / "bare", ignore=shutil.ignore_patterns("check*"))
    with pytest.raises(RunFolderError, match="no checkpoint found"):
        load_run(bare)


def test_load_run_is_public_and_returns_a_dataclass(trained):
    assert dataclasses.is_dataclass(trained)
    assert fpnlab.load_run is load_run
