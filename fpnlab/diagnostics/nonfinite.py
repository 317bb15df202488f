"""Debugging of NaN: the first layer of a training step whose values are not finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.types import Intermediates


def first_not_finite(
    loss_of: Callable[[Any], tuple[Float[Array, ""], Intermediates]],
    params: Any,
    inputs: Any = None,
) -> str | None:
    """Returns the first NaN or infinite value of a loss and its gradient; None if all are finite.

    What is not finite spreads, so that only the first says why. Searched in this order: the inputs,
    the parameters, the layers' outputs from the first to the last, the loss, and the gradient from
    the last layer to the first.

    Args:
      loss_of: Parameters to the loss, and with it the outputs of the layers.
      params: Parameters, in the order of the layers.
      inputs: Further arrays that are known before; a tree.
    """
    for kind, tree in (("input", inputs), ("parameter", params)):
        if found := _not_finite(tree):
            return f"{found[0]} ({kind})"

    def flagged(params: Any) -> tuple[Array, tuple[Array, Any]]:
        loss, outputs = loss_of(params)
        # Of the same type: unlike a dict, jit returns an OrderedDict in its own order.
        finite = type(outputs)((name, jnp.isfinite(x).all()) for name, x in outputs.items())
        return loss, (loss, finite)

    gradient, (loss, finite) = jax.jit(jax.grad(flagged, has_aux=True))(params)
    for name, of_layer in finite.items():
        if not of_layer:
            return f"{name} (output)"
    if not jnp.isfinite(loss):
        return "loss"
    found = _not_finite(gradient)
    return f"{found[-1]} (gradient)" if found else None


def _not_finite(tree: Any) -> list[str]:
    """Returns the paths of the leaves that are not finite, in their order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in paths
        if not jnp.isfinite(leaf).all()
    ]
