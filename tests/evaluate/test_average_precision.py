"""The three evaluations of a detector: which statistics each uses, over which images."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from fpnlab.data.dataset import take
from fpnlab.data.load_data import load
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes
from fpnlab.evaluate.average_precision import detections, evaluate_detector
from fpnlab.evaluate.bn_statistics import population_state
from fpnlab.evaluate.coco import coco_metrics
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.detector import apply_detector, init_detector
from fpnlab.nn.norm_edit import fill_norm_batch
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.types import Mode, picture_mask

EVALUATE = Evaluate(batch_size=4, population_examples=8, area_bounds=(64.0, 256.0))


@pytest.fixture(scope="module")
def scenes():
    return load(Scenes(image_size=32, train_size=10, test_size=6))


@pytest.fixture(scope="module")
def trained(make_detector):
    """(norm) -> detector, parameters and statistics that find something, right or wrong."""

    @functools.cache
    def make(norm):
        detector = make_detector(norm, classes=len(CLASS_NAMES))
        params, state = init_detector(jax.random.key(1), detector)
        keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
        params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
        predictor = params.head.class_predictor
        predictor = dataclasses.replace(predictor, bias=predictor.bias + 4.0)
        head = dataclasses.replace(params.head, class_predictor=predictor)
        return detector, dataclasses.replace(params, head=head), state

    return make


@pytest.fixture(scope="module")
def measure(trained, scenes):
    """(norm, state) -> metrics and detections of the whole evaluation, computed once."""

    def run(norm, state=None, evaluate=EVALUATE, norm_batch=2):
        detector, params, initial = trained(norm)
        return evaluate_detector(
            evaluate,
            fill_norm_batch(detector, norm_batch),
            params,
            initial if state is None else state,
            population=scenes.train,
            test=scenes.test,
            class_names=scenes.class_names,
        )

    return run


@pytest.fixture(scope="module")
def exact(trained, scenes):
    """Population statistics over all ten training images, in the groups of training: twos."""
    detector, params, state = trained(BatchNorm())
    spec = fill_norm_batch(detector, 2)
    collect = jax.jit(
        lambda state, x: apply_detector(spec, params, state, x.astype("float32"), Mode.MOMENTS)[1]
    )
    images = scenes.train.images
    return population_state(collect, [images[i : i + 2] for i in range(0, 8, 2)], state)


def found_by(trained, scenes, norm, state=None, **settings):
    detector, params, initial = trained(norm)
    settings = {"mode": Mode.EVAL, "batch_size": 4} | settings
    return detections(
        detector, params, initial if state is None else state, test=scenes.test, **settings
    )


def test_without_batch_norm_all_three_sources_give_the_same_metrics(measure):
    metrics, found, _ = measure(LayerNorm(axes="hwc"))
    assert list(metrics) == ["running", "precise", "batch"]
    assert found.valid.any()
    np.testing.assert_equal(metrics["precise"], metrics["running"])
    np.testing.assert_equal(metrics["batch"], metrics["running"])


def test_each_evaluation_of_batch_norm_uses_its_own_statistics(measure, trained, scenes, exact):
    norm = BatchNorm()
    metrics, found, _ = measure(norm)
    chex.assert_trees_all_equal(found, found_by(trained, scenes, norm))
    score = functools.partial(
        coco_metrics,
        truth=scenes.test,
        class_names=scenes.class_names,
        area_bounds=EVALUATE.area_bounds,
    )
    detector, params, state = trained(norm)
    by_batch = detections(
        fill_norm_batch(detector, 2),
        params,
        state,
        test=scenes.test,
        mode=Mode.BATCH_EVAL,
        batch_size=4,
    )
    np.testing.assert_equal(metrics["running"], score(found))
    np.testing.assert_equal(metrics["precise"], score(found_by(trained, scenes, norm, exact)))
    np.testing.assert_equal(metrics["batch"], score(by_batch))
    boxes = [found.boxes, found_by(trained, scenes, norm, exact).boxes, by_batch.boxes]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not np.allclose(boxes[one], boxes[other], atol=0.1)


def test_evaluate_detector_returns_the_population_statistics(measure, exact):
    chex.assert_trees_all_close(measure(BatchNorm()).population, exact, rtol=1e-5, atol=1e-6)


def test_without_batch_norm_the_population_is_the_state_itself(measure, trained):
    norm = LayerNorm(axes="hwc")
    chex.assert_trees_all_equal(measure(norm).population, trained(norm)[2])


def test_running_statistics_that_are_the_population_give_the_precise_result(measure, exact):
    metrics, *_ = measure(BatchNorm(), exact)
    assert metrics["running"]["AP50"] > 0
    np.testing.assert_equal(metrics["running"], metrics["precise"])


def test_precise_statistics_come_from_the_groups_of_training(measure, trained, scenes, exact):
    # Groups of four whitened images differ from groups of two in every layer after the first.
    detector, params, state = trained(BatchNorm())
    spec = fill_norm_batch(detector, 4)
    collect = jax.jit(
        lambda state, x: apply_detector(spec, params, state, x.astype("float32"), Mode.MOMENTS)[1]
    )
    images = scenes.train.images
    fours = population_state(collect, [images[:4], images[4:8]], state)
    chex.assert_trees_all_close(fours.backbone.stem, exact.backbone.stem, rtol=1e-4)
    last = lambda state: state.backbone.stages[-1][-1]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(last(fours), last(exact), rtol=1e-2)
    twos, *_ = measure(BatchNorm())
    fours_found, *_ = measure(BatchNorm(), norm_batch=4)
    np.testing.assert_equal(twos["running"], fours_found["running"])
    assert twos["precise"]["AR100"] != fours_found["precise"]["AR100"]


@pytest.mark.parametrize("batch_size", [3, 4, 5, 6, 8])
def test_detections_do_not_depend_on_the_batch_size_of_evaluation(batch_size, trained, scenes):
    one = found_by(trained, scenes, BatchNorm(), batch_size=2)
    found = found_by(trained, scenes, BatchNorm(), batch_size=batch_size)
    assert found.boxes.shape == (6, 100, 4)
    assert found.valid.any()
    chex.assert_trees_all_close(found, one, rtol=1e-4, atol=1e-3)


def test_batches_are_made_of_whole_statistics_groups(trained, scenes):
    detector, params, state = trained(BatchNorm())
    find = functools.partial(
        detections,
        fill_norm_batch(detector, 2),
        params,
        state,
        test=scenes.test,
        mode=Mode.BATCH_EVAL,
    )
    # Five is not a multiple of two and one is less than two: four and two are used.
    chex.assert_trees_all_close(
        find(batch_size=5, multiple=2), find(batch_size=1, multiple=2), rtol=1e-4, atol=1e-3
    )


def test_a_large_evaluation_batch_needs_no_more_images_than_there_are(measure):
    large = dataclasses.replace(EVALUATE, batch_size=64)
    metrics, *_ = measure(BatchNorm(), evaluate=large)
    assert set(metrics["precise"]) == set(metrics["running"])


def test_evaluate_detector_rejects_a_population_smaller_than_a_group(measure):
    with pytest.raises(ValueError, match=r"images do not fill whole .*norm_batch=16; give 16"):
        measure(BatchNorm(), norm_batch=16)


@pytest.mark.parametrize(("field", "least"), [("batch_size", 1), ("population_examples", 2)])
def test_evaluate_rejects_numbers_of_images_out_of_bounds(field, least):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least {least}"):
        Evaluate(**{field: 0})


def test_evaluate_rejects_a_single_gradient_draw():
    with pytest.raises(ValueError, match="gradient_draws is 1; it must be at least 2"):
        Evaluate(gradient_draws=1)


def test_precise_statistics_leave_out_the_padding_of_each_picture(make_detector, scenes):
    detector = make_detector(BatchNorm(), classes=len(CLASS_NAMES))
    detector = fill_norm_batch(dataclasses.replace(detector, mask_padding=True), 2)
    params, state = init_detector(jax.random.key(1), detector)
    few = take(scenes.train, np.arange(4))
    extent = np.array([[32, 20], [24, 32], [16, 16], [32, 32]], np.float32)
    inside = picture_mask(extent, 32, 32)[..., None]

    def stem(padding):
        images = np.where(inside, few.images, np.uint8(padding))
        measured = evaluate_detector(
            EVALUATE,
            detector,
            params,
            state,
            population=few.replace(images=images, extent=extent),
            test=take(scenes.test, np.arange(2)),
            class_names=scenes.class_names,
        )
        return measured.population.backbone.stem

    # Even extents: no window of the stem whose center is inside reaches the padding.
    black, white = stem(0), stem(255)
    np.testing.assert_allclose(black.mean, white.mean, rtol=1e-5)
    np.testing.assert_allclose(black.var, white.var, rtol=1e-5)
