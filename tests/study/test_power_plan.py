"""Power, trials and time of a study by its number of seeds."""

import dataclasses

import numpy as np
import pytest

from fpnlab.config.study import Axis, Study
from fpnlab.config.trials import trials
from fpnlab.errors import ConfigError
from fpnlab.records.study_records import Summary, SummaryRow
from fpnlab.stats.intervals import paired_power, seeds_needed
from fpnlab.study.dry_run import Cost, TimeEstimate
from fpnlab.study.power_plan import plan_seeds, pooled_deviation


@pytest.fixture
def found(experiment):
    """Two arms, one axis value, three seeds: six trials of 100 s, and 40 s of compilation."""
    study = Study(
        arms={"a": {}, "b": {"train.learning_rate": 0.01}},
        axes=(Axis(field="train.batch_size", values=(4,)),),
    )
    plan = trials(dataclasses.replace(experiment, study=study))
    steps = plan[0].experiment.train.steps
    cost = Cost("a", 90.0 / steps, 10.0, 20.0, 1.0)
    return TimeEstimate(plan, {trial.name: cost for trial in plan}, "batch", 2, 40.0)


def planned(found, **changed):
    options = dict(effect=2.0, deviation=1.5, power=0.8, alpha=0.05, workers=1)
    return plan_seeds(found, (0, 1, 2), **(options | changed))


def test_a_plan_has_the_power_of_the_paired_t_test(found):
    plan = planned(found)
    assert plan.needed == seeds_needed(2.0, 1.5)
    for row in plan.rows:
        assert row.power == paired_power(2.0, 1.5, row.seeds)
    seeds = [row.seeds for row in plan.rows]
    assert seeds == sorted(set(seeds))
    assert {2, 3, plan.needed} <= set(seeds)


def test_time_of_a_plan_grows_with_its_trials(found):
    rows = {row.seeds: row for row in planned(found).rows}
    assert (rows[3].trials, rows[3].seconds) == (6, pytest.approx(640.0))
    assert (rows[6].trials, rows[6].seconds) == (12, pytest.approx(1240.0))
    halved = {row.seeds: row for row in planned(found, workers=2).rows}
    assert halved[3].seconds == pytest.approx(320.0)
    many = {row.seeds: row for row in planned(found, workers=1000).rows}
    assert many[3].seconds == pytest.approx(100.0)


def test_trials_that_tune_are_counted_once(found):
    plan = [dataclasses.replace(trial, split="validation") for trial in found.plan[:2]]
    found = dataclasses.replace(found, plan=[*plan, *found.plan[2:]])
    rows = {row.seeds: row for row in planned(found).rows}
    assert rows[6].trials == 2 + 2 * 4
    assert rows[6].seconds == pytest.approx(200.0 + 800.0 + 40.0)


def test_an_effect_that_needs_too_many_seeds_is_an_error(found):
    with pytest.raises(ConfigError, match="needs more than"):
        planned(found, effect=1e-9)


def difference(values, **changed):
    fields = dict(metric="AP", evaluation="running", arm="b", mean=0.0, low=0.0, high=0.0)
    return SummaryRow(**(fields | changed), n=len(values), values=dict(enumerate(values)))


def summary(*differences):
    return Summary(
        name="scenes",
        metric="AP",
        level=0.95,
        axis="train.batch_size",
        axis_label="batch size",
        axis_values=[4],
        arms=["a", "b"],
        evaluations=["running", "precise"],
        counts={},
        left_out=[],
        rows=[],
        differences=list(differences),
        changes=[],
        change_differences=[],
        gains=[],
        best=None,
        worst=None,
        speed=[],
        tuning=[],
    )


def test_deviation_of_a_pilot_is_pooled_over_its_comparisons():
    first, second = [1.0, 4.0, 2.5], [3.0, 3.5]
    rows = [
        difference(first),
        difference(second),
        difference([100.0]),
        difference([0.0, 50.0], metric="AP50"),
        difference([0.0, 50.0], evaluation="precise"),
    ]
    deviation, freedom = pooled_deviation(summary(*rows))
    expected = np.sqrt((2 * np.var(first, ddof=1) + np.var(second, ddof=1)) / 3)
    assert freedom == 3
    assert deviation == pytest.approx(expected)


def test_a_pilot_of_one_seed_has_no_deviation():
    with pytest.raises(ConfigError, match="no difference of AP over two or more seeds"):
        pooled_deviation(summary(difference([1.0])))
