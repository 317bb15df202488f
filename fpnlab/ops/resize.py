"""Resampling of maps and images. Pixel ``j`` covers the coordinates ``j`` to ``j + 1``."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from fpnlab.ops.sharding import compiler_sharded


@compiler_sharded(lambda spec: spec)
def upsample_nearest(x: Num[Array, "*b h w c"], factor: int = 2) -> Num[Array, "*b y x c"]:
    """Returns maps ``factor`` times as high and wide, with repeated values.

    The top-down step of "Feature Pyramid Networks", Lin et al. 2017, arXiv:1612.03144,
    figure 3. Repeating, not a transposed convolution: no weights and no checkerboard.
    """
    if x.ndim < 3:
        raise ValueError(f"upsample_nearest: x has shape {x.shape}; give maps [..., h, w, c]")
    *b, h, w, c = x.shape
    repeated = jnp.broadcast_to(x[..., :, None, :, None, :], (*b, h, factor, w, factor, c))
    return repeated.reshape(*b, h * factor, w * factor, c)


def sample_linear(
    x: Num[Array | np.ndarray, "..."], positions: Float[Array, " n"], axis: int
) -> Float[Array, "..."]:
    """Returns ``x`` at ``positions`` along ``axis``, interpolated linearly, in float32.

    Positions beyond the outermost pixel centers get the outermost value. There is no low-pass
    filter: when shrinking below half the size, fine texture aliases. Two calls, one per axis,
    resample an image bilinearly; gathering two neighbors was 7 times as fast on CPU as
    multiplying with a dense interpolation matrix (8 images of 240 x 320: 1.7 and 12 ms).

    Args:
      x: Any array.
      positions: Coordinates in pixels of ``x``; the center of the first pixel is 0.5.
      axis: Axis of the coordinates.

    Raises:
      ValueError: ``x`` has no value along ``axis``.
    """
    size = x.shape[axis]
    if size == 0:
        raise ValueError(f"sample_linear: x has shape {x.shape}: no value along axis {axis}")
    inside = jnp.clip(positions - 0.5, 0, size - 1)
    low = jnp.floor(inside).astype(jnp.int32)
    high = jnp.minimum(low + 1, size - 1)
    share = jnp.expand_dims(inside - low, range(1, x.ndim - axis % x.ndim))
    below = jnp.take(x, low, axis).astype(jnp.float32)
    above = jnp.take(x, high, axis).astype(jnp.float32)
    return below * (1 - share) + above * share
