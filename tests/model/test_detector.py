"""The composed detector: rows meet anchors, planted outputs become boxes, sizes are checked."""

import dataclasses

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.model.detector import (
    DetectorOutput,
    Postprocess,
    apply_detector,
    detect,
    detector_anchors,
    init_detector,
)
from fpnlab.model.norm import BatchNorm, LayerNorm
from fpnlab.ops.boxes import encode
from fpnlab.types import Detections, Mode


def test_there_is_one_output_row_an_anchor(detector, key):
    shapes = jax.eval_shape(
        lambda k, x: apply_detector(detector, *init_detector(k, detector), x, Mode.TRAIN)[0],
        key,
        jax.ShapeDtypeStruct((2, 40, 24, 3), jnp.float32),
    )
    anchors = detector_anchors(detector, 40, 24)
    assert shapes.logits.shape == (2, len(anchors), 3)
    assert shapes.deltas.shape == (2, len(anchors), 4)


def test_planted_outputs_come_back_as_detections(detector):
    anchors = detector_anchors(detector, 32, 32)
    boxes = np.array([[3.0, 4, 15, 18], [16, 10, 30, 29]], np.float32)
    rows = [10, 35]
    logits = np.full((1, len(anchors), 3), -8.0, np.float32)
    deltas = np.zeros((1, len(anchors), 4), np.float32)
    for row, box, cls, logit in zip(rows, boxes, (2, 0), (1.0, 3.0)):
        logits[0, row, cls] = logit
        deltas[0, row] = encode(box, anchors[row])
    found = jax.jit(lambda o: detect(detector, o, anchors, jnp.array([[32.0, 32.0]])))(
        DetectorOutput(logits=jnp.array(logits), deltas=jnp.array(deltas))
    )
    assert found.valid[0].sum() == 2
    np.testing.assert_allclose(found.boxes[0, :2], boxes[::-1], atol=1e-3)
    assert found.classes[0, :2].tolist() == [0, 2]
    np.testing.assert_allclose(
        found.scores[0, :2], jax.nn.sigmoid(jnp.array([3.0, 1.0])), rtol=1e-5
    )


def test_detections_are_cut_at_the_picture_not_at_the_padding(detector):
    detector = dataclasses.replace(detector, postprocess=Postprocess(candidates=1))
    anchors = detector_anchors(detector, 32, 32)
    row = int(np.argmax(anchors[:, 2]))
    logits = np.full((1, len(anchors), 3), -8.0, np.float32)
    logits[0, row, 1] = 4.0
    output = DetectorOutput(logits=jnp.array(logits), deltas=jnp.zeros((1, len(anchors), 4)))
    found = detect(detector, output, anchors, jnp.array([[32.0, 20.0]]))
    assert found.boxes[0, 0, 2] <= 20.0


def test_the_norm_does_not_touch_the_convolutions(make_detector, key):
    bn, _ = init_detector(key, make_detector(BatchNorm()))
    ln, _ = init_detector(key, make_detector(LayerNorm(axes="hwc")))
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(bn), jax.tree.leaves(ln), strict=True)
    )


def test_layer_norm_detects_each_image_by_itself_and_batch_norm_does_not(make_detector, key):
    images = 255.0 * jax.random.uniform(key, (2, 32, 32, 3))
    for norm, alone in ((BatchNorm(), False), (LayerNorm(axes="hwc"), True)):
        detector = make_detector(norm)
        params, state = init_detector(key, detector)
        run = jax.jit(lambda x: apply_detector(detector, params, state, x, Mode.TRAIN)[0].logits)
        first = run(images)[0]
        other = run(images.at[1].multiply(0.2))[0]
        assert bool(jnp.allclose(first, other, atol=1e-5)) == alone


def test_images_below_one_cell_of_the_top_level_are_refused(detector):
    with pytest.raises(
        ValueError, match=r"8x40 pixels leave pyramid level 4 empty.*max_level <= 3"
    ):
        detector_anchors(detector, 8, 40)


def test_masked_padding_never_enters_a_statistic(detector, key):
    masked = dataclasses.replace(detector, mask_padding=True)
    params, state = init_detector(key, masked)
    extent = jnp.array([[32.0, 16.0], [32.0, 16.0]])
    images = 255.0 * jax.random.uniform(key, (2, 32, 32, 3))
    # The stem only: later maps hear of the padding through convolutions at its edge.
    stem = jax.jit(
        lambda x: (
            apply_detector(masked, params, state, x, Mode.TRAIN, extent=extent)[1].backbone.stem
        )
    )
    elsewhere = images.at[:, :, 24:].set(0.0)
    np.testing.assert_array_equal(stem(images).mean, stem(elsewhere).mean)
    assert stem(images).count == 2 * 16 * 8


def test_a_mask_needs_to_know_the_pictures(detector, key):
    masked = dataclasses.replace(detector, mask_padding=True)
    with pytest.raises(ValueError, match="mask_padding needs the extent"):
        jax.eval_shape(
            lambda x: apply_detector(masked, *init_detector(key, masked), x, Mode.TRAIN),
            jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
        )


def test_stochastic_depth_is_drawn_by_the_key_and_only_where_the_mode_is_stochastic(detector, key):
    backbone = dataclasses.replace(detector.backbone, drop_path=0.5)
    dropping = dataclasses.replace(detector, backbone=backbone)
    params, state = init_detector(key, dropping)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].name == "scale" else leaf, params
    )
    images = 255.0 * jax.random.uniform(key, (8, 32, 32, 3))
    run = jax.jit(
        lambda key, mode: apply_detector(dropping, params, state, images, mode, key=key)[0].logits,
        static_argnums=1,
    )
    one, two = jax.random.split(key)
    assert not jnp.allclose(run(one, Mode.TRAIN), run(two, Mode.TRAIN), atol=1e-4)
    np.testing.assert_array_equal(run(one, Mode.EVAL), run(two, Mode.EVAL))
    with pytest.raises(ValueError, match="mode stochastic; give a key"):
        run(None, Mode.TRAIN)


def test_a_detector_is_exported_for_batches_of_any_size_and_read_back(detector, key):
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialize")
    params, state = init_detector(key, detector)
    anchors = detector_anchors(detector, 32, 32)

    def find(images, extent):  # Its weights are constants of the program.
        output, _ = apply_detector(detector, params, state, images, Mode.EVAL, extent=extent)
        return detect(detector, output, anchors, extent)

    (b,) = jax.export.symbolic_shape("b")
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(jax.jit(find))(of(b, 32, 32, 3), of(b, 2))
    again = jax.export.deserialize(exported.serialize())
    images = 255 * jax.random.uniform(key, (3, 32, 32, 3))
    extent = jnp.full((3, 2), 32.0)
    found, expected = again.call(images, extent), find(images, extent)
    assert type(found) is Detections
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)
