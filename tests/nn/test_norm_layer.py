"""Norm layers: fields and first values, running statistics over steps, levels, and freezing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.norm_edit import freeze
from fpnlab.nn.norm_layer import activate, apply_norm, at_level, init_norm, put_level
from fpnlab.nn.norm_specs import (
    BatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    FrozenBatchNorm,
    GroupNorm,
    LayerNorm,
    NoNorm,
    Renorm,
    RmsNorm,
)
from fpnlab.types import Mode

from ..ops.norm_cases import ARMS, MODES

BN = BatchNorm(reference_batch=8)
SPECS = list({arm.norm: name for name, arm in ARMS.items()})
LEARNED = [norm for norm in SPECS if not isinstance(norm, FrozenBatchNorm)]


@pytest.fixture
def x(key):
    return 3.0 * jax.random.normal(key, (8, 2, 2, 4)) + 5.0


@pytest.mark.parametrize("norm", [*SPECS, Renorm()], ids=str)
def test_every_norm_spec_is_a_frozen_value_without_other_fields(norm):
    again = dataclasses.replace(norm)
    assert again == norm
    assert again is not norm
    assert len({norm, again, BatchNorm(decay=0.5)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        norm.eps = 1.0
    with pytest.raises(TypeError, match="momentum"):
        type(norm)(**dataclasses.asdict(norm), momentum=0.1)


def test_defaults_of_norms_are_the_papers_and_equal_across_norms():
    fields = dataclasses.asdict(BatchNorm()) | {"kind": None}
    assert fields == {
        "kind": None,
        "norm_batch": None,
        "decay": 0.9,
        "reference_batch": 32,
        "unbiased": False,
        "renorm": None,
        "axis_name": None,
        "eps": 1e-5,
    }
    assert dataclasses.asdict(Renorm()) == {
        "r_max": 3.0,
        "d_max": 5.0,
        "start": 5_000 * 32,
        "r_full": 40_000 * 32,
        "d_full": 25_000 * 32,
    }
    assert not FrozenBatchNorm().affine
    assert DynamicTanh().alpha == 0.5
    for norm in {type(norm) for norm in SPECS}:
        eps = {field.name: field.default for field in dataclasses.fields(norm)}.get("eps", 1e-5)
        assert eps == (1e-6 if norm is FilterResponseNorm else 1e-5)


def test_the_limits_of_norm_fields_are_valid_themselves():
    assert BatchNorm(decay=0.0, norm_batch=1).decay == 0
    assert Renorm(r_max=1.0, d_max=0.0, start=0, r_full=1, d_full=1).start == 0


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (64, 32), (48, 24), (32, 16), (16, 8), (12, 6), (7, 1), (1, 1), (66, 22)],
)
def test_group_norm_chooses_groups_of_two_channels_or_more(channels, groups):
    assert GroupNorm().groups_of(channels) == groups
    assert GroupNorm(group_channels=1).groups_of(channels) == channels


@pytest.mark.parametrize("norm", LEARNED, ids=str)
def test_norms_begin_as_the_identity_of_their_statistics(norm):
    params, state = init_norm(norm, 4)
    expected = {
        "scale": None if isinstance(norm, NoNorm) else np.ones(4),
        "bias": None if isinstance(norm, RmsNorm) else np.zeros(4),
        "threshold": np.zeros(4) if isinstance(norm, FilterResponseNorm) else None,
        "alpha": np.float32(norm.alpha) if isinstance(norm, DynamicTanh) else None,
    }
    chex.assert_trees_all_equal(vars(params), expected)
    if isinstance(norm, BatchNorm):
        fresh = {
            "mean": np.zeros(4),
            "var": np.ones(4),
            "count": np.zeros(()),
            "seen": np.zeros(()),
        }
        chex.assert_trees_all_equal(vars(state), fresh)
    else:
        assert state is None
    assert (init_norm(norm, 4, scale=2.0)[0].scale == 2).all()


@pytest.mark.parametrize("norm", LEARNED, ids=str)
def test_a_scale_of_zero_makes_the_output_of_a_norm_zero_until_it_has_learned(norm, x):
    params, state = init_norm(norm, 4, scale=0.0)
    y, _ = apply_norm(norm, params, state, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, 0)
    if isinstance(norm, FilterResponseNorm):
        return  # Its threshold sits at the kink of the maximum.
    loss = lambda params: (apply_norm(norm, params, state, x, Mode.TRAIN)[0] * x).sum()
    assert jnp.abs(jax.grad(loss)(params).scale).max() > 0


def test_no_norm_without_a_scale_adds_its_bias(x):
    params, _ = init_norm(NoNorm(), 4)
    params = dataclasses.replace(params, bias=jnp.arange(4.0))
    y, _ = apply_norm(NoNorm(), params, None, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, x + params.bias)


def test_activate_rectifies_after_every_norm_but_filter_response_norm(x):
    for norm in SPECS:
        rectified = isinstance(norm, FilterResponseNorm)
        np.testing.assert_array_equal(activate(norm, -x), -x if rectified else np.maximum(-x, 0))


@pytest.mark.parametrize(("steps", "images"), [(1, 8), (3, 8), (10, 8), (4, 2)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics_decay_with_examples_and_not_with_steps(steps, images, unbiased, x):
    norm, x = dataclasses.replace(BN, unbiased=unbiased), x[:images]
    params, state = init_norm(norm, 4)
    for _ in range(steps):
        _, state = apply_norm(norm, params, state, x, Mode.TRAIN)
    kept = norm.decay ** (steps * images / 8)
    values = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(state.mean, (1 - kept) * values.mean(0), rtol=1e-5)
    expected = kept + (1 - kept) * values.var(0, ddof=int(unbiased))
    np.testing.assert_allclose(state.var, expected, rtol=1e-5)
    assert state.count == 4 * images


def test_moments_of_several_batches_are_those_of_all_and_evaluate_as_one_batch(x):
    params, state = init_norm(BN, 4)
    for part in (x[:3], x[3:4], x[4:]):
        _, state = apply_norm(BN, params, state, part, Mode.MOMENTS)
    values = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(state.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.var, values.var(0), rtol=1e-5)
    assert (state.count, state.seen) == (32, 8)
    evaluated, _ = apply_norm(BN, params, state, x, Mode.EVAL)
    trained, _ = apply_norm(BN, params, state, x, Mode.TRAIN)
    np.testing.assert_allclose(evaluated, trained, atol=1e-5)


def test_levels_share_the_affine_map_of_a_batch_norm_and_keep_their_own_statistics(x):
    params, state = init_norm(BN, 4, state_levels=3)
    y, one = apply_norm(BN, params, at_level(state, 1), x, Mode.TRAIN)
    new = put_level(state, one, 1)
    alone, single = apply_norm(BN, params, init_norm(BN, 4)[1], x, Mode.TRAIN)
    np.testing.assert_array_equal(y, alone)
    np.testing.assert_array_equal(new.mean[1], single.mean)
    np.testing.assert_array_equal(new.mean[jnp.array([0, 2])], 0)
    assert new.count.tolist() == [0, 32, 0]
    read, _ = apply_norm(BN, params, at_level(new, 1), x, Mode.EVAL)
    expected, _ = apply_norm(BN, params, single, x, Mode.EVAL)
    np.testing.assert_array_equal(read, expected)
    assert init_norm(DynamicTanh(), 4, affine_levels=3)[0].alpha.shape == (3,)
    assert init_norm(BN, 4, affine_levels=3)[0].scale.shape == (3, 4)
    assert at_level(state, None) is state
    assert put_level(state, one, None) is one


def test_freeze_makes_batch_norms_evaluate_in_every_mode(x):
    # One image is enough.
    params, state = init_norm(BN, 4)
    _, state = apply_norm(BN, params, state, x[:1], Mode.TRAIN)
    frozen = freeze(BN, state)
    assert frozen == FrozenBatchNorm()
    expected, _ = apply_norm(BN, params, state, x, Mode.EVAL)
    for mode in MODES:
        y, after = apply_norm(frozen, params, state, x, mode)
        np.testing.assert_array_equal(y, expected)
        assert after is state


def test_freeze_reaches_every_batch_norm_in_a_spec_and_nothing_else(x):
    _, state = apply_norm(BN, *init_norm(BN, 4), x, Mode.TRAIN)
    block = block_of(BatchNorm(eps=1e-3), LayerNorm(axes="c"), "standardized")
    frozen = FrozenBatchNorm(eps=1e-3)
    assert freeze(block, state) == dataclasses.replace(block, norm=frozen, shortcut_norm=frozen)


def block_of(norm, last_norm, kernel):
    return Block(
        kind="basic",
        inputs=4,
        width=4,
        stride=1,
        norm=norm,
        last_norm=last_norm,
        shortcut_norm=norm,
        kernel=kernel,
    )


@pytest.mark.parametrize("kernel", ["standardized", "scaled"])
def test_a_standardized_kernel_forgets_the_scale_of_its_weights(kernel, key):
    block = block_of(GroupNorm(groups=2), GroupNorm(groups=2), kernel)
    params, state = init_block(key, block)
    ones = jax.tree.map(jnp.ones_like, params.branch[1].norm)
    last = dataclasses.replace(params.branch[1], norm=ones)
    params = dataclasses.replace(params, branch=(params.branch[0], last))
    x = jax.random.normal(key, (2, 5, 5, 4))
    larger = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 7.0 * leaf if path[-1].name == "kernel" else leaf, params
    )
    y, _ = apply_block(block, params, state, x, Mode.TRAIN)
    again, _ = apply_block(block, larger, state, x, Mode.TRAIN)
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-4)
