"""Forward mode through every layer, both models and their losses, in float64.

Tangents against differences of values, and against reverse mode; Hessian products of both orders.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn import norm_specs
from fpnlab.nn.block import Block
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.conv_norm import ConvNorm
from fpnlab.nn.detector import Anchors, Detector, detector_anchors
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.layers import apply, init
from fpnlab.nn.norm_specs import BatchNorm, FrozenBatchNorm, GroupNorm, LayerNorm, NoNorm, Renorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import HeadOutput, RetinaHead
from fpnlab.train.objective import (
    CrossEntropy,
    Objective,
    classification_loss,
    detection_loss,
)
from fpnlab.types import Batch, LabeledBatch, Mode, picture_mask

FAST_COMPILE = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(3)
MASK = picture_mask(np.array([[4.0, 4.0], [3.0, 4.0], [4.0, 2.0], [2.0, 3.0]]), 4, 4)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


MAP, IMAGES = shaped(4, 4, 4, 4), shaped(2, 32, 32, 3)
FEATURES = {2: shaped(2, 8, 8, 4), 3: shaped(2, 4, 4, 8)}
PYRAMID = {2: shaped(2, 8, 8, 4), 3: shaped(2, 4, 4, 4)}

BACKBONE = ResNet(
    depths=(1, 1), widths=(4, 8), stem=Stem(size=3, stride=2, pool=True), norm=BatchNorm()
)
WIDE_STEM = dataclasses.replace(
    BACKBONE, depths=(1,), widths=(4,), stem=Stem(size=7, stride=4, pool=False), drop_path=0.5
)
NECK = Fpn(channels=4, min_level=2, max_level=3, norm=BatchNorm())
HEAD = RetinaHead(depth=1, norm=BatchNorm(), anchors_per_cell=2, classes=3)
DETECTOR = Detector(
    classes=3,
    backbone=BACKBONE,
    neck=NECK,
    head=RetinaHead(depth=1, norm=BatchNorm()),
    anchors=Anchors(scale=2.0, octaves=1, ratios=(1.0,)),
)
CLASSIFIER = Classifier(classes=3, backbone=BACKBONE, dropout=0.2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A differentiable function ``apply(params, state, x)`` and the point of differentiation."""

    init: typing.Callable
    apply: typing.Callable
    like: typing.Any
    """Shapes of ``x``."""
    constants: bool = False
    """True if it stops gradients, which finite differences cannot reproduce."""
    narrow: bool = False
    """True if it computes in float32 somewhere, for any inputs."""


def layer(spec, like, mode=Mode.TRAIN, constants=False, **options):
    narrow = isinstance(spec, RetinaHead | Detector | Classifier)
    channels = jax.tree.map(lambda leaf: leaf.shape[-1], like)
    run = lambda params, state, x: apply(spec, params, state, x, mode, **options)
    return Case(lambda key: init(key, spec, channels), run, like, constants, narrow)


def frozen():
    norm = FrozenBatchNorm(affine=True)
    return dataclasses.replace(layer(norm, MAP), init=layer(BatchNorm(), MAP).init)


def conv_norm(kernel):
    fields = {"size": 3, "inputs": 4, "outputs": 8, "stride": 2}
    return layer(ConvNorm(norm=BatchNorm(), kernel=kernel, **fields), MAP)


def block(**fields):
    norms = {"norm": BatchNorm(), "last_norm": BatchNorm(), "shortcut_norm": BatchNorm()}
    sizes = {"kind": "basic", "inputs": 4, "width": 8, "stride": 2}
    return layer(Block(**norms | sizes | fields), MAP)


BOXES = {
    "boxes": np.array([[[1, 2, 12, 14], [9, 9, 30, 28]], [[4, 0, 20, 17], [0, 0, 0, 0]]], "f4"),
    "classes": np.array([[0, 2], [1, 0]]),
    "valid": np.array([[True, True], [True, False]]),
    "extent": np.full((2, 2), 32.0, "f4"),
}


def detection_case(**fields):
    anchors = detector_anchors(DETECTOR, 32, 32)
    batch = Batch(images=np.zeros(IMAGES.shape), index=np.arange(2), **BOXES)

    def apply(params, state, x):
        output = HeadOutput(**x)
        return detection_loss(Objective(**fields), output, anchors, batch)[0], state

    like = {"logits": shaped(2, len(anchors), 3), "deltas": shaped(2, len(anchors), 4)}
    return Case(lambda key: (None, None), apply, like)


def classification_case():
    batch = LabeledBatch(images=np.zeros(IMAGES.shape), labels=np.array([2, 0]), index=np.arange(2))
    objective = CrossEntropy(label_smoothing=0.1)
    loss = lambda params, state, x: (classification_loss(objective, x, batch)[0], state)
    return Case(lambda key: (None, None), loss, shaped(2, 3))


RENORM = BatchNorm(renorm=Renorm(r_max=1.4, d_max=0.2, start=0, r_full=16, d_full=16))

CASES = {
    "batch_norm": layer(BatchNorm(), MAP),
    "batch_norm, groups": layer(BatchNorm(norm_batch=2, unbiased=True), MAP),
    "batch_norm, masked": layer(BatchNorm(), MAP, mask=MASK),
    "batch_norm, renorm": layer(RENORM, MAP, constants=True),
    "batch_norm, evaluation": layer(BatchNorm(), MAP, Mode.EVAL),
    "batch_norm, moments": layer(BatchNorm(), MAP, Mode.MOMENTS),
    "frozen_batch_norm": frozen(),
    "layer_norm, hwc": layer(LayerNorm(axes="hwc"), MAP),
    "layer_norm, c": layer(LayerNorm(axes="c"), MAP),
    "group_norm": layer(GroupNorm(groups=2), MAP),
    "instance_norm": layer(norm_specs.InstanceNorm(), MAP),
    "instance_norm, masked": layer(norm_specs.InstanceNorm(), MAP, mask=MASK),
    "rms_norm, hwc": layer(norm_specs.RmsNorm(axes="hwc"), MAP),
    "rms_norm, c": layer(norm_specs.RmsNorm(axes="c"), MAP),
    "filter_response_norm": layer(norm_specs.FilterResponseNorm(), MAP),
    "dynamic_tanh": layer(norm_specs.DynamicTanh(), MAP),
    "none": layer(NoNorm(), MAP),
    "standardized kernel": conv_norm("standardized"),
    "scaled kernel": conv_norm("scaled"),
    "block": block(),
    "bottleneck block": block(kind="bottleneck", width=4),
    "padded block": block(shortcut="pad", norm=GroupNorm(groups=2)),
    "resnet": layer(BACKBONE, IMAGES),
    "resnet, wide stem": layer(WIDE_STEM, IMAGES, key=KEY),
    "fpn": layer(NECK, FEATURES),
    "head": layer(HEAD, PYRAMID),
    "head, joint": layer(dataclasses.replace(HEAD, level_statistics="joint"), PYRAMID),
    "detector": layer(DETECTOR, IMAGES),
    "classifier": layer(CLASSIFIER, IMAGES, key=KEY),
    "detection loss": detection_case(),
    "detection loss, giou": detection_case(box_loss="giou"),
    "classification loss": classification_case(),
}
each_case = pytest.mark.parametrize("name", CASES)


def point(case):
    """Returns the inputs and the direction of the derivative; no two channels are alike."""
    random = np.random.default_rng(0)

    def start(path, leaf):
        values = random.normal(size=leaf.shape)
        match getattr(path[-1], "name", None):
            case "count" | "seen":
                return np.full(leaf.shape, 8.0)
            case "scale" | "var":
                return 0.5 + np.abs(values)
            case None:
                return 127 + 60 * values if leaf.shape == IMAGES.shape else values
        return 0.5 * values

    def direction(path, leaf):
        counts = getattr(path[-1], "name", None) in ("count", "seen")
        return np.zeros(leaf.shape) if counts else random.normal(size=leaf.shape)

    like = (*jax.eval_shape(case.init, KEY), case.like)
    draw = lambda way: jax.tree_util.tree_map_with_path(lambda *leaf: jnp.asarray(way(*leaf)), like)
    return draw(start), draw(direction)


def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


@functools.cache
def derivatives(name):
    """Returns the values that the tests below compare, computed by one program."""
    case = CASES[name]
    f = lambda trees: case.apply(*trees)

    def scalar(trees):
        return dot(y := f(trees), jax.tree.map(jnp.cos, y))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def all_of(at, along, step):
        y, tangent = jax.jvp(f, (at,), (along,))
        linear_y, linear = jax.linearize(f, at)
        cotangent = jax.tree.map(jnp.sin, tangent)
        moved = lambda sign: f(jax.tree.map(lambda a, d: a + sign * step * d, at, along))
        gradient = jax.grad(scalar)
        return {
            "jvp": (y, tangent),
            "linearize": (linear_y, linear(along)),
            "difference": jax.tree.map(lambda a, b: (a - b) / (2 * step), moved(1), moved(-1)),
            "vjp": jax.vjp(f, at)[1](cotangent)[0],
            "transpose": jax.linear_transpose(linear, at)(cotangent)[0],
            "forward over reverse": jax.jvp(gradient, (at,), (along,))[1],
            "reverse over reverse": jax.grad(lambda at: dot(gradient(at), along))(at),
            "reverse over forward": jax.grad(lambda at: jax.jvp(scalar, (at,), (along,))[1])(at),
        }

    with jax.enable_x64(True):
        at, along = point(case)
        return jax.tree.map(np.asarray, all_of(at, along, 1e-5 if case.narrow else 1e-6))


def assert_close(mine, theirs, tolerance):
    """Checks differences relative to the largest entry of a leaf, but at least 1e-3."""
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs)):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "detector" else [])
        for name, case in CASES.items()
        if not case.constants
    ],
)
def test_tangents_equal_finite_differences(name):
    found, narrow = derivatives(name), CASES[name].narrow
    # Float32 rounding limits the digits of differences, and ReLU limits the length of the step.
    assert_close(found["jvp"][1], found["difference"], 5e-3 if narrow else 1e-6)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found["jvp"][1]))


@each_case
def test_the_linearized_layer_has_its_tangents_and_transposes_to_its_gradient(name):
    found, narrow = derivatives(name), CASES[name].narrow
    tolerance = 1e-5 if narrow else 1e-10
    assert_close(found["linearize"], found["jvp"], tolerance)
    assert_close(found["transpose"], found["vjp"], tolerance)


@each_case
def test_hessian_products_are_the_same_in_every_order_of_differentiation(name):
    found, narrow = derivatives(name), CASES[name].narrow
    expected = found["reverse over reverse"]
    for order in ("forward over reverse", "reverse over forward"):
        assert_close(found[order], expected, 1e-4 if narrow else 1e-9)


def test_every_norm_is_among_the_cases():
    norms = typing.get_args(norm_specs.Norm)
    kinds = {norm.__dataclass_fields__["kind"].default for norm in norms}
    assert kinds <= {name.split(",")[0] for name in CASES}
