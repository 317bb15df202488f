"""The public functions that run experiments and studies and read results."""

import dataclasses

import pytest

import fpnlab
from fpnlab.config.study import Axis, Study
from fpnlab.errors import ConfigError, Interrupted, RunFolderError
from fpnlab.records.run_records import read_result


@pytest.fixture(scope="module")
def study(experiment, dataset, tmp_path_factory):
    """The folder and summary of a study of two trials."""
    folder = tmp_path_factory.mktemp("study")
    planned = Study(
        arms={"bn": {}}, axes=(Axis(field="train.learning_rate", values=(0.01, 0.02)),), seeds=(0,)
    )
    planned = dataclasses.replace(experiment, study=planned)
    return folder, fpnlab.run_study(planned, folder, dataset=dataset)


def test_run_experiment_has_the_metrics_of_run_trial(experiment, dataset, unbroken, tmp_path):
    steps = []
    result = fpnlab.run_experiment(
        experiment, tmp_path / "run", dataset=dataset, report=lambda record: steps.append(record)
    )
    assert result.metrics == read_result(unbroken / "result.json").metrics
    assert [record.step for record in steps] == [2, 4, 6, 8, 10, 12]
    assert fpnlab.run_experiment(experiment, tmp_path / "run") == result


def test_run_experiment_accepts_a_path_and_rejects_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        fpnlab.run_experiment(tmp_path / "absent.toml", tmp_path / "run")


def test_read_results_of_a_study_are_ordered_by_axis_value(study):
    folder, summary = study
    results = fpnlab.read_results(folder)
    assert [result.axis_value for result in results] == [0.01, 0.02]
    assert {result.status for result in results} == {"done"}
    assert summary.counts["done"] == 2


def test_results_frame_has_one_row_per_trial_and_source(study):
    folder, summary = study
    frame = fpnlab.results_frame(fpnlab.read_results(folder))
    assert list(frame.source) == ["running", "precise", "batch"] * 2
    assert set(frame.arm) == {"bn"}
    means = frame[frame.source == "running"].groupby("axis_value").AP50.mean()
    rows = [r for r in summary.rows if r.metric == "AP50" and r.evaluation == "running"]
    assert means.tolist() == pytest.approx([row.mean / 100 for row in rows])


def test_results_frame_keeps_a_trial_without_metrics(study):
    (first, *_) = fpnlab.read_results(study[0])
    failed = dataclasses.replace(first, status="failed", metrics={})
    frame = fpnlab.results_frame([failed])
    assert list(frame.status) == ["failed"]
    assert frame.source.isna().all()


def test_read_results_of_a_run_folder_is_one_result(unbroken):
    (result,) = fpnlab.read_results(unbroken)
    assert result == read_result(unbroken / "result.json")


def test_read_results_rejects_a_folder_without_results(tmp_path):
    with pytest.raises(RunFolderError, match="give the folder of a finished run or of a study"):
        fpnlab.read_results(tmp_path)


def test_run_experiment_resumes_after_a_requested_stop(experiment, dataset, unbroken, tmp_path):
    from fpnlab.run.interrupts import Stop

    stop = Stop()

    def report(record):
        stop.requested = record.step == 4

    with pytest.raises(Interrupted):
        fpnlab.run_experiment(experiment, tmp_path, dataset=dataset, report=report, stop=stop)
    result = fpnlab.run_experiment(experiment, tmp_path, dataset=dataset)
    assert result.metrics == read_result(unbroken / "result.json").metrics
