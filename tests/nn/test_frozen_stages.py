"""Frozen stages: their parameters and statistics stay as they are, all others are trained."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.evaluate.bn_statistics import population_state
from fpnlab.nn.backbone import apply_backbone, init_backbone, trained
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.spec import SpecError
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import AdamW, Sgd, Train, init_train, train_step
from fpnlab.types import LabeledBatch, Mode

NETWORK = ResNet(
    depths=(1, 1, 1), widths=(4, 8, 8), stem=Stem(size=3, stride=1, pool=False), norm=BatchNorm()
)
FROZEN = dataclasses.replace(NETWORK, frozen_stages=1)


@pytest.fixture
def batch(key):
    images = jax.random.randint(key, (4, 8, 8, 3), 0, 256)
    return LabeledBatch(images=images, labels=jnp.arange(4) % 2, index=jnp.arange(4))


def parts(tree):
    return [tree.stem, *tree.stages]


@pytest.mark.parametrize("optimizer", [Sgd(), AdamW()], ids=lambda spec: spec.kind)
def test_training_leaves_frozen_stages_as_they_are(optimizer, batch, key):
    task = task_of(Classifier(classes=2, backbone=FROZEN), CrossEntropy())
    train = Train(
        examples=16, batch_size=4, learning_rate=0.1, weight_decay=0.5, optimizer=optimizer
    )
    first = state = init_train(key, task, train)
    step = jax.jit(lambda state: train_step(task, train, state, batch)[0])
    for _ in range(3):
        state = step(state)
    trees = [
        (first.params.backbone, state.params.backbone),
        (first.state.backbone, state.state.backbone),
    ]
    for before, after in trees:
        for i, (old, new) in enumerate(zip(parts(before), parts(after))):
            pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new)))
            changed = [bool((a != b).any()) for a, b in pairs]
            assert any(changed) == (i >= 2)
            if i >= 2:
                assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize(
    ("count", "expected"),
    [(None, [1, 1, 1, 1]), (0, [0, 1, 1, 1]), (1, [0, 0, 1, 1]), (3, [0, 0, 0, 0])],
)
def test_the_stem_is_frozen_before_the_stages(count, expected, key):
    network = dataclasses.replace(NETWORK, frozen_stages=count)
    params, _ = init_backbone(key, network)
    found = [all(jax.tree.leaves(part)) for part in parts(trained(network, params))]
    assert found == [bool(value) for value in expected]


def test_statistics_of_frozen_stages_can_be_those_of_the_batch(key):
    network = dataclasses.replace(FROZEN, frozen_statistics=False)
    params, state = init_backbone(key, network)
    images = jax.random.normal(key, (4, 8, 8, 3))
    _, new = apply_backbone(network, params, state, images, Mode.TRAIN)
    assert (new.stem.mean != state.stem.mean).any()
    _, kept = apply_backbone(FROZEN, params, state, images, Mode.TRAIN)
    chex.assert_trees_all_equal(kept.stem, state.stem)


def test_population_statistics_keep_those_of_frozen_stages(key):
    params, state = init_backbone(key, FROZEN)
    images = jax.random.normal(key, (8, 8, 8, 3))
    _, state = apply_backbone(NETWORK, params, state, images, Mode.TRAIN)

    def collect(spec):
        run = lambda state, x: apply_backbone(spec, params, state, x, Mode.MOMENTS)[1]
        return population_state(run, [images[:4], images[4:]], state)

    found = collect(FROZEN)
    chex.assert_trees_all_equal(found.stem, state.stem)
    chex.assert_trees_all_equal(found.stages[0], state.stages[0])
    # The later stages see what the frozen ones compute with these statistics.
    running = dataclasses.replace(Mode.MOMENTS, stats="running", update="none")
    features, _ = apply_backbone(NETWORK, params, state, images, running)
    first = features[0]
    assert jnp.isfinite(first).all()
    branch = found.stages[1][0].branch[0]
    kernel = params.stages[1][0].branch[0].kernel
    expected = jax.lax.conv_general_dilated(
        first, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(branch.mean, expected.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(branch.var, expected.var((0, 1, 2)), rtol=1e-4)


def test_more_frozen_stages_than_stages_are_an_error():
    with pytest.raises(SpecError, match="frozen_stages is 4; the network has 3 stages"):
        dataclasses.replace(NETWORK, frozen_stages=4)
