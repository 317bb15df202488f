"""Defects of other libraries, one test each, with a reference.

Each test checks the correct behavior and would fail with the defect.
"""

import dataclasses
import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.conv_norm import ConvNorm, apply_conv_norm, init_conv_norm
from fpnlab.nn.detector import init_detector
from fpnlab.nn.fpn import Fpn, apply_fpn, init_fpn
from fpnlab.nn.norm_edit import freeze
from fpnlab.nn.norm_layer import apply_norm, init_norm
from fpnlab.nn.norm_specs import BatchNorm, FrozenBatchNorm, LayerNorm
from fpnlab.nn.published_networks import resnet
from fpnlab.nn.retina_head import RetinaHead, apply_head, init_head
from fpnlab.ops.norm import batch_norm_train, layer_norm
from fpnlab.types import Mode

ONE, ZERO = jnp.ones(3), jnp.zeros(3)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (8, 4, 4, 3)) + jnp.arange(8.0)[:, None, None, None]


def test_variances_of_replicas_are_merged_not_averaged(x):
    """google/flax#2417; scenic's sync_model_state_across_replicas; timm's distribute_bn."""
    shards = x.reshape(4, 2, 4, 4, 3)
    moments = jax.vmap(
        lambda x: batch_norm_train(x, ONE, ZERO, eps=1e-5, axis_name="d")[1], axis_name="d"
    )(shards)
    averaged = shards.var((1, 2, 3)).mean(0)
    np.testing.assert_allclose(moments.var[0], x.var((0, 1, 2)), rtol=1e-5)
    assert (moments.var[0] > 2 * averaged).all()


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_a_running_variance_that_starts_at_one_is_not_debiased_as_if_at_zero(steps, key):
    """patrick-kidger/equinox#659: evaluation after one step had a tenth of the deviation."""
    norm = BatchNorm(decay=0.9, reference_batch=64)
    x = 2.0 * jax.random.normal(key, (64, 4, 4, 3))
    params, state = init_norm(norm, 3)
    for _ in range(steps):
        _, state = apply_norm(norm, params, state, x, Mode.TRAIN)
    y, _ = apply_norm(norm, params, state, x, Mode.EVAL)
    kept = 0.9**steps
    np.testing.assert_allclose(y.std(), 2 / np.sqrt(kept + 4 * (1 - kept)), rtol=0.02)


def evaluated_as_trained(statistics, key):
    norm = BatchNorm(decay=0.0)
    head = RetinaHead(
        depth=1, norm=norm, level_statistics=statistics, anchors_per_cell=1, classes=2
    )
    params, state = init_head(key, head, channels=4, levels=5)
    pyramid = {
        level: (level - 2.0) * jax.random.normal(jax.random.fold_in(key, level), (2, 4, 4, 4))
        + level
        for level in range(3, 8)
    }
    trained, new = apply_head(head, params, state, pyramid, Mode.TRAIN)
    evaluated, _ = apply_head(head, params, new, pyramid, Mode.EVAL)
    return float(jnp.abs(evaluated.logits - trained.logits).max())


def test_a_norm_shared_over_levels_evaluates_as_in_training(key):
    """open-mmlab/mmdetection#6515; a guard in detectron2's RetinaNet that cannot fire."""
    assert evaluated_as_trained("separate", key) < 1e-3
    assert evaluated_as_trained("joint", key) < 1e-3
    # The behavior of other libraries, available for comparison:
    assert evaluated_as_trained("shared", key) > 0.01


def test_eps_is_not_taken_for_the_decay_in_any_norm_of_a_pyramid(key):
    """keras-team/keras-hub: feature_pyramid.py passed epsilon as momentum."""
    norm = BatchNorm(eps=1e-3, decay=0.75, reference_batch=2)
    fpn = Fpn(channels=4, min_level=2, max_level=4, norm=norm)
    params, state = init_fpn(key, fpn, {2: 3, 3: 3})
    features = {2: jax.random.normal(key, (2, 4, 4, 3)), 3: jax.random.normal(key, (2, 2, 2, 3))}
    _, new = apply_fpn(fpn, params, state, features, Mode.TRAIN)
    y, quiet = apply_fpn(
        dataclasses.replace(fpn, norm=dataclasses.replace(norm, decay=0.0)),
        params,
        state,
        features,
        Mode.TRAIN,
    )
    del y
    for part in ("lateral", "output"):
        for level, found in getattr(new, part).items():
            batch = getattr(quiet, part)[level]
            np.testing.assert_allclose(found.mean, 0.25 * batch.mean, rtol=1e-4, atol=1e-6)


def test_freeze_rejects_statistics_that_were_never_collected(detector, key):
    """pytorch/vision#5443, facebookresearch/detectron2#914: frozen over random weights."""
    with pytest.raises(ValueError, match="no statistics to freeze in a fresh network"):
        init_norm(FrozenBatchNorm(), 3)
    _, state = init_detector(key, detector)
    with pytest.raises(ValueError, match="never collected or loaded"):
        freeze(detector, state)


def test_padding_stays_out_of_the_statistics(x):
    """pytorch/pytorch#70529."""
    padded = jnp.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)))
    mask = jnp.arange(8)[None, :, None] < jnp.full((8, 8, 4), 4)
    y, moments = batch_norm_train(padded, ONE, ZERO, eps=1e-5, mask=mask)
    expected, alone = batch_norm_train(x, ONE, ZERO, eps=1e-5)
    np.testing.assert_allclose(y[:, :4], expected, atol=1e-5)
    np.testing.assert_allclose(moments.mean, alone.mean, rtol=1e-5)


def test_masked_statistics_can_be_taken_over_devices(x):
    """google-research/scenic: masked_layers.py raised as soon as an axis_name was set."""
    mask = jnp.arange(4)[None, :, None] < jnp.arange(1, 9)[:, None, None]
    mask = jnp.broadcast_to(mask, (8, 4, 4))
    run = functools.partial(batch_norm_train, scale=ONE, bias=ZERO, eps=1e-5)
    expected, alone = run(x, mask=mask)
    shards = lambda a: a.reshape(4, 2, *a.shape[1:])
    over = jax.vmap(lambda x, mask: run(x, mask=mask, axis_name="d"), axis_name="d")
    y, moments = over(shards(x), shards(mask))
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-5)
    np.testing.assert_array_equal(moments.count, alone.count)
    np.testing.assert_allclose(moments.var[0], alone.var, rtol=1e-5)


def test_every_level_of_a_pyramid_is_normalized(key):
    """keras-team/keras-hub: feature_pyramid.py built norms of all levels and applied two."""
    fpn = Fpn(channels=4, min_level=2, max_level=5, norm=LayerNorm(axes="hwc"))
    params, state = init_fpn(key, fpn, {2: 3, 3: 3})
    features = {2: jax.random.normal(key, (2, 8, 8, 3)), 3: jax.random.normal(key, (2, 4, 4, 3))}
    pyramid, _ = apply_fpn(fpn, params, state, features, Mode.TRAIN)
    assert set(pyramid) == {2, 3, 4, 5}
    for level, y in pyramid.items():
        np.testing.assert_allclose(y.mean((1, 2, 3)), 0, atol=1e-5, err_msg=f"level {level}")
        np.testing.assert_allclose(y.var((1, 2, 3)), 1, rtol=1e-3, err_msg=f"level {level}")


def test_source_and_update_of_statistics_are_independent(x):
    """google/flax: use_running_average couples both; mlcommons/algorithmic-efficiency#783."""
    norm = BatchNorm()
    params, state = init_norm(norm, 3)
    y, same = apply_norm(norm, params, state, x, Mode(stats="batch", update="none"))
    assert same is state
    z, moved = apply_norm(norm, params, state, x, Mode(stats="running", update="running"))
    assert (moved.mean != state.mean).all()
    assert not jnp.allclose(y, z)


def test_the_variance_of_large_means_is_neither_negative_nor_noise(key):
    """google/flax#1491: E[x^2] - E[x]^2 in float32."""
    x = 1e4 + jax.random.normal(key, (8, 4, 4, 3))
    _, moments = batch_norm_train(x, ONE, ZERO, eps=1e-5)
    exact = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(moments.var, exact, rtol=1e-4)
    fast = np.asarray(jnp.square(x).mean((0, 1, 2)) - jnp.square(x.mean((0, 1, 2))))
    assert (np.abs(fast / exact - 1) > 0.1).any()


def test_layer_norm_requires_its_axes(x):
    """facebookresearch/ConvNeXt#19, sail-sg/poolformer#9: one name for two operators."""
    with pytest.raises(TypeError, match="axes"):
        LayerNorm()
    hwc, c = (layer_norm(x, ONE, ZERO, axes=axes, eps=1e-5) for axes in ("hwc", "c"))
    assert not jnp.allclose(hwc, c, atol=0.1)


def test_basic_blocks_of_equal_shape_do_not_project_their_shortcut():
    """tensorflow/models#10583; scenic's resnet.py."""
    for block in resnet(18, BatchNorm()).layout.stages[2]:
        assert block.projection is None


def test_the_focal_prior_sits_on_the_class_head(key):
    """keras-team/keras-hub: RetinaNet's prior was on the box head."""
    params, _ = init_head(key, RetinaHead(anchors_per_cell=2, classes=3), channels=4, levels=2)
    np.testing.assert_allclose(jax.nn.sigmoid(params.class_predictor.bias), 0.01, rtol=1e-4)
    np.testing.assert_array_equal(params.box_predictor.bias, 0)


def test_the_running_variance_can_be_biased_or_unbiased(x):
    """pytorch/pytorch#60528, #77427: which variance the running one is."""
    values = np.asarray(x, np.float64).reshape(-1, 3)
    for unbiased in (False, True):
        norm = BatchNorm(decay=0.0, unbiased=unbiased)
        _, state = apply_norm(norm, *init_norm(norm, 3), x, Mode.TRAIN)
        np.testing.assert_allclose(state.var, values.var(0, ddof=int(unbiased)), rtol=1e-5)


def test_a_seed_draws_the_same_convolutions_whatever_the_norm(key):
    """open-mmlab/mmdetection#1698: ablations that seeds decide."""
    kernels = [
        init_conv_norm(key, ConvNorm(size=3, inputs=4, outputs=4, norm=norm))[0].kernel
        for norm in (BatchNorm(), LayerNorm(axes="hwc"))
    ]
    np.testing.assert_array_equal(*kernels)


DEVICES = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from fpnlab.nn.norm_layer import BatchNorm, apply_norm, init_norm
    from fpnlab.types import Mode

    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 3)) + jnp.arange(16.0)[:, None, None, None]
    norm = BatchNorm(norm_batch=2)
    params, state = init_norm(norm, 3)
    run = lambda x: apply_norm(norm, params, state, x, Mode.TRAIN)
    expected, expected_state = run(x)
    for count in (1, 2, 4, 8):
        mesh = jax.make_mesh((count,), ("d",), axis_types=(jax.sharding.AxisType.Auto,),
                             devices=jax.devices()[:count])
        sharded = jax.device_put(x, NamedSharding(mesh, P("d")))
        y, new = jax.jit(run)(sharded)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(new.var, expected_state.var, rtol=1e-5)

        named = BatchNorm(norm_batch=2, axis_name="d")
        shard = lambda x: apply_norm(named, params, state, x, Mode.TRAIN)
        y, new = jax.shard_map(shard, mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P()))(x)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(new.var, expected_state.var, rtol=1e-5)

    whole = BatchNorm()
    y, _ = apply_norm(whole, params, state, x, Mode.TRAIN)
    assert not np.allclose(y, expected, atol=0.1)
    print("agreed")
"""


def test_statistics_are_not_synchronized_silently_under_jit():
    """google/flax#332, and the mean over a sharded axis under jit: 1 = 2 = 4 = 8 devices."""
    script = "import jax; jax.config.update('jax_num_cpu_devices', 8)\n" + textwrap.dedent(DEVICES)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "agreed" in ran.stdout, ran.stderr[-2000:]


def test_accumulated_gradients_equal_the_full_batch_where_the_group_is_the_micro_batch(x, key):
    """pytorch/pytorch#46516: accumulation must not change what a statistics group is."""
    norm = BatchNorm(norm_batch=2)
    layer = ConvNorm(size=3, inputs=3, outputs=3, norm=norm)
    params, state = init_conv_norm(key, layer)

    def loss(params, x):
        y, _ = apply_conv_norm(layer, params, state, x, Mode.TRAIN)
        return (y * jnp.arange(3.0)).mean() + jnp.square(y[..., 0] * x[..., 1]).mean()

    full = jax.grad(loss)(params, x)
    parts = [jax.grad(loss)(params, x[i : i + 2]) for i in range(0, 8, 2)]
    mean = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(mean)):
        np.testing.assert_allclose(a, b / 4, rtol=1e-4, atol=1e-5)
