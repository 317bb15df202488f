"""Conversion of parameters and statistics to and from Flax's nested dictionaries."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

T = TypeVar("T")


def to_names(tree: PyTree) -> dict[str, PyTree]:
    """Returns the arrays of parameters or statistics in nested dictionaries, by their names.

    List indices and pyramid levels become names, too (``"0"``, ``"3"``), so that masks by name,
    checkpoints and exporters find ``kernel``, ``scale`` and ``bias``. None is omitted.
    """
    named: dict[str, PyTree] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        inside = named
        *outer, last = _parts(path)
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = leaf
    return named


def from_names(like: T, named: Mapping[str, PyTree]) -> T:
    """Returns a tree with the arrays in ``named``: the inverse of ``to_names``.

    Args:
      like: A tree of the same structure: arrays, or from ``jax.eval_shape``.
      named: Nested dictionaries.

    Raises:
      KeyError: An array is missing; the message has its path.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, _ in paths:
        found: PyTree = named
        for part in _parts(path):
            if part not in found:
                raise KeyError(f"no array {'/'.join(_parts(path))}; there are: {', '.join(found)}")
            found = found[part]
        leaves.append(found)
    return jax.tree.unflatten(structure, leaves)


def from_flax_statistics(batch_stats: PyTree) -> PyTree:
    """Returns Flax's ``batch_stats`` with every batch norm in it converted to ours.

    Accepts a Linen collection, and ``nnx.to_pure_dict(nnx.state(module))`` of NNX, which has
    statistics beside scale and bias.

    Flax stores mean and (biased) variance. Ours also store the values in a statistics group, set
    to 0 until the next update, and the images seen, set to 1: the statistics count as collected.
    The parameters of both have the same names, ``scale`` and ``bias``. Flax's ``momentum`` is our
    ``decay`` if ``reference_batch`` equals the batch size.
    """
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    if {"mean", "var"} <= set(batch_stats):
        count = jnp.zeros((), jnp.float32)
        return {"count": count, "seen": count + 1, **batch_stats}
    return {name: from_flax_statistics(part) for name, part in batch_stats.items()}


def to_flax_statistics(batch_stats: PyTree) -> PyTree:
    """Returns the ``batch_stats`` of our batch norms as Flax's: without ``count`` and ``seen``."""
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    if {"mean", "var", "count", "seen"} <= set(batch_stats):
        return {name: x for name, x in batch_stats.items() if name not in ("count", "seen")}
    return {name: to_flax_statistics(part) for name, part in batch_stats.items()}


def _parts(path: jax.tree_util.KeyPath) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")
