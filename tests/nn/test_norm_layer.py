"""Norms as organs: the switches of the mode, and running statistics against closed forms."""

import dataclasses

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.norm_edit import freeze
from fpnlab.nn.norm_layer import NormState, activate, apply_norm, at_level, init_norm, put_level
from fpnlab.nn.norm_specs import (
    BatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoNorm,
    Renorm,
    RmsNorm,
)
from fpnlab.ops.norm import batch_norm_eval, batch_renorm_train, group_norm
from fpnlab.types import Mode

BN = BatchNorm(reference_batch=8)
RENORM = BatchNorm(reference_batch=8, renorm=Renorm(start=8, r_full=24, d_full=16))
STATELESS = [
    LayerNorm(axes="hwc"),
    LayerNorm(axes="c"),
    GroupNorm(groups=2),
    InstanceNorm(),
    RmsNorm(axes="hwc"),
    RmsNorm(axes="c"),
    FilterResponseNorm(),
    DynamicTanh(),
    NoNorm(),
]
MODES = [
    Mode(stats=stats, update=update, stochastic=stochastic)
    for stats in ("batch", "running")
    for update in ("none", "running", "moments")
    for stochastic in (True, False)
]


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
    _, merged = apply_norm(BN, params, state, x, Mode.MOMENTS)
    by_running = x / np.sqrt(1 + BN.eps)
    np.testing.assert_allclose(y, by_batch if mode.stats == "batch" else by_running, rtol=1e-5)
    after = {"none": state, "running": updated, "moments": merged}
    chex.assert_trees_all_equal(new, after[mode.update])


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


def test_a_ghost_group_is_counted_by_itself(x):
    norm = dataclasses.replace(BN, norm_batch=2)
    params, state = init_norm(norm, 4)
    _, new = apply_norm(norm, params, state, x, Mode.TRAIN)
    assert new.count == 2 * 2 * 2


@pytest.mark.parametrize("norm", [BN, *STATELESS], ids=lambda n: n.kind)
def test_a_zero_scale_silences_the_norm_until_it_has_learned(norm, x):
    params, state = init_norm(norm, 4, scale=0.0)
    y, _ = apply_norm(norm, params, state, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, 0)
    if isinstance(norm, FilterResponseNorm):
        return  # Its threshold sits at the kink of the maximum.
    gradient = jax.grad(
        lambda p: (apply_norm(norm, p, state, x, Mode.TRAIN)[0] * x).sum(), allow_int=True
    )(params)
    assert jnp.abs(gradient.scale).max() > 0


def test_statistics_stay_float32_under_bfloat16(x):
    params, state = init_norm(BN, 4)
    y, new = apply_norm(BN, params, state, x.astype(jnp.bfloat16), Mode.TRAIN)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"float32"}


def test_defaults_are_the_papers_and_equal_across_norms():
    common = {"eps": 1e-5}
    assert dataclasses.asdict(BatchNorm()) == common | {
        "kind": "batch_norm",
        "norm_batch": None,
        "decay": 0.9,
        "reference_batch": 32,
        "unbiased": False,
        "renorm": None,
        "axis_name": None,
    }
    assert dataclasses.asdict(Renorm()) == {
        "r_max": 3.0,
        "d_max": 5.0,
        "start": 5_000 * 32,
        "r_full": 40_000 * 32,
        "d_full": 25_000 * 32,
    }
    frozen = {"kind": "frozen_batch_norm", "affine": False}
    assert dataclasses.asdict(FrozenBatchNorm()) == common | frozen
    for norm in STATELESS:
        if hasattr(norm, "eps"):
            assert norm.eps == (1e-6 if isinstance(norm, FilterResponseNorm) else 1e-5)
    assert DynamicTanh().alpha == 0.5


def test_the_last_sensible_values_are_taken():
    assert BatchNorm(decay=0.0, norm_batch=1).decay == 0
    assert Renorm(r_max=1.0, d_max=0.0, start=0, r_full=1, d_full=1).start == 0


def test_only_a_norm_that_rectifies_is_not_rectified_again(x):
    for norm in (BN, *STATELESS):
        expected = x if isinstance(norm, FilterResponseNorm) else np.maximum(x, 0)
        np.testing.assert_array_equal(
            activate(norm, -x), -x if expected is x else np.maximum(-x, 0)
        )


def test_freezing_reaches_every_batch_norm_in_a_spec_and_nothing_else(x):
    _, state = apply_norm(BN, *init_norm(BN, 4), x, Mode.TRAIN)
    norm = BatchNorm(eps=1e-3)
    block = Block(
        kind="basic",
        inputs=4,
        width=4,
        stride=1,
        norm=norm,
        last_norm=LayerNorm(axes="c"),
        shortcut_norm=norm,
        kernel="standardized",
    )
    frozen = FrozenBatchNorm(eps=1e-3)
    assert freeze(block, state) == dataclasses.replace(block, norm=frozen, shortcut_norm=frozen)


@pytest.mark.parametrize("norm", [BN, RENORM.renorm, FrozenBatchNorm(), *STATELESS], ids=str)
def test_every_spec_is_a_frozen_value_that_takes_no_other_field(norm):
    again = dataclasses.replace(norm)
    assert again == norm
    assert again is not norm
    assert hash(again) == hash(norm)
    with pytest.raises(dataclasses.FrozenInstanceError):
        norm.eps = 1.0
    with pytest.raises(TypeError, match="momentum"):
        type(norm)(**dataclasses.asdict(norm), momentum=0.1)


def test_norms_begin_as_the_identity_of_their_statistics():
    for norm in (BN, *STATELESS):
        params, _ = init_norm(norm, 4)
        leaves = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        expected = {
            "scale": None if isinstance(norm, NoNorm) else 1,
            "bias": None if isinstance(norm, RmsNorm) else 0,
            "threshold": 0 if isinstance(norm, FilterResponseNorm) else None,
            "alpha": 0.5 if isinstance(norm, DynamicTanh) else None,
        }
        for name, value in expected.items():
            if value is None:
                assert leaves[name] is None, (norm, name)
            else:
                assert leaves[name].shape == (() if name == "alpha" else (4,))
                np.testing.assert_array_equal(leaves[name], value)
    assert (init_norm(NoNorm(), 4, scale=2.0)[0].scale == 2).all()


@pytest.mark.parametrize("norm", [GroupNorm(group_channels=2), GroupNorm(), GroupNorm(groups=4)])
def test_group_norm_counts_the_channels_of_the_map(norm, x):
    y, _ = apply_norm(norm, *init_norm(norm, 4), x, Mode.TRAIN)
    expected = group_norm(x, jnp.ones(4), jnp.zeros(4), groups=norm.groups_of(4), eps=1e-5)
    np.testing.assert_array_equal(y, expected)


def test_no_norm_is_its_affine_map(x):
    params, _ = init_norm(NoNorm(), 4, scale=3.0)
    bias = jnp.arange(4.0)
    y, _ = apply_norm(NoNorm(), dataclasses.replace(params, bias=bias), None, x, Mode.TRAIN)
    np.testing.assert_allclose(y, 3.0 * x + bias, rtol=1e-6)
    plain, _ = init_norm(NoNorm(), 4)
    y, _ = apply_norm(NoNorm(), dataclasses.replace(plain, bias=bias), None, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, x + bias)


def test_specs_are_values():
    assert BatchNorm() == BatchNorm()
    assert len({BatchNorm(), BatchNorm(), BatchNorm(decay=0.5)}) == 2
    assert isinstance(init_norm(BN, 3)[1], NormState)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm(decay=1.0), "decay is 1.0; it must be at least 0 and below 1"),
        (lambda: BatchNorm(decay=-0.1), "decay is -0.1; it must be at least 0 and below 1"),
        (lambda: BatchNorm(norm_batch=0), "norm_batch is 0; it must be at least 1"),
        (lambda: Renorm(r_max=0.99), "r_max is 0.99"),
        (lambda: Renorm(d_max=-0.1), "d_max is -0.1; it must be at least 0"),
        (lambda: Renorm(start=-1), "start is -1; it must be at least 0"),
        (lambda: Renorm(start=7, r_full=9, d_full=7), "start is 7; it must be before"),
        (lambda: Renorm(start=7, r_full=7, d_full=9), "start is 7; it must be before"),
        (lambda: init_norm(GroupNorm(groups=3), 4), "4 channels do not split into 3 groups"),
        (
            lambda: init_norm(GroupNorm(group_channels=3), 4),
            "groups of 3 channels; these do: 1, 2, 4$",
        ),
        (lambda: GroupNorm(groups=0), "groups is 0; it must be at least 1"),
        (
            lambda: GroupNorm(group_channels=0),
            "group_channels is 0; it must be at least 1",
        ),
        (lambda: GroupNorm(groups=2, group_channels=2), "both given; give one"),
        (lambda: Renorm(r_max=0.5), "r_max is 0.5"),
        (lambda: Renorm(start=10, r_full=5), "start is 10; it must be before"),
        (
            lambda: init_norm(FrozenBatchNorm(), 4),
            r"no statistics to freeze.*freeze\(spec, state\)",
        ),
    ],
)
def test_impossible_norms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (64, 32), (48, 24), (32, 16), (16, 8), (12, 6), (7, 1), (1, 1), (66, 22)],
)
def test_group_norm_chooses_groups_of_two_channels_or_more(channels, groups):
    assert GroupNorm().groups_of(channels) == groups
    assert GroupNorm(group_channels=1).groups_of(channels) == channels


def test_batch_renorm_follows_its_schedule_in_examples(x):
    params, state = init_norm(RENORM, 4)
    limits = [(1.0, 0.0), (1.0, 0.0), (2.0, 5.0), (3.0, 5.0), (3.0, 5.0)]
    for i, (r_max, d_max) in enumerate(limits):
        x = 100.0 * x  # Each batch is far beyond the limits.
        y, new = apply_norm(RENORM, params, state, x, Mode.TRAIN)
        expected, _ = batch_renorm_train(
            x,
            state.mean,
            state.var,
            params.scale,
            params.bias,
            eps=RENORM.eps,
            r_max=r_max,
            d_max=d_max,
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        if i > 1:
            assert jnp.abs(y).max() > r_max
        state = new
    assert state.seen == 40


def test_frozen_statistics_are_evaluation_in_every_mode_and_learn_nothing(x):
    params, state = init_norm(BN, 4)
    with pytest.raises(ValueError, match=r"1 norms were never collected or loaded.*population"):
        freeze(BN, state)
    _, state = apply_norm(BN, params, state, x, Mode.TRAIN)
    frozen = freeze(BN, state)
    expected, _ = apply_norm(BN, params, state, x, Mode.EVAL)
    for mode in MODES:
        y, after = apply_norm(frozen, params, state, x, mode)
        np.testing.assert_array_equal(y, expected)
        chex.assert_trees_all_equal(after, state)
    for affine, learns in ((False, False), (True, True)):
        norm = dataclasses.replace(frozen, affine=affine)
        gradient = jax.grad(lambda p: (apply_norm(norm, p, state, x, Mode.TRAIN)[0] ** 2).sum())(
            params
        )
        assert bool(jnp.abs(gradient.scale).max() > 0) == learns


def test_freezing_names_the_norm_that_has_seen_nothing(x):
    params, fresh = init_norm(BN, 4)
    _, seen = apply_norm(BN, params, fresh, x, Mode.TRAIN)
    with pytest.raises(ValueError, match=r"e\.g\. of neck/1"):
        freeze((BN,), {"backbone": seen, "neck": (None, fresh)})
    with pytest.raises(ValueError, match=r"statistics of 2 norms.*e\.g\. of head"):
        freeze(BN, {"head": fresh, "neck": fresh})


def test_a_single_valid_pixel_has_a_mean_and_no_variance(x):
    norm = dataclasses.replace(BN, unbiased=True)
    params, state = init_norm(norm, 4)
    mask = jnp.zeros(x.shape[:3], bool).at[3, 1, 0].set(True)
    _, after = apply_norm(norm, params, state, x, Mode.TRAIN, mask=mask)
    np.testing.assert_allclose(after.mean, (1 - norm.decay) * x[3, 1, 0], rtol=1e-5)
    np.testing.assert_allclose(after.var, norm.decay, rtol=1e-6)


def test_the_unbiased_variance_of_two_values_is_twice_the_biased_one(x):
    norm = dataclasses.replace(BN, unbiased=True, decay=0.0)
    _, state = apply_norm(norm, *init_norm(norm, 4), x[:2, :1, :1], Mode.TRAIN)
    expected = np.asarray(x[:2, 0, 0], np.float64).var(0, ddof=1)
    np.testing.assert_allclose(state.var, expected, rtol=1e-5)


def test_one_image_is_enough_to_freeze_its_statistics(x):
    _, state = apply_norm(BN, *init_norm(BN, 4), x[:1], Mode.TRAIN)
    assert freeze(BN, state) == FrozenBatchNorm()


def test_a_batch_without_a_valid_pixel_changes_no_statistic(x):
    params, state = init_norm(BN, 4)
    _, state = apply_norm(BN, params, state, x, Mode.TRAIN)
    y, after = apply_norm(BN, params, state, x, Mode.TRAIN, mask=jnp.zeros(x.shape[:3], bool))
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(after.mean, state.mean)
    np.testing.assert_allclose(after.var, state.var)


def test_named_axes_update_the_statistics_as_one_batch(x):
    params, state = init_norm(BN, 4)
    norm = dataclasses.replace(BN, axis_name="d")
    _, expected = apply_norm(BN, params, state, x, Mode.TRAIN)
    _, found = jax.vmap(lambda x: apply_norm(norm, params, state, x, Mode.TRAIN), axis_name="d")(
        x.reshape(4, 2, *x.shape[1:])
    )
    for shard in range(4):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf[shard], found),
            expected,
            rtol=1e-5,
        )


@pytest.mark.parametrize("kernel", ["standardized", "scaled"])
def test_a_standardized_kernel_forgets_the_scale_of_its_weights(kernel, key):
    norm = GroupNorm(groups=2)
    block = Block(
        kind="basic",
        inputs=4,
        width=4,
        stride=1,
        norm=norm,
        last_norm=norm,
        shortcut_norm=norm,
        kernel=kernel,
    )
    params, state = init_block(key, block)
    ones = jax.tree.map(jnp.ones_like, params.branch[1].norm)
    params = dataclasses.replace(
        params, branch=(params.branch[0], dataclasses.replace(params.branch[1], norm=ones))
    )
    x = jax.random.normal(key, (2, 5, 5, 4))
    larger = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 7.0 * leaf if path[-1].name == "kernel" else leaf, params
    )
    y, _ = apply_block(block, params, state, x, Mode.TRAIN)
    again, _ = apply_block(block, larger, state, x, Mode.TRAIN)
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-4)


def test_running_statistics_can_normalize_in_training(x):
    params, state = init_norm(BN, 4)
    mode = Mode(stats="running", update="running")
    y, new = apply_norm(BN, params, state, x, mode)
    np.testing.assert_allclose(
        y, batch_norm_eval(x, state.mean, state.var, params.scale, params.bias, eps=BN.eps)
    )
    assert (new.mean != state.mean).all()
