"""Stochastic depth of residual branches, and gates of their gradients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.types import Key


def drop_path(
    key: Key, branch: Float[Array, "b *space c"], *, rate: float
) -> Float[Array, "b *space c"]:
    """Returns the branch's output, zero for a random share ``rate`` of the images.

    See "Deep Networks with Stochastic Depth", Huang et al., arXiv:1603.09382. Kept outputs are
    divided by ``1 - rate``, so that the expectation is unchanged and evaluation needs no factor.

    Raises:
      ValueError: ``rate`` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path: rate is {rate}; it must be at least 0 and below 1")
    kept = jax.random.bernoulli(key, 1 - rate, branch.shape[:1])
    kept = kept.reshape(-1, *(1,) * (branch.ndim - 1))
    return jnp.where(kept, branch / (1 - rate), 0).astype(branch.dtype)


def gate_gradient(x: Float[Array, "*shape"], factor: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Returns ``x``, with its gradient multiplied by ``factor``.

    With factors of 0 and 1 a gradient flows through chosen paths of a network alone while its
    output stays the same (arXiv:1605.06431, section 4.3).
    """
    return jax.lax.stop_gradient(x) + factor * (x - jax.lax.stop_gradient(x))
