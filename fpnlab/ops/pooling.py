"""Pooling of maps in NHWC."""

import functools

import jax.numpy as jnp
import numpy as np
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
      x: Maps.
      size: Height and width of the window, in pixels.
      stride: Step of the window, in pixels.
      padding: Rows and columns of minus infinity on each side.

    Raises:
      ValueError: The map does not have four axes, has no pixels, or is smaller than the window.
    """
    _check_maps("max_pool", x)
    if min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(
            f"max_pool: a map of {x.shape[1]}x{x.shape[2]} with padding {padding} is smaller than "
            f"the window of {size}x{size}; use a larger map or a smaller window"
        )
    spans = [(n + 2 * padding - size) // stride * stride + 1 for n in x.shape[1:3]]
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    slices = [
        padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    return functools.reduce(jnp.maximum, slices)


@compiler_sharded(lambda spec: spec)
def average_pool(x: Float[Array, "b h w c"], *, size: int = 2) -> Float[Array, "b _ _ c"]:
    """Returns the mean of each window of ``size * size`` pixels; windows do not overlap.

    Those at the lower and right edges have fewer pixels where ``size`` does not divide the map, as
    in the shortcuts of ResNet-D (arXiv:1812.01187, figure 2c; PyTorch's ``AvgPool2d`` with
    ``ceil_mode=True`` and ``count_include_pad=False``). It adds in float32 or wider.

    Args:
      x: Maps.
      size: Height, width and step of the window, in pixels.

    Raises:
      ValueError: The map does not have four axes, or has no pixels.
    """
    _check_maps("average_pool", x)
    pads = [-n % size for n in x.shape[1:3]]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    padded = jnp.pad(wide, ((0, 0), (0, pads[0]), (0, pads[1]), (0, 0)))
    slices = [padded[:, i::size, j::size] for i in range(size) for j in range(size)]
    rows, columns = (np.minimum(size, n - np.arange(0, n, size)) for n in x.shape[1:3])
    pixels = (rows[:, None] * columns)[:, :, None].astype(wide.dtype)
    return (functools.reduce(jnp.add, slices) / pixels).astype(x.dtype)


def global_average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Returns the mean of each channel over the map.

    Raises:
      ValueError: The map does not have four axes, or has no pixels.
    """
    _check_maps("global_average_pool", x)
    return x.mean(axis=(1, 2))


def _check_maps(name: str, x: Array) -> None:
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"{name}: x has shape {x.shape}; give maps [b, h, w, c] with pixels")
