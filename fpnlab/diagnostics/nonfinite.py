"""Debugging of NaN: the first layer of a training step whose values are not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fpnlab.types import Intermediates


def first_not_finite(
    loss_of: Callable[[PyTree], tuple[Float[Array, ""], Intermediates]],
    params: PyTree,
    inputs: PyTree = None,
) -> str | None:
    """Returns the place of the first NaN or infinite value of a training step, if any.

    NaN spreads to all later values, so that only the first place shows the cause. The order of the
    search is: the inputs, the parameters, the layers' outputs from the first to the last, the loss,
    and the gradient from the last layer to the first.

    Args:
      loss_of: Function of the parameters to the loss and the outputs of the layers.
      params: Parameters, in the order of the layers.
      inputs: Tree of other arrays that are given before the step, such as images.

    Returns:
      The name of a leaf or layer with its kind, such as ``"head/bias (parameter)"``, or "loss";
      None if all values are finite.
    """
    for kind, tree in (("input", inputs), ("parameter", params)):
        if found := _not_finite(tree):
            return f"{found[0]} ({kind})"

    def flagged(params: PyTree) -> tuple[Array, tuple[Array, Intermediates]]:
        """Returns the loss and, for each layer, whether its output is finite."""
        loss, outputs = loss_of(params)
        # An OrderedDict, too, because jit sorts the names of a dict.
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


def _not_finite(tree: PyTree) -> list[str]:
    """Returns the paths of the leaves that are not finite, in their order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in paths
        if not jnp.isfinite(leaf).all()
    ]
