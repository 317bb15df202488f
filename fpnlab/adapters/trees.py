"""Parameters and statistics as Flax users keep them: nested dictionaries of named arrays."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def to_names(tree: Any) -> dict[str, Any]:
    """Returns the arrays of parameters or statistics in nested dictionaries, by their names.

    Places in lists and levels of a pyramid are names, too (``"0"``, ``"3"``), so that masks by
    name, checkpoints and exporters find ``kernel``, ``scale`` and ``bias``. None is left out.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        inside = named
        *outer, last = _parts(path)
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = leaf
    return named


def from_names(like: T, named: Mapping[str, Any]) -> T:
    """Returns the tree of which ``named`` holds the arrays: the inverse of ``to_names``.

    Args:
      like: a tree of the same structure, of arrays or of ``jax.eval_shape``.
      named: nested dictionaries.

    Raises:
      KeyError: an array is missing, with its path.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, _ in paths:
        found: Any = named
        for part in _parts(path):
            if part not in found:
                raise KeyError(f"no array {'/'.join(_parts(path))}; there are: {', '.join(found)}")
            found = found[part]
        leaves.append(found)
    return jax.tree.unflatten(structure, leaves)


def from_flax_statistics(batch_stats: Any) -> Any:
    """Returns Flax's ``batch_stats`` as those of our batch norms, wherever they are in it.

    Takes a Linen collection, and ``nnx.to_pure_dict(nnx.state(module))`` of NNX, where statistics
    stand beside scale and bias.

    Flax keeps mean and (biased) variance. Ours also know the values in a statistics group, which
    is 0 until the next update, and the images seen, which is 1: the statistics count as collected.
    The parameters of both have the same names, ``scale`` and ``bias``. Flax's ``momentum`` is our
    ``decay`` at ``reference_batch`` equal to the batch.
    """
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    if {"mean", "var"} <= set(batch_stats):
        count = jnp.zeros((), jnp.float32)
        return {"count": count, "seen": count + 1, **batch_stats}
    return {name: from_flax_statistics(part) for name, part in batch_stats.items()}


def to_flax_statistics(batch_stats: Any) -> Any:
    """Returns the ``batch_stats`` of our batch norms as Flax's: without ``count`` and ``seen``."""
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    if {"mean", "var", "count", "seen"} <= set(batch_stats):
        return {name: x for name, x in batch_stats.items() if name not in ("count", "seen")}
    return {name: to_flax_statistics(part) for name, part in batch_stats.items()}


def _parts(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")
