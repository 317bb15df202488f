"""Errors of a training step that no other test would detect."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import HeadOutput, RetinaHead, apply_head, init_head
from fpnlab.ops.boxes import encode
from fpnlab.tasks.kinds import task_of
from fpnlab.train.checkpoint import Checkpoints
from fpnlab.train.objective import CrossEntropy, Objective, detection_loss
from fpnlab.train.schedule import Steps
from fpnlab.train.step import AdamW, Sgd, Train, init_train, step_loss, train_step
from fpnlab.types import Batch, LabeledBatch, Mode

TRAIN = Train(
    examples=64, batch_size=4, learning_rate=1.0, rule="constant", schedule=Steps(warmup=0.0)
)


@pytest.mark.parametrize(
    "optimizer",
    [Sgd(momentum=0.0), pytest.param(AdamW(), marks=pytest.mark.slow)],
    ids=lambda o: o.kind,
)
def test_weight_decay_changes_only_kernels_with_separate_norm_parameters_per_level(
    optimizer, detector, batch
):
    head = dataclasses.replace(detector.head, level_affine="separate")
    model = dataclasses.replace(detector, head=head)
    recipe = dataclasses.replace(TRAIN, optimizer=optimizer, learning_rate=1e-3)
    decays, plain = (dataclasses.replace(recipe, weight_decay=decay) for decay in (0.5, 0.0))
    state = init_train(jax.random.key(0), task_of(model, Objective()), recipe)
    # No leaf is zero, so that decay would change every leaf.
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: p + 0.1, state.params))
    after = [
        jax.jit(
            functools.partial(
                train_step, task_of(model, Objective(), norm_batch=train.statistics_group), train
            )
        )(state, batch)[0].params
        for train in (decays, plain)
    ]
    paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(jnp.array_equal, *after))
    moved = {path[-1].name for path, equal in paths if not equal}
    assert moved == {"kernel"}
    assert all(not equal for path, equal in paths if path[-1].name == "kernel")


def test_the_gradient_is_clipped_before_weight_decay_is_added(detector, batch):
    train = dataclasses.replace(
        TRAIN, optimizer=Sgd(momentum=0.0), clip_norm=1e-6, weight_decay=0.25
    )
    state = init_train(jax.random.key(0), task_of(detector, Objective()), train)
    step = functools.partial(
        train_step, task_of(detector, Objective(), norm_batch=train.statistics_group), train
    )
    after, _ = jax.jit(step)(state, batch)
    kernel = state.params.backbone.stem.kernel
    # The clipped gradient is negligible, so only the decay remains.
    np.testing.assert_allclose(after.params.backbone.stem.kernel, 0.75 * kernel, atol=2e-6)


def test_each_step_drops_different_features(key):
    backbone = ResNet(
        depths=(1,), widths=(8,), stem=Stem(size=3, stride=1, pool=False), norm=LayerNorm(axes="c")
    )
    model = Classifier(classes=2, backbone=backbone, dropout=0.5)
    images = jax.random.uniform(key, (4, 8, 8, 3)) * 255
    batch = LabeledBatch(images=images, labels=jnp.arange(4) % 2, index=jnp.arange(4))
    state = init_train(key, task_of(model, CrossEntropy()), TRAIN)

    @jax.jit
    def loss(step):
        at = dataclasses.replace(state, step=step)
        return step_loss(task_of(model, CrossEntropy()), TRAIN, at, batch)(state.params)[0]

    losses = [float(loss(jnp.int32(step))) for step in (0, 1, 2, 0)]
    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[0]


def test_detection_loss_is_divided_by_positive_anchors_inside_the_picture():
    # Two anchors overlap the box enough; the center of the second lies in the padding.
    anchors = np.array([[0, 0, 8, 8], [2, 0, 10, 8], [40, 40, 48, 48]], np.float32)
    batch = Batch(
        images=jnp.zeros((1, 16, 16, 3)),
        boxes=jnp.array([[[1.0, 0, 9, 8]]]),
        classes=jnp.zeros((1, 1), jnp.int32),
        valid=jnp.ones((1, 1), bool),
        extent=jnp.array([[16.0, 5.0]]),
        index=jnp.zeros(1, jnp.int32),
    )
    output = HeadOutput(logits=jnp.zeros((1, 3, 1)), deltas=jnp.zeros((1, 3, 4)))
    _, parts = detection_loss(Objective(smooth_l1_beta=1.0), output, anchors, batch)
    assert float(parts["count"]) == 1
    error = encode(batch.boxes[0], anchors[:1])
    np.testing.assert_allclose(parts["loss_box"], 0.5 * jnp.square(error).sum(), rtol=1e-5)


def test_a_second_save_of_a_step_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path, "hash")
    for value in (1.0, 2.0):
        checkpoints.save(7, {"a": jnp.full(3, value)})
    assert checkpoints.steps() == [7]
    step, found = checkpoints.restore({"a": jnp.zeros(3)})
    assert (step, found["a"].tolist()) == (7, [2.0, 2.0, 2.0])


def test_each_level_updates_shared_running_statistics_in_turn(key):
    norm = BatchNorm(decay=0.5, reference_batch=2)
    head = RetinaHead(depth=1, norm=norm, level_statistics="shared", anchors_per_cell=1, classes=1)
    params, state = init_head(key, head, channels=2, levels=2)
    maps = {3: jax.random.normal(key, (2, 4, 4, 2)), 4: 3 + jax.random.normal(key, (2, 2, 2, 2))}
    *_, after = apply_head(head, params, state, maps, Mode.TRAIN)
    separate = dataclasses.replace(head, level_statistics="separate")
    _, start = init_head(key, separate, channels=2, levels=2)
    *_, own = apply_head(separate, params, start, maps, Mode.TRAIN)
    fine, coarse = own.class_tower[0].mean  # each half of its level's mean: the start was 0
    np.testing.assert_allclose(after.class_tower[0].mean, 0.5 * fine + coarse, rtol=1e-5)
    assert float(after.class_tower[0].seen) == 4
    assert float(after.class_tower[0].count) == 2 * 2 * 2
