"""Classifiers as trials: trained, interrupted, measured three ways, shown, and studied."""

import base64
import dataclasses
import inspect
import json
import shutil

import jax
import numpy as np
import pytest

from fpnlab.cli.preview import draw_preview
from fpnlab.config.claims import Claim, Equivalence
from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Axis, Study
from fpnlab.config.validate import resolved, validate
from fpnlab.data.augmentation.classifier_augment import AugmentImages
from fpnlab.data.augmentation.detector_augment import Augment
from fpnlab.data.dataset import Dataset
from fpnlab.data.sources.digits import Digits
from fpnlab.errors import ConfigError, Interrupted
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import cifar_resnet
from fpnlab.report import write_report, write_run_report
from fpnlab.run.interrupts import Stop
from fpnlab.run.measure import evaluate_run
from fpnlab.stats.resampling import hierarchical_bootstrap
from fpnlab.study.context import StudyListener
from fpnlab.study.runner import run_study
from fpnlab.study.verify import verify
from fpnlab.tasks.classification import Classification
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import Train
from fpnlab.types import LabeledBatch

CLASSES = 10


def patterns(count, seed):
    """Classes told apart by their color, under noise."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % CLASSES).astype(np.int32)
    means = np.random.default_rng(7).uniform(0, 255, (CLASSES, 1, 1, 3))
    images = np.clip(means[labels] + draw.normal(0, 30, (count, 8, 8, 3)), 0, 255)
    index = np.arange(count, dtype=np.int32)
    return LabeledBatch(images=images.astype(np.uint8), labels=labels, index=index)


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


def items(folder):
    with np.load(folder / "items.npz") as file:
        return {name: file[name] for name in file.files}


def test_a_run_stores_which_test_images_are_predicted_correctly(folder):
    kept = items(folder)
    for source, metrics in read(folder)["metrics"].items():
        for metric, share in metrics.items():
            right = kept.pop(f"{metric}_{source}")
            assert (right.dtype, right.shape, right.mean()) == (bool, (40,), share)
    assert kept == {}


def test_items_are_in_the_order_of_the_test_images(dataset, folder):
    """Those of the gallery are the first."""
    with np.load(folder / "gallery.npz") as gallery:
        found = gallery["shares"].argmax(1) == gallery["labels"]
    assert 0 < found.sum() < len(found)
    assert list(items(folder)["accuracy_running"][: len(found)]) == list(found)


def test_an_interrupted_classifier_resumes_to_the_same_result(
    experiment, dataset, run, folder, tmp_path
):
    with pytest.raises(Interrupted):
        run(experiment, dataset, tmp_path, stop_after=20)
    run(experiment, dataset, tmp_path)
    whole, broken = read(folder), read(tmp_path)
    for field in ("metrics", "test_loss", "final_loss"):
        assert whole[field] == broken[field]
    np.testing.assert_equal(items(tmp_path), items(folder))


def test_evaluating_a_checkpoint_again_gives_the_same_numbers(experiment, dataset, folder):
    assert evaluate_run(folder, dataset) == read(folder)["metrics"]


def test_a_runs_page_has_its_pictures_with_labels_and_no_boxes(folder):
    page = write_run_report(folder).read_text()
    assert "Test images, each with its class, and the predicted class" in page
    assert "true box" not in page
    assert "loss (nats)" in page
    drawn = (folder / "figures" / "gallery.png").read_bytes()
    assert base64.b64encode(drawn).decode() in page


def test_a_preview_has_labels_and_predictions(experiment, dataset, folder):
    truth = draw_preview(experiment, dataset, None, split="test", count=4, score=0.3)
    told = draw_preview(experiment, dataset, folder, split="test", count=4, score=0.3)
    mixed = draw_preview(experiment, dataset, None, split="train", count=4, score=0.3)
    assert truth.size == told.size == mixed.size
    assert truth.tobytes() != told.tobytes()


@pytest.fixture(scope="module")
def studied(experiment):
    """Two norms, two batch sizes, two seeds: eight short trials, and a claim."""
    norm = "model.backbone.norm"
    arms = {
        "BN": {norm: {"kind": "batch_norm"}},
        "LN": {norm: {"kind": "layer_norm", "axes": "hwc"}},
    }
    near = Equivalence(arm="LN", baseline="BN", axis_values=(4, 8), margin=40.0)
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, examples=160),
        study=Study(
            axes=(Axis(field="train.batch_size", values=(4, 8)),),
            seeds=(0, 1),
            arms=arms,
            metric="accuracy",
            claims=(Claim(statement="They are near.", rules=(near,)),),
        ),
    )


def study(studied, dataset, folder):
    return run_study(studied, dataset, folder, command="", stop=Stop(), listener=StudyListener())


@pytest.fixture(scope="module")
def finished(studied, dataset, tmp_path_factory):
    """The folder of the finished study; only to be read."""
    folder = tmp_path_factory.mktemp("studied")
    study(studied, dataset, folder)
    return folder


def test_an_ended_study_has_bootstrap_intervals_from_its_trials_items(finished):
    summary = json.loads((finished / "summary.json").read_text())
    right = lambda arm, size, seed: items(
        finished / "trials" / f"{arm}-batch_size-{size}-seed-{seed}"
    )["accuracy_running"].astype(float)
    for size in (4, 8):
        differences = [100 * (right("ln", size, seed) - right("bn", size, seed)) for seed in (0, 1)]
        expected = hierarchical_bootstrap(np.stack(differences))
        [row] = [
            row
            for row in summary["differences"]
            if (row["metric"], row["evaluation"], row["axis_value"])
            == ("accuracy", "running", size)
        ]
        assert row["mean"] == pytest.approx(expected.mean)
        assert (row["bootstrap"]["low"], row["bootstrap"]["items"]) == (expected.low, 40)
    assert [o["place"][-1] for o in summary["claim_bootstrap"]] == ["4", "8"]
    assert verify(finished).problems == []
    page = write_report(finished).read_text()
    assert all(row["sentence"] in page for row in summary["claim_bootstrap"])
    assert page.count(">bootstrap interval</th>") == 1


def test_an_old_study_without_items_is_reported_without_bootstrap_intervals(
    studied, dataset, finished, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "old")
    for name in ("trials/*/items.npz", "trials/*/manifest.json", "manifest.json"):
        for path in folder.glob(name):
            path.unlink()
    summary = study(studied, dataset, folder)
    assert summary.counts["done"] == 8
    assert summary.claim_bootstrap == []
    assert all(row.bootstrap is None for row in summary.differences)
    assert "bootstrap" not in write_report(folder).read_text().lower()
    assert verify(folder).problems == []


def test_the_error_of_damaged_items_says_how_to_evaluate_them_again(
    studied, dataset, finished, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "damaged")
    run = folder / "trials" / "bn-batch_size-8-seed-0"
    content = (run / "items.npz").read_bytes()
    (run / "items.npz").write_bytes(content[:-40])
    summary = study(studied, dataset, folder)
    assert list(summary.items_left_out) == [run.name]
    assert f"{run.name} (items.npz cannot be used (" in write_report(folder).read_text()
    assert [row.place[-1] for row in summary.claim_bootstrap] == ["4"]
    problems = verify(folder).problems
    assert {problem.path for problem in problems} == {run / "items.npz"}
    assert all("remove it and result.json" in problem.remedy for problem in problems)
    (run / "result.json").unlink()
    assert len(study(studied, dataset, folder).claim_bootstrap) == 2
    assert verify(folder).problems == []


def test_an_augmentation_of_another_task_is_a_type_error(experiment, dataset, key):
    augment = inspect.unwrap(Classification.augment)
    keys = jax.random.split(key, 64)
    with pytest.raises(TypeError, match="Augment is not for images with labels; give Augment"):
        augment(experiment.task, Augment(), keys, dataset.train)
    with pytest.raises(TypeError, match="a Classifier takes a LabeledBatch; got a tuple"):
        inspect.unwrap(Classification.augment)(experiment.task, AugmentImages(), key, (1, 2))


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


def test_the_kinds_and_the_metric_follow_from_labeled_data():
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
            "study.metric: is 'AP', .*; expected one of accuracy,",
        ),
        ("objective", {"label_smoothing": 1.0}, r"objective.label_smoothing: is 1\.0; it must be"),
        ("model", {"classes": 9}, r"model.classes: is 9, .* set model.classes = 10"),
        ("model", {"neck": {}}, "model.neck: unknown field 'neck'"),
    ],
)
def test_specs_and_metrics_of_another_task_are_config_errors(field, value, says):
    table = json.loads(json.dumps(TABLE))
    table[field] = (table.get(field) or {}) | value
    if value.get("kind"):
        table[field].pop("pad", None)
    with pytest.raises(ConfigError, match=says):
        validate(table)


def test_batch_norm_of_a_classifier_over_one_value_is_a_config_error():
    table = json.loads(json.dumps(TABLE)) | {"study": None}
    table["model"]["backbone"]["norm"]["norm_batch"] = 3
    with pytest.raises(ConfigError, match="groups of norm_batch=3; these do: 1, 2, 4, 8"):
        validate(table)
    fits = dataclasses.replace(validate(TABLE).train, batch_size=6)
    assert fits.statistics_group == 6
