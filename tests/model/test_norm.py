"""Norms as organs: the switches of the mode, and running statistics against closed forms."""

import dataclasses
import itertools

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.model.norm import (
    BatchNorm,
    GroupNorm,
    LayerNorm,
    NoNorm,
    NormState,
    apply_norm,
    init_norm,
)
from fpnlab.types import Mode

BN = BatchNorm(reference_batch=8)
STATELESS = [LayerNorm(axes="hwc"), LayerNorm(axes="c"), GroupNorm(groups=2), NoNorm()]
MODES = [Mode(stats=s, update=u) for s, u in itertools.product(("batch", "running"), (True, False))]


@pytest.fixture
def x(key):
    return 3.0 * jax.random.normal(key, (8, 2, 2, 4)) + 5.0


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics_follow_their_closed_form(steps, unbiased, x):
    norm = dataclasses.replace(BN, unbiased=unbiased)
    params, state = init_norm(norm, 4)
    for _ in range(steps):
        _, state = apply_norm(norm, params, state, x, Mode.TRAIN)
    kept = norm.decay**steps
    values = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(state.mean, (1 - kept) * values.mean(0), rtol=1e-5)
    expected = kept + (1 - kept) * values.var(0, ddof=int(unbiased))
    np.testing.assert_allclose(state.var, expected, rtol=1e-5)
    assert state.count == 32


def test_the_running_statistics_forget_per_example_not_per_step(x):
    params, start = init_norm(BN, 4)
    _, once = apply_norm(BN, params, start, x, Mode.TRAIN)
    state = start
    for _ in range(4):
        # The same two images each time: only the forgetting is compared.
        _, state = apply_norm(BN, params, state, x[:2], Mode.TRAIN)
    mean = x[:2].mean((0, 1, 2))
    np.testing.assert_allclose(state.mean, (1 - BN.decay) * mean, rtol=1e-5)
    np.testing.assert_allclose(once.mean, (1 - BN.decay) * x.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_source_and_update_are_independent_switches(mode, x):
    params, state = init_norm(BN, 4)
    y, new = apply_norm(BN, params, state, x, mode)
    by_batch, updated = apply_norm(BN, params, state, x, Mode.TRAIN)
    by_running = x / np.sqrt(1 + BN.eps)
    np.testing.assert_allclose(y, by_batch if mode.stats == "batch" else by_running, rtol=1e-5)
    chex.assert_trees_all_equal(new, updated if mode.update else state)


@pytest.mark.parametrize("norm", STATELESS, ids=lambda n: n.kind)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_stateless_norms_keep_no_state_and_know_no_mode(norm, mode, x):
    params, state = init_norm(norm, 4)
    y, new = apply_norm(norm, params, state, x, mode)
    assert new is None
    assert state is None
    np.testing.assert_array_equal(y, apply_norm(norm, params, state, x, Mode.TRAIN)[0])


def test_flax_keeps_the_same_running_statistics_over_twenty_steps(x):
    params, state = init_norm(BN, 4)
    module = flax.linen.BatchNorm(use_running_average=False, momentum=BN.decay, epsilon=BN.eps)
    variables = module.init(jax.random.key(0), x)
    for i in range(20):
        batch = x * (1 + 0.1 * i)
        _, state = apply_norm(BN, params, state, batch, Mode.TRAIN)
        _, new = module.apply(variables, batch, mutable=["batch_stats"])
        variables = {**variables, **new}
    np.testing.assert_allclose(state.mean, variables["batch_stats"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(state.var, variables["batch_stats"]["var"], rtol=1e-4)


def test_pytorch_keeps_the_same_running_statistics_over_twenty_steps(x):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    norm = dataclasses.replace(BN, unbiased=True)
    params, state = init_norm(norm, 4)
    module = torch.nn.BatchNorm2d(4, eps=norm.eps, momentum=1 - norm.decay)
    for i in range(20):
        batch = x * (1 + 0.1 * i)
        _, state = apply_norm(norm, params, state, batch, Mode.TRAIN)
        module(torch.tensor(np.array(batch)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(state.mean, module.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(state.var, module.running_var.numpy(), rtol=1e-5)


def test_levels_share_the_affine_map_and_keep_their_own_statistics(x):
    params, state = init_norm(BN, 4, levels=3)
    y, new = apply_norm(BN, params, state, x, Mode.TRAIN, level=1)
    alone, single = apply_norm(BN, params, init_norm(BN, 4)[1], x, Mode.TRAIN)
    np.testing.assert_array_equal(y, alone)
    np.testing.assert_array_equal(new.mean[1], single.mean)
    np.testing.assert_array_equal(new.mean[jnp.array([0, 2])], 0)
    assert new.count.tolist() == [0, 32, 0]
    read, _ = apply_norm(BN, params, new, x, Mode.EVAL, level=1)
    expected, _ = apply_norm(BN, params, single, x, Mode.EVAL)
    np.testing.assert_array_equal(read, expected)


def test_a_ghost_group_is_counted_by_itself(x):
    norm = dataclasses.replace(BN, norm_batch=2)
    params, state = init_norm(norm, 4)
    _, new = apply_norm(norm, params, state, x, Mode.TRAIN)
    assert new.count == 2 * 2 * 2


@pytest.mark.parametrize("norm", [BN, *STATELESS], ids=lambda n: n.kind)
def test_a_zero_scale_silences_the_norm_until_it_has_learnt(norm, x):
    params, state = init_norm(norm, 4, scale=0.0)
    y, _ = apply_norm(norm, params, state, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, 0)
    gradient = jax.grad(
        lambda p: (apply_norm(norm, p, state, x, Mode.TRAIN)[0] * x).sum(), allow_int=True
    )(params)
    assert jnp.abs(gradient.scale).max() > 0


def test_statistics_stay_float32_under_bfloat16(x):
    params, state = init_norm(BN, 4)
    y, new = apply_norm(BN, params, state, x.astype(jnp.bfloat16), Mode.TRAIN)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}


def test_specs_are_values():
    assert BatchNorm() == BatchNorm()
    assert len({BatchNorm(), BatchNorm(), BatchNorm(decay=0.5)}) == 2
    assert isinstance(init_norm(BN, 3)[1], NormState)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm(decay=1.0), "decay is 1.0; it must be at least 0 and below 1"),
        (lambda: BatchNorm(norm_batch=0), "norm_batch is 0; it must be 1 or more"),
        (lambda: init_norm(GroupNorm(groups=3), 4), "4 channels do not split into 3 groups"),
    ],
)
def test_impossible_norms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
