"""Gradient accumulation: microbatches give the gradient of the whole batch."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.tasks.kinds import task_of
from fpnlab.train.accumulate import gradient
from fpnlab.train.objective import Objective
from fpnlab.train.schedule import Steps
from fpnlab.train.step import Train, init_train, train_step

TRAIN = Train(
    examples=64,
    batch_size=4,
    learning_rate=0.1,
    rule="constant",
    schedule=Steps(warmup=0.0),
    clip_norm=None,
)


def squares(params, state, batch, number):
    """Mean square over the counted items; the state records the microbatch numbers in order."""
    x, counts = batch
    count = counts.sum()
    loss = (counts * jnp.square(params * x)).sum() / jnp.maximum(count, 1)
    logs = {"loss": loss, "mean": (counts * x).sum() / jnp.maximum(count, 1), "count": count}
    return loss, (logs, 10 * state + (9 if number is None else number + 1))


@pytest.fixture(params=["unrolled", "loop"])
def either_way(request, monkeypatch):
    """The variant for CPU, and the one for accelerators."""
    if request.param == "loop":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("counts", [[1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
def test_accumulated_loss_and_gradient_equal_those_of_the_batch_for_unequal_counts(
    counts, either_way
):
    batch = jnp.arange(1.0, 7.0), jnp.array(counts, jnp.float32)
    take = functools.partial(gradient, squares, jnp.float32(3.0), jnp.int32(0), batch)
    expected, expected_logs, once = take(1)
    found, logs, state = take(3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    chex.assert_trees_all_close(logs, expected_logs, rtol=1e-6)
    assert set(logs) == {"loss", "mean"}
    # Microbatches are processed in order, with their numbers; a single one has none.
    assert (int(once), int(state)) == (9, 123)


def stepped(detector, train, batch, state=None, **options):
    state = state or init_train(jax.random.key(0), task_of(detector, Objective()), train)
    step = jax.jit(
        functools.partial(
            train_step,
            task_of(detector, Objective(), norm_batch=train.statistics_group),
            train,
            **options,
        )
    )
    return step(state, batch)


@pytest.mark.parametrize(
    ("norm", "norm_batch", "micro_batch"),
    [
        pytest.param(LayerNorm(axes="hwc"), None, 1, marks=pytest.mark.slow, id="layer_norm"),
        pytest.param(BatchNorm(), 2, 2, id="batch_norm"),
        pytest.param(BatchNorm(norm_batch=2), None, 2, id="batch_norm_of_its_own"),
    ],
)
def test_a_step_in_microbatches_equals_the_step_of_the_batch(
    norm, norm_batch, micro_batch, make_detector, batch
):
    """pytorch/pytorch#46516: what a statistics group is does not depend on accumulation."""
    train = dataclasses.replace(TRAIN, norm_batch=norm_batch)
    accumulated = dataclasses.replace(train, micro_batch=micro_batch)
    detector = make_detector(norm)
    expected, expected_logs = stepped(detector, train, batch)
    found, logs = stepped(detector, accumulated, batch)
    chex.assert_trees_all_close(logs, expected_logs, rtol=1e-4)
    chex.assert_trees_all_close(found.params, expected.params, rtol=1e-3, atol=1e-5)
    # Half a batch is another step.
    half = jax.tree.map(lambda leaf: leaf[:2], batch)
    other, _ = stepped(detector, dataclasses.replace(train, batch_size=2), half)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(other.params, expected.params, rtol=1e-3, atol=1e-5)


def test_each_microbatch_updates_the_running_statistics(make_detector, batch):
    detector, still = make_detector(BatchNorm()), jnp.float32(0.0)
    train = dataclasses.replace(TRAIN, norm_batch=2, micro_batch=2)
    found, _ = stepped(detector, train, batch, peak_rate=still)
    pairs = dataclasses.replace(TRAIN, batch_size=2)
    state = None
    for start in (0, 2):
        part = jax.tree.map(lambda leaf, i=start: leaf[i : i + 2], batch)
        state, _ = stepped(detector, pairs, part, state, peak_rate=still)
    chex.assert_trees_all_close(found.state, state.state, rtol=1e-5, atol=1e-6)


def test_a_statistics_group_larger_than_a_microbatch_raises(make_detector, batch):
    train = dataclasses.replace(TRAIN, micro_batch=2)
    with pytest.raises(ValueError, match="2 images does not split into groups of norm_batch=4"):
        stepped(make_detector(BatchNorm()), train, batch)
