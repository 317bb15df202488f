"""Whole networks against their papers' definitions, written out in float64 NumPy.

Every norm has an `eps` of its own, and every parameter and statistic is random: a norm, kernel or
statistic at the wrong place shows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.backbone import apply_backbone, init_backbone
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.conv_norm import ConvNorm, init_conv_norm
from fpnlab.nn.detector import Anchors, Detector, apply_detector, init_detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.types import Mode

EPS = {"branch": 0.1, "stem": 0.2, "last": 0.4, "shortcut": 0.8, "lateral": 1.6, "output": 3.2}
HEAD_EPS = 6.4
NORM = {place: BatchNorm(eps=eps) for place, eps in EPS.items()}
POOLED = Stem(size=3, stride=2, pool=True)
PLAIN = Stem(size=3, stride=1, pool=False)


def network(block, shortcut, stem, **fields):
    return ResNet(
        **{
            "block": block,
            "depths": (1, 2),
            "widths": (2, 3),
            "stem": stem,
            "norm": NORM["branch"],
            "stem_norm": NORM["stem"],
            "last_norm": NORM["last"],
            "shortcut_norm": NORM["shortcut"],
            "shortcut": shortcut,
        }
        | fields
    )


def drawn(tree, seed):
    """Returns the tree with random leaves; those that may be variances or scales are positive."""
    random = np.random.default_rng(seed)

    def leaf(path, old):
        positive = path[-1].name in ("var", "scale")
        values = random.normal(0, 0.5, old.shape)
        return jnp.asarray(np.abs(values) + 0.5 if positive else values, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def wide(x):
    return np.asarray(x, np.float64)


def convolved(x, kernel, stride=1):
    """Returns the cross-correlation with ``k // 2`` rows and columns of zeros on each side."""
    size = kernel.shape[0]
    pad = size // 2
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    parts = [
        padded[:, i : i + h : stride, j : j + w : stride] @ wide(kernel[i, j])
        for i in range(size)
        for j in range(size)
    ]
    return np.sum(parts, 0)


def normed(x, params, state, eps):
    y = (x - wide(state.mean)) / np.sqrt(wide(state.var) + eps)
    return y * wide(params.scale) + wide(params.bias)


def layer(x, params, state, eps, stride=1):
    return normed(convolved(x, params.kernel, stride), params.norm, state, eps)


def relu(x):
    return np.maximum(x, 0)


def block_output(resnet, params, state, x, stride):
    """arXiv:1512.03385, figures 2 and 5; the stride of a bottleneck at its 3x3 convolution."""
    strides = [stride, 1] if resnet.block == "basic" else [1, stride, 1]
    y = x
    for i, step in enumerate(strides):
        last = i == len(strides) - 1
        eps = EPS["last"] if last else EPS["branch"]
        y = layer(y, params.branch[i], state.branch[i], eps, step)
        y = y if last else relu(y)
    short = x
    if params.shortcut is not None:
        short = layer(x, params.shortcut, state.shortcut, EPS["shortcut"], stride)
    elif x.shape != y.shape:
        short = np.zeros_like(y)
        short[..., : x.shape[-1]] = x[:, ::stride, ::stride]
    return relu(y + short)


def backbone_maps(resnet, params, state, x):
    x = relu(layer(x, params.stem, state.stem, EPS["stem"], resnet.stem.stride))
    if resnet.stem.pool:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = windows[:, ::2, ::2].max((-2, -1))
    maps = []
    for i, (blocks, states) in enumerate(zip(params.stages, state.stages)):
        for j, (p, s) in enumerate(zip(blocks, states)):
            x = block_output(resnet, p, s, x, 2 if i > 0 and j == 0 else 1)
        maps.append(x)
    return maps


def pyramid_maps(fpn, params, state, maps):
    """arXiv:1612.03144, figure 3, and arXiv:1708.02002, footnote 2; ``maps`` by level."""
    top = max(maps)
    merged, pyramid = {}, {}
    for level in range(top, fpn.min_level - 1, -1):
        x = layer(maps[level], params.lateral[level], state.lateral[level], EPS["lateral"])
        if level < top:
            above = merged[level + 1].repeat(2, 1).repeat(2, 2)
            x = x + above[:, : x.shape[1], : x.shape[2]]
        merged[level] = x
    for level in fpn.levels:
        p, s = params.output[level], state.output[level]
        if level <= top:
            pyramid[level] = layer(merged[level], p, s, EPS["output"])
        elif level == top + 1:
            start = pyramid[top] if fpn.extra_from == "p" else maps[top]
            pyramid[level] = layer(start, p, s, EPS["output"], 2)
        else:
            pyramid[level] = layer(relu(pyramid[level - 1]), p, s, EPS["output"], 2)
    return pyramid


def head_rows(tower, states, predictor, pyramid, outputs):
    """arXiv:1708.02002, figure 3: the weights shared over the levels, the statistics not."""
    rows = []
    for i, level in enumerate(sorted(pyramid)):
        x = pyramid[level]
        for p, s in zip(tower, states):
            own = dataclasses.replace(s, mean=s.mean[i], var=s.var[i])
            x = relu(layer(x, p, own, HEAD_EPS))
        y = convolved(x, predictor.kernel) + wide(predictor.bias)
        rows.append(y.reshape(len(y), -1, outputs))
    return np.concatenate(rows, 1)


@pytest.mark.parametrize("stem", [POOLED, PLAIN], ids=["pooled", "plain"])
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_residual_network_equals_the_definition_of_its_paper(block, shortcut, stem, key):
    resnet = network(block, shortcut, stem)
    params, state = (drawn(tree, i) for i, tree in enumerate(init_backbone(key, resnet)))
    images = np.random.default_rng(2).normal(size=(2, 13, 10, 3)).astype(np.float32)
    found, _ = jax.jit(lambda x: apply_backbone(resnet, params, state, x, Mode.EVAL))(images)
    expected = backbone_maps(resnet, params, state, wide(images))
    for one, other in zip(found.values(), expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("extra_from", ["p", "c"])
def test_a_detector_equals_the_definition_of_its_paper(extra_from, key):
    resnet = network("basic", "projection", POOLED)
    detector = Detector(
        classes=2,
        backbone=resnet,
        neck=Fpn(
            channels=3,
            min_level=2,
            max_level=5,
            extra_from=extra_from,
            lateral_norm=NORM["lateral"],
            output_norm=NORM["output"],
        ),
        head=RetinaHead(depth=2, norm=BatchNorm(eps=HEAD_EPS)),
        anchors=Anchors(octaves=1, ratios=(0.5, 1.0)),
        pixel_mean=100.0,
        pixel_deviation=50.0,
    )
    params, state = (drawn(tree, i) for i, tree in enumerate(init_detector(key, detector)))
    images = np.random.default_rng(2).integers(0, 256, (2, 40, 34, 3)).astype(np.float32)
    found, _ = jax.jit(lambda x: apply_detector(detector, params, state, x, Mode.EVAL))(images)
    c2, c3 = backbone_maps(resnet, params.backbone, state.backbone, (wide(images) - 100) / 50)
    pyramid = pyramid_maps(detector.neck, params.neck, state.neck, {2: c2, 3: c3})
    head, of = params.head, state.head
    logits = head_rows(head.class_tower, of.class_tower, head.class_predictor, pyramid, 2)
    deltas = head_rows(head.box_tower, of.box_tower, head.box_predictor, pyramid, 4)
    for one, other in ((found.logits, logits), (found.deltas, deltas)):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_a_classifier_equals_the_definition_of_its_paper(key):
    resnet = network("basic", "pad", PLAIN)
    classifier = Classifier(classes=4, backbone=resnet, pixel_mean=100.0, pixel_deviation=50.0)
    params, state = (drawn(tree, i) for i, tree in enumerate(init_classifier(key, classifier)))
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 6, 3)).astype(np.float32)
    found, _ = jax.jit(lambda x: apply_classifier(classifier, params, state, x, Mode.EVAL))(images)
    maps = backbone_maps(resnet, params.backbone, state.backbone, (wide(images) - 100) / 50)
    expected = maps[-1].mean((1, 2)) @ wide(params.dense.kernel) + wide(params.dense.bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_no_two_kernels_of_a_fresh_network_are_alike(make_detector, key):
    detector = make_detector(BatchNorm())
    alike = dataclasses.replace(detector.backbone, depths=(2, 2), widths=(8, 8))
    detector = dataclasses.replace(
        detector, backbone=alike, head=RetinaHead(depth=2, norm=BatchNorm())
    )
    params, _ = init_detector(key, detector)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    same_shape = [wide(k) for k in kernels if k.shape == (3, 3, 8, 8)]
    assert len(same_shape) > 10
    directions = {tuple(np.round((k / k.std()).ravel()[:4], 3)) for k in same_shape}
    assert len(directions) == len(same_shape)


@pytest.mark.parametrize(("size", "inputs", "outputs"), [(3, 8, 64), (1, 64, 128), (3, 64, 16)])
def test_a_fresh_kernel_has_variance_2_over_its_fan_out(size, inputs, outputs, key):
    layer = ConvNorm(size=size, inputs=inputs, outputs=outputs, norm=BatchNorm())
    params, _ = init_conv_norm(key, layer)
    kernel = wide(params.kernel)
    assert kernel.shape == (size, size, inputs, outputs)
    np.testing.assert_allclose(kernel.var() * size * size * outputs / 2, 1, rtol=0.06)
