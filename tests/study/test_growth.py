"""A study grows in place: what is added is run, what is there stays, and the page can say so."""

import dataclasses
import json
import shutil

import pytest

from fpnlab.config.study import Axis, Tune
from fpnlab.config.validate import resolved, validate
from fpnlab.errors import RunFolderError
from fpnlab.records.data_files import DataFile
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import read_study_file
from fpnlab.study.ledger import Ledger
from fpnlab.study.verify import verify

from .test_runner import LAYER, results, start, statuses_in
from .test_runner import study as study_fixture
from .test_runner import whole as whole_fixture

study, whole = study_fixture, whole_fixture


def changed(study, **fields):
    return dataclasses.replace(study, study=dataclasses.replace(study.study, **fields))


def copy(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "study")
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("fields", "added", "words"),
    [
        pytest.param({"seeds": (0, 1, 2)}, 4, "seed 2", id="seed"),
        pytest.param(
            {"axes": (Axis(field="train.batch_size", values=(2, 4, 8)),)},
            4,
            "batch size 8",
            id="axis value",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"arms": {"LN2": {"model.neck.norm": LAYER}}},
            4,
            "arm LN2",
            id="arm",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_added_seed_axis_value_or_arm_runs_only_what_is_missing(
    whole, study, dataset, tmp_path, fields, added, words
):
    folder = copy(whole, tmp_path)
    before = results(folder)
    arms = study.study.arms | fields.get("arms", {})
    larger = changed(study, **fields | {"arms": arms})
    summary, listener, statuses = start(larger, dataset, folder)
    assert len(listener.of("begin")) == added
    assert summary.counts == {"planned": 8 + added, "missing": 0, "done": 8 + added}
    assert set(statuses.values()) == {"done"}
    found = results(folder)
    assert {name: found[name] for name in before} == before
    [addition] = read_study_file(folder / "study.json").additions
    assert (addition.what, addition.trials, addition.ended) == (words, added, 8)
    # The other way round: one study of that size has the same results.
    again, listener, _ = start(larger, dataset, folder)
    assert listener.of("begin") == []
    assert again.rows == summary.rows
    assert verify(folder).problems == []
    assert read_study_file(folder / "study.json").additions == [addition]


def test_a_study_does_not_lose_trials(whole, study, dataset, tmp_path):
    folder = copy(whole, tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=r"4 trials .* not in this config, e\.g\. .*seed-1"):
        start(changed(study, seeds=(0,)), dataset, folder)
    train = dataclasses.replace(study.train, weight_decay=0.5)
    with pytest.raises(RunFolderError, match=r"another study.*train\.weight_decay \(0\.0001 there"):
        start(dataclasses.replace(study, train=train), dataset, folder)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert after.keys() - before.keys() == set()
    assert all(after[p] == before[p] for p in before if p.suffix == ".json")


def test_another_question_or_metric_trains_and_evaluates_nothing(
    whole, study, dataset, tmp_path, monkeypatch
):
    folder = copy(whole, tmp_path)
    monkeypatch.setattr("fpnlab.run.run.measure", None)
    other = changed(dataclasses.replace(study, question="Why?"), metric="AP")
    summary, listener, statuses = start(other, dataset, folder)
    assert (summary.metric, set(statuses.values())) == ("AP", {"done"})
    assert (listener.of("record"), listener.of("begin")) == ([], [])
    plan = read_study_file(folder / "study.json")
    assert (plan.question, plan.metric) == ("Why?", "AP")
    assert [a.what for a in plan.additions] == ["metric AP instead of AP50; another question"]
    for row in Ledger(folder / "ledger.sqlite").rows().values():
        assert row.score is None
    assert verify(folder).problems == []


def test_a_study_keeps_the_fingerprint_of_its_data(study, dataset, tmp_path):
    files = tuple(DataFile(name=n, size=1, sha256="0" * 64) for n in ("a", "b"))
    loaded = dataclasses.replace(dataset, files=files)
    one = changed(study, seeds=(0,), axes=(Axis(field="train.batch_size", values=(4,)),))
    start(one, loaded, tmp_path)
    assert [f["name"] for f in json.loads((tmp_path / "data.json").read_text())["files"]] == [
        "a",
        "b",
    ]
    trial = tmp_path / "trials" / "bn-batch_size-4-seed-0" / "data.json"
    assert json.loads(trial.read_text())["files"] == []
    other = dataclasses.replace(loaded, files=(dataclasses.replace(files[0], sha256="1"), files[1]))
    with pytest.raises(RunFolderError, match=r"data have changed since .* a \(other content\)"):
        start(one, other, tmp_path)
    _, listener, _ = start(one, loaded, tmp_path)
    assert listener.of("begin") == []
    assert verify(tmp_path).problems == []


@pytest.fixture
def tuned(study, held_out):
    """One arm at one batch size that tries two learning rates, and one seed that counts."""
    one = changed(
        study,
        seeds=(0,),
        axes=(Axis(field="train.batch_size", values=(4,)),),
        arms={"BN": {}},
        tune=Tune(factors=(0.5, 1.0)),
    )
    data = {"kind": "held_out", "image_size": 32, "validation": 0.5}
    return validate(resolved(one) | {"data": data})


SCORES = {0.01: 0.5, 0.02: 0.7, 0.06: 0.6, 0.1: 0.9}
"""AP50 on the validation images by learning rate."""


def measure(trial, dataset, files, state, seconds):
    """Replaces the evaluation of trials."""
    numbers = {"AP50": SCORES[trial.experiment.train.learning_rate]}
    return RunResult(
        trial=trial.name,
        config_hash=files.stored().hash,
        arm=trial.arm,
        axis_value=trial.axis_value,
        seed=trial.seed,
        tuned=trial.tuned,
        status="done",
        steps=int(state.step),
        examples=16,
        metrics={"running": numbers, "precise": numbers},
    )


def test_an_added_rate_is_tried_and_retrains_only_what_it_changes(
    tuned, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("fpnlab.study.worker._loaded", lambda data: dataset)
    monkeypatch.setattr("fpnlab.run.run.measure", measure)
    start(tuned, dataset, tmp_path)
    assert results(tmp_path)["bn-batch_size-4-seed-0"]["tuned"] == {"train.learning_rate": 0.02}

    # A worse rate changes nothing, and the trial that counts is not trained again.
    three = changed(tuned, tune=Tune(factors=(0.5, 1.0, 3.0)))
    _, listener, statuses = start(three, dataset, tmp_path)
    trained = {name for _, name in listener.of("begin")}
    assert len(listener.of("record")) == 4
    assert trained >= {"bn-batch_size-4-learning_rate-0.06-seed-1000"}
    assert set(statuses.values()) == {"done"}

    # A better one is used, and the trial with the old rate is set aside.
    four = changed(tuned, tune=Tune(factors=(0.5, 1.0, 3.0, 5.0)))
    start(four, dataset, tmp_path)
    assert results(tmp_path)["bn-batch_size-4-seed-0"]["tuned"] == {"train.learning_rate": 0.1}
    [aside] = (tmp_path / "replaced").iterdir()
    old = json.loads((aside / "result.json").read_text())
    assert (aside.name, old["tuned"]) == (
        "bn-batch_size-4-seed-0-1",
        {"train.learning_rate": 0.02},
    )
    assert statuses_in(tmp_path).keys() == {
        *(f"bn-batch_size-4-learning_rate-{r}-seed-1000" for r in (0.01, 0.02, 0.06, 0.1)),
        "bn-batch_size-4-seed-0",
    }
