"""Diagnostics against closed forms and theory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.diagnostics.activations import block_signals
from fpnlab.diagnostics.drift import statistics_drift
from fpnlab.diagnostics.gradients import effective_rates, gradient_noise
from fpnlab.nn.backbone import capture_backbone, init_backbone
from fpnlab.nn.norm_layer import NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, NoNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode


def state_of(mean, var):
    mean, var = jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32)
    lead = mean.shape[:-1]
    return NormState(mean=mean, var=var, count=jnp.full(lead, 8.0), seen=jnp.ones(lead))


def test_drift_is_measured_in_deviations_and_log_ratios_of_the_population():
    running = {"a": state_of([1.0, 4.0], [2.0, 4.0]), "b": None}
    population = {"a": state_of([0.0, 0.0], [1.0, 4.0]), "b": None}
    (drift,) = statistics_drift(running, population, eps=0.0)
    assert drift.name == "a"
    np.testing.assert_allclose(drift.mean_shift, (1 / 1 + 4 / 2) / 2)
    np.testing.assert_allclose(drift.log_variance_ratio, np.log(2) / 2, rtol=1e-6)
    assert drift.count == 8


def test_levels_with_separate_statistics_have_separate_drifts():
    running = state_of([[0.0], [3.0]], [[1.0], [1.0]])
    population = state_of([[0.0], [0.0]], [[1.0], [1.0]])
    drifts = statistics_drift([running], [population], eps=0.0)
    assert [(d.name, d.level, d.mean_shift) for d in drifts] == [("0", 0, 0.0), ("0", 1, 3.0)]


def net(norm):
    return ResNet(depths=(6,), widths=(8,), stem=Stem(size=3, stride=1, pool=False), norm=norm)


def signals_of(norm, key):
    resnet = net(norm)
    params, state = init_backbone(key, resnet)
    # As a network without zero initialization of the last scale.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].name == "scale" else leaf, params
    )
    images = jax.random.normal(key, (8, 8, 8, 3))
    return block_signals(resnet, params, state, images, Mode.TRAIN)


def test_without_normalization_the_signal_grows_exponentially_and_with_it_linearly(key):
    plain, normed = (
        [s.variance for s in signals_of(norm, key)] for norm in (NoNorm(), BatchNorm())
    )
    # Each residual block adds its input's variance again without a norm, and about 1 with it.
    assert plain[-1] / plain[1] > 8
    assert normed[-1] / normed[1] < 8
    assert len(plain) == 7


@pytest.mark.parametrize("masked", [False, True])
def test_signals_are_taken_over_the_pixels_of_the_mask(masked, key):
    resnet = dataclasses.replace(net(NoNorm()), stem=Stem(size=3, stride=2, pool=False))
    params, state = init_backbone(key, resnet)
    images = jax.random.normal(key, (3, 9, 8, 3))
    mask = jnp.arange(9)[None, :, None] < jnp.array([9, 4, 6])[:, None, None]
    mask = jnp.broadcast_to(mask, images.shape[:3]) if masked else None
    _, _, outputs = capture_backbone(resnet, params, state, images, Mode.EVAL, mask=mask)
    maps = {name: np.asarray(x, np.float64) for name, x in outputs.items()}
    signals = block_signals(resnet, params, state, images, Mode.EVAL, mask=mask)
    assert [signal.name for signal in signals] == list(maps)
    for signal in signals:
        x = maps[signal.name]
        x = x[np.asarray(mask)[:, ::2, ::2]] if masked else x.reshape(-1, 8)
        np.testing.assert_allclose(signal.squared_mean, np.square(x.mean(0)).mean(), rtol=1e-5)
        np.testing.assert_allclose(signal.variance, x.var(0).mean(), rtol=1e-5)


def test_signals_of_more_than_ten_blocks_stay_in_the_order_of_depth(key):
    resnet = dataclasses.replace(net(NoNorm()), depths=(12,), widths=(2,))
    params, state = init_backbone(key, resnet)
    signals = block_signals(resnet, params, state, jnp.ones((1, 4, 4, 3)), Mode.EVAL)
    assert [s.name for s in signals] == ["stem", *(f"stage 0 block {i}" for i in range(12))]


def noise_of(norm, key, norm_batches):
    x = jax.random.normal(key, (16, 2, 2, 3))
    target = jax.random.normal(jax.random.key(9), (16, 2, 2, 3))
    params, state = init_norm(norm, 3)
    kernel = jax.random.normal(jax.random.key(8), (3, 3))

    def gradient(order, norm_batch):
        of = norm
        if isinstance(norm, BatchNorm):
            of = dataclasses.replace(norm, norm_batch=norm_batch)

        def loss(kernel):
            y, _ = apply_norm(of, params, state, x[order] @ kernel, Mode.TRAIN)
            return jnp.square(y - target[order]).mean()

        return jax.grad(loss)(kernel)

    return gradient_noise(gradient, jax.random.key(7), 16, norm_batches)


def test_smaller_statistics_groups_make_noisier_gradients(key):
    noise = noise_of(BatchNorm(), key, (2, 4, 8, 16))
    assert noise[2] > noise[4] > noise[8] > noise[16]
    assert noise[16] < 1e-9


def test_layer_norm_has_no_gradient_noise_from_statistics_groups(key):
    assert max(noise_of(LayerNorm(axes="c"), key, (2, 16)).values()) < 1e-9


def test_noise_is_the_trace_of_the_covariance_over_the_squared_mean():
    gradients = np.random.default_rng(0).normal(1, 1, (5, 7))
    given = iter(gradients)
    split = lambda g: {"a": jnp.asarray(g[:3], jnp.float32), "b": jnp.asarray(g[3:], jnp.float32)}
    noise = gradient_noise(
        lambda order, norm_batch: split(next(given)), jax.random.key(0), 4, (2,), draws=5
    )
    expected = gradients.var(0, ddof=1).sum() / np.square(gradients.mean(0)).sum()
    np.testing.assert_allclose(noise[2], expected, rtol=1e-5)


def test_gradient_noise_rejects_a_single_draw(key):
    with pytest.raises(ValueError, match="draws is 1"):
        gradient_noise(lambda order, k: order, key, 4, (2,), draws=1)


def test_the_effective_rate_is_the_relative_update_of_each_kernel(key):
    resnet = net(BatchNorm())
    params, _ = init_backbone(key, resnet)
    after = jax.tree.map(lambda p: 1.01 * np.asarray(p), params)  # NumPy, as in a checkpoint.
    rates = effective_rates(params, after)
    assert len(rates) == 13
    np.testing.assert_allclose(list(rates.values()), 0.01, rtol=1e-4)
