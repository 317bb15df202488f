"""Residual blocks: masks of the statistics, and the norm of each convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.block import Block, apply_block, init_block
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.types import Mode

NORM = BatchNorm(decay=0.0)


def make(key, kind, stride, **fields):
    block = Block(
        **{
            "kind": kind,
            "inputs": 3,
            "width": 2,
            "stride": stride,
            "norm": NORM,
            "last_norm": NORM,
            "shortcut_norm": NORM,
        }
        | fields
    )
    return block, *init_block(key, block)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (2, 6, 4, 3))


@pytest.fixture
def mask():
    """A mask whose downsampled counts differ from a quarter of its count."""
    mask = np.random.default_rng(0).random((2, 6, 4)) < 0.6
    assert mask.sum() != 4 * mask[:, ::2, ::2].sum()
    return mask


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_each_norm_of_a_block_counts_the_mask_of_its_own_map(kind, stride, x, mask, key):
    block, params, state = make(key, kind, stride)
    _, new = apply_block(block, params, state, x, Mode.TRAIN, mask=jnp.asarray(mask))
    whole, halved = mask.sum(), mask[:, ::stride, ::stride].sum()
    expected = [halved, halved] if kind == "basic" else [whole, halved, halved]
    assert [norm.count for norm in new.branch] == expected
    assert new.shortcut.count == halved


def test_the_first_norm_of_a_bottleneck_depends_on_valid_pixels_only(x, mask, key):
    block, params, state = make(key, "bottleneck", 2)

    def first_variance(x):
        return apply_block(block, params, state, x, Mode.TRAIN, mask=jnp.asarray(mask))[1].branch[0]

    depends = jnp.abs(jax.grad(lambda x: first_variance(x).var.sum())(x)).sum(-1) > 0
    np.testing.assert_array_equal(depends, mask)


def test_the_norm_of_a_shortcut_depends_on_the_first_valid_pixel_of_each_cell(x, mask, key):
    block, params, state = make(key, "basic", 2)

    def variance(x):
        return apply_block(block, params, state, x, Mode.TRAIN, mask=jnp.asarray(mask))[1].shortcut

    depends = jnp.abs(jax.grad(lambda x: variance(x).var.sum())(x)).sum(-1) > 0
    expected = np.zeros_like(mask)
    expected[:, ::2, ::2] = mask[:, ::2, ::2]
    np.testing.assert_array_equal(depends, expected)
