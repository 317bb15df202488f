"""A study folder of version 0.1 is verified, reported, evaluated and gone on with.

Its config gives a norm the field ``kernel``, which is one of the layer now; its ledger keeps
results; its hashes are of the old fields.
"""

import json
import pathlib
import shutil
import zipfile

import pytest

from fpnlab.config.load import load_config
from fpnlab.config.trials import counted
from fpnlab.data.load_data import load
from fpnlab.records.run_records import read_records, read_result
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
    """Notes which trials log and end."""

    def __init__(self):
        self.logged, self.ended = [], []

    def record(self, trial, record):
        self.logged.append((trial.name, record.step))

    def end(self, trial, result):
        self.ended.append(trial.name)


def go_on(experiment, dataset, folder):
    listener = Listener()
    summary = run_study(experiment, dataset, folder, command="", stop=Stop(), listener=listener)
    return summary, listener


def test_a_renamed_field_is_read_where_it_was(experiment):
    assert experiment.model.backbone.kernel == "standardized"
    assert not hasattr(experiment.model.backbone.norm, "kernel")


def test_it_is_sound_and_stays_as_it_is(folder):
    before = (folder / "ledger.sqlite").read_bytes()
    assert verify(folder).problems == []
    assert verify(folder / RUN).problems == []
    assert (folder / "ledger.sqlite").read_bytes() == before


def test_it_is_reported(folder):
    assert "2 of 2 trials are done." in write_report(folder).read_text()
    assert "loss" in write_run_report(folder / RUN).read_text()


def test_a_run_is_evaluated_to_its_numbers(folder, dataset):
    result = read_result(folder / RUN / "result.json")
    for source, metrics in evaluate_run(folder / RUN, dataset).items():
        assert metrics["AP50"] == pytest.approx(result.metrics[source]["AP50"], abs=0.02)


def test_the_finished_study_is_not_run_again(folder, experiment, dataset):
    stored = json.loads((folder / "summary.json").read_text())
    summary, listener = go_on(experiment, dataset, folder)
    assert (listener.logged, len(listener.ended)) == ([], 2)
    assert summary.findings == stored["findings"]
    assert summary.verdicts[0].hash == stored["verdicts"][0]["hash"]
    assert verify(folder).problems == []


def test_what_is_missing_goes_on_from_its_checkpoint(folder, experiment, dataset):
    """One trial was killed before it was measured, the other before it had begun."""
    first, second = (folder / "trials" / f"bn-batch_size-4-seed-{seed}" for seed in (0, 1))
    digest = RunFolder(first).stored().training_hash
    (first / "result.json").unlink()
    shutil.rmtree(second)
    _, listener = go_on(experiment, dataset, folder)
    assert listener.logged == [(second.name, 1), (second.name, 2)]
    assert RunFolder(first).stored().training_hash == digest
    assert [record.step for record in read_records(first / "metrics.jsonl")] == [1, 2]
    assert {row.status for row in Ledger(folder / "ledger.sqlite").rows().values()} == {"done"}
    assert verify(folder).problems == []
