"""Color jitter: random changes of brightness, contrast and saturation."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fpnlab.ops.random import named_key
from fpnlab.types import Key

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the gray of an image (ITU-R BT.601)."""


def jitter(
    key: Key,
    image: Float[Array, "h w 3"],
    *,
    brightness: float,
    contrast: float,
    saturation: float = 0.0,
    mask: Bool[Array | np.ndarray, "h w"] | None = None,
) -> Float[Array, "h w 3"]:
    """Returns ``image`` with its saturation, contrast and brightness changed, in this order.

    Each is multiplied by a factor, uniform from 1 minus to 1 plus its limit: the differences to
    each pixel's gray, the differences to the picture's mean, and all values. The result is clipped
    to 0 to 255 at the end; a limit of 0 changes nothing.

    Args:
      key: Key of the factors.
      image: Pixels, 0 to 255.
      brightness: Limit of the change of brightness.
      contrast: Limit of the change of contrast.
      saturation: Limit of the change of saturation.
      mask: Pixels that enter the mean; None: all of them.
    """
    factor = lambda name, limit: (
        1 + limit * jax.random.uniform(named_key(key, name), minval=-1.0, maxval=1.0)
    )
    if saturation:
        gray = image @ jnp.array(LUMA)
        image = gray[:, :, None] + (image - gray[:, :, None]) * factor("saturation", saturation)
    if contrast or brightness:
        kept = factor("contrast", contrast)
        mean = jnp.mean(image, where=None if mask is None else mask[:, :, None])
        image = (image * kept + mean * (1 - kept)) * factor("brightness", brightness)
    return jnp.clip(image, 0, 255)
