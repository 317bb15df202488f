"""Training a classifier: its loss by its definition, and a network that learns by it."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.tasks.classification import Classification
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import CrossEntropy, Objective, classification_loss
from fpnlab.train.step import Train, init_train, train_step
from fpnlab.types import LabeledBatch

CLASSIFIER = Classifier(
    classes=3,
    backbone=ResNet(
        depths=(1,), widths=(4,), stem=Stem(size=3, stride=1, pool=False), norm=BatchNorm()
    ),
)


def batch_of(labels, images=None):
    labels = jnp.asarray(labels)
    images = jnp.zeros((len(labels), 4, 4, 3)) if images is None else images
    return LabeledBatch(images=images, labels=labels, index=jnp.arange(len(labels)))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_cross_entropy_is_its_definition(smoothing, key):
    logits = 3.0 * jax.random.normal(key, (5, 3))
    labels = np.array([0, 2, 1, 1, 0])
    loss, logs = classification_loss(
        CrossEntropy(label_smoothing=smoothing), logits, batch_of(labels)
    )
    wide = np.asarray(logits, np.float64)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    np.testing.assert_allclose(loss, -(targets * log_p).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], (wide.argmax(1) == labels).mean())
    mixed = classification_loss(
        CrossEntropy(label_smoothing=smoothing), logits, batch_of(np.eye(3, dtype="f4")[labels])
    )
    np.testing.assert_allclose(mixed[0], loss, rtol=1e-6)


def test_a_classifier_learns_colors(key):
    labels = np.arange(12) % 3
    images = 255.0 * np.eye(3, dtype="f4")[labels][:, None, None] * np.ones((12, 4, 4, 3), "f4")
    train = Train(examples=12 * 30, batch_size=12, learning_rate=0.1)
    step = jax.jit(
        functools.partial(
            train_step,
            task_of(CLASSIFIER, CrossEntropy(), norm_batch=train.statistics_group),
            train,
        )
    )
    state = init_train(key, task_of(CLASSIFIER, CrossEntropy()), train)
    batch, losses = batch_of(labels, images), []
    for _ in range(train.steps):
        state, logs = step(state, batch)
        losses.append(float(logs["loss"]))
    assert logs["accuracy"] == 1
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.skipped) == 0


def test_cross_entropy_rejects_a_label_smoothing_of_one():
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0; it must be"):
        CrossEntropy(label_smoothing=1.0)


def test_the_error_of_an_objective_of_another_task_names_the_right_one():
    check = inspect.unwrap(Classification.__post_init__)
    with pytest.raises(TypeError, match=r"Classifier cannot be trained by Objective.*CrossEntropy"):
        check(types.SimpleNamespace(objective=Objective()))
