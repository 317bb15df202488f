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
    """Returns the mean of each cell of ``size x size`` pixels.

    The cells at the lower and right edges have fewer pixels where ``size`` does not divide the map
    (PyTorch's ``AvgPool2d`` with ``ceil_mode=True`` and ``count_include_pad=False``).

    Args:
      x: Maps.
      size: Height and width of the cells, and their step, in pixels.

    Raises:
      ValueError: The map does not have four axes, or has no pixels.
    """
    _check_maps("average_pool", x)
    height, width = x.shape[1:3]
    rows, columns = -(-height // size), -(-width // size)
    pads = ((0, 0), (0, rows * size - height), (0, columns * size - width), (0, 0))
    cells = jnp.pad(x, pads).reshape(len(x), rows, size, columns, size, x.shape[-1])
    inside = [
        jnp.minimum(size, n - size * jnp.arange(k)) for n, k in ((height, rows), (width, columns))
    ]
    return cells.sum(axis=(2, 4)) / (inside[0][:, None, None] * inside[1][:, None]).astype(x.dtype)


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
