"""What a study is said to take: the sums, the kinds of trials, and that a measurement is one."""

import dataclasses

import pytest

from fpnlab.config import trials
from fpnlab.study import dry_run
from fpnlab.study.dry_run import Cost, Estimate, clock, describe, estimate, measure
from fpnlab.study.plan import Axis, Study

COST = Cost(trial="", step=0.5, rest=3.0, compilation=20.0, cpu=1.5)


@pytest.fixture(scope="module")
def study(experiment):
    """Two batch sizes, two rates, two seeds; 48 examples each."""
    axes = (
        Axis(field="train.batch_size", values=(4, 8)),
        Axis(field="train.learning_rate", values=(0.1, 0.2)),
    )
    return dataclasses.replace(experiment, study=Study(axes=axes, seeds=(0, 1), arms={"BN": {}}))


@pytest.fixture
def measured(monkeypatch):
    """The names of the trials that are measured, which cost the same a step."""
    names = []
    monkeypatch.setattr(
        dry_run,
        "measure",
        lambda trial, dataset: names.append(trial.name) or COST._replace(trial=trial.name),
    )
    return names


def test_trials_of_one_kind_are_measured_once_and_programs_counted_apart(study, dataset, measured):
    found = estimate(study, dataset)
    assert measured == [
        "bn-learning_rate-0.1-batch_size-4-seed-0",
        "bn-learning_rate-0.1-batch_size-8-seed-0",
    ]
    # Rates are parts of programs, seeds are not.
    assert (found.programs, found.compilation) == (4, 4 * 20.0)


def test_times_are_steps_and_what_follows_them(study, dataset, measured):
    found = estimate(study, dataset)
    by_size = {t.axis_value: found.seconds(t) for t in found.plan}
    assert by_size == {4: 12 * 0.5 + 3.0, 8: 6 * 0.5 + 3.0}
    total = 4 * 9.0 + 4 * 6.0
    assert found.total == total
    assert found.cpu_hours == pytest.approx(1.5 * (total + 80.0) / 3600)
    assert found.wall(1) == total + 80.0
    assert found.wall(2) == (total + 80.0) / 2


def test_more_workers_than_trials_take_as_long_as_the_longest_trial(study):
    plan = trials(study)
    found = Estimate(plan, {t.name: COST for t in plan}, "batch_size", 0, 0.0)
    assert found.wall(1000) == 9.0


def test_the_tables_name_every_trial_with_its_steps_and_time(study, dataset, measured):
    text = describe(estimate(study, dataset), 2)
    rows = [line.split() for line in text.splitlines()]
    for trial in trials(study):
        count = str(trial.experiment.train.steps)
        place = [trial.name, *trial.arm.split(), str(trial.axis_value), str(trial.seed)]
        assert [*place, "48", count, "0:09" if count == "12" else "0:06"] in rows
    kind = ["bn-learning_rate-0.1-batch_size-8-seed-0", "4", "500.0", "16", "3.0", "s", "20.0", "s"]
    assert kind in rows
    assert "8 trials of 72 steps: 1:00 one after another." in text
    assert "4 programs: 1:20 of compilation besides." in text
    assert "With 2 workers: about 1:10, and 0.06 CPU hours." in text


def test_a_measurement_takes_time_and_leaves_nothing(study, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cost = measure(trials(study)[0], dataset)
    assert 0 < cost.step < 5
    assert cost.rest > 0
    assert cost.cpu > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "0:03"), (83.0, "1:23"), (3723.0, "1:02:03"), (59.99, "1:00")]
)
def test_clocks(seconds, text):
    assert clock(seconds) == text
