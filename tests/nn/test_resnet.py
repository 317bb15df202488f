"""Residual networks: published sizes, levels, initial blocks and stochastic depth."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.backbone import apply_backbone, capture_backbone, init_backbone
from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, LayerNorm, NoNorm
from fpnlab.nn.published_networks import resnet
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode

SMALL = ResNet(
    depths=(1, 2),
    widths=(4, 8),
    stem=Stem(size=3, stride=2, pool=False),
    norm=BatchNorm(),
)


@pytest.mark.parametrize(
    ("layers", "parameters"),
    # PyTorch's published counts for ImageNet, less the classifier's 1000 x channels + 1000.
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_standard_networks_have_the_published_number_of_parameters(layers, parameters):
    make = functools.partial(init_backbone, spec=resnet(layers, BatchNorm()))
    params, _ = jax.eval_shape(make, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("layers", [18, 50])
def test_standard_networks_give_levels_two_to_five(layers):
    net = resnet(layers, NoNorm())
    features, _ = jax.eval_shape(
        lambda key, x: apply_backbone(net, *init_backbone(key, net), x, Mode.TRAIN),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 96, 80, 3), jnp.float32),
    )
    width = {18: 64, 50: 256}[layers]
    assert {level: f.shape for level, f in features.items()} == {
        2: (2, 24, 20, width),
        3: (2, 12, 10, 2 * width),
        4: (2, 6, 5, 4 * width),
        5: (2, 3, 3, 8 * width),
    }


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", [BatchNorm(), LayerNorm(axes="c"), NoNorm()], ids=lambda n: n.kind)
def test_a_fresh_block_is_its_shortcut(kind, norm, key):
    outputs = 8 if kind == "bottleneck" else 2
    block = Block(
        kind=kind,
        inputs=outputs,
        width=2,
        stride=1,
        norm=norm,
        last_norm=norm,
        shortcut_norm=norm,
    )
    params, state = init_block(key, block)
    assert params.shortcut is None
    x = jax.random.normal(key, (2, 4, 4, outputs))
    y, _ = apply_block(block, params, state, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, jax.nn.relu(x))


def test_only_blocks_that_change_the_shape_project_their_shortcut():
    stages = resnet(34, NoNorm()).layout.stages
    projects = [[block.projection is not None for block in stage] for stage in stages.values()]
    assert [sum(stage) for stage in projects] == [0, 1, 1, 1]
    assert [stage[0] for stage in projects] == [False, True, True, True]
    assert resnet(50, NoNorm()).layout.stages[2][0].projection


def test_a_block_has_gradients_in_spite_of_its_zero_scale(key):
    bn = BatchNorm()
    block = Block(
        kind="basic", inputs=4, width=4, stride=1, norm=bn, last_norm=bn, shortcut_norm=bn
    )
    params, state = init_block(key, block)
    x = jax.random.normal(key, (2, 4, 4, 4))
    gradient = jax.grad(lambda p: (apply_block(block, p, state, x, Mode.TRAIN)[0] ** 2).sum())(
        params
    )
    assert jnp.abs(gradient.branch[-1].norm.scale).max() > 0
    assert jnp.abs(gradient.branch[0].kernel).max() == 0


def test_the_norm_does_not_change_the_initial_convolutions(key):
    bn, _ = init_backbone(key, SMALL)
    ln, _ = init_backbone(
        key, ResNet(depths=(1, 2), widths=(4, 8), stem=SMALL.stem, norm=LayerNorm(axes="hwc"))
    )
    chex.assert_trees_all_equal(bn, ln)


def test_another_depth_does_not_change_the_initial_common_blocks(key):
    short, _ = init_backbone(key, SMALL)
    deep, _ = init_backbone(
        key, ResNet(depths=(1, 3), widths=(4, 8), stem=SMALL.stem, norm=BatchNorm())
    )
    chex.assert_trees_all_equal(short.stages[1], deep.stages[1][:2])


def test_evaluation_does_not_change_the_state(key):
    params, state = init_backbone(key, SMALL)
    images = jax.random.normal(key, (2, 8, 8, 3))
    _, after = apply_backbone(SMALL, params, state, images, Mode.EVAL)
    chex.assert_trees_all_equal(after, state)
    _, trained = apply_backbone(SMALL, params, state, images, Mode.TRAIN)
    moved = jax.tree.map(lambda a, b: (a != b).any().item(), trained, state)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(20, NoNorm()), "no standard ResNet has 20 layers; these do"),
        (
            lambda: ResNet(depths=(1, 1), widths=(4,), norm=NoNorm()),
            "depths has 2 stages and widths 1",
        ),
        (
            lambda: ResNet(depths=(0,), widths=(4,), norm=NoNorm()),
            "depths is .0,.; it must be at least 1",
        ),
        (lambda: Stem(size=4), "size is 4; it must be odd"),
        (lambda: Stem(stride=3), "stride is 3; it must be one of 1, 2, 4"),
    ],
)
def test_invalid_networks_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("place", ["stem_norm", "norm", "last_norm", "shortcut_norm"])
def test_each_place_is_initialized_with_its_own_norm(place):
    """Group norm has no state: the state is None exactly at its position."""
    places = dict.fromkeys(("stem_norm", "norm", "last_norm", "shortcut_norm"), BatchNorm())
    norms = places | {place: GroupNorm(group_channels=2)}
    net = ResNet(depths=(1, 1), widths=(4, 8), stem=SMALL.stem, **norms)
    _, state = jax.eval_shape(lambda: init_backbone(jax.random.key(0), net))
    block = state.stages[1][0]
    states = (state.stem, block.branch[0], block.branch[1], block.shortcut)
    found = {name for name, kept in zip(places, states) if kept is None}
    assert found == {place}


DEEP = ResNet(
    depths=(2, 2),
    widths=(2, 2),
    stem=Stem(size=1, stride=1, pool=False),
    norm=NoNorm(),
    shortcut="pad",
    drop_path=0.6,
)


def test_the_rates_of_stochastic_depth_rise_in_a_line_over_all_blocks():
    """arXiv:1603.09382, section 4, the linear decay rule; from 0 at the first block."""
    rates = [block.drop_path for blocks in DEEP.layout.stages.values() for block in blocks]
    np.testing.assert_allclose(rates, [0.0, 0.2, 0.4, 0.6])
    alone = ResNet(depths=(1,), widths=(2,), norm=NoNorm(), drop_path=0.6)
    assert [block.drop_path for block in alone.layout.stages[2]] == [0.0]


@pytest.fixture(scope="module")
def branches():
    """Output of each block's branch of `DEEP` for 2048 images, where every branch gives ones."""
    params, state = init_backbone(jax.random.key(0), DEEP)

    def open_branch(block):
        last = block.branch[-1]
        ones = dataclasses.replace(last.norm, bias=jnp.ones_like(last.norm.bias))
        return dataclasses.replace(
            block, branch=(*block.branch[:-1], dataclasses.replace(last, norm=ones))
        )

    params = jax.tree.map(jnp.zeros_like, params)
    params = dataclasses.replace(
        params, stages=tuple(tuple(map(open_branch, blocks)) for blocks in params.stages)
    )

    @jax.jit
    def outputs(key):
        images = jnp.zeros((2048, 2, 2, 3))
        _, _, outputs = capture_backbone(DEEP, params, state, images, Mode.TRAIN, key=key)
        return jnp.stack([x[:, 0, 0, 0] for x in outputs.values()])

    return np.diff(outputs(jax.random.key(3)), axis=0)


def test_each_block_drops_its_own_share_and_divides_by_what_it_keeps(branches):
    for added, rate in zip(branches, (0.0, 0.2, 0.4, 0.6)):
        dropped = np.abs(added) < 1e-4
        assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / 2048)
        np.testing.assert_allclose(added[~dropped], 1 / (1 - rate), rtol=1e-5)


def test_no_two_blocks_drop_the_same_images(branches):
    dropped = np.abs(branches) < 1e-4
    for one, other in itertools.combinations(range(1, 4), 2):
        both = (dropped[one] & dropped[other]).mean()
        # Independent draws: both with the product of their shares.
        expected = dropped[one].mean() * dropped[other].mean()
        assert abs(both - expected) < 4 * np.sqrt(expected / 2048)
