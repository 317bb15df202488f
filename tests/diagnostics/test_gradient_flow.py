"""Gradients by depth against derivatives of whole networks, and correlations against theory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fpnlab.diagnostics.blockwise import Blockwise
from fpnlab.diagnostics.gradient_flow import (
    block_gradients,
    correlation_by_distance,
    gradient_correlation,
    input_gradients,
    kernel_gradients,
    line_of_images,
)
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_specs import NoNorm
from fpnlab.types import Mode
from tests.diagnostics.residual_networks import NETWORKS, images_and_labels, network


def mean_loss(classifier, state, images, labels, mode):
    def loss(params):
        logits, _ = apply_classifier(classifier, params, state, images, mode)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, Mode.EVAL) for name in NETWORKS), ("basic", Mode.BATCH_EVAL)]
)
def test_gradients_at_blocks_are_those_of_the_network_from_there_on(name, mode):
    """From the output of each block on, by differentiating the rest of the network as one."""
    model = network(name)
    images, labels = images_and_labels(4)
    run = Blockwise(*model, mode)
    inputs, outputs = run.forward(images)
    names = model[0].backbone.layout.block_names
    found = block_gradients(*model, images, labels, mode=mode)
    assert list(found) == ["input", *names]

    def loss(x, start):
        for at in range(start, len(names)):
            x = run.block(run.between(x, at) if at else x, at)
        return optax.softmax_cross_entropy_with_integer_labels(run.last(x), labels).sum()

    maps = [inputs[0], *outputs]
    for start in (0, 1, len(names) // 2, len(names)):
        gradient = jax.jit(jax.grad(loss), static_argnums=1)(maps[start], start)
        norm = jnp.linalg.norm(gradient.ravel()) / 2
        np.testing.assert_allclose(found[["input", *names][start]], norm, rtol=1e-3)
    whole = mean_loss(model[0], model[2], images, labels, mode)(model[1])
    np.testing.assert_allclose(loss(inputs[0], 0) / 4, whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_the_norm_of_a_kernels_gradient_is_the_slope_of_the_loss_along_it(name):
    """By forward mode, along the normalized gradient of that kernel alone."""
    model = classifier, params, state = network(name)
    images, labels = images_and_labels(4)
    found = kernel_gradients(*model, images, labels)
    loss = mean_loss(classifier, state, images, labels, Mode.BATCH_EVAL)
    gradient = jax.jit(jax.grad(loss))(params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, _ in leaves
        if path[-1].name == "kernel"
    ]
    assert list(found) == names
    slope = jax.jit(lambda direction: jax.jvp(loss, (params,), (direction,))[1])
    for name in ("dense", "backbone/stem", "backbone/stages/0/1/branch/1"):
        alone = jax.tree_util.tree_map_with_path(
            lambda path, leaf, name=name: (
                leaf * (jax.tree_util.keystr(path, simple=True, separator="/") == f"{name}/kernel")
            ),
            gradient,
        )
        np.testing.assert_allclose(found[name] ** 2, slope(alone), rtol=1e-3)


def plain_mlp(depth, width):
    """A plain network of ``depth`` ReLU layers after the first, without norms."""
    mlp = Mlp(inputs=12, depths=(depth,), widths=(width,), layers=1, norm=NoNorm(), skip=False)
    return Classifier(classes=1, backbone=mlp, pixel_mean=0.0, pixel_deviation=1.0)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_correlation_in_a_wide_plain_network_is_that_of_the_arc_cosine_kernel(depth):
    """Gradients at an angle t have the correlation of both units being active, 1 - t / pi, in each
    layer; the angle itself shrinks (Cho and Saul, 2009, equations 3, 6 with n = 0, 1)."""
    classifier = plain_mlp(depth, 256)
    first, last = np.zeros((2, 2, 2, 3), np.float32)
    first[0, 0, 0], last[0, 0, 1] = 1, 1
    angles = np.array([0.0, 30, 60, 90]) * np.pi / 180
    images = jnp.stack([np.cos(t) * first + np.sin(t) * last for t in angles])

    def draw(key):
        params, state = init_classifier(key, classifier)
        return input_gradients(classifier, params, state, images)[0]

    draws = jax.lax.map(draw, jax.random.split(jax.random.key(0), 400))
    found = gradient_correlation(draws)[0]
    expected, at = np.ones(4), angles
    for _ in range(depth + 1):
        expected = expected * (1 - at / np.pi)
        cosine = (np.sin(at) + (np.pi - at) * np.cos(at)) / np.pi
        at = np.arccos(np.clip(cosine, -1, 1))
    np.testing.assert_allclose(found, expected, atol=0.04)
    assert found[-1] < found[0]


def test_gradients_of_deep_plain_networks_are_less_correlated_than_of_residual_ones():
    classifier = plain_mlp(20, 64)
    images = line_of_images(np.ones((2, 2, 3)), np.random.default_rng(0).normal(size=(2, 2, 3)), 9)

    def decay(classifier):
        draws = []
        for key in jax.random.split(jax.random.key(1), 8):
            params, state = init_classifier(key, classifier)
            draws.append(input_gradients(classifier, params, state, images)[0])
        return correlation_by_distance(gradient_correlation(jnp.stack(draws)))

    residual = dataclasses.replace(classifier.backbone, skip=True, branch_scale="one")
    plain, residual = decay(classifier), decay(dataclasses.replace(classifier, backbone=residual))
    assert plain[0] == residual[0] == 1
    assert (plain[1:] < residual[1:]).all()


def test_input_gradients_are_those_of_each_logit():
    classifier, params, state = network("basic")
    images, _ = images_and_labels(3)
    found = input_gradients(classifier, params, state, images)
    logits = lambda x: apply_classifier(classifier, params, state, x, Mode.EVAL)[0]
    jacobian = jax.jit(jax.jacfwd(logits))(images)
    assert found.shape == (3, 3, 8, 8, 3)
    for logit in range(3):
        for image in range(3):
            np.testing.assert_allclose(
                found[logit, image], jacobian[image, logit, image], rtol=1e-3, atol=1e-6
            )


def test_correlation_is_covariance_over_deviations_and_its_mean_by_distance():
    gradients = np.random.default_rng(0).normal(size=(5, 4, 2, 3)) * np.array([1, 2, 3, 4]).reshape(
        4, 1, 1
    )
    found = gradient_correlation(gradients)
    columns = np.moveaxis(gradients, 1, 0).reshape(4, -1)
    cosine = lambda i, j: (
        columns[i] @ columns[j] / np.linalg.norm(columns[i]) / np.linalg.norm(columns[j])
    )
    np.testing.assert_allclose(found, [[cosine(i, j) for j in range(4)] for i in range(4)])
    by_distance = correlation_by_distance(found)
    np.testing.assert_allclose(by_distance[0], 1)
    np.testing.assert_allclose(by_distance[2], (cosine(0, 2) + cosine(1, 3)) / 2)


def test_a_line_of_images_goes_from_one_to_the_other_in_equal_steps():
    line = line_of_images(np.full((1, 1, 3), 10), np.full((1, 1, 3), 20), 5)
    np.testing.assert_allclose(line[:, 0, 0, 0], [10, 12.5, 15, 17.5, 20])
    with pytest.raises(ValueError, match="count is 1; give 2 or more"):
        line_of_images(np.ones((1, 1, 3)), np.ones((1, 1, 3)), 1)


def test_an_input_without_gradient_is_an_error():
    with pytest.raises(ValueError, match="the gradient at input 1 is zero in all draws"):
        gradient_correlation(np.array([[[1.0], [0.0], [2.0]]]))
