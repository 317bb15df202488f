"""Studies run each trial once, in order, across interruptions and failures."""

import dataclasses
import json
import shutil
import time

import pytest

from fpnlab.config.claims import Claim, Difference
from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import points, trials
from fpnlab.errors import ConfigError, Interrupted, RunFolderError
from fpnlab.records.run_records import read_result
from fpnlab.records.study_records import read_summary
from fpnlab.run.folder import locked
from fpnlab.run.interrupts import Stop
from fpnlab.study import worker
from fpnlab.study.context import StudyContext, StudyListener
from fpnlab.study.ledger import Ledger
from fpnlab.study.runner import _reopen, run_study

BATCH, LAYER = {"kind": "batch_norm"}, {"kind": "layer_norm", "axes": "hwc"}
PLACES = ("model.backbone.norm", "model.neck.norm", "model.head.norm")


@pytest.fixture(scope="module")
def study(experiment):
    """Two norms, two batch sizes, two seeds: eight trials of 16 examples."""
    train = dataclasses.replace(experiment.train, examples=16, ema_examples=None)
    return dataclasses.replace(
        experiment,
        question="Does it matter?",
        augment=None,
        train=train,
        log_examples=4,
        study=Study(
            axes=(Axis(field="train.batch_size", values=(2, 4)),),
            seeds=(0, 1),
            arms={"BN": dict.fromkeys(PLACES, BATCH), "LN": dict.fromkeys(PLACES, LAYER)},
            metric="AP50",
        ),
    )


class Recorder(StudyListener):
    """A listener that records its events, and requests a stop at record number ``stop_at``."""

    def __init__(self, stop=None, stop_at=None):
        self.events, self.stop, self.stop_at = [], stop, stop_at

    def start(self, plan, workers=1):
        self.events.append(("start", [trial.name for trial in plan]))

    def begin(self, trial):
        self.events.append(("begin", trial.name))

    def record(self, trial, record):
        self.events.append(("record", record.step))
        if self.stop_at is not None and len(self.of("record")) == self.stop_at:
            self.stop.requested = True

    def end(self, trial, result):
        self.events.append(("end", trial.name, result.status))

    def of(self, kind):
        return [event for event in self.events if event[0] == kind]


def start(study, dataset, folder, stop_at=None):
    """Runs a study and returns its summary, its listener, and the statuses in its ledger."""
    stop = Stop()
    listener = Recorder(stop, stop_at)
    summary = run_study(
        study, dataset, folder, command="fpnlab study x", stop=stop, listener=listener
    )
    return summary, listener, statuses_in(folder)


def statuses_in(folder):
    rows = Ledger(folder / "ledger.sqlite").rows()
    return {name: row.status for name, row in rows.items()}


def results(folder):
    found = {}
    for path in sorted(folder.glob("trials/*/result.json")):
        found[path.parent.name] = json.loads(path.read_text())
        del found[path.parent.name]["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(study, dataset, tmp_path_factory):
    """Folder, summary, listener and statuses of an uninterrupted study; read-only."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *start(study, dataset, folder)


def test_every_trial_is_run_once_in_the_order_of_the_plan(whole, study):
    folder, _, listener, statuses = whole
    names = [trial.name for trial in trials(study)]
    assert len(names) == 8
    assert listener.events[0] == ("start", names)
    assert listener.of("begin") == [("begin", name) for name in names]
    assert listener.of("end") == [("end", name, "done") for name in names]
    # Records of each batch of two (8 steps, every second) and of four (4 steps, every one).
    assert len(listener.of("record")) == 8 * 4
    assert list(statuses.items()) == [(name, "done") for name in names]
    assert set(results(folder)) == set(names)


def test_the_folder_holds_the_plan_and_the_summary_for_a_report(whole, study, dataset):
    folder, summary, _, _ = whole
    described = json.loads((folder / "study.json").read_text())
    assert described["question"] == "Does it matter?"
    assert described["command"] == "fpnlab study x"
    assert (described["trials"], described["examples"]) == (8, 16)
    assert (described["arms"], described["axis_values"]) == (["BN", "LN"], [2, 4])
    assert described["dataset"]["class_names"] == list(dataset.class_names)
    written = json.loads((folder / "summary.json").read_text())
    assert read_summary(folder / "summary.json") == summary
    assert written["counts"] == {"planned": 8, "missing": 0, "done": 8}
    cells = {(r["arm"], r["axis_value"], r["n"]) for r in written["rows"] if r["metric"] == "AP50"}
    assert cells == {(arm, value, 2) for arm in ("BN", "LN") for value in (2, 4)}


def test_a_result_has_the_norm_batch_and_smallest_count_of_its_norms(whole):
    found = results(whole[0])
    assert set(found["bn-batch_size-2-seed-0"]["norm_batch"].values()) == {2}
    assert found["bn-batch_size-2-seed-0"]["smallest_count"] == 2 * 2 * 2
    assert found["bn-batch_size-4-seed-1"]["smallest_count"] == 4 * 2 * 2
    assert set(found["ln-batch_size-4-seed-1"]["norm_batch"].values()) == {None}


def test_every_seed_arm_and_axis_value_has_a_different_loss(whole):
    losses = [result["final_loss"] for result in results(whole[0]).values()]
    assert len(set(losses)) == 8


def test_an_interrupted_study_resumes_and_ends_with_the_same_results(
    whole, study, dataset, tmp_path
):
    with pytest.raises(Interrupted, match="saved"):
        start(study, dataset, tmp_path, stop_at=10)
    names = [trial.name for trial in trials(study)]
    assert list(statuses_in(tmp_path).values()) == ["done"] * 2 + ["waiting"] * 6
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["missing"] == 6

    summary, listener, statuses = start(study, dataset, tmp_path)
    assert set(statuses.values()) == {"done"}
    # Two trials were finished, the third had two of its four records: 32 - 10 are left.
    assert len(listener.of("record")) == 22
    assert [event[1] for event in listener.of("end")] == names
    assert results(tmp_path) == results(whole[0])
    assert summary.rows == whole[1].rows
    assert summary.findings == whole[1].findings


def test_a_finished_study_trains_nothing(whole, study, dataset):
    _, listener, _ = start(study, dataset, whole[0])
    assert listener.of("record") == []
    assert len(listener.of("end")) == 8


def test_a_trial_that_raises_is_recorded_and_the_others_finish(
    whole, study, dataset, tmp_path, monkeypatch
):
    run_trials = worker.run_trials

    def broken(runs, *args, **kwargs):
        if runs[0].trial.name == "ln-batch_size-2-seed-0":
            raise RuntimeError("no such luck")
        return run_trials(runs, *args, **kwargs)

    monkeypatch.setattr(worker, "run_trials", broken)
    summary, _, statuses = start(study, dataset, tmp_path)
    assert statuses["ln-batch_size-2-seed-0"] == "failed"
    assert sorted(statuses.values()) == ["done"] * 7 + ["failed"]
    assert summary.counts == {"planned": 8, "missing": 0, "done": 7, "failed": 1}
    [row] = summary.left_out
    assert (row.trial, row.error) == ("ln-batch_size-2-seed-0", "RuntimeError: no such luck")
    trace = (tmp_path / "trials" / "ln-batch_size-2-seed-0" / "error.txt").read_text()
    assert "Traceback" in trace

    # Running the study again repeats only the failed trial.
    monkeypatch.undo()
    summary, listener, statuses = start(study, dataset, tmp_path)
    assert set(statuses.values()) == {"done"}
    assert len(listener.of("record")) == 4
    assert results(tmp_path) == results(whole[0])


def test_a_trial_whose_folder_is_missing_is_run_again(whole, study, dataset, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "trials" / "bn-batch_size-4-seed-1")
    _, listener, _ = start(study, dataset, tmp_path)
    assert listener.of("begin") == [("begin", "bn-batch_size-4-seed-1")]
    assert results(tmp_path) == results(whole[0])


def test_results_are_found_again_without_the_ledger(whole, study, dataset, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "ledger.sqlite").unlink()
    summary, listener, statuses = start(study, dataset, tmp_path)
    assert listener.of("record") == []
    assert set(statuses.values()) == {"done"}
    assert summary.rows == whole[1].rows


def test_a_failed_trial_whose_folder_has_its_result_is_recorded_as_finished(
    whole, study, dataset, tmp_path
):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    ledger, name = Ledger(tmp_path / "ledger.sqlite"), "bn-batch_size-2-seed-0"
    ledger.reopen([name])
    assert ledger.claim("x") == name
    assert ledger.fail(name, "x", "3 workers died while running it")
    summary, listener, statuses = start(study, dataset, tmp_path)
    assert listener.of("record") == []
    assert statuses[name] == "done"
    assert summary.counts == whole[1].counts
    assert results(tmp_path) == results(whole[0])


def test_a_runner_claims_the_trial_of_a_dead_worker_at_once(whole, study, dataset, tmp_path):
    """The lease has not expired, but no process holds the lock on the folder."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reopen(["bn-batch_size-2-seed-0"])
    assert ledger.claim("dead") == "bn-batch_size-2-seed-0"
    started = time.monotonic()
    start(study, dataset, tmp_path)
    assert time.monotonic() - started < 30
    assert set(statuses_in(tmp_path).values()) == {"done"}


def test_a_new_runner_leaves_a_locked_trial_to_its_owner(whole, study, dataset, tmp_path):
    """Two trials are running by the ledger, but only the folder of one is locked."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    names = ["bn-batch_size-2-seed-0", "ln-batch_size-2-seed-0"]
    ledger.reopen(names)
    assert [ledger.claim("other") for _ in names] == names
    context = StudyContext(tmp_path, study, {p.name: p for p in points(study)}, dataset, ledger)
    with locked(context.run_folder(names[0])):
        _reopen(context)
    held, left = (ledger.rows()[name] for name in names)
    assert (held.status, held.owner, held.attempts) == ("running", "other", 1)
    assert (left.status, left.owner, left.attempts) == ("waiting", None, 0)
    # Only the owner of the locked folder still owns its trial.
    assert ledger.renew([names[0]], "other")
    assert not ledger.renew([names[1]], "other")


def test_the_ledger_has_the_score_and_folder_of_each_result(whole):
    ledger = Ledger(whole[0] / "ledger.sqlite")
    for name, entry in ledger.rows().items():
        result = read_result(whole[0] / entry.path / "result.json")
        assert ledger.rows()[name].score == result.metrics["precise"]["AP50"]


def test_run_study_rejects_the_folder_of_another_study_before_writing(whole, study, dataset):
    folder = whole[0]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    other = dataclasses.replace(study, study=dataclasses.replace(study.study, seeds=(0, 2)))
    with pytest.raises(RunFolderError, match=r"4 trials .* not in this config.* another folder"):
        start(other, dataset, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before


def claiming(study, threshold, statement="LN is better."):
    rule = Difference(arm="LN", baseline="BN", axis_values=(2,), side="above", threshold=threshold)
    claims = (Claim(statement=statement, rules=(rule,)),)
    return dataclasses.replace(study, study=dataclasses.replace(study.study, claims=claims))


def test_changed_evaluation_fields_evaluate_a_study_without_training(
    whole, study, dataset, tmp_path, caplog
):
    folder = tmp_path / "study"
    shutil.copytree(whole[0], folder)
    before = results(folder)
    evaluate = dataclasses.replace(study.evaluate, area_bounds=(9.0, 100.0))
    other = dataclasses.replace(study, question="Where does it matter?", evaluate=evaluate)
    _, listener, statuses = start(other, dataset, folder)
    assert listener.of("record") == []
    assert set(statuses.values()) == {"done"}
    found = results(folder)
    assert found.keys() == before.keys()
    for name, result in found.items():
        assert result["config_hash"] != before[name]["config_hash"]
        assert result["metrics"]["running"]["AP"] == before[name]["metrics"]["running"]["AP"]
    assert "question (Does it matter? there" in caplog.text
    assert "evaluate.area_bounds" in caplog.text


def test_claims_cannot_be_changed_once_a_trial_has_ended(study, dataset, tmp_path):
    with pytest.raises(Interrupted):
        start(claiming(study, 1.0), dataset, tmp_path, stop_at=2)
    # No trial has ended, so that the claims may still change.
    with pytest.raises(Interrupted):
        start(claiming(study, 2.0), dataset, tmp_path, stop_at=5)
    before = (tmp_path / "study.json").read_bytes()
    changed = r"under other claims, .* in study\.claims\.0\.rules\.0\.threshold \(2\.0 there, "
    with pytest.raises(
        RunFolderError, match=rf"{changed}0\.5 here\); restore the claims.* with --out"
    ):
        start(claiming(study, 0.5), dataset, tmp_path)
    with pytest.raises(RunFolderError, match=r"study\.claims\.0 \(.* there, None here"):
        start(study, dataset, tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(RunFolderError, match=changed):
        start(claiming(study, 0.5), dataset, tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before
    with pytest.raises(Interrupted):
        start(claiming(study, 2.0), dataset, tmp_path, stop_at=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdicts"][0]["verdict"] == "INCONCLUSIVE"


def test_rejected_claims_leave_the_ledger_unchanged(whole, study, dataset):
    ledger = Ledger(whole[0] / "ledger.sqlite")
    before = ledger.rows()
    evaluate = dataclasses.replace(study.evaluate, area_bounds=(9.0, 100.0))
    with pytest.raises(RunFolderError, match="ended under other claims"):
        start(dataclasses.replace(claiming(study, 0.0), evaluate=evaluate), dataset, whole[0])
    assert ledger.rows() == before


def test_claims_cannot_be_added_to_a_study_that_has_results(whole, study, dataset):
    with pytest.raises(RunFolderError, match=r"study\.claims\.0 \(None there, "):
        start(claiming(study, 0.0), dataset, whole[0])


def test_the_family_of_tests_cannot_be_changed_once_a_trial_has_ended(whole, study, dataset):
    other = dataclasses.replace(study.study, holm_over="study")
    with pytest.raises(RunFolderError, match=r"study\.holm_over \(claim there, study here\)"):
        start(dataclasses.replace(study, study=other), dataset, whole[0])


def test_run_study_rejects_the_folder_of_a_run_and_a_file(study, dataset, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunFolderError, match="this folder holds a run; choose another"):
        start(study, dataset, tmp_path)
    with pytest.raises(RunFolderError, match=r"cannot be written .*use another folder"):
        start(study, dataset, tmp_path / "config.json")


def test_run_study_rejects_a_locked_folder(study, dataset, tmp_path):
    with locked(tmp_path), pytest.raises(RunFolderError, match="locked by another process"):
        start(study, dataset, tmp_path)


def test_run_study_rejects_an_experiment_without_a_study(study, dataset, tmp_path):
    with pytest.raises(ConfigError, match="study: absent"):
        start(dataclasses.replace(study, study=None), dataset, tmp_path / "new")
    assert not (tmp_path / "new").exists()
