"""Standardization of pixel values."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from fpnlab.types import PixelValue


def standardize_pixels(
    images: Num[Array, "b h w 3"], mean: PixelValue, deviation: PixelValue
) -> Float[Array, "b h w 3"]:
    """Returns ``(images - mean) / deviation``, in float32 for integer images.

    Args:
      images: Pixels from 0 to 255. Floats keep their dtype, in which the network then computes.
      mean: Subtracted first, from all channels or from each its own.
      deviation: Divisor after the subtraction, likewise.

    Raises:
      TypeError: Images of booleans or complex numbers.
    """
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images are {images.dtype}; give pixels from 0 to 255, as integers or floats"
        )
    return (images - _per_channel(mean, images)) / _per_channel(deviation, images)


def _per_channel(value: PixelValue, images: Array) -> float | Float[Array, "3"]:
    return jnp.asarray(value, images.dtype) if isinstance(value, tuple) else value
