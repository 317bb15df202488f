"""Gradients through paths against networks with gates of gradients, and against closed forms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fpnlab.diagnostics import path_gradients
from fpnlab.diagnostics.blockwise import Blockwise, open_gates
from fpnlab.diagnostics.path_gradients import (
    PathGradients,
    effective_lengths,
    gradients_by_length,
    sample_path_gradients,
)
from fpnlab.nn.classifier import apply_classifier
from fpnlab.types import Mode
from tests.diagnostics.residual_networks import NETWORKS, images_and_labels, network

RESIDUAL = [name for name in NETWORKS if name != "plain"]
each_network = pytest.mark.parametrize("name", RESIDUAL)


def gated_gradient(model, images, labels, path, mode=Mode.EVAL):
    """The gradient by the images with gates of the whole network: an independent way."""
    through = jnp.asarray(path, jnp.float32)
    gates = dataclasses.replace(
        open_gates(len(path)), branch_gradient=through, skip_gradient=1 - through
    )
    return gradient(model[0], mode, model[1:], images, labels, gates)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(classifier, mode, values, images, labels, gates):
    def loss(images):
        logits, _ = apply_classifier(classifier, *values, images, mode, gates=gates)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    return jax.grad(loss)(images)


@each_network
def test_the_gradient_of_a_path_is_that_of_gates_of_the_whole_network(name):
    model = network(name)
    images, labels = images_and_labels(4)
    run = Blockwise(*model)
    inputs, outputs = run.forward(images)
    top = run.loss_gradient(outputs[-1], labels)
    count = len(run.places)
    _, to_images = jax.vjp(run.first, images)
    for number in {0, 1, 2, 2**count - 1, 2 ** (count - 1)}:
        path = (number >> np.arange(count)) % 2 == 1
        (found,) = to_images(path_gradients._through(run, inputs, outputs, top, path))
        expected = gated_gradient(model, images, labels, path)
        scale = jnp.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, Mode.EVAL) for name in RESIDUAL), ("basic", Mode.BATCH_EVAL)]
)
def test_gradients_of_all_lengths_add_up_to_that_of_the_network(name, mode):
    model = network(name)
    images, labels = images_and_labels(4)
    by_length = gradients_by_length(*model, images, labels, mode=mode)
    count = len(model[0].backbone.layout.blocks)
    _, to_images = jax.vjp(Blockwise(*model, mode).first, images)
    expected = gradient(model[0], mode, model[1:], images, labels, open_gates(count))
    (found,) = to_images(by_length.sum(0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * jnp.abs(expected).max())
    assert len(by_length) == count + 1


def test_the_gradient_of_a_length_is_the_sum_over_its_paths():
    model = network("mlp")
    images, labels = images_and_labels(4)
    by_length = gradients_by_length(*model, images, labels)
    count = len(by_length) - 1
    _, to_images = jax.vjp(Blockwise(*model).first, images)
    for length in range(count + 1):
        paths = [(i >> np.arange(count)) % 2 for i in range(2**count)]
        expected = sum(
            gated_gradient(model, images, labels, path) for path in paths if path.sum() == length
        )
        (found,) = to_images(by_length[length])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_sampled_norms_are_those_of_single_paths_averaged_over_images():
    """The longest and the shortest path are single ones; others lie among all of their length."""
    model = network("mlp")
    images, labels = images_and_labels(4)
    found = sample_path_gradients(jax.random.key(0), *model, images, labels, samples=30)
    run = Blockwise(*model)
    inputs, outputs = run.forward(images)
    top = run.loss_gradient(outputs[-1], labels)
    norms = {length: set() for length in range(5)}
    for i in range(16):
        path = (i >> np.arange(4)) % 2 == 1
        gradient = np.asarray(path_gradients._through(run, inputs, outputs, top, path))
        norm = np.mean([np.linalg.norm(one) for one in gradient])
        norms[int(path.sum())].add(round(float(norm), 7))
    assert found.norms.shape == (5, 30)
    for length, row in enumerate(found.norms):
        seen = {
            min(norms[length], key=lambda norm, value=value: abs(norm - value)) for value in row
        }
        np.testing.assert_allclose(
            [min(abs(value - norm) for norm in norms[length]) for value in row], 0, atol=1e-6
        )
        assert seen == norms[length]  # 30 draws of at most 6 paths see each of them.
    with pytest.raises(ValueError, match="samples is 0; give 1 or more"):
        sample_path_gradients(jax.random.key(0), *model, images, labels, samples=0)


def test_contributions_are_norms_times_the_number_of_paths():
    found = PathGradients(np.array([[8.0, 8.0], [3.0, 5.0], [2.0, 2.0], [0.0, 2.0]]))
    np.testing.assert_allclose(found.paths, [1 / 8, 3 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(found.contributions, np.array([8, 12, 6, 1]) / 27)
    assert found.blocks == 3


def test_norms_that_fall_by_a_constant_factor_give_a_binomial_of_smaller_probability():
    """``C(n, k) r**k`` is the binomial distribution of probability ``r / (1 + r)``."""
    n, r = 54, 0.25
    found = PathGradients(np.array([[r**k] for k in range(n + 1)]))
    p = r / (1 + r)
    expected = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    np.testing.assert_allclose(found.contributions, expected)
    low, high = effective_lengths(found.contributions)
    assert (low, high) == (5, 16)
    assert sum(expected[low : high + 1]) >= 0.95


@pytest.mark.parametrize(
    ("contributions", "share", "interval"),
    [
        ([0.1, 0.5, 0.3, 0.1], 0.5, (1, 1)),
        ([0.1, 0.5, 0.3, 0.1], 0.6, (1, 2)),
        ([0.1, 0.5, 0.3, 0.1], 0.9, (0, 2)),
        ([0.1, 0.5, 0.3, 0.1], 1.0, (0, 3)),
        ([0.0, 2.0, 0.0], 1.0, (1, 1)),
        ([0.2, 0.3, 0.0, 0.1, 0.4], 0.5, (0, 1)),
    ],
)
def test_effective_lengths_are_the_shortest_interval_with_the_share(contributions, share, interval):
    assert effective_lengths(np.array(contributions), share) == interval


def test_a_share_outside_of_0_to_1_is_an_error():
    with pytest.raises(ValueError, match=r"share is 1\.2; give one above 0 and at most 1"):
        effective_lengths(np.ones(3), 1.2)


@pytest.mark.parametrize(
    "measure",
    [gradients_by_length, lambda *args: sample_path_gradients(jax.random.key(0), *args)],
)
def test_a_plain_network_has_no_path_gradients(measure):
    with pytest.raises(ValueError, match="a plain network has a single path"):
        measure(*network("plain"), *images_and_labels())
