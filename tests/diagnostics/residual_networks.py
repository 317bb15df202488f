"""Small classifiers of every kind of residual network, with weights unlike those at the start."""

import dataclasses

import jax
import jax.numpy as jnp

from fpnlab.nn.classifier import Classifier, init_classifier
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_layer import NormState
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.resnet import ResNet, Stem

STEM = Stem(size=3, stride=1, pool=False)
SIDE = 8
BASIC = ResNet(depths=(3, 3), widths=(4, 8), stem=STEM, norm=BatchNorm(), shortcut="pad")
NETWORKS = {
    "basic": BASIC,
    "plain": dataclasses.replace(BASIC, skip=False),
    "bottleneck": ResNet(
        block="bottleneck",
        depths=(2, 2),
        widths=(4, 8),
        stem=Stem(size=3, stride=1, pool=True),
        norm=BatchNorm(),
        shortcut="pooled_projection",
    ),
    "preactivation": ResNet(
        depths=(2, 2), widths=(4, 8), stem=STEM, norm=BatchNorm(), preactivation=True
    ),
    "convnext": ConvNeXt(depths=(2, 2), widths=(4, 8), norm=LayerNorm(axes="c"), drop_path=0.1),
    "mlp": Mlp(inputs=3 * SIDE**2, depths=(2, 2), widths=(6, 8), norm=BatchNorm()),
}


def network(name, classes=3):
    """Returns a classifier, with random scales, biases and running statistics."""
    return trained_like(Classifier(classes=classes, backbone=NETWORKS[name]))


def trained_like(classifier):
    params, state = init_classifier(jax.random.key(0), classifier)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + (0.5 * jax.random.normal(k, leaf.shape) if leaf.ndim < 2 else 0)
        for leaf, k in zip(leaves, keys)
    ]
    is_state = lambda node: isinstance(node, NormState)
    moved = lambda s: dataclasses.replace(
        s,
        mean=0.3 * jax.random.normal(jax.random.key(len(s.mean)), s.mean.shape),
        var=1 + jax.random.uniform(jax.random.key(2), s.var.shape),
        seen=jnp.ones_like(s.seen),
    )
    state = jax.tree.map(lambda s: moved(s) if is_state(s) else s, state, is_leaf=is_state)
    return classifier, jax.tree.unflatten(tree, noisy), state


def images_and_labels(count=6, classes=3):
    images = 255 * jax.random.uniform(jax.random.key(3), (count, SIDE, SIDE, 3))
    return images, jnp.arange(count) % classes
