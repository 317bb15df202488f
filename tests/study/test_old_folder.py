"""A study folder of version 0.1 can be verified, reported, evaluated and resumed.

In its config, ``kernel`` is a field of the norm instead of the layer; its ledger stores results;
its hashes cover the old fields.
"""

import dataclasses
import pathlib
import shutil
import zipfile

import pytest

from fpnlab.config.load import load_config
from fpnlab.config.trials import counted
from fpnlab.data.load_data import load
from fpnlab.records.run_records import read_records, read_result
from fpnlab.records.study_records import read_summary
from fpnlab.report import write_report, write_run_report
from fpnlab.run.folder import RunFolder
from fpnlab.run.interrupts import Stop
from fpnlab.run.measure import evaluate_run
from fpnlab.study.context import StudyListener
from fpnlab.study.ledger import Ledger
from fpnlab.study.runner import run_study
from fpnlab.study.verify import verify

DATA = pathlib.Path(__file__).parent / "data"
RUN = "trials/bn-batch_size-4-seed-0"


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(DATA / "study_0_1.zip") as archive:
        archive.extractall(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture(scope="module")
def experiment():
    return load_config(DATA / "study_0_1.toml")


@pytest.fixture(scope="module")
def dataset(experiment):
    return load(counted(experiment).data)


class Listener(StudyListener):
    """Records which trials log and end."""

    def __init__(self):
        self.logged, self.ended = [], []

    def record(self, trial, record):
        self.logged.append((trial.name, record.step))

    def end(self, trial, result):
        self.ended.append(trial.name)


def numbers(summary):
    """The summary without its sentences, and the answer, which version 0.1 lacks."""
    return dataclasses.replace(summary, findings=[], verdicts=[], answer=None)


def resume(experiment, dataset, folder):
    listener = Listener()
    summary = run_study(experiment, dataset, folder, command="", stop=Stop(), listener=listener)
    return summary, listener


def test_an_old_config_is_read_into_the_new_field(experiment):
    assert experiment.model.backbone.kernel == "standardized"
    assert not hasattr(experiment.model.backbone.norm, "kernel")


def test_an_old_study_is_sound_and_verify_does_not_change_it(folder):
    before = (folder / "ledger.sqlite").read_bytes()
    assert verify(folder).problems == []
    assert verify(folder / RUN).problems == []
    assert (folder / "ledger.sqlite").read_bytes() == before


def test_an_old_study_and_run_are_reported(folder):
    assert "2 of 2 trials are done." in write_report(folder).read_text()
    assert "loss" in write_run_report(folder / RUN).read_text()


def test_an_old_run_is_evaluated_to_its_stored_metrics(folder, dataset):
    result = read_result(folder / RUN / "result.json")
    for source, metrics in evaluate_run(folder / RUN, dataset).items():
        assert metrics["AP50"] == pytest.approx(result.metrics[source]["AP50"], abs=0.02)


def test_a_finished_old_study_is_not_run_again(folder, experiment, dataset):
    stored = read_summary(folder / "summary.json")
    summary, listener = resume(experiment, dataset, folder)
    assert (listener.logged, len(listener.ended)) == ([], 2)
    # The numbers are equal; the sentences follow the new version.
    assert numbers(summary) == numbers(stored)
    assert len(summary.findings) == len(stored.findings)
    [verdict], [old] = summary.verdicts, stored.verdicts
    assert (verdict.hash, verdict.verdict, verdict.alpha) == (old.hash, old.verdict, old.alpha)
    for outcome, before in zip(verdict.outcomes, old.outcomes, strict=True):
        assert (outcome.rule, outcome.decision) == (before.rule, before.decision)
        assert (outcome.estimates, outcome.p) == (before.estimates, before.p)
    assert verify(folder).problems == []


def test_unfinished_trials_of_an_old_study_resume(folder, experiment, dataset):
    """One trial was killed before its evaluation, the other before its first step."""
    first, second = (folder / "trials" / f"bn-batch_size-4-seed-{seed}" for seed in (0, 1))
    digest = RunFolder(first).stored().training_hash
    (first / "result.json").unlink()
    shutil.rmtree(second)
    _, listener = resume(experiment, dataset, folder)
    assert listener.logged == [(second.name, 1), (second.name, 2)]
    assert RunFolder(first).stored().training_hash == digest
    assert [record.step for record in read_records(first / "metrics.jsonl")] == [1, 2]
    assert {row.status for row in Ledger(folder / "ledger.sqlite").rows().values()} == {"done"}
    assert verify(folder).problems == []
