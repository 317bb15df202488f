"""The classifier: pooling, dropout, and the sizes of the published CIFAR networks."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.backbone import apply_backbone, init_backbone
from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, LayerNorm, NoNorm
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.nn.published_networks import cifar_resnet
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode

STEM = Stem(size=3, stride=1, pool=False)


def small(norm=None, **fields):
    backbone = ResNet(depths=(1, 1), widths=(4, 8), stem=STEM, norm=norm or BatchNorm())
    return Classifier(**{"classes": 5, "backbone": backbone} | fields)


def opened(params):
    """The parameters with every scale at 1, so that residual branches are not zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].name == "scale" else leaf, params
    )


def pixels(key, count=4, size=8):
    return jnp.round(255 * jax.random.uniform(key, (count, size, size, 3)))


def parameters(depth, **fields):
    spec = Classifier(classes=10, backbone=cifar_resnet(depth, norm=BatchNorm(), **fields))
    params, _ = jax.eval_shape(lambda: init_classifier(jax.random.key(0), spec))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("depth", "exact", "millions"),
    # By hand, three stages of n blocks of width w = 16, 32, 64: kernels 9*3*16 + 9*(16*16*2n +
    # 16*32 + 32*32*(2n-1) + 32*64 + 64*64*(2n-1)); norms 2*16 + 2*2n*(16+32+64); dense 64*10 + 10.
    [
        (8, 75_290, None),
        (14, 172_506, None),
        (20, 269_722, 0.27),
        (32, 464_154, 0.46),
        (44, 658_586, 0.66),
        (56, 853_018, 0.85),
        (110, 1_727_962, 1.7),
    ],
)
def test_cifar_networks_have_the_published_number_of_parameters(depth, exact, millions):
    """arXiv:1512.03385, table 6."""
    assert parameters(depth) == exact
    assert millions is None or round(exact / 1e6, 1 if millions > 1 else 2) == millions


def test_projections_add_two_kernels_and_their_norms():
    assert parameters(20, shortcut="projection") - parameters(20) == 16 * 32 + 32 * 64 + 2 * 96


def test_a_cifar_network_halves_the_map_twice_and_is_as_deep_as_it_is_called():
    net = cifar_resnet(20, norm=NoNorm(), width=4)
    features, _ = jax.eval_shape(
        lambda x: apply_backbone(net, *init_backbone(jax.random.key(0), net), x, Mode.TRAIN),
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
    )
    assert [f.shape for f in features.values()] == [(2, 32, 32, 4), (2, 16, 16, 8), (2, 8, 8, 16)]
    params, _ = jax.eval_shape(lambda: init_backbone(jax.random.key(0), net))
    assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params)) == 20 - 1


@pytest.mark.parametrize(
    ("depth", "near"), [(18, "14 and 20"), (21, "20 and 26"), (7, "8"), (2, "8"), (-5, "8")]
)
def test_cifar_resnet_rejects_depths_that_are_not_6n_plus_2(depth, near):
    with pytest.raises(ValueError, match=f"no CIFAR ResNet has {depth} layers.*nearest: {near}$"):
        cifar_resnet(depth, norm=NoNorm())


@pytest.mark.parametrize(("stride", "outputs"), [(2, 5), (1, 5), (2, 3)])
def test_a_padded_shortcut_is_the_subsampled_input_and_zeros(stride, outputs, key):
    norm = BatchNorm()
    block = Block(
        kind="basic",
        inputs=3,
        width=outputs,
        stride=stride,
        norm=norm,
        last_norm=norm,
        shortcut_norm=norm,
        shortcut="pad",
    )
    x = jax.random.normal(key, (2, 5, 4, 3))

    @jax.jit
    def fresh(x):
        params, state = init_block(key, block)
        assert params.shortcut is None
        assert state.shortcut is None
        return apply_block(block, params, state, x, Mode.TRAIN)[0]

    # An initial branch is 0, so the output is the rectified shortcut.
    y = fresh(x)
    expected = np.zeros((2, -(-5 // stride), -(-4 // stride), outputs), np.float32)
    expected[..., :3] = np.maximum(x[:, ::stride, ::stride], 0)
    np.testing.assert_array_equal(y, expected)


def test_a_padded_shortcut_cannot_reduce_channels():
    with pytest.raises(ValueError, match="cannot reduce 8 channels to 4; use shortcut"):
        ResNet(depths=(1, 1), widths=(8, 4), stem=STEM, norm=NoNorm(), shortcut="pad")


def test_the_kind_of_shortcut_leaves_the_branch_as_it_is(key):
    net = cifar_resnet(8, norm=BatchNorm(), width=4)
    padded = net.layout.stages[1][0]
    projecting = dataclasses.replace(padded, shortcut="projection")
    assert projecting.projection is not None
    assert padded.projection is None
    pad, projection = (init_block(key, block)[0] for block in (padded, projecting))
    chex.assert_trees_all_equal(pad.branch, projection.branch)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_the_dense_layer_of_the_last_maps_mean(dtype, key):
    """The mean and the dense layer in float32, whatever the dtype of the maps."""
    spec = small(LayerNorm(axes="hwc"), pixel_mean=100.0, pixel_deviation=50.0)
    params, state = init_classifier(key, spec)
    params, images = opened(params), pixels(key).astype(dtype)

    @jax.jit
    def run(images):
        x = (images - 100) / 50
        features, _ = apply_backbone(spec.backbone, params.backbone, state.backbone, x, Mode.EVAL)
        return apply_classifier(spec, params, state, images, Mode.EVAL)[0], features[1]

    logits, last = run(images)
    assert (logits.dtype, last.dtype) == (jnp.float32, dtype)
    mean = np.asarray(last, np.float64).mean((1, 2))
    expected = mean @ np.asarray(params.dense.kernel, np.float64) + params.dense.bias
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert logits.shape == (4, 5)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_pixels_are_standardized_by_the_values_of_their_color(dtype):
    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    images = jnp.asarray(np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3) % 256, dtype)
    found = standardize_pixels(images, mean, deviation)
    assert found.dtype == (jnp.float32 if dtype == jnp.uint8 else dtype)
    expected = (np.asarray(images, np.float64) - mean) / deviation
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected, rtol=0, atol=0.05 if dtype == jnp.bfloat16 else 1e-6
    )


def test_three_equal_pixel_values_are_one(key):
    one = small(NoNorm(), pixel_mean=100.0, pixel_deviation=50.0)
    three = dataclasses.replace(one, pixel_mean=(100.0,) * 3, pixel_deviation=(50.0,) * 3)
    params, state = init_classifier(key, one)
    run = lambda spec: apply_classifier(spec, opened(params), state, pixels(key), Mode.EVAL)[0]
    np.testing.assert_array_equal(run(one), run(three))


def test_a_fresh_dense_layer_has_variance_1_over_its_inputs(key):
    backbone = ResNet(depths=(1,), widths=(128,), stem=STEM, norm=NoNorm())
    params, _ = init_classifier(key, Classifier(classes=100, backbone=backbone))
    assert params.dense.kernel.shape == (128, 100)
    np.testing.assert_allclose(params.dense.kernel.var() * 128, 1, rtol=0.05)
    np.testing.assert_array_equal(params.dense.bias, 0)


def test_the_norm_and_the_classes_do_not_touch_the_backbone(key):
    five, _ = init_classifier(key, small())
    seven, _ = init_classifier(key, small(GroupNorm(groups=2), classes=7))
    chex.assert_trees_all_equal(five.backbone, seven.backbone)


def test_only_batch_norm_depends_on_other_images(key):
    images = pixels(key)
    for norm, sees in ((BatchNorm(), True), (GroupNorm(groups=2), False)):
        spec = small(norm)
        params, state = init_classifier(key, spec)
        run = jax.jit(
            lambda x, spec=spec, params=params, state=state: apply_classifier(
                spec, params, state, x, Mode.BATCH_EVAL
            )[0][0]
        )
        other = run(images.at[1:].multiply(0.5))
        assert np.allclose(run(images), other, atol=1e-5) != sees


def test_bfloat16_images_give_float32_logits_near_those_of_float32(key):
    spec = small()
    params, state = init_classifier(key, spec)
    run = jax.jit(lambda x: apply_classifier(spec, params, state, x, Mode.TRAIN))
    wide, wide_state = run(pixels(key))
    narrow, narrow_state = run(pixels(key).astype(jnp.bfloat16))
    chex.assert_type([wide, narrow], jnp.float32)
    np.testing.assert_allclose(wide, narrow, atol=0.05)
    chex.assert_trees_all_equal_shapes_and_dtypes(wide_state, narrow_state)


@pytest.fixture(scope="module")
def dropping():
    """A classifier whose logits are its pooled features, ones before dropout; half are dropped."""
    spec = small(NoNorm(), classes=8, dropout=0.5)
    params, state = init_classifier(jax.random.key(0), spec)
    params = jax.tree.map(jnp.zeros_like, params)
    (block,) = params.backbone.stages[1]
    last = dataclasses.replace(block.branch[-1].norm, bias=jnp.ones(8))
    branch = (*block.branch[:-1], dataclasses.replace(block.branch[-1], norm=last))
    stages = (params.backbone.stages[0], (dataclasses.replace(block, branch=branch),))
    params = dataclasses.replace(
        params,
        backbone=dataclasses.replace(params.backbone, stages=stages),
        dense=dataclasses.replace(params.dense, kernel=jnp.eye(8)),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(mode, key):
        images = jnp.zeros((512, 2, 2, 3))
        return apply_classifier(spec, params, state, images, mode, key=key)[0]

    return run


def test_dropout_zeroes_its_share_and_doubles_the_rest(dropping):
    one, two = jax.random.split(jax.random.key(5))
    dropped = dropping(Mode.TRAIN, one)
    assert np.unique(dropped).tolist() == [0, 2]
    # Draws are independent for every image and feature.
    np.testing.assert_allclose(dropped.mean(0), 1, atol=0.2)
    assert len(np.unique(dropped, axis=0)) > 200
    np.testing.assert_array_equal(dropped, dropping(Mode.TRAIN, one))
    assert np.any(dropped != dropping(Mode.TRAIN, two))


def test_dropout_is_off_where_the_mode_is_not_stochastic(dropping):
    for mode in (Mode.EVAL, Mode.BATCH_EVAL, Mode(stochastic=False)):
        np.testing.assert_array_equal(dropping(mode, None), 1)
    with pytest.raises(ValueError, match="dropout is above 0 and the mode stochastic; give a key"):
        dropping(Mode.TRAIN, None)


def test_the_key_reaches_the_branches_to_drop(key):
    spec = small(LayerNorm(axes="hwc"))
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, drop_path=0.5))
    params, state = init_classifier(key, spec)
    run = jax.jit(
        lambda key: apply_classifier(
            spec, opened(params), state, jnp.tile(pixels(key, 1), (8, 1, 1, 1)), Mode.TRAIN, key=key
        )[0]
    )
    # The same image eight times: they differ only in the dropped branches.
    assert len(np.unique(np.round(np.asarray(run(key))[:, 0], 4))) > 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"classes": 0}, "classes is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must"),
    ],
)
def test_invalid_classifiers_raise(fields, says):
    with pytest.raises(ValueError, match=says):
        small(**fields)
