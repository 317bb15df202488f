"""Workers run each trial once, even if workers die or leases are lost, and tune before."""

import dataclasses
import threading
import time

import pytest

from fpnlab.analysis.tuning import best_value
from fpnlab.config.study import Axis, Study, Tune
from fpnlab.config.trials import points, trials
from fpnlab.config.validate import config_hash, resolved, validate
from fpnlab.data.dataset import Dataset
from fpnlab.errors import FolderLockedError, Interrupted, RunFolderError
from fpnlab.records.run_records import RunResult, write_result
from fpnlab.run.enter_folder import enter_folder
from fpnlab.run.folder import locked
from fpnlab.run.interrupts import Stop
from fpnlab.study import context, lease, worker
from fpnlab.study.context import StudyContext, StudyListener, open_study, run_path
from fpnlab.study.ledger import MOST_ATTEMPTS, Ledger, LedgerRow
from fpnlab.study.worker import work
from fpnlab.types import Batch

LAYER = {"kind": "layer_norm", "axes": "hwc"}
GRID = Study(
    axes=(Axis(field="train.batch_size", values=(2, 4)),),
    seeds=(0, 1),
    arms={"BN": {}, "LN": {"model.backbone.norm": LAYER}},
    metric="AP50",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leases and polling intervals of fractions of a second."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    for module in (worker, lease):
        monkeypatch.setattr(module, "TICK_SECONDS", 0.02)


NOTHING = Batch(images=None, boxes=None, classes=None, valid=None, extent=None, index=None)
VALIDATION = Dataset(name="validation", class_names=(), train=NOTHING, test=NOTHING)
"""Stands for the data with validation images."""


@pytest.fixture
def make_study(experiment, dataset, tmp_path):
    def make(grid=GRID, base=experiment):
        studied = dataclasses.replace(base, study=grid)
        ledger = Ledger(tmp_path / "ledger.sqlite", journal="wal")
        plan = {point.name: point for point in points(studied)}
        ledger.expect(
            LedgerRow(t.name, config_hash(t.experiment), t.cell, t.split, run_path(plan[t.name]))
            for t in trials(studied)
        )
        return StudyContext(tmp_path, studied, plan, dataset, ledger)

    return make


def result_of(trial, ap=0.5, **fields):
    metrics = {source: {"AP50": ap} for source in ("running", "precise", "batch")}
    names = {"trial": trial.name, "arm": trial.arm, "axis_value": trial.axis_value}
    base = {"seed": trial.seed, "tuned": trial.tuned, "status": "done", "metrics": metrics}
    return RunResult(**names | base | fields)


def written(folder, result):
    """Writes the result where a run writes it, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder / "result.json", result)
    return result


@pytest.fixture
def pretend(monkeypatch):
    """Replaces training by a function (trial, dataset, folder, stop) -> result."""

    def put(run):
        def run_trials(runs, dataset, *, stop):
            return [
                written(each.folder, run(each.trial, dataset, each.folder, stop)) for each in runs
            ]

        monkeypatch.setattr(worker, "run_trials", run_trials)

    return put


class Recorder(StudyListener):
    """A listener that records its events."""

    def __init__(self):
        self.events = []

    def begin(self, trial):
        self.events.append(("begin", trial.name))

    def pause(self, trial):
        self.events.append(("pause", trial.name))

    def end(self, trial, result):
        self.events.append(("end", trial.name))


def go(study, owner="x", stop=None, **kwargs):
    listener = Recorder()
    work(study, owner, stop=stop or Stop(), listener=listener, **kwargs)
    return listener.events


def statuses(study):
    return [row.status for row in study.ledger.rows().values()]


def test_concurrent_workers_run_each_trial_once(make_study, pretend):
    study, ran = make_study(), []

    def run(trial, *_):
        ran.append((threading.current_thread().name, trial.name))
        time.sleep(0.05)
        return result_of(trial)

    pretend(run)
    workers = [threading.Thread(target=go, args=(study, owner), name=owner) for owner in "abc"]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(name for _, name in ran) == sorted(study.points)
    assert len({owner for owner, _ in ran}) > 1
    assert set(statuses(study)) == {"done"}


def test_a_lease_is_renewed_during_a_trial_longer_than_it(make_study, pretend):
    study = make_study()
    first = next(iter(study.points))
    owners = []

    def run(trial, *_):
        end = time.monotonic() + 1.5
        while trial.name == first and time.monotonic() < end:
            owners.append(study.ledger.rows()[first].owner)
            time.sleep(0.02)
        return result_of(trial)

    pretend(run)
    other = threading.Thread(target=go, args=(study, "other"))
    threading.Timer(0.2, other.start).start()
    go(study, "x")
    other.join()
    assert len(set(owners)) == 1
    assert study.ledger.rows()[first].attempts == 1


def test_a_worker_that_loses_its_lease_stops_and_records_nothing(make_study, pretend):
    study, ran = make_study(), []
    first = next(iter(study.points))

    def run(trial, dataset, folder, stop):
        ran.append(trial.name)
        if ran == [first]:
            # Another worker claims the trial, as after a jump of the clock.
            study.ledger.reopen([first])
            assert study.ledger.claim("other") == first
            while not stop.requested:
                time.sleep(0.01)
            raise Interrupted("saved")
        return result_of(trial)

    pretend(run)
    stop = Stop()
    threading.Timer(1.5, lambda: study.ledger.release([first], "other")).start()
    events = go(study, stop=stop)
    assert not stop.requested
    assert events[:2] == [("begin", first), ("pause", first)]
    assert ran.count(first) == 2
    assert sorted(set(ran)) == sorted(study.points)
    assert set(statuses(study)) == {"done"}


def test_a_result_after_the_lease_was_lost_is_not_recorded(make_study, pretend):
    study = make_study()
    first = next(iter(study.points))

    def run(trial, *_):
        if trial.name == first and study.ledger.rows()[first].owner == "x":
            study.ledger.reopen([first])
            study.ledger.claim("other")
            study.ledger.finish(first, "other", "done", None, 0.9)
        return result_of(trial, 0.1)

    pretend(run)
    events = go(study)
    assert events[:2] == [("begin", first), ("pause", first)]
    scores = [row.score for row in study.ledger.rows().values()]
    assert scores == [0.9] + [0.1] * 7


def test_a_trial_whose_folder_is_locked_is_left_to_its_owner_and_run_later(make_study, pretend):
    study, order = make_study(), []
    first = next(iter(study.points))

    def run(trial, *_):
        order.append(trial.name)
        if order.count(first) == 1 and trial.name == first:
            raise FolderLockedError("locked by another process")
        return result_of(trial)

    pretend(run)
    events = go(study)
    assert events[:3] == [("begin", first), ("pause", first), ("begin", order[1])]
    assert order[1] != first
    assert order.count(first) == 2
    assert study.ledger.rows()[first].attempts == 1
    assert set(statuses(study)) == {"done"}


def locking(run):
    """Locks the folder of a trial while it is run, as training does."""

    def run_locked(trial, dataset, folder, stop):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            return run(trial, dataset, folder, stop)

    return run_locked


def leave_result(study, name):
    """Writes config and result of a trial as a worker does that then dies."""
    trial, folder = study.build(name), study.run_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    enter_folder(folder, trial.experiment, study.dataset)
    return written(folder, result_of(trial, config_hash=config_hash(trial.experiment)))


def let_owners_die(study, name, number):
    """Claims a trial a number of times for workers that die."""
    for i in range(number):
        assert study.ledger.claim(f"dead{i}") == name
        study.ledger.expire(study.ledger.heartbeats(f"dead{i}"))


@pytest.mark.parametrize("died", [0, MOST_ATTEMPTS])
def test_a_trial_whose_folder_stays_locked_neither_fails_nor_counts_attempts(
    died, make_study, pretend
):
    """Whoever held the trial before has died, or it has never been claimed."""
    study = make_study()
    first, tries = next(iter(study.points)), []
    let_owners_die(study, first, died)
    run = locking(lambda trial, *_: result_of(trial))
    pretend(lambda trial, *rest: tries.append(trial.name) or run(trial, *rest))
    study.run_folder(first).mkdir(parents=True)
    with locked(study.run_folder(first)):
        workers = [threading.Thread(target=go, args=(study, owner)) for owner in "ab"]
        for each in workers:
            each.start()
        time.sleep(5 * lease.LEASE_SECONDS)
        row = study.ledger.rows()[first]
        assert (row.status, row.attempts) == ("running", died)
        assert tries.count(first) == 1
        leave_result(study, first)
    for each in workers:
        each.join()
    assert set(statuses(study)) == {"done"}
    assert study.ledger.rows()[first].attempts == died + 1


def test_the_trial_of_a_dead_worker_is_claimed_after_its_lease_expires(make_study, pretend):
    study = make_study()
    first = study.ledger.claim("dead")
    pretend(lambda trial, *_: result_of(trial))
    started = time.monotonic()
    ended = [name for what, name in go(study) if what == "end"]
    assert time.monotonic() - started > lease.LEASE_SECONDS
    assert first in ended[1:]
    assert study.ledger.rows()[first].attempts == 2


def test_a_trial_that_kills_its_workers_fails_after_most_attempts(make_study, pretend):
    study, ran = make_study(), []
    first = next(iter(study.points))
    let_owners_die(study, first, MOST_ATTEMPTS)
    pretend(lambda trial, *_: ran.append(trial.name) or result_of(trial))
    assert ("end", first) in go(study)
    assert first not in ran
    assert statuses(study) == ["failed"] + ["done"] * 7
    error = "3 workers died while running it (killed, or out of memory)"
    assert study.ledger.rows()[first].error == error


@pytest.mark.parametrize("current", [True, False])
def test_a_result_that_dead_workers_left_is_recorded_if_it_belongs_to_the_config(
    current, make_study, pretend
):
    study = make_study()
    first = next(iter(study.points))
    let_owners_die(study, first, MOST_ATTEMPTS)
    left = leave_result(study, first)
    if not current:
        written(study.run_folder(first), dataclasses.replace(left, config_hash="another"))
    pretend(lambda trial, *_: result_of(trial, 0.7))
    go(study)
    assert statuses(study) == ["done" if current else "failed"] + ["done"] * 7


@pytest.mark.parametrize("ask", ["ledger", "orphan", "signal"])
def test_a_stopping_worker_saves_and_releases_its_trial(ask, make_study, pretend):
    study, stop, alone = make_study(), Stop(), []

    def run(trial, dataset, folder, requested):
        match ask:
            case "ledger":
                study.ledger.stop(True)
            case "orphan":
                alone.append(True)
            case "signal":
                stop.requested = True
        while not requested.requested:
            time.sleep(0.01)
        raise Interrupted("stopped after step 2 of 4, saved")

    pretend(run)
    with pytest.raises(Interrupted, match="stopped after step 2"):
        go(study, stop=stop, orphaned=lambda: bool(alone))
    assert set(statuses(study)) == {"waiting"}
    assert study.ledger.rows()[next(iter(study.points))].attempts == 0
    with pytest.raises(Interrupted, match="stopped between two trials"):
        go(study, stop=stop, orphaned=lambda: bool(alone))


def test_a_trial_that_raises_leaves_a_traceback_and_the_others_run(make_study, pretend):
    study = make_study()
    first = next(iter(study.points))

    def run(trial, *_):
        if trial.name == first:
            raise RuntimeError("no such luck")
        return result_of(trial)

    pretend(run)
    go(study)
    assert statuses(study) == ["failed"] + ["done"] * 7
    assert study.ledger.rows()[first].error == "RuntimeError: no such luck"
    assert "no such luck" in (study.run_folder(first) / "error.txt").read_text()


@pytest.fixture
def packs(make_study, monkeypatch):
    """A study context in which packing always pays."""
    monkeypatch.setattr(worker, "packing_pays", lambda experiments, dataset: True)
    return dataclasses.replace(make_study(), pack=8)


def test_seeds_are_packed_where_packing_pays(packs, monkeypatch):
    trained = []

    def run_trials(runs, dataset, *, stop):
        trained.append([each.trial.name for each in runs])
        assert [each.folder.name for each in runs] == trained[-1]
        return [written(each.folder, result_of(each.trial)) for each in runs]

    monkeypatch.setattr(worker, "run_trials", run_trials)
    events = go(packs)
    names = list(packs.points)
    assert sorted(trained) == sorted([a, b] for a, b in zip(names[:4], names[4:]))
    assert events[:4] == [(what, name) for what in ("begin", "end") for name in trained[0]]
    assert set(statuses(packs)) == {"done"}


def test_seeds_are_trained_alone_where_packing_does_not_pay_measured_once_per_cell(
    packs, pretend, monkeypatch
):
    asked, order = [], []
    pays = lambda experiments, dataset: asked.append([e.seed for e in experiments])
    monkeypatch.setattr(worker, "packing_pays", pays)
    pretend(lambda trial, *_: order.append(trial.name) or result_of(trial))
    go(packs)
    assert asked == [[0, 1]] * 4
    assert order == list(packs.points)
    assert [row.attempts for row in packs.ledger.rows().values()] == [1] * 8


def test_a_pack_that_raises_is_split_up_and_only_the_failing_trial_fails(packs, monkeypatch):
    first, trained = next(iter(packs.points)), []

    def run_trials(runs, dataset, *, stop):
        trained.append(len(runs))
        if any(each.trial.name == first for each in runs):
            raise OSError("its folder cannot be written")
        return [written(each.folder, result_of(each.trial)) for each in runs]

    monkeypatch.setattr(worker, "run_trials", run_trials)
    go(packs)
    assert statuses(packs) == ["failed"] + ["done"] * 7
    assert packs.ledger.rows()[first].error == "OSError: its folder cannot be written"
    assert sorted(trained) == [1, 1, 2, 2, 2, 2]


def test_a_pack_that_loses_the_lease_on_one_trial_releases_the_others(packs, monkeypatch):
    first, trained = next(iter(packs.points)), []

    def run_trials(runs, dataset, *, stop):
        trained.append([each.trial.name for each in runs])
        if len(trained) == 1:
            packs.ledger.reopen([first])
            assert packs.ledger.claim("other") == first
            while not stop.requested:
                time.sleep(0.01)
            packs.ledger.finish(first, "other", "done", None, 0.9)
            raise Interrupted("saved")
        return [written(each.folder, result_of(each.trial)) for each in runs]

    monkeypatch.setattr(worker, "run_trials", run_trials)
    go(packs)
    mate = trained[0][1]
    assert [mate] in trained[1:]
    assert packs.ledger.rows()[first].score == 0.9
    assert set(statuses(packs)) == {"done"}


def test_an_unusable_ledger_ends_the_worker(make_study, pretend):
    study = make_study()

    def run(trial, *_):
        study.ledger.path.write_bytes(b"x" * 9000)
        return result_of(trial)

    pretend(run)
    with pytest.raises(RunFolderError, match="the ledger cannot be used"):
        go(study)


def test_open_study_rejects_a_folder_without_a_study(tmp_path):
    with pytest.raises(RunFolderError, match="not the folder of a study"):
        open_study(tmp_path)


@pytest.fixture
def tuned_study(make_study, held_out, experiment, monkeypatch):
    """Two arms, two batch sizes, one seed, three learning rates to tune on validation images."""
    tune = Tune(factors=(0.5, 1.0, 2.0), seed=9)
    data = {"kind": "held_out", "image_size": 32, "validation": 0.25}
    monkeypatch.setattr(worker, "load", lambda spec: VALIDATION if spec.validation else None)
    return make_study(
        dataclasses.replace(GRID, seeds=(0,), tune=tune),
        validate(resolved(experiment) | {"data": data}),
    )


def test_tuning_trials_are_packed_where_packing_pays(tuned_study, monkeypatch):
    monkeypatch.setattr(worker, "packing_pays", lambda experiments, dataset: True)
    trained = []

    def run_trials(runs, dataset, *, stop):
        trained.append((len(runs), dataset is VALIDATION))
        return [written(each.folder, result_of(each.trial)) for each in runs]

    monkeypatch.setattr(worker, "run_trials", run_trials)
    go(dataclasses.replace(tuned_study, pack=8))
    assert sorted(trained) == [(1, False)] * 4 + [(3, True)] * 4
    assert set(statuses(tuned_study)) == {"done"}


def test_main_trials_use_the_best_learning_rate_on_validation_images(tuned_study, pretend):
    seen, rates = [], {}
    best = {("BN", 2): 0.04, ("BN", 4): 0.02, ("LN", 2): 0.01, ("LN", 4): 0.04}

    def run(trial, dataset, folder, stop):
        rate = trial.experiment.train.learning_rate
        seen.append((trial.split, dataset is VALIDATION, folder.parent.name))
        if trial.split == "test":
            assert trial.tuned == {"train.learning_rate": rate}
            rates[trial.arm, trial.axis_value] = rate
            return result_of(trial)
        return result_of(trial, 1 - abs(rate - best[trial.arm, trial.axis_value]))

    pretend(run)
    go(tuned_study)
    assert seen == [("validation", True, "tuning")] * 12 + [("test", False, "trials")] * 4
    assert rates == best


def test_tuning_never_uses_results_on_test_images(make_study, tuned_study, pretend, monkeypatch):
    """Test results of the first seed exist before the trials of the second are built."""
    grid = dataclasses.replace(tuned_study.experiment.study, seeds=(0, 1))
    tuned_study.ledger.path.unlink()
    study, compared = make_study(grid, tuned_study.experiment), []

    def choose(metric, results):
        results = list(results)
        compared.append({study.points[result.trial].split for result in results})
        assert len(results) == len(grid.tune.factors)
        return best_value(metric, results)

    monkeypatch.setattr(context, "best_value", choose)
    pretend(lambda trial, *_: result_of(trial))
    go(study)
    assert set(statuses(study)) == {"done"}
    assert compared == [{"validation"}] * 8


def test_trials_whose_tuning_failed_fail_with_its_error(tuned_study, pretend):
    def run(trial, *_):
        if trial.name == "bn-batch_size-2-learning_rate-0.02-seed-9":
            raise OSError("no")
        return result_of(trial)

    pretend(run)
    go(tuned_study)
    rows = tuned_study.ledger.rows()
    assert [name for name, row in rows.items() if row.status == "failed"] == [
        "bn-batch_size-2-learning_rate-0.02-seed-9",
        "bn-batch_size-2-seed-0",
    ]
    error = rows["bn-batch_size-2-seed-0"].error
    assert error.startswith("TuningError: the tuning trial bn-batch_size-2-learning_rate-0.02-seed")
    assert error.endswith("failed: OSError: no")
