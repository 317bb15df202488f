"""Readers of study and run folders: order, status, damaged files."""

import numpy as np
import pytest

from fpnlab.errors import RunFolderError
from fpnlab.records.run_records import MetricRecord, read_records
from fpnlab.report.study_folder import read_study, read_trial


def test_read_records_skips_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "examples": 8, "loss": 2.0}\n{"step": 2, "lo')
    assert read_records(path) == [MetricRecord(step=1, examples=8, logs={"loss": 2.0})]


def test_read_records_names_the_number_of_a_damaged_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "examples": 8}\n{"exam\n{"step": 3, "examples": 24}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2: not a complete record"):
        read_records(path)


def test_trials_are_in_the_order_of_the_study(study_dir):
    (study_dir / "trials" / "A-first-by-name").mkdir()
    names = [trial.name for trial in read_study(study_dir).trials]
    assert names[:5] == ["BN-2-0", "BN-2-1", "BN-8-0", "BN-8-1", "BN-32-0"]
    assert names[-1] == "A-first-by-name"


def test_a_missing_result_is_unfinished_and_a_torn_result_unreadable(study_dir):
    path = study_dir / "trials" / "BN-2-0" / "result.json"
    text = path.read_text()
    path.unlink()
    assert read_trial(path.parent).status == "unfinished"
    path.write_text(text[: len(text) // 2])
    trial = read_trial(path.parent)
    assert trial.status == "unreadable"
    assert "result.json: cannot be read" in trial.error


def test_a_trial_that_raised_has_the_error_from_the_summary(study_dir, refresh):
    refresh(study_dir, LN_8_1={"status": "failed", "error": "out of memory", "metrics": {}})
    (study_dir / "trials" / "LN-8-1" / "result.json").unlink()
    trials = {trial.name: trial for trial in read_study(study_dir).trials}
    assert trials["LN-8-1"].status == "failed"
    assert trials["LN-8-1"].error == "out of memory"
    assert list(trials)[9] == "LN-8-1"


def test_curves_skip_non_finite_values(tmp_path):
    losses = (', "loss": 2.0', ', "loss": NaN', "")
    lines = [f'{{"step": {i}, "examples": {8 * i}{loss}}}' for i, loss in enumerate(losses, 1)]
    lines = "\n".join(lines) + "\n"
    (tmp_path / "metrics.jsonl").write_text(lines)
    np.testing.assert_array_equal(read_trial(tmp_path).curve("loss"), [[8.0], [2.0]])
    assert [len(part) for part in read_trial(tmp_path).curve("loss_box")] == [0, 0]


def test_read_study_rejects_a_folder_without_a_study(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"not the folder of a study .* give the folder written"
    ):
        read_study(tmp_path)
