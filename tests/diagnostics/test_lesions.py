"""Deleted and swapped blocks against networks with gates, and against networks built without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.diagnostics.blockwise import _block, open_gates
from fpnlab.diagnostics.lesions import (
    deletable_blocks,
    delete_blocks,
    measure_lesions,
    random_deletions,
    random_swaps,
    single_deletions,
    swap_blocks,
    swap_partners,
)
from fpnlab.evaluate.accuracy import accuracy_metrics
from fpnlab.nn.classifier import apply_classifier
from fpnlab.types import Mode
from tests.diagnostics.residual_networks import BASIC, NETWORKS, images_and_labels, network

PLAIN = NETWORKS["plain"]
each_network = pytest.mark.parametrize("name", NETWORKS)


def expected(classifier, params, state, images, labels, gates=None):
    logits, _ = apply_classifier(classifier, params, state, images, Mode.EVAL, gates=gates)
    found = accuracy_metrics(jax.device_get(logits), labels)
    return 1 - found["accuracy"], found["loss"]


def closed(count, blocks):
    gates = open_gates(count)
    return dataclasses.replace(gates, branch=gates.branch.at[jnp.array(blocks, int)].set(0))


def check(metrics, rows):
    np.testing.assert_allclose(metrics.error, [error for error, _ in rows], atol=1e-7)
    np.testing.assert_allclose(metrics.loss, [loss for _, loss in rows], rtol=1e-4)


@each_network
def test_deletions_are_those_of_gates_of_the_whole_network(name):
    classifier, params, state = network(name)
    spec, (images, labels) = classifier.backbone, images_and_labels()
    count, can = len(spec.layout.blocks), deletable_blocks(spec)
    deleted = [(), *((i,) for i in can), can[:2], can[::2], can]
    lesions = [delete_blocks(spec, blocks) for blocks in deleted]
    found = measure_lesions(classifier, params, state, lesions, images, labels, batch_size=4)
    run = lambda blocks: expected(
        classifier, params, state, images, labels, closed(count, list(blocks))
    )
    check(found, [run(blocks) for blocks in deleted])
    assert len(set(np.round(found.loss, 4))) > len(can)


def test_a_network_without_a_block_is_the_network_that_never_had_it():
    classifier, params, state = network("plain")
    shallow = dataclasses.replace(classifier, backbone=dataclasses.replace(PLAIN, depths=(3, 2)))
    without = lambda tree: dataclasses.replace(
        tree,
        backbone=dataclasses.replace(
            tree.backbone, stages=(tree.backbone.stages[0], tree.backbone.stages[1][:2])
        ),
    )
    images, labels = images_and_labels()
    lesions = [delete_blocks(PLAIN, [5])]
    found = measure_lesions(classifier, params, state, lesions, images, labels)
    check(found, [expected(shallow, without(params), without(state), images, labels)])


def moved(tree, order):
    blocks = [block for stage in tree.backbone.stages for block in stage]
    blocks = iter([blocks[i] for i in order])
    stages = tuple(tuple(next(blocks) for _ in stage) for stage in tree.backbone.stages)
    return dataclasses.replace(tree, backbone=dataclasses.replace(tree.backbone, stages=stages))


def test_swapped_blocks_have_each_others_parameters_and_statistics():
    classifier, params, state = network("basic")
    images, labels = images_and_labels()
    lesions = [swap_blocks(BASIC, swaps) for swaps in ([(1, 2)], [(4, 5)], [(1, 2), (5, 4)])]
    found = measure_lesions(classifier, params, state, lesions, images, labels)
    orders = [[0, 2, 1, 3, 4, 5], [0, 1, 2, 3, 5, 4], [0, 2, 1, 3, 5, 4]]
    check(
        found,
        [
            expected(classifier, moved(params, order), moved(state, order), images, labels)
            for order in orders
        ],
    )
    assert len(set(found.loss)) == 3


def test_blocks_of_different_drop_rates_can_be_swapped():
    classifier, params, state = network("convnext")
    first, second = classifier.backbone.layout.blocks[:2]
    assert first.drop_path != second.drop_path
    assert swap_partners(classifier.backbone, 0) == (1,)
    images, labels = images_and_labels()
    lesions = [swap_blocks(classifier.backbone, [(0, 1)])]
    found = measure_lesions(classifier, params, state, lesions, images, labels)
    order = [1, 0, 2, 3]
    check(found, [expected(classifier, moved(params, order), moved(state, order), images, labels)])


def test_statistics_are_estimated_anew_for_each_lesion():
    """Against batch statistics: the population is one batch, and the test images are the same."""
    classifier, params, state = network("basic")
    images, labels = images_and_labels()
    lesions = [delete_blocks(BASIC, blocks) for blocks in ([], [1], [3, 4])]
    lesions.append(swap_blocks(BASIC, [(1, 2)]))
    found = measure_lesions(
        classifier, params, state, lesions, images, labels, population=images, batch_size=6
    )
    rows = []
    for gates, order in [
        (open_gates(6), range(6)),
        (closed(6, [1]), range(6)),
        (closed(6, [3, 4]), range(6)),
        (open_gates(6), [0, 2, 1, 3, 4, 5]),
    ]:
        logits, _ = apply_classifier(
            classifier, moved(params, order), state, images, Mode.BATCH_EVAL, gates=gates
        )
        metrics = accuracy_metrics(jax.device_get(logits), labels)
        rows.append((1 - metrics["accuracy"], metrics["loss"]))
    check(found, rows)
    running = measure_lesions(classifier, params, state, lesions, images, labels)
    assert np.abs(found.loss - running.loss).min() > 1e-3


def test_the_population_may_have_several_batches():
    classifier, params, state = network("mlp")
    images, labels = images_and_labels(8)
    lesions = [delete_blocks(classifier.backbone, [1])]
    measure = lambda population: (
        measure_lesions(
            classifier, params, state, lesions, images, labels, population=population, batch_size=4
        ).loss
    )
    once = measure(images)
    np.testing.assert_allclose(measure(np.concatenate([images, images])), once, rtol=1e-5)
    np.testing.assert_allclose(measure(np.concatenate([images, images[:3]])), once, rtol=1e-5)


def test_the_program_of_a_deleted_block_has_no_convolution():
    _, params, state = network("basic")
    block, x = BASIC.layout.blocks[1], jnp.ones((2, 8, 8, 4))
    own = params.backbone.stages[0][1], state.backbone.stages[0][1]
    text = lambda term: _block.lower(block, Mode.EVAL, *own, term, x).compile().as_text()
    assert " convolution(" in text("sum")
    assert " convolution(" not in text("skip")


def test_all_blocks_of_a_residual_network_can_be_deleted_and_of_a_plain_one_those_of_equal_shape():
    assert deletable_blocks(BASIC) == (0, 1, 2, 3, 4, 5)
    assert deletable_blocks(PLAIN) == (0, 1, 2, 4, 5)
    assert list(single_deletions(PLAIN)) == [0, 1, 2, 4, 5]
    assert single_deletions(PLAIN)[4] == (0, 1, 2, 3, None, 5)


def test_random_deletions_are_of_that_many_different_blocks():
    key = jax.random.key(4)
    lesions = random_deletions(key, PLAIN, 3, 200)
    assert {lesion.count(None) for lesion in lesions} == {3}
    counts = np.sum([[source is None for source in lesion] for lesion in lesions], axis=0)
    assert counts[3] == 0
    # Binomial(200, 3/5): 120 of 200 within five deviations.
    assert all(abs(count - 120) < 35 for i, count in enumerate(counts) if i != 3)
    assert lesions != random_deletions(jax.random.key(5), PLAIN, 3, 200)
    assert random_deletions(key, PLAIN, 0, 1) == [(0, 1, 2, 3, 4, 5)]


def test_random_swaps_keep_every_block_once_and_in_its_stage():
    for lesion in random_swaps(jax.random.key(0), BASIC, 3, 20):
        assert sorted(lesion) == [0, 1, 2, 3, 4, 5]
        assert lesion[3] == 3
        assert sorted(lesion[:3]) == [0, 1, 2]
    assert len(set(random_swaps(jax.random.key(0), BASIC, 1, 20))) == 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: delete_blocks(PLAIN, [0, 3]),
            r"block 3 \(stage 1 block 0: 4 to 8 channels, stride 2\) changes the shape and has no "
            r"shortcut, so that it cannot be deleted; these can: 0, 1, 2, 4, 5",
        ),
        (
            lambda: swap_blocks(BASIC, [(0, 3)]),
            r"block 0 \(stage 0 block 0: 4 to 4 channels, stride 1\) and block 3 \(stage 1 block "
            r"0: 4 to 8 channels, stride 2\) differ in shape or layers; block 0 can be swapped "
            r"with: 1, 2",
        ),
        (lambda: swap_blocks(BASIC, [(3, 0)]), "block 3 can be swapped with: none"),
        (
            lambda: delete_blocks(BASIC, [6]),
            "block 6 does not exist; the network has blocks 0 to 5",
        ),
        (lambda: delete_blocks(BASIC, [-1]), "block -1 does not exist"),
        (lambda: swap_blocks(BASIC, [(1, 6)]), "block 6 does not exist"),
        (
            lambda: random_deletions(jax.random.key(0), PLAIN, 6, 1),
            r"6 blocks cannot be deleted at random among the 5 that can be deleted \(0, 1, 2, 4, "
            r"5\); give a count from 0 to 5",
        ),
        (lambda: random_deletions(jax.random.key(0), PLAIN, -1, 1), "give a count from 0 to 5"),
        (
            lambda: random_swaps(
                jax.random.key(0), dataclasses.replace(BASIC, depths=(1, 1)), 1, 1
            ),
            "no two blocks of the network have the same layers and shapes",
        ),
        (
            lambda: measure_lesions(*network("basic"), [], *images_and_labels()),
            "expected one or more lesions of 6 places",
        ),
        (
            lambda: measure_lesions(*network("basic"), [(0, 1)], *images_and_labels()),
            r"of 6 places, one for each block; got 1 of \[2\] places",
        ),
    ],
)
def test_a_lesion_that_a_network_cannot_have_is_an_error(call, says):
    with pytest.raises(ValueError, match=says):
        call()
