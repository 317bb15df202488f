"""Schedules in examples: their shape, and that no batch size changes it."""

import numpy as np
import pytest

from fpnlab.train.schedule import Cosine, Steps, scheduled
from fpnlab.train.step import Train


def test_cosine_rises_to_one_and_falls_to_zero():
    at = [float(scheduled(Cosine(warmup=0.1), 1000, n)) for n in (0, 50, 100, 550, 1000)]
    np.testing.assert_allclose(at, [0, 0.5, 1, 0.5, 0], atol=1e-6)


def test_steps_drop_at_their_milestones():
    schedule = Steps(warmup=0.0, milestones=(0.5, 0.75), factor=0.1)
    at = [float(scheduled(schedule, 100, n)) for n in (0, 49, 50, 74, 75)]
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
        (lambda: Cosine(warmup=1.0), "warmup is 1.0; it is a share"),
        (lambda: Steps(milestones=(0.8, 0.6)), "must rise"),
        (
            lambda: Train(examples=8, batch_size=16, learning_rate=0.1),
            "batch_size is 16, more than",
        ),
        (lambda: Train(examples=8, batch_size=0, learning_rate=0.1), "batch_size is 0; it must be"),
    ],
)
def test_impossible_plans_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
