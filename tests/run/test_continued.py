"""Longer training, initial weights of another run, and data that have changed or moved."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fpnlab.data.load_data import load
from fpnlab.errors import Interrupted, RunFolderError
from fpnlab.records.data_files import DataFile, changed_files, fingerprint, read_fingerprint
from fpnlab.records.run_records import read_result
from fpnlab.run.enter_folder import data_changes
from fpnlab.run.folder import RunFolder
from fpnlab.run.measure import restored_run, weights
from fpnlab.study.verify import verify
from fpnlab.train.schedule import Cosine, Steps, first_other_rate

CONSTANT = Steps(warmup=0.0, milestones=())
FILES = tuple(
    DataFile(name=f"train/{name}.png", size=size, sha256=str(size) * 64)
    for name, size in (("a", 1), ("b", 2), ("c", 3))
)


def of_length(experiment, examples, schedule=CONSTANT):
    train = dataclasses.replace(experiment.train, examples=examples, schedule=schedule)
    return dataclasses.replace(experiment, train=train)


def leaves(folder):
    return jax.tree.leaves(restored_run(folder)[1])


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def records(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.fixture(scope="module")
def constant(experiment, dataset, run, tmp_path_factory):
    """The folder of a finished run of 32 examples with a constant learning rate; read-only."""
    folder = tmp_path_factory.mktemp("constant") / "run"
    run(of_length(experiment, 32), dataset, folder)
    return folder


@pytest.fixture
def copied(constant, tmp_path):
    shutil.copytree(constant, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_trained_longer_equals_a_run_of_that_length(
    experiment, dataset, run, copied, tmp_path
):
    short = (copied / "result.json").read_bytes()
    longer, seen = run(of_length(experiment, 48), dataset, copied)
    assert seen == [10, 12]
    whole, _ = run(of_length(experiment, 48), dataset, tmp_path / "whole")
    assert same(leaves(copied), leaves(tmp_path / "whole"))
    assert longer.metrics == whole.metrics
    assert longer.config_hash == whole.config_hash
    without_rates = lambda rows: [{k: v for k, v in r.items() if "rates" not in k} for r in rows]
    assert without_rates(records(copied)) == without_rates(records(tmp_path / "whole"))
    assert (copied / "result-step-8.json").read_bytes() == short
    assert verify(copied).problems == []


def test_a_run_is_not_trained_longer_where_its_schedule_would_have_been_another(
    experiment, dataset, run, unbroken, copied
):
    for folder, longer, words in (
        (unbroken, of_length(experiment, 96, Cosine()), r"cosine .* over 96 examples .* step 1 "),
        (copied, of_length(experiment, 96, Steps(warmup=0.0, milestones=(0.3,))), "schedule"),
    ):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with pytest.raises(RunFolderError, match=words):
            run(longer, dataset, folder)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_run_cannot_become_shorter_than_it_is(experiment, dataset, run, copied):
    with pytest.raises(RunFolderError, match=r"has trained on 32 examples .*more than 32"):
        run(of_length(experiment, 16), dataset, copied)


@pytest.mark.parametrize(
    ("schedule", "steps", "first"),
    [
        (CONSTANT, 100, None),
        (Cosine(), 100, 0),
        (Cosine(warmup=0.0), 1, None),
        (Cosine(warmup=0.0), 2, 1),
        (Steps(warmup=0.0, milestones=(0.5,)), 13, None),
        (Steps(warmup=0.0, milestones=(0.5,)), 14, 13),
    ],
)
def test_the_first_step_with_another_rate_is_found(schedule, steps, first):
    # Of 100 examples in batches of 4, the rate drops at 50: from step 13 (counted from 0) on.
    assert first_other_rate(schedule, (100, 200), 4, steps) == first


def test_a_run_starts_from_the_weights_of_another(experiment, dataset, run, constant, tmp_path):
    started = dataclasses.replace(of_length(experiment, 16), initial_run=str(constant))
    with pytest.raises(Interrupted):
        run(started, dataset, tmp_path / "run", stop_after=2)
    run(started, dataset, tmp_path / "run")
    run(of_length(experiment, 16), dataset, tmp_path / "random")
    assert not same(leaves(tmp_path / "run"), leaves(tmp_path / "random"))

    # Without a step of any size, the weights are those of the other run.
    still = dataclasses.replace(started.train, learning_rate=1e-30, weight_decay=0.0)
    run(dataclasses.replace(started, train=still), dataset, tmp_path / "still")
    found, given = restored_run(tmp_path / "still")[1], restored_run(constant)[1]
    assert same(jax.tree.leaves(weights(found)), jax.tree.leaves(weights(given)))
    source = json.loads((tmp_path / "still" / "config.json").read_text())["initial"]
    assert source == {
        "run": str(constant),
        "training_hash": RunFolder(constant).stored().training_hash,
        "step": 8,
    }


def test_weights_of_another_model_are_an_error_that_names_a_leaf(
    layer_norm_experiment, dataset, run, constant, tmp_path
):
    other = dataclasses.replace(layer_norm_experiment, initial_run=str(constant))
    with pytest.raises(RunFolderError, match=r"initial_run: .*leaf .*backbone.* same model"):
        run(other, dataset, tmp_path / "run")
    missing = dataclasses.replace(other, initial_run=str(tmp_path / "none"))
    with pytest.raises(RunFolderError, match=r"initial_run: .*none"):
        run(missing, dataset, tmp_path / "run")


def with_files(dataset, files=FILES):
    return dataclasses.replace(dataset, files=files)


def test_a_run_keeps_the_fingerprint_of_its_data(experiment, dataset, run, tmp_path):
    with pytest.raises(Interrupted):
        run(experiment, with_files(dataset), tmp_path, stop_after=2)
    found = read_fingerprint(tmp_path / "data.json")
    assert (found.count, found.size, tuple(found.files)) == (3, 6, FILES)
    assert data_changes(tmp_path, with_files(dataset)) == []

    other = dataclasses.replace(FILES[1], sha256="f" * 64)
    changed = with_files(dataset, (FILES[0], other, dataclasses.replace(FILES[2], name="d")))
    phrases = ["d (added)", "train/b.png (other content)", "train/c.png (missing)"]
    assert data_changes(tmp_path, changed) == phrases
    with pytest.raises(RunFolderError, match=r"the data have changed .*b\.png \(other content\)"):
        run(experiment, changed, tmp_path)
    result, seen = run(experiment, with_files(dataset), tmp_path)
    assert seen == [4, 6, 8, 10, 12]
    with pytest.raises(RunFolderError, match="the data have changed"):
        run(experiment, changed, tmp_path)
    assert read_result(tmp_path / "result.json") == result


def test_data_of_a_run_without_a_fingerprint_is_unknown_not_changed(
    experiment, dataset, run, unbroken, tmp_path
):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    assert not (tmp_path / "data.json").exists()
    run(experiment, with_files(dataset), tmp_path)
    assert not (tmp_path / "data.json").exists()


def test_a_fingerprint_does_not_depend_on_the_order_of_files():
    one, other = fingerprint(FILES), fingerprint(reversed(FILES))
    assert one == other
    assert changed_files(one, other) == []
    assert fingerprint(()) is None


def test_moved_data_and_another_question_train_and_evaluate_nothing(
    experiment, dataset, run, unbroken, tmp_path, monkeypatch
):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("fpnlab.run.run.measure", None)
    result, seen = run(dataclasses.replace(experiment, question="Why?"), dataset, tmp_path)
    assert seen == []
    assert RunFolder(tmp_path).stored().experiment.question == "Why?"
    before = read_result(unbroken / "result.json")
    assert result == dataclasses.replace(before, config_hash=result.config_hash)
    assert result.config_hash == RunFolder(tmp_path).stored().hash != before.config_hash
    assert verify(tmp_path).problems == []
    assert load(experiment.data).files == ()
