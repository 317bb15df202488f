"""Classifiers as trials: trained, interrupted, measured three ways, shown, and studied."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fpnlab.config import ConfigError, Experiment, resolved, validate
from fpnlab.data.augment import Augment
from fpnlab.data.augment_images import AugmentImages
from fpnlab.data.dataset import Dataset
from fpnlab.data.digits import Digits
from fpnlab.evaluate.detection import Evaluate
from fpnlab.model.backbone import cifar_resnet
from fpnlab.model.classifier import Classifier
from fpnlab.model.norm import BatchNorm
from fpnlab.report import write_run_report
from fpnlab.study.show import draw
from fpnlab.study.task import random_views
from fpnlab.study.training import Interrupted
from fpnlab.study.trial import evaluate_run
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import Train
from fpnlab.types import LabelledBatch

CLASSES = 10


def patterns(count, seed):
    """Classes told apart by their colour, under noise."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % CLASSES).astype(np.int32)
    means = np.random.default_rng(7).uniform(0, 255, (CLASSES, 1, 1, 3))
    images = np.clip(means[labels] + draw.normal(0, 30, (count, 8, 8, 3)), 0, 255)
    index = np.arange(count, dtype=np.int32)
    return LabelledBatch(images=images.astype(np.uint8), labels=labels, index=index)


@pytest.fixture(scope="module")
def dataset():
    names = tuple("0123456789")
    return Dataset(name="patterns", class_names=names, train=patterns(64, 1), test=patterns(40, 2))


@pytest.fixture(scope="module")
def experiment():
    return Experiment(
        data=Digits(),
        augment=AugmentImages(pad=1, flip=0.0, mixup=0.2),
        model=Classifier(classes=CLASSES, backbone=cifar_resnet(8, norm=BatchNorm(), width=4)),
        objective=CrossEntropy(),
        train=Train(examples=960, batch_size=8, learning_rate=0.1, reference_batch=8),
        evaluate=Evaluate(batch_size=16, population_examples=32),
        log_examples=160,
        checkpoint_seconds=1e9,
    )


@pytest.fixture(scope="module")
def folder(experiment, dataset, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    run(experiment, dataset, folder)
    return folder


def read(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_classifier_learns_and_is_measured_by_three_statistics(folder):
    result = read(folder)
    assert result["status"] == "done"
    assert set(result["metrics"]) == {"running", "precise", "batch"}
    assert result["metrics"]["precise"]["accuracy"] > 0.5
    assert set(result["metrics"]["running"]) == {"accuracy", "top5"}
    assert 0 < result["test_loss"]["precise"] < np.log(CLASSES)
    assert {row["name"] for row in result["diagnostics"]["signals"]} >= {"stem", "stage 0 block 0"}


def test_an_interrupted_classifier_goes_on_to_the_same_result(
    experiment, dataset, run, folder, tmp_path
):
    with pytest.raises(Interrupted):
        run(experiment, dataset, tmp_path, stop_after=20)
    run(experiment, dataset, tmp_path)
    whole, broken = read(folder), read(tmp_path)
    for field in ("metrics", "test_loss", "final_loss"):
        assert whole[field] == broken[field]


def test_a_checkpoint_is_measured_again_to_the_same_numbers(experiment, dataset, folder):
    assert evaluate_run(folder, experiment, dataset) == read(folder)["metrics"]


def test_a_runs_page_has_its_pictures_with_labels_and_no_boxes(folder):
    page = write_run_report(folder).read_text()
    assert "under each its class" in page
    assert "true box" not in page
    assert "loss (nats)" in page
    assert (folder / "figures" / "gallery.png").stat().st_size > 2000


def test_show_draws_labels_and_what_a_run_says_of_them(experiment, dataset, folder, monkeypatch):
    from fpnlab.study import show

    monkeypatch.setattr(show, "read_run", lambda _: experiment)
    truth = draw(experiment, dataset, None, split="test", count=4, score=0.3)
    told = draw(experiment, dataset, folder, split="test", count=4, score=0.3)
    mixed = draw(experiment, dataset, None, split="train", count=4, score=0.3)
    assert truth.size == told.size == mixed.size
    assert truth.tobytes() != told.tobytes()


def test_views_of_another_task_are_refused(dataset, key):
    with pytest.raises(TypeError, match="Augment gives no views of a LabelledBatch; Augment is"):
        random_views(Augment(), jax.random.split(key, 64), dataset.train, CLASSES)


TABLE = {
    "data": {"kind": "digits"},
    "augment": {"pad": 1},
    "model": {
        "classes": CLASSES,
        "backbone": {"depths": [1], "widths": [4], "norm": {"kind": "batch_norm"}},
    },
    "train": {"examples": 64, "batch_size": 8, "learning_rate": 0.1},
    "study": {
        "axes": [{"field": "train.batch_size", "values": [4, 8]}],
        "arms": {"BN": {}},
    },
}


def test_the_kinds_and_the_metric_follow_from_labelled_data():
    experiment = validate(TABLE)
    assert isinstance(experiment.model, Classifier)
    assert isinstance(experiment.objective, CrossEntropy)
    assert isinstance(experiment.augment, AugmentImages)
    assert experiment.study.metric == "accuracy"
    assert validate(resolved(experiment)) == experiment


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", {"kind": "detector"}, "model.kind: is 'detector', but digits data have a label"),
        ("augment", {"kind": "detection"}, "augment.kind: is 'detection', but digits data have"),
        ("objective", {"kind": "detection"}, "set objective.kind = 'cross_entropy', or choose"),
        (
            "study",
            {"metric": "AP"},
            "study.metric: is 'AP', .*; these are measured: accuracy,",
        ),
        ("objective", {"label_smoothing": 1.0}, r"objective: label_smoothing is 1\.0; it must be"),
        ("model", {"classes": 9}, r"model.classes: is 9, .* set model.classes = 10"),
        ("model", {"neck": {}}, "model.neck: no such field"),
    ],
)
def test_what_belongs_to_another_task_is_refused(field, value, says):
    table = json.loads(json.dumps(TABLE))
    table[field] = (table.get(field) or {}) | value
    if value.get("kind"):
        table[field].pop("pad", None)
    with pytest.raises(ConfigError, match=says):
        validate(table)


def test_batch_norm_of_a_classifier_meets_the_shapes_of_its_batch():
    table = json.loads(json.dumps(TABLE)) | {"study": None}
    table["model"]["backbone"]["norm"]["norm_batch"] = 3
    with pytest.raises(ConfigError, match="groups of norm_batch=3; these do: 1, 2, 4, 8"):
        validate(table)
    fits = dataclasses.replace(validate(TABLE).train, batch_size=6)
    assert fits.statistics_group == 6
