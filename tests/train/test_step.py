"""The training step: its update, skipped updates, and lowering for every platform."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import Objective
from fpnlab.train.schedule import Steps
from fpnlab.train.step import AdamW, Sgd, Train, init_train, train_step

TRAIN = Train(
    examples=64, batch_size=4, learning_rate=0.1, rule="constant", schedule=Steps(warmup=0.0)
)


@pytest.fixture(scope="module")
def stepping(detector):
    """(train) -> initial state and jitted step, compiled once per recipe."""

    @functools.cache
    def make(train, detector=detector):
        state = init_train(jax.random.key(0), task_of(detector, Objective()), train)
        return state, jax.jit(
            functools.partial(
                train_step, task_of(detector, Objective(), norm_batch=train.statistics_group), train
            )
        )

    return make


def steps(step, state, batch, count):
    """Logs of steps on the same batch."""
    for _ in range(count):
        state, logs = step(state, batch)
        yield logs


@pytest.mark.parametrize("optimizer", [Sgd(), AdamW()], ids=lambda o: o.kind)
def test_training_on_one_batch_lowers_its_loss(optimizer, stepping, batch):
    train = dataclasses.replace(TRAIN, optimizer=optimizer, learning_rate=0.01)
    state, step = stepping(train)
    losses = [float(logs["loss"]) for logs in steps(step, state, batch, 16)]
    assert losses[-1] < 0.7 * losses[0]
    assert np.isfinite(losses).all()


def test_one_sgd_step_equals_the_nesterov_formula(stepping, batch):
    train = dataclasses.replace(
        TRAIN, weight_decay=0.0, clip_norm=None, optimizer=Sgd(momentum=0.5)
    )
    state, step = stepping(train)
    after, logs = step(state, batch)
    again, _ = step(after, batch)
    # Nesterov from rest: the first update is (1 + momentum) x rate x gradient.
    moved = jax.tree.map(lambda a, b: b - a, after.params, state.params)
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 1.5 * 0.1 * logs["gradient_norm"], rtol=1e-4)
    assert int(again.step) == 2


def test_a_given_peak_rate_replaces_that_of_the_recipe(stepping, batch):
    state, step = stepping(TRAIN)
    given = jax.jit(functools.partial(step, peak_rate=jnp.float32(0.03)))
    _, expected_step = stepping(dataclasses.replace(TRAIN, learning_rate=0.03, rule="constant"))
    expected, logs = expected_step(state, batch)
    found, found_logs = given(state, batch)
    assert float(found_logs["learning_rate"]) == pytest.approx(float(logs["learning_rate"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
    )


def test_clipping_bounds_the_update_and_logs_the_norm_before(stepping, batch):
    train = dataclasses.replace(
        TRAIN, weight_decay=0.0, clip_norm=1e-3, optimizer=Sgd(momentum=0.0)
    )
    state, step = stepping(train)
    after, logs = step(state, batch)
    moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, 0.1 * 1e-3, rtol=1e-3)
    assert logs["gradient_norm"] > 1e-3


def test_weight_decay_shrinks_kernels_and_nothing_else(stepping, batch):
    # The gradient is the same under both decays, so the difference is that of the decay alone.
    results = []
    for decay in (0.0, 1.0):
        state, step = stepping(
            dataclasses.replace(
                TRAIN, weight_decay=decay, optimizer=Sgd(momentum=0.0), clip_norm=None
            )
        )
        results.append(step(state, batch)[0].params)
    difference = jax.tree_util.tree_map_with_path(
        lambda path, start, without, decayed: (
            path[-1].name,
            np.abs(decayed - (without - 0.1 * start)).max(),
            np.abs(decayed - without).max(),
        ),
        state.params,
        *results,
    )
    is_row = lambda node: isinstance(node, tuple) and len(node) == 3
    for name, as_decayed, as_kept in jax.tree.leaves(difference, is_leaf=is_row):
        assert (as_decayed if name == "kernel" else as_kept) < 1e-5, name


def test_averaged_weights_follow_their_closed_form(stepping, batch):
    train = dataclasses.replace(TRAIN, ema_examples=8)
    state, step = stepping(train)
    after, _ = step(state, batch)
    keep = np.exp(-4 / 8)
    expected = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.params, after.params)
    chex.assert_trees_all_close(after.average, expected, rtol=1e-5, atol=1e-7)


def test_an_update_that_is_not_finite_leaves_the_state_bit_for_bit(stepping, batch):
    state, step = stepping(TRAIN)
    good, _ = step(state, batch)
    poisoned = dataclasses.replace(
        batch, images=batch.images.astype(jnp.float32).at[1].set(jnp.nan)
    )
    bad, logs = step(good, poisoned)
    assert jnp.isnan(logs["loss"])
    assert int(bad.skipped) == 1
    chex.assert_trees_all_equal(
        (bad.params, bad.state, bad.optimizer), (good.params, good.state, good.optimizer)
    )


def test_all_updates_after_a_skipped_one_are_skipped_and_counted(stepping, batch):
    state, step = stepping(TRAIN)
    good, _ = step(state, batch)
    poisoned = dataclasses.replace(
        batch, images=batch.images.astype(jnp.float32).at[1].set(jnp.nan)
    )
    after = good
    for one in (poisoned, batch, poisoned, batch):
        after, _ = step(after, one)
    assert (int(after.step), int(after.skipped)) == (5, 4)
    chex.assert_trees_all_equal(
        dataclasses.replace(after, step=good.step, skipped=good.skipped), good
    )


def test_an_update_that_would_overflow_the_parameters_is_skipped(stepping, batch):
    """Loss and gradient are finite; only the update is not."""
    state, step = stepping(dataclasses.replace(TRAIN, learning_rate=3e38))
    after, logs = step(state, batch)
    assert jnp.isfinite(logs["loss"])
    assert 2 < logs["gradient_norm"] < jnp.inf
    assert int(after.skipped) == 1
    chex.assert_trees_all_equal(after.params, state.params)


def test_the_learning_rate_follows_examples_not_steps(stepping, batch):
    train = dataclasses.replace(TRAIN, schedule=Steps(warmup=0.0, milestones=(0.125,)))
    state, step = stepping(train)
    rates = [float(logs["learning_rate"]) for logs in steps(step, state, batch, 3)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_updates_are_as_many_steps_at_every_batch_size_and_examples_are_not(batch_size):
    by_updates = dataclasses.replace(TRAIN, examples=None, updates=6, batch_size=batch_size)
    assert (by_updates.steps, by_updates.total_examples) == (6, 6 * batch_size)
    by_examples = dataclasses.replace(TRAIN, examples=602, batch_size=batch_size)
    assert (by_examples.steps, by_examples.total_examples) == (602 // batch_size, 602)


def test_the_schedule_ends_with_the_updates(stepping, batch):
    drop = Steps(warmup=0.0, milestones=(0.5,))
    train = dataclasses.replace(TRAIN, examples=None, updates=4, schedule=drop)
    state, step = stepping(train)
    rates = [float(logs["learning_rate"]) for logs in steps(step, state, batch, 4)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"updates": 3}, r"give examples or updates \(both are given\)"),
        ({"examples": None}, r"give examples or updates \(neither is given\)"),
        ({"examples": None, "updates": 0}, "updates is 0; it must be at least 1"),
        ({"batch_size": 65}, "batch_size is 65, more than examples=64"),
        ({"norm_batch": 3}, "norm_batch is 3, and batch_size=4 .*; these do: 1, 2, 4"),
        ({"norm_batch": 8}, "norm_batch is 8, and batch_size=4 .*; these do: 1, 2, 4"),
        ({"norm_batch": 0}, "norm_batch is 0"),
        (
            {"micro_batch": 3},
            "micro_batch is 3, and batch_size=4 .* microbatches; these do: 1, 2, 4",
        ),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"micro_batch": 2, "norm_batch": 4}, "norm_batch is 4, and micro_batch=2 .*: 1, 2$"),
    ],
)
def test_train_rejects_contradictory_fields(fields, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TRAIN, **fields)


def test_norm_batch_of_the_recipe_applies_to_norms_that_do_not_set_it(
    make_detector, stepping, batch
):
    """Bit for bit; a norm with a norm_batch of its own keeps it."""
    after = lambda train, norm: stepping(train, make_detector(norm))[1](
        stepping(train, make_detector(norm))[0], batch
    )[0]
    pairs = dataclasses.replace(TRAIN, norm_batch=2)
    assert (TRAIN.statistics_group, pairs.statistics_group) == (4, 2)
    expected = after(TRAIN, BatchNorm(norm_batch=2))
    chex.assert_trees_all_equal(after(pairs, BatchNorm()), expected)
    own = after(dataclasses.replace(TRAIN, norm_batch=1), BatchNorm(norm_batch=2))
    chex.assert_trees_all_equal(own, expected)
    whole = after(TRAIN, BatchNorm())
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(whole.params, expected.params, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [BatchNorm(), LayerNorm(axes="hwc")], ids=lambda n: n.kind)
def test_the_step_lowers_for_cpu_cuda_and_tpu(precision, norm, make_detector, batch):
    detector = make_detector(norm)
    train = dataclasses.replace(TRAIN, precision=precision)
    state = jax.eval_shape(
        lambda: init_train(jax.random.key(0), task_of(detector, Objective()), train)
    )
    step = jax.jit(
        functools.partial(
            train_step, task_of(detector, Objective(), norm_batch=train.statistics_group), train
        )
    )
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(state, batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert ("bf16" in exported.mlir_module()) == (precision == "bfloat16")


def test_bfloat16_keeps_parameters_and_statistics_in_float32(stepping, batch):
    state, step = stepping(dataclasses.replace(TRAIN, precision="bfloat16"))
    after, logs = step(state, batch)
    chex.assert_trees_all_equal_dtypes(after, state)
    _, exact = stepping(TRAIN)[1](state, batch)
    np.testing.assert_allclose(logs["loss"], exact["loss"], rtol=0.03)


@pytest.mark.slow
def test_vmapped_seeds_equal_separate_runs_of_each_seed(detector, stepping, batch):
    _, step = stepping(TRAIN)
    make = lambda seed: init_train(jax.random.key(seed), task_of(detector, Objective()), TRAIN)
    packed = jax.vmap(make)(jnp.arange(2))
    together, logs = jax.jit(jax.vmap(step, in_axes=(0, None)))(packed, batch)
    for seed in range(2):
        alone, expected = step(make(seed), batch)
        np.testing.assert_allclose(logs["loss"][seed], expected["loss"], rtol=1e-5)
        mine = jax.tree.map(lambda leaf: leaf[seed], together.params)
        chex.assert_trees_all_close(mine, alone.params, rtol=1e-3, atol=1e-5)
