"""Stochastic depth of residual branches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.types import Key


def drop_path(key: Key, branch: Float[Array, "b h w c"], *, rate: float) -> Float[Array, "b h w c"]:
    """Returns the branch's output, zero for a random share ``rate`` of the images.

    See "Deep Networks with Stochastic Depth", Huang et al., arXiv:1603.09382. Kept outputs are
    divided by ``1 - rate``, so that the expectation is unchanged and evaluation needs no factor.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path: rate is {rate}; it must be at least 0 and below 1")
    kept = jax.random.bernoulli(key, 1 - rate, branch.shape[:1])
    return jnp.where(kept[:, None, None, None], branch / (1 - rate), 0).astype(branch.dtype)
