"""Curvature against full Hessians and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from fpnlab.diagnostics.curvature import hessian_eigenvalues, hessian_vector, loss_along_gradient
from fpnlab.nn.classifier import Classifier, apply_classifier
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.types import Mode
from tests.diagnostics.residual_networks import images_and_labels, network, trained_like


def loss_of(classifier, state, images, labels, mode=Mode.BATCH_EVAL):
    def loss(params):
        logits, _ = apply_classifier(classifier, params, state, images, mode)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


@pytest.fixture(scope="module")
def tiny():
    """Loss, parameters and full Hessian of a residual network of 72 parameters."""
    mlp = Mlp(inputs=3, depths=(1,), widths=(4,), norm=BatchNorm())
    classifier, params, state = trained_like(Classifier(classes=3, backbone=mlp))
    images = 255 * jax.random.uniform(jax.random.key(3), (12, 1, 1, 3))
    loss = loss_of(classifier, state, images, jnp.arange(12) % 3)
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat)
    return loss, params, np.asarray(hessian, np.float64)


def test_leading_eigenvalues_are_those_of_the_full_hessian(tiny):
    loss, params, hessian = tiny
    expected = np.linalg.eigvalsh(hessian)[::-1]
    found = hessian_eigenvalues(jax.random.key(0), loss, params, steps=40)
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-3)
    np.testing.assert_allclose(found[-3:], expected[-3:], rtol=1e-3)
    assert expected[-1] < 0 < expected[0]


def test_few_steps_find_the_largest_eigenvalue_from_below(tiny):
    loss, params, hessian = tiny
    largest = np.linalg.eigvalsh(hessian)[-1]
    values = [
        hessian_eigenvalues(jax.random.key(0), loss, params, steps=steps)[0]
        for steps in (1, 2, 4, 8, 16)
    ]
    assert all(a < b * (1 + 1e-6) for a, b in zip(values, [*values[1:], largest]))
    assert values[0] < 0.9 * largest
    np.testing.assert_allclose(values[-1], largest, rtol=1e-3)


def test_eigenvalues_are_found_once_and_no_more_than_there_are():
    """A quadratic of eigenvalues 5, 2, 2 and -1 has an invariant space of three dimensions."""
    scales = jnp.array([5.0, 2.0, 2.0, -1.0])
    loss = lambda params: 0.5 * (scales * params["x"] ** 2).sum()
    found = hessian_eigenvalues(jax.random.key(0), loss, {"x": jnp.ones(4)}, steps=30)
    np.testing.assert_allclose(found, [5, 2, -1], rtol=1e-5)


def test_hessian_vector_products_are_gradients_of_the_slope_along_the_vector():
    """Reverse over reverse mode."""
    classifier, params, state = network("mlp")
    loss = loss_of(classifier, state, *images_and_labels(4))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    vector = tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])

    def slope(params):
        products = jax.tree.map(jnp.vdot, jax.grad(loss)(params), vector)
        return sum(jax.tree.leaves(products))

    found = ravel_pytree(jax.jit(lambda p: hessian_vector(loss, p, vector))(params))[0]
    expected = ravel_pytree(jax.jit(jax.grad(slope))(params))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * jnp.abs(expected).max())


def test_along_the_gradient_of_a_quadratic_loss_gradient_and_smoothness_are_known():
    scales = np.array([3.0, 1.0])
    loss = lambda x: 0.5 * (jnp.asarray(scales, jnp.float32) * x**2).sum()
    x, rates = np.array([1.0, 2.0]), np.array([0.1, 0.5, 1.0])
    found = loss_along_gradient(loss, jnp.asarray(x, jnp.float32), rates.tolist())
    gradient = scales * x
    at = x - rates[:, None] * gradient
    np.testing.assert_allclose(found.loss, 0.5 * (scales * at**2).sum(1), rtol=1e-5)
    change = rates * np.linalg.norm(scales * gradient)
    np.testing.assert_allclose(found.gradient_change, change, rtol=1e-5)
    curvature = np.linalg.norm(scales * gradient) / np.linalg.norm(gradient)
    np.testing.assert_allclose(found.smoothness, curvature, rtol=1e-5)


def test_smoothness_at_short_steps_is_the_curvature_along_the_gradient(tiny):
    loss, params, hessian = tiny
    gradient = np.asarray(ravel_pytree(jax.grad(loss)(params))[0], np.float64)
    found = loss_along_gradient(loss, params, [3e-4])
    expected = np.linalg.norm(hessian @ gradient) / np.linalg.norm(gradient)
    np.testing.assert_allclose(found.smoothness, expected, rtol=0.02)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: hessian_eigenvalues(jax.random.key(0), jnp.sum, jnp.ones(2), steps=0),
            "steps is 0; give 1 or more",
        ),
        (
            lambda: loss_along_gradient(jnp.sum, jnp.ones(2), [0.1, 0.0]),
            r"rates are \[0.1, 0.0\]; give rates above 0",
        ),
        (
            lambda: loss_along_gradient(lambda x: (x**2).sum(), jnp.zeros(2), [0.1]),
            "the norm of the gradient is 0.0, so that it has no direction",
        ),
    ],
)
def test_steps_and_rates_without_meaning_are_errors(call, says):
    with pytest.raises(ValueError, match=says):
        call()
