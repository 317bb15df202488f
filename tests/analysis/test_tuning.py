"""Selection of the value of a tuned field, and tuning trials."""

import dataclasses
import math

import pytest

from fpnlab.analysis.tuning import best_value, tuning_rows
from fpnlab.config.study import Axis, Study, Tune
from fpnlab.config.trials import counted, trials
from fpnlab.config.validate import resolved, validate
from fpnlab.errors import ConfigError, TuningError
from fpnlab.records.run_records import RunResult

FIELD = "train.learning_rate"


def tried(value, ap, *, precise=None, status="done", arm="BN", axis_value=2):
    metrics = {"running": {"AP": ap}}
    if precise is not None:
        metrics["precise"] = {"AP": precise}
    return RunResult(
        trial=f"{arm}-{axis_value}-{value}",
        arm=arm,
        axis_value=axis_value,
        seed=0,
        tuned={FIELD: value},
        status=status,
        metrics={} if status == "failed" else metrics,
    )


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        ([tried(0.1, 0.2), tried(0.3, 0.4), tried(0.9, 0.3)], 0.3),
        ([tried(0.3, 0.4), tried(0.1, 0.4), tried(0.9, 0.1)], 0.1),
        ([tried(0.1, 0.2, precise=0.5), tried(0.3, 0.4, precise=0.3)], 0.1),
        ([tried(0.1, 0.2), tried(0.3, 0.9, status="diverged")], 0.1),
        ([tried(0.1, 0.2), tried(0.3, math.nan)], 0.1),
        ([tried(0.1, 0.2), tried(0.3, None)], 0.1),
        ([tried(0.1, 0.0), tried(0.3, None)], 0.1),
    ],
)
def test_best_value_uses_precise_statistics_and_the_smaller_of_equals(results, chosen):
    assert best_value("AP", results) == {FIELD: chosen}


@pytest.mark.parametrize("last", [tried(0.3, 0.5, status="diverged"), tried(0.3, None)])
def test_best_value_raises_without_a_finite_score(last):
    with pytest.raises(
        TuningError, match=r"no value gave a finite AP .*rate = 0.1, .* smaller factors"
    ):
        best_value("AP", [tried(0.1, math.nan), last])


def test_tuning_rows_have_tried_and_chosen_values_by_arm_and_axis_value():
    results = [
        tried(0.1, 0.2),
        tried(0.3, 0.4),
        tried(0.1, 0.5, arm="LN"),
        tried(0.3, None, arm="LN"),
    ]
    bn, ln = tuning_rows("AP", results)
    assert (bn.arm, bn.axis_value, bn.chosen) == ("BN", 2, 0.3)
    assert [(row.value, row.points) for row in bn.tried] == [(0.1, 20.0), (0.3, 40.0)]
    assert (ln.chosen, ln.tried[1].points) == (0.1, None)


def test_no_value_is_chosen_if_a_tuning_trial_failed():
    [row] = tuning_rows("AP", [tried(0.1, 0.2), tried(0.3, None, status="failed")])
    assert row.chosen is None


STUDY = Study(
    axes=(Axis(field="train.batch_size", values=(2, 4)),),
    seeds=(0, 1),
    arms={"BN": {}, "LN": {"model.backbone.norm": {"kind": "layer_norm", "axes": "hwc"}}},
    tune=Tune(factors=(0.5, 1.0), seed=9),
)


@pytest.fixture
def study(experiment, held_out):
    """An experiment with learning rate 0.02 and a quarter of the images for validation."""
    data = {"kind": "held_out", "image_size": 32, "validation": 0.25}
    return validate(resolved(dataclasses.replace(experiment, study=STUDY)) | {"data": data})


def test_tuning_trials_come_first_and_use_validation_images(study):
    plan = trials(study)
    assert [trial.split for trial in plan] == ["validation"] * 8 + ["test"] * 8
    assert [trial.experiment.data.validation for trial in plan] == [0.25] * 8 + [0.0] * 8
    first = plan[:4]
    places = [("BN", 2), ("BN", 2), ("LN", 2), ("LN", 2)]
    assert [(trial.arm, trial.axis_value) for trial in first] == places
    assert [trial.experiment.seed for trial in plan] == [9] * 8 + [0] * 4 + [1] * 4
    assert [trial.experiment.train.learning_rate for trial in first] == [0.01, 0.02] * 2
    assert first[0].tuned == {"train.learning_rate": 0.01}
    assert first[0].name == "bn-batch_size-2-learning_rate-0.01-seed-9"
    assert first[0].cell == plan[8].cell != first[2].cell
    assert counted(study).data == plan[-1].experiment.data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"factors": (30.0,), "field": "train.schedule.warmup"},
            "seed-9: train.schedule.warmup: is",
        ),
        (
            {"field": "train.rule"},
            "study.tune.field: is 'train.rule', whose value is 'linear'; it must",
        ),
    ],
)
def test_invalid_tuning_raises_before_any_trial_runs(fields, message, study):
    tune = dataclasses.replace(STUDY.tune, **fields)
    with pytest.raises(ConfigError, match=message):
        trials(dataclasses.replace(study, study=dataclasses.replace(STUDY, tune=tune)))


def test_tuning_needs_a_validation_share_above_zero(study):
    with pytest.raises(
        ConfigError, match=r"no images out for validation; set data\.validation above"
    ):
        trials(counted(study))
