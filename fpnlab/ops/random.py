"""Random keys derived from names, so that adding a layer does not change the others."""

import functools
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.types import Key


def named_key(key: Key, *names: str | int) -> Key:
    """Returns the key of the path ``names``, independent of the order of other draws.

    A BN and an LN model of one seed get bit-identical convolutions this way, so that a comparison
    of norms compares the norms only.
    """
    for name in names:
        number = name if isinstance(name, int) else zlib.crc32(name.encode())
        key = jax.random.fold_in(key, number)
    return key


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_normal(key: Key, shape: tuple[int, ...], deviation: float) -> Float[Array, "..."]:
    """Returns normally distributed float32 numbers with mean 0.

    Outside of other programs it is compiled once for each shape and deviation: the initial
    parameters of a deep network of equal blocks, as one program, would take longer to compile than
    its training step.

    Args:
      key: Draws the numbers.
      shape: Their shape.
      deviation: Their standard deviation.
    """
    return jnp.float32(deviation) * jax.random.normal(key, shape, jnp.float32)
