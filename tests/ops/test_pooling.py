"""Pooling against PyTorch and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.ops.pooling import average_pool, global_average_pool, max_pool


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_max_pool_and_its_gradient_equal_pytorch(size, stride, padding, key):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = jax.random.normal(key, (2, 9, 8, 3))
    pool = functools.partial(max_pool, size=size, stride=stride, padding=padding)
    y, pull = jax.vjp(pool, x)
    tx = torch.tensor(np.asarray(x), requires_grad=True)
    ty = torch.nn.functional.max_pool2d(tx.permute(0, 3, 1, 2), size, stride, padding)
    ty.backward(torch.tensor(np.asarray(jnp.cos(y))).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
    np.testing.assert_allclose(pull(jnp.cos(y))[0], tx.grad, rtol=1e-6)


def test_max_pool_ignores_padding():
    assert (max_pool(jnp.full((1, 4, 4, 1), -1e30)) == -1e30).all()


def test_max_pool_shares_the_gradient_among_equal_values():
    gradient = jax.grad(lambda x: max_pool(x, size=2, padding=0).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [0.125, 0.125, 0.25, 0.5])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 8), (2, 1), (6, 6)])
def test_average_pool_and_its_gradient_equal_pytorch(shape, size, key):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = jax.random.normal(key, (2, *shape, 3))
    y, pull = jax.vjp(functools.partial(average_pool, size=size), x)
    tx = torch.tensor(np.asarray(x), requires_grad=True)
    pool = torch.nn.AvgPool2d(size, size, ceil_mode=True, count_include_pad=False)
    ty = pool(tx.permute(0, 3, 1, 2))
    ty.backward(torch.tensor(np.asarray(jnp.cos(y))).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(pull(jnp.cos(y))[0], tx.grad, rtol=1e-6)


def test_average_pool_of_bfloat16_is_rounded_once():
    # In bfloat16 256 + 1 is 256; the mean of all four is 65.
    x = jnp.array([256.0, 1.0, 1.0, 2.0], jnp.bfloat16).reshape(1, 2, 2, 1)
    assert average_pool(x).dtype == jnp.bfloat16
    assert average_pool(x).item() == 65


def test_average_pool_rejects_maps_without_pixels():
    with pytest.raises(ValueError, match=r"average_pool: x has shape \(1, 0, 4, 2\); give maps"):
        average_pool(jnp.zeros((1, 0, 4, 2)))


def test_global_average_pool_is_the_mean_over_the_map(key):
    x = jax.random.normal(key, (2, 4, 5, 3))
    np.testing.assert_allclose(
        global_average_pool(x), np.asarray(x, np.float64).reshape(2, 20, 3).mean(1), rtol=1e-5
    )
