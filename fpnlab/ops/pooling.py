"""Pooling of maps in NHWC."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.ops.sharding import compiler_sharded


@compiler_sharded(lambda spec: spec)
def max_pool(
    x: Float[Array, "b h w c"], *, size: int = 3, stride: int = 2, padding: int = 1
) -> Float[Array, "b _ _ c"]:
    """Returns the largest value in each window.

    It is written as the maximum of ``size * size`` strided slices: on a CPU about four times
    as fast as ``reduce_window`` with its select-and-scatter gradient, and free of scatters,
    hence reproducible on GPUs.

    Where several values of a window are largest, the gradient is shared among them (each
    pairwise maximum halves it; the shares sum to one). PyTorch gives all of it to the first.
    Behind a ReLU there is no difference: ties are zeros, whose gradient is zero.

    Args:
      x: maps.
      size: height and width of the window, in pixels.
      stride: step of the window, in pixels.
      padding: rows and columns of minus infinity on each side.
    """
    spans = [(n + 2 * padding - size) // stride * stride + 1 for n in x.shape[1:3]]
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    slices = [
        padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    return functools.reduce(jnp.maximum, slices)


def global_average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Returns the mean of each channel over the map."""
    return x.mean(axis=(1, 2))
