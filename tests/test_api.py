"""Experiments, studies and their results from Python."""

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


def test_an_experiment_from_python_equals_that_of_a_trial(experiment, dataset, unbroken, tmp_path):
    steps = []
    result = fpnlab.run_experiment(
        experiment, tmp_path / "run", dataset=dataset, report=lambda record: steps.append(record)
    )
    assert result.metrics == read_result(unbroken / "result.json").metrics
    assert [record.step for record in steps] == [2, 4, 6, 8, 10, 12]
    assert fpnlab.run_experiment(experiment, tmp_path / "run") == result


def test_a_config_file_is_an_experiment(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        fpnlab.run_experiment(tmp_path / "absent.toml", tmp_path / "run")


def test_results_of_a_study_are_records_in_order(study):
    folder, summary = study
    results = fpnlab.read_results(folder)
    assert [result.axis_value for result in results] == [0.01, 0.02]
    assert {result.status for result in results} == {"done"}
    assert summary.counts["done"] == 2


def test_results_as_a_frame_have_a_row_a_trial_and_source(study):
    folder, summary = study
    frame = fpnlab.results_frame(fpnlab.read_results(folder))
    assert list(frame.source) == ["running", "precise", "batch"] * 2
    assert set(frame.arm) == {"bn"}
    means = frame[frame.source == "running"].groupby("axis_value").AP50.mean()
    rows = [r for r in summary.rows if r.metric == "AP50" and r.evaluation == "running"]
    assert means.tolist() == pytest.approx([row.mean / 100 for row in rows])


def test_a_trial_without_metrics_is_a_row_of_a_frame(study):
    (first, *_) = fpnlab.read_results(study[0])
    failed = dataclasses.replace(first, status="failed", metrics={})
    frame = fpnlab.results_frame([failed])
    assert list(frame.status) == ["failed"]
    assert frame.source.isna().all()


def test_result_of_a_run_folder_is_one_record(unbroken):
    (result,) = fpnlab.read_results(unbroken)
    assert result == read_result(unbroken / "result.json")


def test_a_folder_without_results_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(RunFolderError, match="give the folder of a finished run or of a study"):
        fpnlab.read_results(tmp_path)


def test_a_stop_saves_and_the_same_call_goes_on(experiment, dataset, unbroken, tmp_path):
    from fpnlab.run.interrupts import Stop

    stop = Stop()

    def report(record):
        stop.requested = record.step == 4

    with pytest.raises(Interrupted):
        fpnlab.run_experiment(experiment, tmp_path, dataset=dataset, report=report, stop=stop)
    result = fpnlab.run_experiment(experiment, tmp_path, dataset=dataset)
    assert result.metrics == read_result(unbroken / "result.json").metrics
