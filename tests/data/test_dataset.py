import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpnlab.data.dataset import Problem, raise_errors, stream_order, take
from fpnlab.types import Batch, LabeledBatch


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_shows_every_image_once(seed, size, epoch):
    order = stream_order(seed, size, epoch * size, size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 50), st.integers(1, 30), st.integers(1, 6))
def test_the_order_does_not_depend_on_the_batch_size(size, start, batch_size, batches):
    count = batch_size * batches
    whole = stream_order(7, size, start, count)
    pieces = [stream_order(7, size, start + at, batch_size) for at in range(0, count, batch_size)]
    chex.assert_shape(whole, (count,))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_epochs_and_seeds_have_different_orders():
    orders = [
        stream_order(0, 50, 0, 50),
        stream_order(0, 50, 50, 50),
        stream_order(1, 50, 0, 50),
    ]
    assert len({tuple(order) for order in orders}) == 3


def test_a_stream_of_no_positions_is_empty():
    chex.assert_shape([stream_order(0, 5, start, 0) for start in (0, 3, 5)], (0,))


@pytest.mark.parametrize("arguments", [(0, 0, 0, 1), (-1, 5, 0, 1), (0, 5, -1, 1), (0, 5, 0, -1)])
def test_stream_order_rejects_an_empty_split_and_negative_positions(arguments):
    with pytest.raises(ValueError, match="size must be at least 1, the others at least 0"):
        stream_order(*arguments)


def test_take_gathers_every_field_on_the_host_and_under_jit():
    numbers = np.arange(6)
    split = Batch(
        images=np.tile(numbers[:, None, None, None], (1, 2, 2, 3)).astype(np.uint8),
        boxes=np.tile(numbers[:, None, None], (1, 3, 4)).astype(np.float32),
        classes=np.tile(numbers[:, None], (1, 3)).astype(np.int32),
        valid=np.tile(numbers[:, None] % 2 == 0, (1, 3)),
        extent=np.tile(numbers[:, None], (1, 2)).astype(np.float32),
        index=numbers.astype(np.int32),
    )
    indices = np.array([4, 1, 4])
    taken = take(split, indices)
    np.testing.assert_array_equal(taken.index, indices)
    np.testing.assert_array_equal(taken.boxes[:, 0, 0], indices)
    np.testing.assert_array_equal(taken.valid[:, 2], [True, False, True])
    assert isinstance(taken.images, np.ndarray)
    chex.assert_trees_all_equal(jax.jit(take)(split, indices), taken)


@pytest.mark.parametrize("labels", [np.arange(6), np.eye(6, dtype=np.float32)])
def test_take_gathers_labeled_images(labels):
    numbers = np.arange(6, dtype=np.int32)
    split = LabeledBatch(
        images=np.tile(numbers[:, None, None, None], (1, 2, 2, 3)).astype(np.uint8),
        labels=labels,
        index=numbers,
    )
    taken = take(split, np.array([4, 1, 4]))
    np.testing.assert_array_equal(taken.images[:, 0, 0, 0], [4, 1, 4])
    np.testing.assert_array_equal(taken.labels, labels[[4, 1, 4]])
    np.testing.assert_array_equal(taken.index, [4, 1, 4])


def test_all_errors_are_raised_as_one_and_ten_of_them_are_shown():
    raise_errors("data", [])
    absent = [FileNotFoundError(f"{i}.png: absent") for i in range(12)]
    with pytest.raises(FileNotFoundError) as caught:
        raise_errors("data", absent)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data: 12 errors"
    assert lines[1:] == [*(f"  {i}.png: absent" for i in range(10)), "  ... and 2 more"]
    with pytest.raises(ValueError, match=r"^data: 2 errors\n  0.png: absent\n  is empty$"):
        raise_errors("data", [absent[0], ValueError("is empty")])
    with pytest.raises(ValueError, match=r"^data: 1 error\n  is empty$"):
        raise_errors("data", [ValueError("is empty")])


def test_the_text_of_a_problem_is_one_line():
    problem = Problem(file="a.xml", where="object 3", what="box has no area: left out")
    assert str(problem) == "a.xml, object 3: box has no area: left out"
