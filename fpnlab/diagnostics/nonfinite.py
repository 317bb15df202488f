"""Where in a step the numbers went wrong: the first layer with a value that is not finite."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fpnlab.types import Watch


def first_not_finite(
    loss_of: Callable[[Any, Watch], Array], params: Any, inputs: Any = None
) -> str | None:
    """Returns what in a loss and its gradient is NaN or infinite first; None if all is finite.

    What is wrong spreads, so that only the first says why. Looked through in turn: the inputs,
    the parameters, the layers' outputs from the first to the last, the loss, and the gradient from
    the last layer to the first.

    Args:
      loss_of: (parameters, watch) to the loss; calls ``watch`` as ``apply_detector`` does.
      params: the parameters, in the order of the layers.
      inputs: what else is known before; a tree.
    """
    for kind, tree in (("input", inputs), ("parameter", params)):
        if found := _not_finite(tree):
            return f"{found[0]} ({kind})"

    def watched(params):
        flags = collections.OrderedDict()  # Unlike a dict, jit returns it in its own order.

        def watch(name, x):
            flags[name] = jnp.isfinite(x).all()

        loss = loss_of(params, watch)
        return loss, (loss, flags)

    gradient, (loss, flags) = jax.jit(jax.grad(watched, has_aux=True))(params)
    for name, finite in flags.items():
        if not finite:
            return f"{name} (output)"
    if not jnp.isfinite(loss):
        return "loss"
    found = _not_finite(gradient)
    return f"{found[-1]} (gradient)" if found else None


def _not_finite(tree):
    """Returns the paths of the leaves that are not finite, in their order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in paths
        if not jnp.isfinite(leaf).all()
    ]
