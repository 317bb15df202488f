"""Splits of labeled images: stratified, nested, seeded, in random order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpnlab.data.split import Split, draw_split, split_dataset, stratified_order
from fpnlab.types import LabeledBatch

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=7)
labelings = sizes.map(lambda counts: np.repeat(np.arange(len(counts)), counts))
TEN = np.repeat(np.arange(10), 50)


def counts(labels):
    return np.bincount(labels, minlength=10)


@settings(max_examples=50, deadline=None)
@given(labelings, st.integers(0, 9))
def test_an_order_is_a_permutation(labels, seed):
    np.testing.assert_array_equal(np.sort(stratified_order(labels, seed)), np.arange(len(labels)))


@settings(max_examples=50, deadline=None)
@given(labelings, st.data())
def test_every_interval_of_an_order_is_stratified(labels, data):
    start = data.draw(st.integers(0, len(labels)))
    stop = data.draw(st.integers(start, len(labels)))
    found = counts(labels[stratified_order(labels, 0)[start:stop]])
    share = counts(labels) / len(labels)
    # Each class is rounded at both ends, and shifted there by how the others are rounded.
    slack = 1 + np.count_nonzero(share) * share
    assert np.all(np.abs(found - share * (stop - start)) <= slack + 1e-9)


def test_counts_of_equal_classes_differ_by_at_most_one_in_every_prefix():
    order = TEN[stratified_order(TEN, 3)]
    for stop in (1, 7, 10, 23, 100, 499):
        found = counts(order[:stop])
        assert found.max() - found.min() == (1 if stop % 10 else 0)


def test_the_order_within_a_class_is_random_and_depends_on_the_seed():
    first = lambda seed: [i for i in stratified_order(TEN, seed) if TEN[i] == 4]
    assert first(0) == first(0) != first(1)
    assert np.abs(np.corrcoef(first(0), np.arange(50))[0, 1]) < 0.5


def test_a_split_without_limits_uses_all_images():
    train, held = draw_split(Split(), TEN, TEN[::2])
    np.testing.assert_array_equal(np.sort(train), np.arange(500))
    np.testing.assert_array_equal(np.sort(held), np.arange(250))


def test_smaller_samples_are_stratified_subsets_of_larger_ones():
    draw = lambda n: draw_split(Split(train_images=n, test_images=n // 2), TEN, TEN)
    for n in (20, 100, 300):
        train, held = draw(n)
        assert counts(TEN[train]).tolist() == [n // 10] * 10
        assert counts(TEN[held]).tolist() == [n // 20] * 10
        larger = draw(400)
        assert set(train) < set(larger[0])
        assert set(held) < set(larger[1])


def test_validation_holds_out_a_share_of_every_class_and_trains_on_the_rest():
    train, held = draw_split(Split(validation=0.2), TEN, TEN)
    assert counts(TEN[held]).tolist() == [10] * 10
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(500))
    few, same = draw_split(Split(validation=0.2, train_images=30), TEN, TEN)
    assert counts(TEN[few]).tolist() == [3] * 10
    assert set(few) < set(train)
    np.testing.assert_array_equal(same, held)


def test_both_splits_are_in_random_order_if_files_are_sorted_by_class():
    for numbers in draw_split(Split(), TEN, TEN):
        shares = [counts(TEN[numbers[i : i + 10]]) for i in range(0, 500, 10)]
        # Neither one class a batch, nor one image of each.
        assert 2 < np.mean([np.count_nonzero(share) for share in shares]) < 9
    train, held = draw_split(Split(), TEN, TEN)
    assert np.any(train != held)
    assert np.any(train != draw_split(Split(seed=1), TEN, TEN)[0])


def test_a_split_data_set_keeps_the_original_numbers_of_its_images():
    whole = LabeledBatch(
        images=np.arange(500, dtype=np.uint8)[:, None, None, None]
        * np.ones((1, 1, 1, 3), np.uint8),
        labels=TEN.astype(np.int32),
        index=np.arange(500, dtype=np.int32),
    )
    data = split_dataset("x", tuple("abcdefghij"), Split(train_images=20), whole, whole, ())
    train, test = draw_split(Split(train_images=20), TEN, TEN)
    np.testing.assert_array_equal(data.train.index, train)
    np.testing.assert_array_equal(data.test.index, test)
    np.testing.assert_array_equal(data.train.labels, TEN[data.train.index])
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], data.train.index % 256)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (Split(train_images=501), "train_images = 501: there are only 500 images"),
        (Split(test_images=51), "test_images = 51: there are only 50 images"),
        (Split(validation=0.1, train_images=451), "train_images = 451: there are only 450"),
        (Split(validation=0.0001), "is 0 of 500 training images; training and validation need"),
        (Split(validation=0.9999), "is 500 of 500 training images; training and validation need"),
    ],
)
def test_a_split_with_too_few_images_is_an_error(split, says):
    with pytest.raises(ValueError, match=says):
        draw_split(split, TEN, TEN[::10])


@pytest.mark.parametrize(
    ("field", "value"),
    [("train_images", 0), ("test_images", -1), ("validation", 1.0), ("seed", -1)],
)
def test_a_split_rejects_numbers_out_of_bounds(field, value):
    with pytest.raises(ValueError, match=rf"Split: {field} is {value}; it must be"):
        Split(**{field: value})
