"""Edits of the batch norms inside a spec: freeze, replace, set ``norm_batch``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from jaxtyping import PyTree

from fpnlab.nn.norm_layer import NormState
from fpnlab.nn.norm_specs import BatchNorm, FrozenBatchNorm, Norm

T = TypeVar("T")


def freeze(spec: T, state: PyTree) -> T:
    """Returns ``spec`` with every `BatchNorm` replaced by a `FrozenBatchNorm`.

    The result is used with the same parameters and ``state``.

    Args:
      spec: Any spec.
      state: Its running statistics, which are checked.

    Raises:
      ValueError: Some of the statistics were never collected or loaded.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_state)
    empty = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in paths
        if _is_state(leaf) and not (leaf.seen > 0).all()
    ]
    if empty:
        raise ValueError(
            f"freeze: the statistics of {len(empty)} norms were never collected or loaded, e.g. of "
            f"{empty[0]}; train, load, or compute population statistics first"
        )
    return replace_batch_norms(spec, lambda norm: FrozenBatchNorm(eps=norm.eps))


def replace_batch_norms(spec: T, change: Callable[[BatchNorm], Norm]) -> T:
    """Returns ``spec`` with ``change`` applied to every `BatchNorm` anywhere in it."""
    if isinstance(spec, BatchNorm):
        return change(spec)  # type: ignore[return-value]
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        return dataclasses.replace(
            spec, **{name: replace_batch_norms(part, change) for name, part in fields.items()}
        )
    return spec


def fill_norm_batch(spec: T, norm_batch: int) -> T:
    """Returns ``spec`` with ``norm_batch`` set in every batch norm that does not set it.

    With it a network keeps the statistics groups of its training for any number of images.
    """
    return replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, norm_batch=norm.norm_batch or norm_batch)
    )


def norm_batches(positions: Mapping[str, Norm]) -> dict[str, int | None]:
    """Returns the images in a statistics group at each position; None for other norms."""
    return {
        position: norm.norm_batch if isinstance(norm, BatchNorm) else None
        for position, norm in positions.items()
    }


def _is_state(node: object) -> bool:
    return isinstance(node, NormState)
