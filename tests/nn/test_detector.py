"""The detector: rows and anchors, decoding of planted outputs, masks, and size checks."""

import dataclasses
import inspect

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.detector import (
    Anchors,
    Postprocess,
    apply_detector,
    detect,
    detector_anchors,
    init_detector,
)
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import HeadOutput, RetinaHead, init_head
from fpnlab.ops.boxes import encode
from fpnlab.ops.convolution import conv
from fpnlab.spec import SpecError
from fpnlab.types import Detections, Mode


def test_a_detector_has_one_output_row_per_anchor(detector, key):
    shapes = jax.eval_shape(
        lambda k, x: apply_detector(detector, *init_detector(k, detector), x, Mode.TRAIN)[0],
        key,
        jax.ShapeDtypeStruct((2, 40, 24, 3), jnp.float32),
    )
    anchors = detector_anchors(detector, 40, 24)
    assert shapes.logits.shape == (2, len(anchors), 3)
    assert shapes.deltas.shape == (2, len(anchors), 4)


def test_detect_returns_planted_boxes(detector):
    anchors = detector_anchors(detector, 32, 32)
    boxes = np.array([[3.0, 4, 15, 18], [16, 10, 30, 29]], np.float32)
    rows = [10, 35]
    logits = np.full((1, len(anchors), 3), -8.0, np.float32)
    deltas = np.zeros((1, len(anchors), 4), np.float32)
    for row, box, cls, logit in zip(rows, boxes, (2, 0), (1.0, 3.0)):
        logits[0, row, cls] = logit
        deltas[0, row] = encode(box, anchors[row])
    found = jax.jit(lambda o: detect(detector, o, anchors, jnp.array([[32.0, 32.0]])))(
        HeadOutput(logits=jnp.array(logits), deltas=jnp.array(deltas))
    )
    assert found.valid[0].sum() == 2
    np.testing.assert_allclose(found.boxes[0, :2], boxes[::-1], atol=1e-3)
    assert found.classes[0, :2].tolist() == [0, 2]
    np.testing.assert_allclose(
        found.scores[0, :2], jax.nn.sigmoid(jnp.array([3.0, 1.0])), rtol=1e-5
    )


def test_detections_are_clipped_to_the_picture_without_padding(detector):
    detector = dataclasses.replace(detector, postprocess=Postprocess(candidates=1))
    anchors = detector_anchors(detector, 32, 32)
    row = int(np.argmax(anchors[:, 2]))
    logits = np.full((1, len(anchors), 3), -8.0, np.float32)
    logits[0, row, 1] = 4.0
    output = HeadOutput(logits=jnp.array(logits), deltas=jnp.zeros((1, len(anchors), 4)))
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


def test_a_detector_rejects_images_below_one_cell_of_the_top_level(detector):
    with pytest.raises(
        ValueError, match=r"8x40 pixels leave pyramid level 4 empty.*max_level <= 3"
    ):
        detector_anchors(detector, 8, 40)


def test_masked_padding_never_enters_a_statistic(detector, key):
    masked = dataclasses.replace(detector, mask_padding=True)
    params, state = init_detector(key, masked)
    extent = jnp.array([[32.0, 16.0], [32.0, 16.0]])
    images = 255.0 * jax.random.uniform(key, (2, 32, 32, 3))
    # The stem only: later maps depend on the padding through convolutions at its edge.
    stem = jax.jit(
        lambda x: (
            apply_detector(masked, params, state, x, Mode.TRAIN, extent=extent)[1].backbone.stem
        )
    )
    elsewhere = images.at[:, :, 24:].set(0.0)
    np.testing.assert_array_equal(stem(images).mean, stem(elsewhere).mean)
    assert stem(images).count == 2 * 16 * 8


def test_the_padding_stays_out_of_the_statistics_of_every_norm(detector, key):
    masked = dataclasses.replace(detector, mask_padding=True)
    params, state = init_detector(key, masked)
    extent = np.array([[32.0, 16.0], [20.0, 40.0]], np.float32)
    images = 255.0 * jax.random.uniform(key, (2, 32, 48, 3))
    run = jax.jit(lambda x: apply_detector(masked, params, state, x, Mode.TRAIN, extent=extent)[1])
    new = run(images)
    whole = np.zeros((2, 32, 48), bool)
    whole[0, :32, :16] = whole[1, :20, :40] = True
    count = {level: whole[:, :: 2**level, :: 2**level].sum() for level in range(5)}
    one = lambda norm: norm.count.tolist()
    stages = new.backbone.stages
    assert one(new.backbone.stem) == count[1]
    for blocks, level in zip(stages, (2, 3), strict=True):
        for block in blocks:
            norms = [*block.branch, *([block.shortcut] if block.shortcut else [])]
            assert [one(norm) for norm in norms] == [count[level]] * len(norms)
    assert {level: one(norm) for level, norm in new.neck.lateral.items()} == {3: count[3]}
    assert {level: one(norm) for level, norm in new.neck.output.items()} == {
        level: count[level] for level in (3, 4)
    }
    for tower in (new.head.class_tower, new.head.box_tower):
        assert [one(norm) for norm in tower] == [[count[3], count[4]]]


def test_mask_padding_requires_the_extent_of_the_pictures(detector, key):
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


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_integer_images_give_the_outputs_of_float_images(dtype, detector, key):
    params, state = init_detector(key, detector)
    images = jax.random.randint(key, (2, 32, 32, 3), 0, 256)
    apply = inspect.unwrap(apply_detector)
    expected, _ = apply(detector, params, state, images.astype(jnp.float32), Mode.EVAL)
    found, _ = apply(detector, params, state, images.astype(dtype), Mode.EVAL)
    chex.assert_trees_all_equal(found, expected)
    with pytest.raises(TypeError, match="images are complex64; give pixels from 0 to 255"):
        inspect.unwrap(standardize_pixels)(images.astype(jnp.complex64), 0.0, 1.0)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.complex64, bool])
def test_conv_rejects_integers_and_complex_numbers(dtype):
    with pytest.raises(TypeError, match=f"conv: x is {jnp.dtype(dtype)}; it must be"):
        jax.eval_shape(
            lambda x: inspect.unwrap(conv)(x, jnp.ones((3, 3, 3, 4), x.dtype)),
            jax.ShapeDtypeStruct((2, 32, 32, 3), dtype),
        )


def test_towers_start_with_the_deviation_of_the_paper(detector, key):
    head = dataclasses.replace(detector.head, depth=2)
    params, _ = init_head(
        key, dataclasses.replace(head, anchors_per_cell=1, classes=2), channels=64, levels=2
    )
    for layer in (*params.class_tower, *params.box_tower):
        np.testing.assert_allclose(layer.kernel.std(), 0.01, rtol=0.02)
    wide = dataclasses.replace(head, kernel_deviation=0.05)
    params, _ = init_head(
        key, dataclasses.replace(wide, anchors_per_cell=1, classes=2), channels=64, levels=2
    )
    np.testing.assert_allclose(params.class_tower[0].kernel.std(), 0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Anchors(octaves=10**9), "octaves"),
        (lambda: Anchors(octaves=0), "octaves"),
        (lambda: Anchors(scale=0.0), "scale"),
        (lambda: Anchors(ratios=()), "ratios"),
        (lambda: Anchors(ratios=(1.0, -1.0)), "ratios"),
        (lambda: Postprocess(nms_iou=1.5), "nms_iou"),
        (lambda: Postprocess(score_threshold=-0.1), "score_threshold"),
        (lambda: Postprocess(candidates=0), "candidates"),
        (lambda: Fpn(channels=0), "channels"),
        (lambda: Fpn(min_level=-1), "min_level"),
        (lambda: RetinaHead(prior=1.0), "prior"),
        (lambda: RetinaHead(depth=-1), "depth"),
        (lambda: RetinaHead(kernel_deviation=0.0), "kernel_deviation"),
        (lambda: Stem(stride=3), "stride"),
        (lambda: ResNet(depths=(10**9,), widths=(4,), norm=BatchNorm()), "depths"),
        (lambda: ResNet(depths=(), widths=(), norm=BatchNorm()), "depths"),
        (lambda: ResNet(depths=(1,), widths=(0,), norm=BatchNorm()), "widths"),
        (lambda: ResNet(depths=(1,), widths=(4,), norm=BatchNorm(), drop_path=1.0), "drop_path"),
    ],
)
def test_fields_out_of_range_raise_a_spec_error(make, field):
    with pytest.raises(SpecError) as caught:
        make()
    assert [name for name, _ in caught.value.invalid] == [field]


def test_the_anchors_of_each_level_lie_over_the_whole_picture(detector):
    anchors = detector_anchors(detector, 40, 24)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    fine, coarse = centers[: 5 * 3 * 2], centers[5 * 3 * 2 :]
    # Levels 3 and 4: strides 8 and 16, an odd picture rounded up to whole cells.
    assert len(coarse) == 3 * 2 * 2
    np.testing.assert_array_equal([fine.min(0), fine.max(0)], [[4, 4], [20, 36]])
    np.testing.assert_array_equal([coarse.min(0), coarse.max(0)], [[8, 8], [24, 40]])


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        ({}, [0.9, 0.6]),
        ({"nms_iou": 0.1}, [0.9]),
        ({"score_threshold": 0.7}, [0.9]),
        ({"max_detections": 1}, [0.9]),
        ({"nms_iou": 0.9, "score_threshold": 0.5}, [0.9, 0.6]),
    ],
)
def test_each_field_of_the_postprocessing_changes_the_detections(fields, scores, detector):
    """Two boxes of one class with an IoU of 1/3."""
    detector = dataclasses.replace(detector, postprocess=Postprocess(**fields))
    anchors = detector_anchors(detector, 32, 32)
    boxes = np.array([[8.0, 8, 16, 16], [12, 8, 20, 16]], np.float32)
    logits = np.full((1, len(anchors), 3), -8.0, np.float32)
    deltas = np.zeros((1, len(anchors), 4), np.float32)
    for row, box, score in zip((10, 35), boxes, (0.9, 0.6)):
        logits[0, row, 1] = np.log(score / (1 - score))
        deltas[0, row] = encode(box, anchors[row])
    output = HeadOutput(logits=jnp.array(logits), deltas=jnp.array(deltas))
    found = detect(detector, output, anchors, jnp.array([[32.0, 32.0]]))
    np.testing.assert_allclose(found.scores[0][found.valid[0]], scores, rtol=1e-5)
