"""The three evaluations of a classifier, and its numbers against a plain loop."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpnlab.evaluate.accuracy import accuracy_metrics, class_logits, evaluate_classifier
from fpnlab.evaluate.bn_statistics import population_state
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.norm_edit import fill_norm_batch
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import LabeledBatch, Mode

CLASSES = 7


def split(count, seed):
    random = np.random.default_rng(seed)
    # Each image has its own brightness, so that batches have their own statistics.
    level = random.uniform(0.1, 1, (count, 1, 1, 1))
    return LabeledBatch(
        images=(level * random.integers(0, 256, (count, 6, 6, 3))).astype(np.uint8),
        labels=random.integers(0, CLASSES, count).astype(np.int32),
        index=np.arange(count, dtype=np.int32),
    )


POPULATION, TEST = split(10, 0), split(14, 1)


@functools.cache
def trained(norm):
    """A classifier, parameters of which none is zero, and statistics that are not its own."""
    backbone = ResNet(
        depths=(1, 1), widths=(4, 8), stem=Stem(size=3, stride=1, pool=False), norm=norm
    )
    classifier = Classifier(classes=CLASSES, backbone=backbone, dropout=0.5)
    params, state = init_classifier(jax.random.key(1), classifier)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), params)
    return classifier, params, state


@functools.cache
def measure(norm, norm_batch=2, batch_size=4):
    classifier, params, state = trained(norm)
    return evaluate_classifier(
        fill_norm_batch(classifier, norm_batch),
        params,
        state,
        population=POPULATION,
        test=TEST,
        batch_size=batch_size,
    )


def logits(norm, state=None, spec=None, mode=Mode.EVAL, batch_size=14, **options):
    classifier, params, initial = trained(norm)
    return class_logits(
        spec or classifier,
        params,
        initial if state is None else state,
        images=TEST.images,
        mode=mode,
        batch_size=batch_size,
        **options,
    )


def test_without_batch_norm_all_three_sources_give_the_same_accuracy():
    metrics, found, population, _ = measure(GroupNorm(groups=2))
    chex.assert_trees_all_equal(population, trained(GroupNorm(groups=2))[2])
    assert list(metrics) == ["running", "precise", "batch"]
    assert metrics["precise"] == metrics["running"] == metrics["batch"]
    np.testing.assert_allclose(found, logits(GroupNorm(groups=2)), rtol=1e-4, atol=1e-5)
    metrics["batch"]["accuracy"] = -1
    assert metrics["running"]["accuracy"] >= 0


def test_each_evaluation_of_batch_norm_uses_its_own_statistics():
    norm = BatchNorm()
    metrics, found, population, _ = measure(norm)
    classifier, params, state = trained(norm)
    spec = fill_norm_batch(classifier, 2)
    collect = jax.jit(lambda state, x: apply_classifier(spec, params, state, x, Mode.MOMENTS)[1])
    images = POPULATION.images.astype(np.float32)
    exact = population_state(collect, [images[i : i + 2] for i in range(0, 8, 2)], state)
    by_batch = logits(
        norm, spec=fill_norm_batch(classifier, 2), mode=Mode.BATCH_EVAL, batch_size=2, multiple=2
    )
    chex.assert_trees_all_close(population, exact, rtol=1e-4, atol=1e-5)
    expected = {"running": found, "precise": logits(norm, exact), "batch": by_batch}
    for source, scores in expected.items():
        assert metrics[source] == pytest.approx(accuracy_metrics(scores, TEST.labels), rel=1e-4)
    np.testing.assert_allclose(found, logits(norm), rtol=1e-4, atol=1e-5)
    losses = {round(metrics[source]["loss"], 3) for source in metrics}
    assert len(losses) == 3


def test_batch_statistics_are_those_of_the_groups_of_training():
    twos, sevens = (measure(BatchNorm(), norm_batch=k, batch_size=14).metrics for k in (2, 7))
    assert twos["running"] == pytest.approx(sevens["running"], rel=1e-4)
    assert abs(twos["batch"]["loss"] - sevens["batch"]["loss"]) > 1e-3
    assert abs(twos["precise"]["loss"] - sevens["precise"]["loss"]) > 1e-4


@pytest.mark.parametrize("batch_size", [4, 5, 64])
def test_accuracy_does_not_depend_on_the_batch_size_of_evaluation(batch_size):
    norm = BatchNorm()
    found = logits(norm, batch_size=batch_size)
    assert found.shape == (14, CLASSES)
    np.testing.assert_allclose(found, logits(norm), rtol=1e-4, atol=1e-5)
    classifier, _, _ = trained(norm)
    grouped_in = lambda size: logits(
        norm, spec=fill_norm_batch(classifier, 2), mode=Mode.BATCH_EVAL, batch_size=size, multiple=2
    )
    np.testing.assert_allclose(grouped_in(batch_size), grouped_in(2), rtol=1e-4, atol=1e-5)


def test_evaluate_classifier_rejects_a_population_smaller_than_a_group():
    with pytest.raises(ValueError, match=r"images do not fill whole .*norm_batch=16; give 16"):
        measure(BatchNorm(), norm_batch=16)


def test_batches_are_whole_groups_of_every_norm():
    classifier, params, state = trained(BatchNorm())
    backbone = dataclasses.replace(classifier.backbone, stem_norm=BatchNorm(norm_batch=3))
    classifier = dataclasses.replace(classifier, backbone=backbone)
    classifier = fill_norm_batch(classifier, 2)
    run = functools.partial(evaluate_classifier, classifier, params, state, test=TEST, batch_size=4)
    found = run(population=POPULATION)
    six = jax.tree.map(lambda leaf: leaf[:6], POPULATION)
    chex.assert_trees_all_close(found.population, run(population=six).population)
    expected = class_logits(
        classifier,
        params,
        state,
        images=TEST.images,
        mode=Mode.BATCH_EVAL,
        batch_size=6,
    )
    assert found.metrics["batch"] == pytest.approx(accuracy_metrics(expected, TEST.labels))


def test_evaluation_does_not_change_parameters_and_state():
    classifier, params, state = trained(BatchNorm())
    before = jax.tree.map(np.array, (params, state))
    measure(BatchNorm())
    chex.assert_trees_all_equal((params, state), before)
    assert classifier.dropout  # And none of it is dropped: there is no key.


def test_accuracy_in_bfloat16_is_near_that_in_float32():
    classifier, params, state = trained(GroupNorm(groups=2))
    narrow = class_logits(
        classifier,
        params,
        state,
        images=jnp.asarray(TEST.images),
        mode=Mode.EVAL,
        batch_size=14,
        precision="bfloat16",
    )
    wide = logits(GroupNorm(groups=2))
    assert narrow.dtype == np.float32
    assert 0 < np.abs(narrow - wide).max() < 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9) | st.just(60), st.integers(1, 12), st.integers(0, 99))
def test_metrics_equal_those_of_a_loop(classes, count, seed):
    random = np.random.default_rng(seed)
    # Whole numbers, so that some are equal: of those the first counts, as in `sorted`.
    scores = np.round(3 * random.standard_normal((count, classes))).astype(np.float32)
    labels = random.integers(0, classes, count)
    first = fifth = loss = 0.0
    for row, label in zip(scores.astype(np.float64), labels):
        ranked = sorted(range(classes), key=lambda k: -row[k])
        first += ranked[0] == label
        fifth += label in ranked[:5]
        loss -= np.log(np.exp(row[label]) / np.exp(row).sum())
    found = accuracy_metrics(scores, labels)
    assert list(found) == (["accuracy", "top5", "loss"] if classes > 5 else ["accuracy", "loss"])
    assert found["accuracy"] == first / count
    assert found.get("top5", fifth / count) == fifth / count
    np.testing.assert_allclose(found["loss"], loss / count, rtol=1e-9, atol=1e-12)


def test_large_logits_have_a_finite_loss():
    found = accuracy_metrics(np.array([[1e4, -1e4], [1e4, -1e4]]), np.array([0, 1]))
    assert found == {"accuracy": 0.5, "loss": 1e4}


def test_among_equal_logits_the_first_class_is_found():
    found = accuracy_metrics(np.zeros((4, 8)), np.array([0, 4, 5, 7]))
    assert found == {"accuracy": 0.25, "top5": 0.5, "loss": pytest.approx(np.log(8))}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_logit_that_is_not_finite_is_wrong(value):
    scores = np.tile(np.arange(6.0)[::-1], (2, 1))
    scores[0, 1] = value
    found = accuracy_metrics(scores, np.array([0, 0]))
    assert found["accuracy"] == found["top5"] == 0.5
    found = accuracy_metrics(np.full((1, 6), np.nan), np.array([0]))
    assert found["accuracy"] == found["top5"] == 0
    assert np.isnan(found["loss"])


@pytest.mark.parametrize("batch_size", [4, 6, 7, 14])
def test_batches_of_batch_statistics_are_whole_groups(batch_size):
    spec = fill_norm_batch(trained(BatchNorm())[0], 4)
    run = functools.partial(logits, BatchNorm(), spec=spec, mode=Mode.BATCH_EVAL, multiple=4)
    found, expected = run(batch_size=batch_size), run(batch_size=4)
    np.testing.assert_allclose(found[:12], expected[:12], rtol=1e-4, atol=1e-5)
