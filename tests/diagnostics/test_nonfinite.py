"""The first layer that goes wrong, of a detector and a classifier that are broken on purpose."""

import dataclasses
from collections import OrderedDict

import jax
import jax.numpy as jnp
import pytest

from fpnlab.diagnostics.nonfinite import first_not_finite
from fpnlab.nn.classifier import Classifier, capture_classifier, init_classifier
from fpnlab.nn.detector import capture_detector, init_detector
from fpnlab.nn.norm_specs import LayerNorm, NoNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode

MODE = Mode.TRAIN


@pytest.fixture(scope="module")
def detector_loss(make_detector):
    """Parameters of a detector without norms, and a loss of its outputs."""
    detector = make_detector(NoNorm())
    params, state = init_detector(jax.random.key(0), detector)
    images = 255 * jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))

    def loss_of(params):
        output, _, outputs = capture_detector(detector, params, state, images, MODE)
        return jnp.square(output.logits).mean() + jnp.square(output.deltas).mean(), outputs

    return params, loss_of


PLACES = {
    "backbone/stem/kernel": "backbone stem (output)",
    "backbone/stages/1/0/branch/1/kernel": "backbone stage 1 block 0 (output)",
    "neck/lateral/3/kernel": "neck lateral 3 (output)",
    "neck/output/4/kernel": "neck output 4 (output)",
    "head/class_tower/0/kernel": "head class tower 0 level 3 (output)",
    "head/class_predictor/kernel": "head class predictor level 3 (output)",
    "head/box_predictor/kernel": "head box predictor level 3 (output)",
}


def with_leaf(params, name, value):
    path = lambda p: jax.tree_util.keystr(p, simple=True, separator="/")
    found = []

    def change(p, leaf):
        if path(p) != name:
            return leaf
        found.append(name)
        return jnp.full_like(leaf, value)

    changed = jax.tree_util.tree_map_with_path(change, params)
    assert found == [name]
    return changed


@pytest.mark.parametrize("name", PLACES)
def test_the_layer_whose_output_overflows_first_is_named(name, detector_loss):
    """Its parameters are finite, but their products are not."""
    params, loss_of = detector_loss
    assert first_not_finite(loss_of, with_leaf(params, name, 3e38)) == PLACES[name]


def test_a_finite_step_has_no_first_non_finite_value(detector_loss):
    params, loss_of = detector_loss
    assert first_not_finite(loss_of, params) is None
    assert first_not_finite(loss_of, params, {"images": jnp.ones(3)}) is None


def test_inputs_come_before_parameters_and_these_before_outputs(detector_loss):
    params, loss_of = detector_loss
    broken = with_leaf(params, "head/box_predictor/bias", jnp.nan)
    inputs = {"labels": jnp.ones(2), "images": jnp.array([1.0, jnp.inf])}
    assert first_not_finite(loss_of, broken, inputs) == "images (input)"
    assert first_not_finite(loss_of, broken) == "head/box_predictor/bias (parameter)"


def test_a_loss_that_overflows_alone_is_named(detector_loss):
    params, loss_of = detector_loss

    def overflowing(params):
        loss, outputs = loss_of(params)
        return loss * 1e30 * 1e30, outputs

    assert first_not_finite(overflowing, params) == "loss"


def test_the_gradient_nearest_to_the_loss_is_named():
    """sqrt'(0) is infinite; the error spreads from the third layer back to the first."""
    params = {"a": jnp.ones(()), "b": jnp.ones(()), "c": jnp.zeros(()), "d": jnp.ones(())}
    loss_of = lambda p: (jnp.sqrt(p["a"] * p["b"] * p["c"]) + p["d"], OrderedDict())
    assert first_not_finite(loss_of, params) == "c (gradient)"


def test_layers_of_a_classifier_are_named_too(key):
    spec = Classifier(
        classes=3,
        backbone=ResNet(
            depths=(1, 1), widths=(4, 8), stem=Stem(size=3), norm=LayerNorm(axes="hwc")
        ),
    )
    params, state = init_classifier(key, spec)
    images = jnp.ones((2, 16, 16, 3))

    def loss_of(params):
        logits, _, outputs = capture_classifier(spec, params, state, images, MODE)
        return logits.sum(), outputs

    scale = "backbone/stages/1/0/branch/1/norm/scale"
    broken = with_leaf(with_leaf(params, scale, 3e38), scale.replace("scale", "bias"), 3e38)
    assert first_not_finite(loss_of, broken) == "backbone stage 1 block 0 (output)"
    dense = dataclasses.replace(params.dense, kernel=jnp.full_like(params.dense.kernel, 3e38))
    broken = dataclasses.replace(params, dense=dense)
    assert first_not_finite(loss_of, broken) == "dense (output)"
