"""Population statistics: what running averages only estimate, computed with frozen weights."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fpnlab.model.norm import NormState, replace_batch_norms
from fpnlab.ops.moments import merge_moments
from fpnlab.types import Moments

Spec = TypeVar("Spec")
State = TypeVar("State")


def grouped(spec: Spec, norm_batch: int) -> Spec:
    """Returns ``spec`` with every batch norm over groups of ``norm_batch`` images, where unset.

    So that a network trained with small batches is evaluated in large ones, by the statistics
    groups that it was trained with.
    """
    return replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, norm_batch=norm.norm_batch or norm_batch)
    )


def has_batch_norm(spec: Any) -> bool:
    """Returns whether a batch norm stands anywhere in ``spec``."""
    found = []
    replace_batch_norms(spec, lambda norm: found.append(norm) or norm)
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
      batches: training batches; 10^3 to 10^4 images are enough.
      state: the running statistics to replace, for their structure.

    Raises:
      ValueError: there are no batches.
    """
    is_state = lambda node: isinstance(node, NormState)
    total = None
    merge = lambda a, b: _merge(a, b) if is_state(a) else a
    batches_seen = 0
    for batch in batches:
        batches_seen += 1
        found = collect(batch)
        total = found if total is None else jax.tree.map(merge, total, found, is_leaf=is_state)
    if total is None:
        raise ValueError("population_state: no batches; give at least one")

    def restore(old, new):
        if not is_state(old):
            return old
        # Every batch was collected on top of what training had seen.
        seen = new.seen - (batches_seen - 1) * old.seen
        return dataclasses.replace(new, count=old.count, seen=seen)

    return jax.tree.map(restore, state, total, is_leaf=is_state)


def forgetful(spec: Spec) -> Spec:
    """Returns ``spec`` whose batch norms keep the (biased) moments of the last batch only."""
    return replace_batch_norms(
        spec, lambda norm: dataclasses.replace(norm, decay=0.0, unbiased=False)
    )


def _merge(total, batch):
    """Merges two states, each the moments of ``count`` values (or of a fixed share of them)."""
    stack = lambda name: jnp.stack([getattr(total, name), getattr(batch, name)])
    merged = merge_moments(Moments(count=stack("count"), mean=stack("mean"), var=stack("var")))
    return dataclasses.replace(
        total,
        mean=merged.mean,
        var=merged.var,
        count=merged.count,
        seen=total.seen + batch.seen,
    )
