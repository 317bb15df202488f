"""Depthwise convolution and its gradients as sums of products, fast on CPUs.

XLA makes one loop of such a sum, an order of magnitude faster than its grouped convolution. Sums
are float32 or wider.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.ops.convolution_cpu import Window, apart, dilated

MOST_COLUMNS = 16
"""Most columns of a map whose products with a window are one expression."""


def depthwise(
    x: Float[Array, "b h w c"], w: Float[Array, "kh kw 1 c"], window: Window
) -> Float[Array, "b p q c"]:
    """Returns the convolution of each channel with a kernel of its own."""
    pads = ((window.padding, window.padding),) * 2
    return _shifted(x, w[:, :, 0], pads=pads, stride=window.stride).astype(x.dtype)


def depthwise_input_gradient(
    dy: Float[Array, "b p q c"], w: Float[Array, "kh kw 1 c"], window: Window
) -> Float[Array, "b h w c"]:
    """Returns the gradient of ``depthwise`` by the maps: the full convolution with the kernel."""
    pads = tuple((k - 1 - window.padding,) * 2 for k in w.shape[:2])
    dy, kernel = dilated(dy, window), w[::-1, ::-1, 0]
    return _shifted(dy, kernel, pads=pads, stride=1).astype(dy.dtype)


def depthwise_kernel_gradient(
    x: Float[Array, "b h w c"], dy: Float[Array, "b p q c"], window: Window
) -> Float[Array, "kh kw 1 c"]:
    """Returns the gradient of ``depthwise`` by the kernel."""
    return _products(x, dy, window=window)[:, :, None].astype(x.dtype)


class _Axis(NamedTuple):
    """An axis of a padded map, without the taps of the window that meet padding alone."""

    first: int  # tap
    taps: int
    after: int  # taps without a value behind the last one
    pads: tuple[int, int]
    count: int  # positions of the window


def _axis(n: int, k: int, pads: tuple[int, int], stride: int) -> _Axis:
    """Returns the axis of a map of ``n`` pixels with zeros before and behind, for ``k`` taps."""
    low, high = pads
    count = (low + n + high - k) // stride + 1
    first = min(max(0, low - (count - 1) * stride), k - 1)
    last = max(min(k, low + n), first + 1)
    return _Axis(first, last - first, k - last, (low - first, high - (k - last)), count)


def _sum_of_shifts(x: Array, w: Array, *, pads: tuple[tuple[int, int], ...], stride: int) -> Array:
    """Returns the sum over all taps of the kernel [kh, kw, c] of the shifted maps times the tap.

    Args:
      x: Maps.
      w: Kernel.
      pads: Zeros before and behind the maps, for each axis.
      stride: Step of the window.
    """
    rows, columns = (_axis(n, k, p, stride) for n, k, p in zip(x.shape[1:3], w.shape, pads))
    x = _padded(_wide(x), pads=(rows.pads, columns.pads))
    w, products = _wide(w), []
    for i in range(rows.taps):
        across = x[:, i : i + (rows.count - 1) * stride + 1 : stride]
        for j in range(columns.taps):
            shifted = across[:, :, j : j + (columns.count - 1) * stride + 1 : stride]
            products.append(shifted * w[rows.first + i, columns.first + j])
    return functools.reduce(jnp.add, products)


def _sum_of_products(x: Array, dy: Array, *, window: Window) -> Array:
    """Returns for each tap [kh, kw, c] the sum of the products of shifted maps and ``dy``.

    For each row of the window, each column of ``dy`` is multiplied with as many columns of the map
    as the window has, and the products are added. A separate sum for each tap would read the maps
    once for each: 49 times for 7x7, where this reads them 7 times.
    """
    stride, padding = window.stride, (window.padding,) * 2
    rows, columns = (_axis(n, k, padding, stride) for n, k in zip(x.shape[1:3], window.kernel))
    x = _padded(_wide(x), pads=(rows.pads, columns.pads))
    x, dy = _narrow_maps(x, _wide(dy), columns.taps, stride)
    found = []
    for i in range(rows.taps):
        across = x[:, i : i + (rows.count - 1) * stride + 1 : stride]
        products = [
            across[:, :, j * stride : j * stride + columns.taps] * dy[:, :, j : j + 1]
            for j in range(dy.shape[2])
        ]
        found.append(functools.reduce(jnp.add, products).sum((0, 1)))
    zeros = [(axis.first, axis.after) for axis in (rows, columns)]
    return jnp.pad(jnp.stack(found), (*zeros, (0, 0)))


def _narrow_maps(x: Array, dy: Array, taps: int, stride: int) -> tuple[Array, Array]:
    """Returns the padded maps and ``dy`` cut into maps of few columns, in place of more images."""
    parts = -(-dy.shape[2] // MOST_COLUMNS)
    width = -(-dy.shape[2] // parts)
    reach = (width - 1) * stride + taps
    spare = (parts - 1) * width * stride + reach - x.shape[2]
    x = _pad(x, pads=((0, 0), (0, spare)))
    dy = _pad(dy, pads=((0, 0), (0, parts * width - dy.shape[2])))
    starts = range(0, parts * width, width)
    cut = [x[:, :, i * stride : i * stride + reach] for i in starts]
    return jnp.concatenate(cut), jnp.concatenate([dy[:, :, i : i + width] for i in starts])


def _pad(x: Array, *, pads: tuple[tuple[int, int], ...]) -> Array:
    config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


_padded = apart(_pad, "pads")
_shifted = apart(_sum_of_shifts, "pads", "stride")
_products = apart(_sum_of_products, "window")
