"""Fixtures for tests of training steps."""

import jax
import jax.numpy as jnp
import pytest

from fpnlab.types import Batch


@pytest.fixture(scope="module")
def batch():
    """Images with two boxes, one, two, and none."""
    key = jax.random.key(5)
    boxes = jnp.array([[4.0, 4, 14, 14], [16, 12, 30, 28]])
    return Batch(
        images=(255 * jax.random.uniform(key, (4, 32, 32, 3))).astype(jnp.uint8),
        boxes=jnp.tile(boxes, (4, 1, 1)),
        classes=jnp.array([[0, 1], [1, 2], [2, 0], [1, 0]], jnp.int32),
        valid=jnp.array([[True, True], [True, False], [True, True], [False, False]]),
        extent=jnp.full((4, 2), 32.0),
        index=jnp.arange(4, dtype=jnp.int32),
    )
