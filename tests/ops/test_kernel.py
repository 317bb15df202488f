"""Weight standardization, and folding of batch norm into kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops.convolution import conv
from fpnlab.ops.kernel import fold_batch_norm, scale_standardize_kernel, standardize_kernel
from fpnlab.ops.norm import batch_norm_eval

EPS = 1e-5
SCALE = jnp.linspace(0.5, 1.5, 6)
BIAS = jnp.linspace(-1.0, 1.0, 6)


def test_standardized_kernels_have_mean_0_and_the_documented_variance(key):
    kernel = 3.0 + 2.0 * jax.random.normal(key, (3, 3, 8, 4))
    plain = np.asarray(standardize_kernel(kernel), np.float64)
    np.testing.assert_allclose(plain.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(plain.var((0, 1, 2)), 1, rtol=1e-5)
    gain = jnp.array([1.0, 2.0, 3.0, 4.0])
    scaled = np.asarray(scale_standardize_kernel(kernel, gain), np.float64)
    np.testing.assert_allclose(scaled.std((0, 1, 2)) * np.sqrt(72), gain, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_standardized_kernels_equal_their_definition_for_any_shape(size, key):
    """A small one is held above eps, by default 1e-10 and 1e-4."""
    kernel = size * (1 + jax.random.normal(key, (1, 3, 5, 4)))
    exact = np.asarray(kernel, np.float64)
    exact -= exact.mean((0, 1, 2))
    var = (exact**2).mean((0, 1, 2))
    np.testing.assert_allclose(
        standardize_kernel(kernel), exact / np.sqrt(var + 1e-10), rtol=1e-4, atol=1e-6
    )
    gain = np.linspace(0.5, 2.0, 4).astype(np.float32)
    np.testing.assert_allclose(
        scale_standardize_kernel(kernel, jnp.asarray(gain)),
        exact / np.sqrt(np.maximum(var * 15, 1e-4)) * gain,
        rtol=1e-4,
        atol=1e-7,
    )


def test_eps_is_a_keyword_argument(key):
    kernel = jax.random.normal(key, (3, 3, 2, 4))
    with pytest.raises(TypeError):
        standardize_kernel(kernel, 1e-5)
    with pytest.raises(TypeError):
        scale_standardize_kernel(kernel, jnp.ones(4), 1e-5)


def test_a_folded_convolution_equals_convolution_and_batch_norm(key):
    x = jax.random.normal(key, (2, 3, 5, 6))
    kernel = jax.random.normal(key, (3, 3, 6, 6))
    mean, var = jnp.linspace(-1, 1, 6), jnp.linspace(0.1, 3, 6)
    apart = batch_norm_eval(conv(x, kernel), mean, var, SCALE, BIAS, eps=EPS)
    folded, bias = fold_batch_norm(kernel, mean, var, SCALE, BIAS, eps=EPS)
    np.testing.assert_allclose(conv(x, folded) + bias, apart, rtol=1e-4, atol=1e-4)
