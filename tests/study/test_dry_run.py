"""What a study is said to take: the sums, the kinds of trials, and that a measurement is one."""

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
    Estimate,
    Evaluation,
    Steps,
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
    """What is measured, by batch size; it costs the same everywhere."""
    done = {"steps": [], "evaluation": []}

    def put(name, cost):
        monkeypatch.setattr(
            dry_run,
            f"measure_{name}",
            lambda experiment, dataset: done[name].append(experiment.train.batch_size) or cost,
        )

    put("steps", Steps(seconds=0.5, compilation=15.0, cpu=1.5))
    put("evaluation", Evaluation(seconds=3.0, compilation=5.0))
    return done


def test_trials_of_one_kind_are_measured_once_and_programs_counted_apart(study, dataset, measured):
    found = estimate(study, dataset)
    assert measured == {"steps": [4, 8], "evaluation": [4]}
    # Rates and seeds are arguments of the training's program; evaluation knows groups only.
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


def test_times_are_steps_and_what_follows_them(study, dataset, measured):
    found = estimate(study, dataset)
    by_size = {t.axis_value: found.seconds(t) for t in found.plan}
    assert by_size == {4: 12 * 0.5 + 3.0, 8: 6 * 0.5 + 3.0}
    total = 4 * 9.0 + 4 * 6.0
    assert found.total == total
    assert found.cpu_hours == pytest.approx(1.5 * (total + 40.0) / 3600)
    assert found.wall(1) == total + 40.0
    assert found.wall(2) == (total + 40.0) / 2


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
    assert "2 programs: 0:40 of compilation besides." in text
    assert "With 2 workers: about 0:50, and 0.04 CPU hours." in text


def test_a_measurement_takes_time_and_leaves_nothing(study, dataset, tmp_path, monkeypatch):
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


def test_an_evaluation_is_timed_on_a_few_batches_and_counted_for_all(
    experiment, dataset, monkeypatch
):
    """Pretended to take a second a batch of test images, and ten a batch of training images."""
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
    assert found == Evaluation(seconds=10.0 + 4 * 10.0, compilation=100.0)


def test_a_step_has_its_share_of_a_record(experiment, dataset, monkeypatch):
    """Records that take an hour, every second step; what is measured does not end before."""
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
def test_clocks(seconds, text):
    assert clock(seconds) == text
