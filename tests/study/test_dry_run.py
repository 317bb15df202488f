"""Estimated times of a study: totals, kinds of trials, and real measurements."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import trials
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.norm_specs import LayerNorm
from fpnlab.run.programs import Training
from fpnlab.study import dry_run
from fpnlab.study.dry_run import (
    Cost,
    EvaluationTime,
    TimeEstimate,
    TrainingTime,
    clock,
    describe,
    estimate,
    measure_evaluation,
    measure_steps,
)

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
    """Replaces the measurements by constants; records the batch sizes measured."""
    done = {"steps": [], "evaluation": []}

    def put(name, cost):
        monkeypatch.setattr(
            dry_run,
            f"measure_{name}",
            lambda experiment, dataset: done[name].append(experiment.train.batch_size) or cost,
        )

    put("steps", TrainingTime(seconds=0.5, compilation=15.0, cpu=1.5))
    put("evaluation", EvaluationTime(seconds=3.0, compilation=5.0))
    return done


def test_each_kind_of_trial_is_measured_once(study, dataset, measured):
    found = estimate(study, dataset)
    assert measured == {"steps": [4, 8], "evaluation": [4]}
    # Learning rate and seed are arguments of the program.
    assert (found.programs, found.compilation) == (2, 2 * 15.0 + 2 * 5.0)


def test_without_a_batch_norm_evaluation_is_one_program(study, dataset, measured):
    norm = LayerNorm(axes="hwc")
    arms = {"LN": {"model.backbone.norm": {"kind": "layer_norm", "axes": "hwc"}}}
    model = dataclasses.replace(
        study.model,
        **{
            part: dataclasses.replace(getattr(study.model, part), norm=norm)
            for part in ("neck", "head")
        },
    )
    grid = dataclasses.replace(study.study, arms=arms)
    found = estimate(dataclasses.replace(study, model=model, study=grid), dataset)
    assert found.compilation == 2 * 15.0 + 5.0


def test_the_time_of_a_trial_is_its_steps_plus_its_evaluation(study, dataset, measured):
    found = estimate(study, dataset)
    by_size = {t.axis_value: found.seconds(t) for t in found.plan}
    assert by_size == {4: 12 * 0.5 + 3.0, 8: 6 * 0.5 + 3.0}
    total = 4 * 9.0 + 4 * 6.0
    assert found.total == total
    assert found.cpu_hours == pytest.approx(1.5 * (total + 40.0) / 3600)
    assert found.wall(1) == total + 40.0
    assert found.wall(2) == (total + 40.0) / 2


def test_the_longest_trial_bounds_the_wall_clock_time(study):
    plan = trials(study)
    found = TimeEstimate(plan, {t.name: COST for t in plan}, "batch_size", 0, 0.0)
    assert found.wall(1000) == 9.0


def test_the_tables_list_each_cell_with_its_trials_steps_and_time(study, dataset, measured):
    text = describe(estimate(study, dataset), 2)
    rows = [line.split() for line in text.splitlines()]
    cells = {(t.arm, t.axis_value, t.experiment.train.steps) for t in trials(study)}
    assert len(cells) == 4
    for arm, value, steps in cells:
        times = ["0:09", "0:18"] if steps == 12 else ["0:06", "0:12"]
        assert [*arm.split(), str(value), "2", "48", str(steps), *times] in rows
    kind = ["bn-learning_rate-0.1-batch_size-8-seed-0", "4", "500.0", "16", "3.0", "s", "20.0", "s"]
    assert kind in rows
    assert "8 trials of 72 steps: 1:00 in sequence." in text
    assert "2 programs: 0:40 of additional compilation." in text
    assert "With 2 workers: about 0:50, and 0.04 CPU hours." in text


@pytest.mark.slow
def test_a_real_measurement_is_positive_and_leaves_no_files(study, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(dry_run, "SECONDS", 0.05)
    one = dataclasses.replace(study.study, seeds=(0,), axes=study.study.axes[:1])
    before = jax.config.jax_compilation_cache_dir
    found = estimate(dataclasses.replace(study, study=one), dataset)
    for cost in found.costs.values():
        assert 0 < cost.step < 5
        assert 0 < cost.rest < 60
        assert cost.compilation > 0
        assert cost.cpu > 0
    assert list(tmp_path.iterdir()) == []
    assert jax.config.jax_compilation_cache_dir == before


def test_evaluation_time_is_extrapolated_from_a_few_batches(experiment, dataset, monkeypatch):
    """Simulates one second per batch of test images and ten per batch of training images."""
    now, images = [0.0], []
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: now[0])

    def measure(experiment, some, state, views):
        images.append((len(some.test.images), len(views.images)))
        now[0] += len(some.test.images) / 4 + 10 * len(views.images) / 4
        now[0] += 100.0 if len(images) == 1 else 0.0
        return types.SimpleNamespace(population=None)

    monkeypatch.setattr(dry_run, "evaluate_state", measure)
    monkeypatch.setattr(dry_run, "diagnose", lambda *_, **__: None)
    whole = jax.tree.map(lambda leaf: np.concatenate([leaf] * 5), dataset.test)
    evaluate = Evaluate(batch_size=4, population_examples=16)
    found = measure_evaluation(
        dataclasses.replace(experiment, evaluate=evaluate),
        dataclasses.replace(dataset, test=whole),
    )
    assert images == [(12, 12), (12, 12), (4, 12), (12, 4)]
    assert found == EvaluationTime(seconds=10.0 + 4 * 10.0, compilation=100.0)


def test_step_time_includes_its_share_of_the_logging(experiment, dataset, monkeypatch):
    """Simulates records that take an hour, every second step."""
    now = [0.0]
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: now[0])

    def record(before, after):
        now[0] += 3600.0

    def stepping(experiments, dataset, states, at):
        def step(state, batch):
            now[0] += 0.25
            return state, {}

        assert experiments[0].train.steps > 1000
        return Training(step, states[0], iter(range(1000)), 1)

    monkeypatch.setattr(dry_run, "rounded_rates", record)
    monkeypatch.setattr(dry_run, "training_of", stepping)
    found = measure_steps(experiment, dataset)
    assert found.seconds == pytest.approx(0.25 + 3600.0 / 2)
    assert found.compilation == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "0:03"), (83.0, "1:23"), (3723.0, "1:02:03"), (59.99, "1:00")]
)
def test_clock_formats_seconds_as_minutes_or_hours(seconds, text):
    assert clock(seconds) == text
