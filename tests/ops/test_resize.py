import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops.resize import sample_linear, upsample_nearest


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsampling_repeats_every_value(factor, key):
    x = jax.random.normal(key, (2, 3, 4, 5))
    expected = np.repeat(np.repeat(x, factor, axis=1), factor, axis=2)
    np.testing.assert_array_equal(upsample_nearest(x, factor), expected)


def test_upsampling_agrees_with_pytorch(key):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    x = np.array(jax.random.normal(key, (2, 3, 4, 5)))
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), scale_factor=2, mode="nearest"
    )
    np.testing.assert_array_equal(
        upsample_nearest(jnp.asarray(x)), upsampled.permute(0, 2, 3, 1).numpy()
    )


def test_the_gradient_of_upsampling_sums_over_the_copies(key):
    x = jax.random.normal(key, (1, 2, 3, 1))
    cotangent = jax.random.normal(key, (1, 4, 6, 1))
    _, pull = jax.vjp(upsample_nearest, x)
    expected = np.asarray(cotangent).reshape(1, 2, 2, 3, 2, 1).sum((2, 4))
    np.testing.assert_allclose(pull(cotangent)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sampling_agrees_with_numpy_interpolation(axis, key):
    x = np.array(jax.random.normal(key, (5, 6, 3)))
    positions = jnp.linspace(-2.0, 8.0, 17)
    centers = np.arange(x.shape[axis]) + 0.5
    expected = np.apply_along_axis(lambda line: np.interp(positions, centers, line), axis, x)
    np.testing.assert_allclose(sample_linear(jnp.asarray(x), positions, axis), expected, atol=1e-5)


def test_sampling_at_pixel_centers_is_the_identity_under_jit_and_vmap(key):
    x = jax.random.randint(key, (2, 4, 6, 3), 0, 256).astype(jnp.uint8)
    centers = jnp.arange(6) + 0.5
    sampled = jax.jit(jax.vmap(lambda image: sample_linear(image, centers, axis=1)))(x)
    chex.assert_type(sampled, jnp.float32)
    np.testing.assert_array_equal(sampled, x)
