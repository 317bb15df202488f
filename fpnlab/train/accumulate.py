"""Gradient accumulation: the gradient of a batch, computed at once or in microbatches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

Logs = dict[str, Float[Array, ""]]
LossOf = Callable[
    [PyTree, PyTree, PyTree, Int[Array, ""] | None],
    tuple[Float[Array, ""], tuple[Logs, PyTree]],
]
"""Function from (params, state, microbatch, microbatch number) to (loss, (logs, new state))."""


def gradient(
    loss_of: LossOf, params: PyTree, state: PyTree, batch: PyTree, microbatches: int
) -> tuple[PyTree, Logs, PyTree]:
    """Returns the gradient of the loss of a batch, its logs, and the new state.

    The logs are means over the items counted by the log ``count`` (positive anchors, images),
    which is left out of the result. Gradients and logs of microbatches are weighted by it, so that
    loss and gradient equal those of the whole batch. The state is carried from one microbatch to
    the next.

    Args:
      loss_of: The loss of a microbatch; its number is None if the batch is not split.
      params: Parameters to differentiate with respect to.
      state: Running statistics.
      batch: Arrays with a leading axis of images; a microbatch has contiguous ones.
      microbatches: Number of microbatches; must divide the number of images.
    """
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def one(
        state: PyTree, images: PyTree, number: Int[Array, ""] | None
    ) -> tuple[PyTree, tuple[PyTree, Logs], Float[Array, ""]]:
        (_, (logs, state)), found = value_and_grad(params, state, images, number)
        means = found, {name: log for name, log in logs.items() if name != "count"}
        return state, means, logs["count"]

    if microbatches == 1:
        state, (found, logs), _ = one(state, batch, None)
        return found, logs, state

    def add(carry: PyTree, given: PyTree) -> tuple[PyTree, None]:
        state, total = carry
        state, means, count = one(state, *given)
        # A loss is a sum divided by max(count, 1): this recovers the sum, also for a count of 0.
        sums = jax.tree.map(lambda mean: jnp.maximum(count, 1) * mean, means)
        return (state, jax.tree.map(jnp.add, total, (sums, count))), None

    split = _split(batch, microbatches)
    first = jax.tree.map(lambda leaf: leaf[0], split)
    _, *like = jax.eval_shape(one, state, first, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tuple(like))
    # A loop needs the memory of a single microbatch. On CPU it is unrolled, because XLA:CPU runs
    # convolutions inside a loop many times slower.
    unroll = microbatches if jax.default_backend() == "cpu" else 1
    (state, (sums, count)), _ = jax.lax.scan(
        add, (state, zeros), (split, jnp.arange(microbatches)), unroll=unroll
    )
    found, logs = jax.tree.map(lambda total: total / jnp.maximum(count, 1), sums)
    return found, logs, state


def split_microbatches(batch: PyTree, microbatches: int) -> list[PyTree]:
    """Returns the microbatches of a batch, in order."""
    split = _split(batch, microbatches)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], split) for i in range(microbatches)]


def _split(batch: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)
