"""The sum over all paths against matrices, gates and derivatives of the whole network."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.diagnostics.blockwise import open_gates
from fpnlab.diagnostics.paths import unravel_outputs, unravel_tangents
from fpnlab.nn.classifier import Classifier, capture_classifier, init_classifier
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_specs import NoNorm
from fpnlab.types import Mode
from tests.diagnostics.residual_networks import NETWORKS, images_and_labels, network

RESIDUAL = [name for name in NETWORKS if name != "plain"]
each_network = pytest.mark.parametrize("name", RESIDUAL)


def linear_network(blocks, width=4):
    """A residual network of positive matrices: no ReLU changes a value of positive inputs."""
    mlp = Mlp(inputs=12, depths=(blocks,), widths=(width,), norm=NoNorm(), branch_scale="one")
    classifier = Classifier(classes=3, backbone=mlp, pixel_mean=0.0, pixel_deviation=1.0)
    params, state = init_classifier(jax.random.key(0), classifier)
    positive = lambda leaf: 0.5 * jnp.abs(leaf) if leaf.ndim > 1 else leaf
    return classifier, jax.tree.map(positive, params), state


def matrices(params):
    kernel = lambda layer: np.asarray(layer.kernel, np.float64).squeeze()
    backbone = params.backbone
    blocks = [kernel(b.branch[0]) @ kernel(b.branch[1]) for b in backbone.stages[0]]
    return kernel(backbone.stem), blocks


@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_linear_network_is_the_sum_of_the_matrix_products_of_its_paths(count):
    classifier, params, state = linear_network(count)
    images = jax.random.uniform(jax.random.key(1), (2, 2, 2, 3))
    found = unravel_outputs(classifier, params, state, images)
    stem, blocks = matrices(params)
    x0 = np.asarray(images, np.float64).reshape(2, 12) @ stem
    whole = x0
    for block in blocks:
        whole = whole @ (np.eye(len(block)) + block)
    assert len(found.terms) == 2**count
    np.testing.assert_allclose(found.whole.squeeze((1, 2)), whole, rtol=1e-5)
    np.testing.assert_allclose(found.terms.sum(0).squeeze((1, 2)), whole, rtol=1e-5)
    assert found.residue < 1e-6
    for path, term in zip(found.paths, found.terms):
        product = x0
        for block, taken in zip(blocks, path):
            product = product @ block if taken else product
        np.testing.assert_allclose(term.squeeze((1, 2)), product, rtol=1e-5)


def test_lengths_of_paths_are_binomially_distributed():
    found = unravel_outputs(*linear_network(10), jnp.ones((1, 2, 2, 3)))
    counts = np.bincount(found.lengths)
    assert counts.tolist() == [math.comb(10, k) for k in range(11)]


def test_paths_of_three_blocks_are_in_the_order_of_the_lecture():
    found = unravel_outputs(*linear_network(3), jnp.ones((1, 2, 2, 3)))
    names = ["".join(np.array(["F", "G", "H"])[path]) for path in found.paths]
    assert names == ["", "F", "G", "FG", "H", "FH", "GH", "FGH"]


def last_block(model, images, gates):
    _, _, outputs = capture_classifier(*model, images, Mode.EVAL, gates=gates)
    return list(outputs.values())[-2]


@each_network
def test_the_output_of_a_path_is_that_of_gates_of_the_whole_network(name):
    model = network(name)
    images, _ = images_and_labels(2)
    found = unravel_outputs(*model, images)
    count = found.paths.shape[1]
    run = jax.jit(lambda gates: last_block(model, images, gates))
    for path, term in zip(found.paths, found.terms):
        through = jnp.asarray(path, jnp.float32)
        gates = dataclasses.replace(open_gates(count), branch=through, skip=1 - through)
        np.testing.assert_allclose(term, run(gates), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.whole, run(open_gates(count)), rtol=1e-4, atol=1e-5)
    assert found.residue > 0.01  # These blocks are not linear.


@each_network
def test_derivatives_of_every_network_are_the_sum_over_its_paths(name):
    model = network(name)
    images, _ = images_and_labels(2)
    direction = jax.random.normal(jax.random.key(5), images.shape)
    found = unravel_tangents(*model, images, direction)
    count = found.paths.shape[1]

    @jax.jit
    def derivative(gates):
        of = lambda images: last_block(model, images, gates)
        return jax.jvp(of, (images,), (direction,))[1]

    whole = derivative(open_gates(count))
    scale = jnp.abs(whole).max()
    np.testing.assert_allclose(found.whole, whole, rtol=1e-3, atol=1e-5 * scale)
    assert found.residue < 1e-5
    for number in {0, 1, 2, 2**count - 1}:
        through = jnp.asarray(found.paths[number], jnp.float32)
        gates = dataclasses.replace(
            open_gates(count), branch_gradient=through, skip_gradient=1 - through
        )
        expected = derivative(gates)
        np.testing.assert_allclose(found.terms[number], expected, rtol=1e-3, atol=1e-5 * scale)


def test_a_plain_network_and_one_of_too_many_blocks_are_errors():
    images, _ = images_and_labels()
    with pytest.raises(ValueError, match="a plain network has a single path"):
        unravel_outputs(*network("plain"), images)
    with pytest.raises(ValueError, match=r"13 blocks have 2\*\*13 paths; .* at most 12 blocks"):
        unravel_outputs(*linear_network(13), images)
