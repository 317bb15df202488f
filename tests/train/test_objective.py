"""The detection loss: anchors that enter it, and an explicit sum as reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.retina_head import HeadOutput
from fpnlab.ops.boxes import encode
from fpnlab.train.objective import Objective, detection_loss
from fpnlab.types import Batch

ANCHORS = np.array(
    [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16], [1, 0, 9, 8]], np.float32
)


@pytest.fixture
def batch():
    boxes = np.array([[[0, 0, 8, 8], [0, 0, 0, 0]], [[8, 8, 15, 16], [1, 8, 8, 16]]], np.float32)
    return Batch(
        images=jnp.zeros((2, 16, 16, 3), jnp.uint8),
        boxes=jnp.array(boxes),
        classes=jnp.array([[1, 0], [0, 1]]),
        valid=jnp.array([[True, False], [True, True]]),
        extent=jnp.full((2, 2), 16.0),
        index=jnp.arange(2),
    )


@pytest.fixture
def output(key):
    return HeadOutput(
        logits=jax.random.normal(key, (2, 5, 2)),
        deltas=0.1 * jax.random.normal(jax.random.fold_in(key, 1), (2, 5, 4)),
    )


loss = jax.jit(lambda objective, o, b: detection_loss(objective, o, ANCHORS, b), static_argnums=0)


def test_detection_loss_equals_an_explicit_sum_per_positive_anchor(batch, output):
    objective = Objective(focal_gamma=2.0, focal_alpha=0.25, smooth_l1_beta=0.1)
    total, parts = loss(objective, output, batch)
    # Image 0: anchor 0 is box 0; anchor 4 overlaps it by 7/9. Image 1: anchors 3 and 2.
    positives = {(0, 0): (0, 1), (0, 4): (0, 1), (1, 3): (0, 0), (1, 2): (1, 1)}
    focal = box = 0.0
    for image in range(2):
        for anchor in range(5):
            for cls in range(2):
                p = 1 / (1 + np.exp(-np.float64(output.logits[image, anchor, cls])))
                hit = positives.get((image, anchor), (None, None))[1] == cls
                pt, alpha = (p, 0.25) if hit else (1 - p, 0.75)
                focal += -alpha * (1 - pt) ** 2 * np.log(pt)
    for (image, anchor), (row, _) in positives.items():
        expected = np.asarray(encode(batch.boxes[image, row], ANCHORS[anchor]))
        error = np.abs(np.asarray(output.deltas[image, anchor]) - expected)
        box += np.where(error < 0.1, error**2 / 0.2, error - 0.05).sum()
    np.testing.assert_allclose(parts["loss_class"], focal / 4, rtol=1e-5)
    np.testing.assert_allclose(parts["loss_box"], box / 4, rtol=1e-5)
    np.testing.assert_allclose(total, (focal + box) / 4, rtol=1e-5)


def test_images_without_boxes_have_only_a_class_loss(batch, output):
    empty = dataclasses.replace(batch, valid=jnp.zeros((2, 2), bool))
    total, parts = loss(Objective(), output, empty)
    assert jnp.isfinite(total)
    assert parts["loss_class"] > 0
    assert parts["loss_box"] == 0


def test_padding_boxes_change_nothing(batch, output):
    garbage = dataclasses.replace(
        batch, boxes=batch.boxes.at[0, 1].set(jnp.array([5.0, 5, 2, jnp.nan]))
    )
    assert loss(Objective(), output, garbage)[0] == loss(Objective(), output, batch)[0]
    gradient = jax.grad(lambda o: loss(Objective(), o, garbage)[0])(output)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_anchors_centered_in_the_padding_are_ignored(batch, output):
    half = dataclasses.replace(batch, extent=jnp.array([[16.0, 8.0], [16.0, 16.0]]))
    gradient = jax.grad(lambda o: loss(Objective(), o, half)[0])(output)
    # Anchors 1 and 3 of image 0 have their centers at x = 12.
    moved = jnp.abs(gradient.logits[0]).sum(-1) > 0
    assert moved.tolist() == [True, False, True, False, True]


def test_perfect_boxes_have_zero_box_loss(batch, output):
    deltas = encode(
        jnp.stack([batch.boxes[0, [0] * 5], batch.boxes[1, jnp.array([0, 0, 1, 0, 0])]]),
        jnp.asarray(ANCHORS),
    )
    perfect = dataclasses.replace(output, deltas=deltas)
    for kind in ("smooth_l1", "giou"):
        objective = Objective(box_loss=kind)
        np.testing.assert_allclose(loss(objective, perfect, batch)[1]["loss_box"], 0, atol=1e-5)
        assert loss(objective, output, batch)[1]["loss_box"] > 0.01


def test_objective_rejects_a_negative_iou_above_the_positive_iou():
    with pytest.raises(ValueError, match=r"negative_iou is 0.6 and positive_iou 0.5"):
        Objective(negative_iou=0.6)
