"""Normalizations against float64 NumPy, Flax, and what they must not depend on."""

import functools

import flax.linen
import flax.nnx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fpnlab.ops.norm import (
    batch_norm_eval,
    batch_norm_train,
    batch_renorm_train,
    dynamic_tanh,
    filter_response_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)

EPS = 1e-5
SHAPE = (4, 3, 5, 6)
SCALE = jnp.linspace(0.5, 1.5, 6)
BIAS = jnp.linspace(-1.0, 1.0, 6)

NORMS = {
    "batch_norm": lambda x, eps=EPS: batch_norm_train(x, SCALE, BIAS, eps=eps)[0],
    "ghost_norm": lambda x, eps=EPS: batch_norm_train(x, SCALE, BIAS, eps=eps, norm_batch=2)[0],
    "layer_norm_hwc": lambda x, eps=EPS: layer_norm(x, SCALE, BIAS, axes="hwc", eps=eps),
    "layer_norm_c": lambda x, eps=EPS: layer_norm(x, SCALE, BIAS, axes="c", eps=eps),
    "group_norm": lambda x, eps=EPS: group_norm(x, SCALE, BIAS, groups=3, eps=eps),
    "instance_norm": lambda x, eps=EPS: instance_norm(x, SCALE, BIAS, eps=eps),
}


def reference(name, x):
    """The same norms in float64, straight from the definition."""
    x = np.asarray(x, np.float64)
    shaped, axes = {
        "batch_norm": (x, (0, 1, 2)),
        "ghost_norm": (x.reshape(2, 2, 3, 5, 6), (1, 2, 3)),
        "layer_norm_hwc": (x, (1, 2, 3)),
        "layer_norm_c": (x, (3,)),
        "group_norm": (x.reshape(4, 3, 5, 3, 2), (1, 2, 4)),
        "instance_norm": (x, (1, 2)),
    }[name]
    centerd = shaped - shaped.mean(axes, keepdims=True)
    y = centerd / np.sqrt((centerd**2).mean(axes, keepdims=True) + EPS)
    return y.reshape(x.shape) * np.asarray(SCALE, np.float64) + np.asarray(BIAS, np.float64)


@pytest.fixture
def x(key):
    return 2.0 * jax.random.normal(key, SHAPE) + 1.0


@pytest.mark.parametrize("name", NORMS)
def test_norms_agree_with_their_definition_in_float64(name, x):
    np.testing.assert_allclose(NORMS[name](x), reference(name, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_a_mean_ten_thousand_deviations_away_costs_no_more_than_its_rounding(name, key):
    # float32 rounds x itself by 1e4 * 6e-8 of a deviation; E[x^2] - E[x]^2 would leave noise.
    x = jax.random.normal(key, SHAPE) + 1e4
    np.testing.assert_allclose(NORMS[name](x), reference(name, x), atol=4e-3)


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16_maps_are_normalized_in_float32(name, x):
    y = NORMS[name](x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    exact = reference(name, x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("batch_norm", [True, True, True]),
        ("ghost_norm", [True, False, False]),
        ("layer_norm_hwc", [False, False, False]),
        ("layer_norm_c", [False, False, False]),
        ("group_norm", [False, False, False]),
        ("instance_norm", [False, False, False]),
    ],
)
def test_only_batch_norm_sees_other_examples(name, sees, x):
    weights = jax.random.normal(jax.random.key(1), SHAPE[1:])
    influence = jax.grad(lambda x: (NORMS[name](x)[0] * weights).sum())(x)
    assert (jnp.abs(influence[0]) > 0).any()
    assert [(jnp.abs(influence[i]) > 1e-7).any().item() for i in (1, 2, 3)] == sees


def test_layer_norm_over_c_sees_one_pixel_only(x):
    influence = jax.grad(lambda x: NORMS["layer_norm_c"](x)[0, 1, 1, 0])(x)
    elsewhere = influence.at[0, 1, 1].set(0.0)
    assert jnp.abs(influence[0, 1, 1]).max() > 0
    assert jnp.abs(elsewhere).max() == 0


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(NORMS)))
@hypothesis.settings(max_examples=20, deadline=None)
def test_norms_forget_the_scale_and_shift_of_their_input(seed, name):
    draw = np.random.default_rng(seed)
    x = jnp.asarray(draw.normal(size=SHAPE), jnp.float32)
    factor, shift = float(draw.uniform(1, 8)), float(draw.uniform(-3, 3))
    # eps is compared with the variance, so that it scales with it.
    y = NORMS[name](factor * x + shift, EPS * factor**2)
    np.testing.assert_allclose(y, NORMS[name](x), atol=1e-5)


def test_one_group_is_layer_norm_over_hwc_and_a_group_a_channel_is_instance_norm(x):
    one = group_norm(x, SCALE, BIAS, groups=1, eps=EPS)
    np.testing.assert_allclose(one, NORMS["layer_norm_hwc"](x), atol=1e-6)
    each = group_norm(x, SCALE, BIAS, groups=6, eps=EPS)
    instance, _ = batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=1)
    np.testing.assert_allclose(each, instance, atol=1e-5)


def test_both_layer_norms_are_equal_on_one_pixel_and_differ_elsewhere(x):
    pixel = x[:, :1, :1]
    hwc, c = NORMS["layer_norm_hwc"], NORMS["layer_norm_c"]
    np.testing.assert_allclose(hwc(pixel), c(pixel), atol=1e-6)
    assert jnp.abs(hwc(x) - c(x)).max() > 0.1


def test_a_ghost_batch_of_the_whole_batch_is_batch_norm(x):
    whole, moments = batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=4)
    plain, expected = batch_norm_train(x, SCALE, BIAS, eps=EPS)
    np.testing.assert_allclose(whole, plain, atol=1e-6)
    np.testing.assert_allclose(moments.var, expected.var, rtol=1e-6)


@pytest.mark.parametrize("norm_batch", [None, 1, 2])
def test_the_moments_are_those_of_the_whole_batch_for_any_group(norm_batch, x):
    _, moments = batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=norm_batch)
    values = np.asarray(x, np.float64).reshape(-1, 6)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, values.var(0), rtol=1e-5)
    assert moments.count == len(values)


def test_evaluation_with_the_batchs_own_moments_is_the_training_form(x):
    y, moments = batch_norm_train(x, SCALE, BIAS, eps=EPS)
    again = batch_norm_eval(x, moments.mean, moments.var, SCALE, BIAS, eps=EPS)
    np.testing.assert_allclose(again, y, atol=1e-5)


def test_flax_agrees_where_it_has_the_same_norm(x):
    variables = {"params": {"scale": SCALE, "bias": BIAS}}
    flax_norms = {
        "batch_norm": flax.linen.BatchNorm(use_running_average=False, epsilon=EPS),
        "layer_norm_hwc": flax.linen.LayerNorm(
            epsilon=EPS, reduction_axes=(-3, -2, -1), feature_axes=-1
        ),
        "layer_norm_c": flax.linen.LayerNorm(epsilon=EPS),
        "group_norm": flax.linen.GroupNorm(num_groups=3, epsilon=EPS),
    }
    stats = {"batch_stats": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}
    for name, module in flax_norms.items():
        y = module.apply({**variables, **stats}, x, mutable=["batch_stats"])[0]
        np.testing.assert_allclose(NORMS[name](x), y, atol=1e-4, err_msg=name)


def test_nnx_agrees_where_it_has_the_same_norm(x):
    rngs = flax.nnx.Rngs(0)
    modules = {
        "batch_norm": flax.nnx.BatchNorm(6, use_running_average=False, epsilon=EPS, rngs=rngs),
        "layer_norm_c": flax.nnx.LayerNorm(6, epsilon=EPS, rngs=rngs),
        "group_norm": flax.nnx.GroupNorm(6, num_groups=3, epsilon=EPS, rngs=rngs),
    }
    for name, module in modules.items():
        np.testing.assert_allclose(
            NORMS[name](x), module(x) * SCALE + BIAS, atol=1e-4, err_msg=name
        )


def test_pytorch_agrees_forward_and_backward(x):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    to_torch = lambda a: torch.tensor(np.array(a))
    nchw = to_torch(x).permute(0, 3, 1, 2).contiguous().requires_grad_()
    scale, bias = to_torch(SCALE).requires_grad_(), to_torch(BIAS).requires_grad_()
    weights = jax.random.normal(jax.random.key(2), SHAPE)
    functional = torch.nn.functional
    theirs = {
        "batch_norm": functional.batch_norm(nchw, None, None, scale, bias, training=True, eps=EPS),
        "group_norm": functional.group_norm(nchw, 3, scale, bias, eps=EPS),
        "layer_norm_hwc": functional.group_norm(nchw, 1, scale, bias, eps=EPS),
    }
    for name, y in theirs.items():
        wanted = torch.autograd.grad(
            (y.permute(0, 2, 3, 1) * to_torch(weights)).sum(), nchw, retain_graph=True
        )[0]
        found = jax.grad(lambda x: (NORMS[name](x) * weights).sum())(x)
        np.testing.assert_allclose(
            found, wanted.permute(0, 2, 3, 1).numpy(), atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("name", NORMS)
def test_jit_and_vmap_change_nothing(name, x):
    np.testing.assert_allclose(jax.jit(NORMS[name])(x), NORMS[name](x), atol=1e-6)
    many = jnp.stack([x, 2.0 * x - 1.0])
    mapped = jax.vmap(NORMS[name])(many)
    np.testing.assert_allclose(mapped[1], NORMS[name](many[1]), atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_constant_maps_give_the_bias_and_finite_gradients(name):
    x = jnp.full(SHAPE, 7.0)
    np.testing.assert_allclose(NORMS[name](x), jnp.broadcast_to(BIAS, SHAPE), atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: NORMS[name](x).sum())(x)).all()


def test_groups_that_do_not_divide_are_refused_with_those_that_do(x):
    with pytest.raises(ValueError, match=r"6 channels do not split into 4 groups.*1, 2, 3, 6"):
        group_norm(x, SCALE, BIAS, groups=4, eps=EPS)


def test_a_norm_batch_that_does_not_divide_is_refused_with_those_that_do(x):
    message = "a batch of 4 images does not split into groups of norm_batch=3; these do: 1, 2, 4$"
    with pytest.raises(ValueError, match=message):
        batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=3)
    split = x.reshape(2, 2, *x.shape[1:])
    run = lambda x: batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=3, axis_name="d")[0]
    with pytest.raises(ValueError, match=r"4 images \(2 on each of 2 devices\) does not split"):
        jax.vmap(run, axis_name="d")(split)


def test_one_value_a_channel_is_refused(x):
    with pytest.raises(ValueError, match=r"one value per channel.*1x1 map.*norm_batch >= 2"):
        batch_norm_train(x[:1, :1, :1], SCALE, BIAS, eps=EPS)


@pytest.mark.parametrize("axes", ["hwc", "c"])
def test_rms_norm_is_its_definition_in_float64(axes, x):
    exact = np.asarray(x, np.float64)
    over = (1, 2, 3) if axes == "hwc" else (3,)
    expected = exact / np.sqrt((exact**2).mean(over, keepdims=True) + EPS) * np.asarray(SCALE)
    np.testing.assert_allclose(rms_norm(x, SCALE, axes=axes, eps=EPS), expected, rtol=1e-5)


def test_rms_norm_is_layer_norm_where_the_mean_is_zero(x):
    centerd = x - x.mean((1, 2, 3), keepdims=True)
    layer = layer_norm(centerd, SCALE, jnp.zeros(6), axes="hwc", eps=EPS)
    np.testing.assert_allclose(rms_norm(centerd, SCALE, axes="hwc", eps=EPS), layer, atol=1e-5)


def test_filter_response_norm_is_its_definition_in_float64(x):
    threshold = jnp.linspace(-0.5, 0.5, 6)
    exact = np.asarray(x, np.float64)
    power = (exact**2).mean((1, 2), keepdims=True)
    y = exact / np.sqrt(power + EPS) * np.asarray(SCALE) + np.asarray(BIAS)
    found = filter_response_norm(x, SCALE, BIAS, threshold, eps=EPS)
    np.testing.assert_allclose(found, np.maximum(y, np.asarray(threshold)), rtol=1e-5, atol=1e-6)


def test_the_rule_of_the_cut_is_what_autodiff_finds(x):
    def plain(x, scale, bias, threshold):
        power = jnp.square(x).mean((1, 2), keepdims=True)
        return jnp.maximum(x * (jax.lax.rsqrt(power + EPS) * scale) + bias, threshold)

    given = x, SCALE, BIAS, jnp.linspace(-0.5, 0.5, 6)
    toward = jax.tree.map(
        lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), given
    )
    ours = functools.partial(filter_response_norm, eps=EPS)
    along = [jax.jvp(f, given, toward)[1] for f in (ours, plain)]
    back = [jax.vjp(f, *given)[1](toward[0]) for f in (ours, plain)]
    loss = lambda f: lambda *given: (f(*given) * toward[0]).sum()
    twice = [
        jax.jvp(jax.grad(loss(f), argnums=(0, 1, 2, 3)), given, toward)[1] for f in (ours, plain)
    ]
    for found, expected in (along, back, twice):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
        )


def test_where_value_and_threshold_are_equal_the_threshold_learns():
    zeros = jnp.zeros((2, 3, 3, 6))
    loss = lambda bias, threshold: filter_response_norm(
        zeros, SCALE, bias, threshold, eps=EPS
    ).sum()
    for_bias, for_threshold = jax.grad(loss, argnums=(0, 1))(BIAS, BIAS)
    np.testing.assert_array_equal(for_bias, 0)
    np.testing.assert_array_equal(for_threshold, 18)


def test_dynamic_tanh_takes_no_statistics(x):
    y = dynamic_tanh(x, jnp.float32(0.7), SCALE, BIAS)
    np.testing.assert_allclose(y, SCALE * np.tanh(0.7 * x) + BIAS, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dynamic_tanh(x[:1, :1], jnp.float32(0.7), SCALE, BIAS), y[:1, :1])


def renorm(x, r_max, d_max, eps=EPS):
    running = jnp.linspace(0.5, 1.5, 6), jnp.linspace(2.0, 5.0, 6)
    limits = {"r_max": r_max, "d_max": d_max}
    y, _ = batch_renorm_train(x, *running, SCALE, BIAS, eps=eps, **limits)
    return y, batch_norm_eval(x, *running, SCALE, BIAS, eps=eps)


def test_batch_renorm_lies_between_batch_norm_and_the_running_statistics(x):
    np.testing.assert_allclose(renorm(x, 1.0, 0.0)[0], NORMS["batch_norm"](x), atol=1e-5)
    free, running = renorm(x, 1e6, 1e6)
    np.testing.assert_allclose(free, running, atol=1e-5)


@pytest.mark.parametrize("eps", [EPS, 0.5])
def test_batch_renorm_clips_factor_and_shift(eps, x):
    r_max, d_max = 1.05, 0.02
    mean, var = np.linspace(0.5, 1.5, 6), np.linspace(2.0, 5.0, 6)
    exact = np.asarray(x, np.float64)
    batch_mean, batch_var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    sigma, batch_sigma = np.sqrt(var + eps), np.sqrt(batch_var + eps)
    r = np.clip(batch_sigma / sigma, 1 / r_max, r_max)
    d = np.clip((batch_mean - mean) / sigma, -d_max, d_max)
    assert (r != batch_sigma / sigma).any()
    assert (d != (batch_mean - mean) / sigma).any()
    expected = ((exact - batch_mean) / batch_sigma * r + d) * np.asarray(SCALE) + np.asarray(BIAS)
    found, _ = renorm(x, r_max, d_max, eps)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_batch_renorm_has_batch_norms_gradient_times_its_factor(x):
    weights = jax.random.normal(jax.random.key(3), SHAPE)
    var = jnp.linspace(2.0, 5.0, 6)
    factor = jnp.sqrt((x.var((0, 1, 2)) + EPS) / (var + EPS))
    found = jax.grad(lambda x: (renorm(x, 1e6, 1e6)[0] * weights).sum())(x)
    # The factor has no gradient of its own.
    frozen = jax.grad(
        lambda x: (NORMS["batch_norm"](x) * weights * jax.lax.stop_gradient(factor)).sum()
    )(x)
    np.testing.assert_allclose(found, frozen, atol=1e-5)


MASKED = {
    "batch_norm": lambda x, mask: batch_norm_train(x, SCALE, BIAS, eps=EPS, mask=mask)[0],
    "ghost_norm": lambda x, mask: batch_norm_train(
        x, SCALE, BIAS, eps=EPS, mask=mask, norm_batch=2
    )[0],
    "layer_norm_hwc": lambda x, mask: layer_norm(x, SCALE, BIAS, axes="hwc", eps=EPS, mask=mask),
    "group_norm": lambda x, mask: group_norm(x, SCALE, BIAS, groups=3, eps=EPS, mask=mask),
    "instance_norm": lambda x, mask: instance_norm(x, SCALE, BIAS, eps=EPS, mask=mask),
    "rms_norm": lambda x, mask: rms_norm(x, SCALE, axes="hwc", eps=EPS, mask=mask),
    "filter_response_norm": lambda x, mask: filter_response_norm(
        x, SCALE, BIAS, BIAS, eps=EPS, mask=mask
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_padding_is_as_good_as_no_padding(name, x):
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)), constant_values=1e3)
    mask = jnp.zeros(padded.shape[:3], bool).at[:, :3, :5].set(True)
    found = MASKED[name](padded, mask)[:, :3, :5]
    np.testing.assert_allclose(found, MASKED[name](x, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_masked_pixels_influence_no_other_pixel_even_as_nan(name, x):
    mask = jnp.ones(SHAPE[:3], bool).at[0, 1, 2].set(False)
    poisoned = MASKED[name](x.at[0, 1, 2].set(jnp.nan), mask)
    clean = MASKED[name](x, mask)
    assert jnp.isfinite(poisoned[mask]).all()
    np.testing.assert_array_equal(poisoned[mask], clean[mask])


def test_an_image_without_a_single_valid_pixel_stays_finite(x):
    mask = jnp.ones(SHAPE[:3], bool).at[0].set(False)
    for name, norm in MASKED.items():
        assert jnp.isfinite(norm(x, mask)).all(), name


def test_masked_moments_count_what_they_saw(x):
    mask = jnp.ones(SHAPE[:3], bool).at[0, :2].set(False)
    _, moments = batch_norm_train(x, SCALE, BIAS, eps=EPS, mask=mask, norm_batch=2)
    values = np.asarray(x, np.float64)[np.asarray(mask)]
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, values.var(0), rtol=1e-5)


@pytest.mark.parametrize("norm_batch", [None, 1, 2])
def test_images_over_a_named_axis_are_one_batch(norm_batch, x):
    expected, moments = batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=norm_batch)
    shards = x.reshape(2, 2, *SHAPE[1:])
    y, merged = jax.vmap(
        lambda x: batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=norm_batch, axis_name="d"),
        axis_name="d",
    )(shards)
    np.testing.assert_allclose(y.reshape(SHAPE), expected, atol=1e-5)
    np.testing.assert_allclose(merged.var[1], moments.var, rtol=1e-5)
    assert merged.count.tolist() == [60, 60]


def test_the_gradient_of_synchronised_batch_norm_is_that_of_the_whole_batch(x):
    weights = jax.random.normal(jax.random.key(4), SHAPE)
    whole = jax.grad(lambda x: (NORMS["batch_norm"](x) * weights).sum())(x)

    def shard_loss(x, w):
        return (batch_norm_train(x, SCALE, BIAS, eps=EPS, axis_name="d")[0] * w).sum()

    split = lambda a: a.reshape(2, 2, *SHAPE[1:])
    total = lambda x: jax.vmap(shard_loss, axis_name="d")(split(x), split(weights)).sum()
    np.testing.assert_allclose(jax.grad(total)(x), whole, atol=1e-5)


@pytest.mark.parametrize("norm_batch", [1, 2, 4, 8])
def test_a_group_may_span_a_part_of_the_devices(norm_batch, key):
    x = 2.0 * jax.random.normal(key, (8, 3, 2, 6)) + jnp.arange(8.0).reshape(8, 1, 1, 1)
    run = lambda x, **axes: batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=norm_batch, **axes)
    expected, moments = run(x)
    y, merged = jax.vmap(lambda x: run(x, axis_name="d"), axis_name="d")(x.reshape(4, 2, 3, 2, 6))
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-5)
    np.testing.assert_allclose(merged.mean[3], moments.mean, rtol=1e-5)
    np.testing.assert_allclose(merged.var[3], moments.var, rtol=1e-5)
    assert merged.count.tolist() == [48] * 4
    weights = jax.random.normal(jax.random.key(5), x.shape)
    whole = jax.grad(lambda x: (run(x)[0] * weights).sum())(x)
    split = lambda a: a.reshape(4, 2, 3, 2, 6)
    shard = lambda x, w: (run(x, axis_name="d")[0] * w).sum()
    total = lambda x: jax.vmap(shard, axis_name="d")(split(x), split(weights)).sum()
    np.testing.assert_allclose(jax.grad(total)(x), whole, atol=1e-5)


@pytest.mark.parametrize("norm_batch", [3, 4, 12])
def test_groups_that_fit_no_devices_are_refused_with_those_that_do(norm_batch, key):
    # 3 divides the 6 images but no device's, 4 is two devices' but does not divide 6.
    x = jax.random.normal(key, (3, 2, 1, 2, 6))
    run = lambda x: batch_norm_train(x, SCALE, BIAS, eps=EPS, norm_batch=norm_batch, axis_name="d")[
        0
    ]
    message = rf"6 images \(2 on each of 3 devices\).*norm_batch={norm_batch};.*do: 1, 2, 6\s"
    with pytest.raises(ValueError, match=message):
        jax.vmap(run, axis_name="d")(x)
