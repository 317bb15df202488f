"""Population statistics: what running averages only estimate, computed with frozen weights."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fpnlab.model.norm import BatchNorm, NormState
from fpnlab.ops.norm import merge_moments
from fpnlab.types import Moments

Spec = TypeVar("Spec")
State = TypeVar("State")


def grouped(spec: Spec, norm_batch: int) -> Spec:
    """Returns ``spec`` with every batch norm over groups of ``norm_batch`` images, where unset.

    So that a network trained with small batches is evaluated in large ones, by the statistics
    groups that it was trained with.
    """
    return _replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, norm_batch=norm.norm_batch or norm_batch)
    )


def has_batch_norm(spec: Any) -> bool:
    """Returns whether a batch norm stands anywhere in ``spec``."""
    found = []
    _replace_batch_norms(spec, lambda norm: found.append(norm) or norm)
    return bool(found)


def population_state(
    collect: Callable[[Any], State], batches: Iterable[Any], state: State
) -> State:
    """Returns ``state`` with its running statistics replaced by those of ``batches`` together.

    "Precise BN" (arXiv:2105.07576, section 3.1): with frozen weights every batch is normalized
    by its own statistics, and the moments of all are merged by count (Chan's formula), so that
    the variance includes how the batches' means differ.

    Args:
      collect: a batch to the state that ``forgetful`` norms leave behind (one batch's moments).
      batches: training batches, all of one size; 10^3 to 10^4 images are enough.
      state: the running statistics to replace, for their structure.

    Raises:
      ValueError: there are no batches.
    """
    is_state = lambda node: isinstance(node, NormState)
    total = None
    for number, batch in enumerate(batches):
        found = collect(batch)
        merge = lambda a, b, merged=number: _merge(a, b, merged) if is_state(a) else a
        total = jax.tree.map(merge, total, found, is_leaf=is_state) if number else found
    if total is None:
        raise ValueError("population_state: no batches; give at least one")
    restore = lambda old, new: dataclasses.replace(new, count=old.count) if is_state(old) else old
    return jax.tree.map(restore, state, total, is_leaf=is_state)


def forgetful(spec: Spec) -> Spec:
    """Returns ``spec`` whose batch norms keep the (biased) moments of the last batch only."""
    return _replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, decay=0.0, unbiased=False)
    )


def _merge(total, batch, batches_in_total):
    """Merges statistics of equally large batches: ``batches_in_total`` of them, and one more."""
    counts = jnp.array([batches_in_total, 1.0]).reshape(2, *[1] * (total.mean.ndim - 1))
    parts = Moments(
        count=jnp.broadcast_to(counts, (2, *total.mean.shape[:-1])),
        mean=jnp.stack([total.mean, batch.mean]),
        var=jnp.stack([total.var, batch.var]),
    )
    merged = merge_moments(parts)
    return dataclasses.replace(total, mean=merged.mean, var=merged.var)


def _replace_batch_norms(spec, change):
    if isinstance(spec, BatchNorm):
        return change(spec)
    if dataclasses.is_dataclass(spec):
        fields = {
            f.name: _replace_batch_norms(getattr(spec, f.name), change)
            for f in dataclasses.fields(spec)
        }
        return dataclasses.replace(spec, **fields)
    return spec
