"""Gradient accumulation: the gradient of a batch, computed at once or in microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logs = dict[str, Float[Array, ""]]
LossOf = Callable[[Any, Any, Any, Int[Array, ""] | None], tuple[Float[Array, ""], tuple[Logs, Any]]]
"""(params, state, images, number of the microbatch) to the loss, and with it logs and new state."""


def gradient(
    loss_of: LossOf, params: Any, state: Any, batch: Any, microbatches: int
) -> tuple[Any, Logs, Any]:
    """Returns the gradient of the loss of a batch, its logs, and the state after it.

    The logs are means over ``count``, which is one of them and left out of the result: positive
    anchors, images. Gradients and logs of microbatches are weighted by it, so that loss and
    gradient are those of the whole batch. The state goes from one microbatch to the next.

    Args:
      loss_of: The loss of a microbatch; a single one has no number.
      params: The gradient is taken with respect to these.
      state: Running statistics.
      batch: Arrays with a leading axis of images; a microbatch has contiguous ones.
      microbatches: Their number, which divides that of the images.
    """
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def one(state: Any, images: Any, number: Int[Array, ""] | None) -> tuple[Any, Any, Any]:
        (_, (logs, state)), found = value_and_grad(params, state, images, number)
        means = found, {name: log for name, log in logs.items() if name != "count"}
        return state, means, logs["count"]

    if microbatches == 1:
        state, (found, logs), _ = one(state, batch, None)
        return found, logs, state

    def add(carry: Any, given: Any) -> tuple[Any, None]:
        state, total = carry
        state, means, count = one(state, *given)
        sums = jax.tree.map(lambda mean: jnp.maximum(count, 1) * mean, means)
        return (state, jax.tree.map(jnp.add, total, (sums, count))), None

    split = _split(batch, microbatches)
    first = jax.tree.map(lambda leaf: leaf[0], split)
    _, *like = jax.eval_shape(one, state, first, jnp.zeros((), jnp.int32))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tuple(like))
    # A loop keeps memory to that of one microbatch. On CPUs convolutions in a loop are many times
    # slower.
    unroll = microbatches if jax.default_backend() == "cpu" else 1
    (state, (sums, count)), _ = jax.lax.scan(
        add, (state, nothing), (split, jnp.arange(microbatches)), unroll=unroll
    )
    found, logs = jax.tree.map(lambda total: total / jnp.maximum(count, 1), sums)
    return found, logs, state


def split_microbatches(batch: Any, microbatches: int) -> list[Any]:
    """Returns the microbatches of a batch, in their order."""
    split = _split(batch, microbatches)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], split) for i in range(microbatches)]


def _split(batch: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)
