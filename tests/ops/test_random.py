"""Named keys: the same in every process, and different for every path."""

import itertools

import jax
import numpy as np
import pytest

from fpnlab.ops.random import named_key


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.parametrize(
    ("names", "numbers"),
    # The CRC-32 of the names, written out: Python's hash of a text differs from process to process.
    [
        (("stem",), [549425893]),
        (("backbone", "drop", 1, 0), [2930598973, 1880425762, 1, 0]),
        ((), []),
    ],
)
def test_named_keys_are_the_same_in_every_process(names, numbers, key):
    expected = key
    for number in numbers:
        expected = jax.random.fold_in(expected, number)
    assert data(named_key(key, *names)) == data(expected)


def test_named_keys_differ_for_different_paths(key):
    parts = ("stem", "stage", 0, 1)
    paths = [p for n in range(4) for p in itertools.product(parts, repeat=n)]
    assert len({data(named_key(key, *path)) for path in paths}) == len(paths)


def test_named_keys_can_be_derived_in_steps(key):
    assert data(named_key(named_key(key, "stage", 1), 0)) == data(named_key(key, "stage", 1, 0))
