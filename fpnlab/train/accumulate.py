"""The gradient of a batch whose images take one pass through the network, or several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logs = dict[str, Float[Array, ""]]
LossOf = Callable[[Any, Any, Any, Int[Array, ""] | None], tuple[Float[Array, ""], tuple[Logs, Any]]]
"""(params, state, images, number of the pass) to the loss, and with it logs and the new state."""


def gradient(
    loss_of: LossOf, params: Any, state: Any, batch: Any, passes: int
) -> tuple[Any, Logs, Any]:
    """Returns the gradient of the loss of a batch, its logs, and the state after its passes.

    The logs are means over ``count``, which is one of them and left out of the result: positive
    anchors, images. So loss and gradient are those of the whole batch, even where the passes count
    differently. The state goes from pass to pass.

    Args:
      loss_of: the loss of a pass; a batch that takes one pass gives it no number.
      params: what the gradient is of.
      state: running statistics.
      batch: arrays with a leading axis of images, which is split into neighbours.
      passes: how many there are; they divide the images.
    """
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def one(state, images, number):
        (_, (logs, state)), found = value_and_grad(params, state, images, number)
        means = found, {name: log for name, log in logs.items() if name != "count"}
        return state, means, logs["count"]

    if passes == 1:
        state, (found, logs), _ = one(state, batch, None)
        return found, logs, state

    def add(carry, given):
        state, total = carry
        state, means, count = one(state, *given)
        sums = jax.tree.map(lambda mean: jnp.maximum(count, 1) * mean, means)
        return (state, jax.tree.map(jnp.add, total, (sums, count))), None

    split = _by_pass(batch, passes)
    first = jax.tree.map(lambda leaf: leaf[0], split)
    _, *like = jax.eval_shape(one, state, first, jnp.zeros((), jnp.int32))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tuple(like))
    # A loop keeps memory to that of one pass. On CPUs convolutions in a loop are many times slower.
    unroll = passes if jax.default_backend() == "cpu" else 1
    (state, (sums, count)), _ = jax.lax.scan(
        add, (state, nothing), (split, jnp.arange(passes)), unroll=unroll
    )
    found, logs = jax.tree.map(lambda total: total / jnp.maximum(count, 1), sums)
    return found, logs, state


def split_passes(batch: Any, passes: int) -> list[Any]:
    """Returns the images of each pass of a batch, in their order."""
    split = _by_pass(batch, passes)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], split) for i in range(passes)]


def _by_pass(batch, passes):
    return jax.tree.map(lambda leaf: leaf.reshape(passes, -1, *leaf.shape[1:]), batch)
