"""Learning rate schedules and the validation of recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.evaluate.options import Evaluate
from fpnlab.spec import SpecError
from fpnlab.train.objective import Objective
from fpnlab.train.schedule import Cosine, Steps, scheduled
from fpnlab.train.step import AdamW, Sgd, Train


def test_cosine_schedule_rises_to_one_and_falls_to_zero():
    rate = lambda seen: float(scheduled(Cosine(warmup=0.1), 1000, seen, 10))
    at = [rate(n) for n in (0, 40, 90, 100, 550, 1000)]
    np.testing.assert_allclose(at, [0.1, 0.5, 1, 1, 0.5, 0], atol=1e-6)


def test_steps_schedule_drops_at_its_milestones():
    schedule = Steps(warmup=0.0, milestones=(0.5, 0.75), factor=0.1)
    at = [float(scheduled(schedule, 100, n, 1)) for n in (0, 49, 50, 74, 75)]
    np.testing.assert_allclose(at, [1, 1, 0.1, 0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize(("rule", "rate"), [("constant", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_peak_rate_follows_the_rule(rule, rate):
    train = Train(examples=256, batch_size=128, learning_rate=0.1, rule=rule, reference_batch=32)
    assert train.peak_rate == pytest.approx(rate)


def test_examples_that_fill_no_batch_are_not_used():
    assert Train(examples=100, batch_size=32, learning_rate=0.1).steps == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup=1.0), "warmup is 1.0; it must be at least 0 and below 1"),
        (lambda: Steps(milestones=(0.8, 0.6)), "must rise"),
        (
            lambda: Train(examples=8, batch_size=16, learning_rate=0.1),
            "batch_size is 16, more than",
        ),
        (lambda: Train(examples=8, batch_size=0, learning_rate=0.1), "batch_size is 0; it must be"),
    ],
)
def test_invalid_schedules_and_recipes_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("total", [100, 1000, 2**31 - 1])
@pytest.mark.parametrize("milestone", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_steps_schedule_drops_at_the_same_example_eager_and_jitted(milestone, total):
    schedule = Steps(warmup=0.0, milestones=(milestone,), factor=0.5)
    last = round(milestone * total)
    rate = lambda seen: scheduled(schedule, total, seen, 1)
    for way in (rate, jax.jit(rate)):
        found = [float(way(jnp.asarray(seen, jnp.int32))) for seen in (last - 1, last)]
        assert found == [1.0, 0.5]


@pytest.mark.parametrize("schedule", [Cosine(warmup=0.5), Steps(warmup=0.5), Cosine(warmup=0.001)])
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_no_step_has_the_rate_zero(schedule, steps):
    rates = [float(scheduled(schedule, 8 * steps, 8 * step, 8)) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) <= 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; it must be at least 0"),
        ({"ema_examples": 0}, "ema_examples is 0; it must be at least 1"),
        ({"learning_rate": 1e-50}, "learning_rate is 1e-50; it must be at least 1.2e-38"),
        ({"learning_rate": 1e40}, r"learning_rate is 1e\+40; it must be .*at most 3.4e.38"),
        ({"examples": 2**31}, "examples is 2147483648; it must be .*below 2147483648"),
        ({"examples": None, "updates": 2**30}, "updates is 1073741824, which is 8589934592"),
        ({"examples": 10**9, "batch_size": 10**9, "norm_batch": 7}, "norm_batch is 7, and batch"),
    ],
)
def test_an_invalid_recipe_raises_an_error_that_names_the_field(fields, wrong):
    with pytest.raises(ValueError, match=wrong):
        Train(**{"examples": 64, "batch_size": 8, "learning_rate": 0.1} | fields)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: Sgd(momentum=1.0), "momentum is 1.0; it must be at least 0 and below 1"),
        (lambda: AdamW(b1=-0.1), "b1 is -0.1"),
        (lambda: AdamW(b2=1.0), "b2 is 1.0"),
        (lambda: Steps(milestones=(0.5, 0.5)), "milestones is .*; they must rise"),
        (lambda: Steps(milestones=(0.5, 1.0)), "milestones is .*; it must be above 0 and below 1"),
        (lambda: Steps(factor=0.0), "factor is 0.0; it must be above 0"),
        (lambda: Objective(focal_gamma=-1.0), "focal_gamma is -1.0"),
        (lambda: Objective(focal_alpha=1.5), "focal_alpha is 1.5"),
        (lambda: Objective(box_weight=-1.0), "box_weight is -1.0"),
        (lambda: Objective(smooth_l1_beta=0.0), "smooth_l1_beta is 0.0"),
        (lambda: Evaluate(area_bounds=(96.0, 32.0)), "area_bounds is .*below that of medium"),
        (lambda: Evaluate(area_bounds=(0.0, 32.0)), "area_bounds is .*; it must be above 0"),
        (lambda: Evaluate(population_examples=1), "population_examples is 1; it must be at"),
        (lambda: Evaluate(population_examples=10**12), "population_examples is 1000000000000"),
    ],
)
def test_fields_out_of_range_raise_a_spec_error(make, wrong):
    with pytest.raises(SpecError, match=wrong):
        make()
