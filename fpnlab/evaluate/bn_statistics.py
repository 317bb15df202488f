"""Population statistics: what running averages only estimate, computed with frozen weights."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.nn.norm_layer import NormState
from fpnlab.types import Mode

Spec = TypeVar("Spec")
State = TypeVar("State")
Result = TypeVar("Result")


def has_batch_norm(spec: Any) -> bool:
    """Returns whether a batch norm stands anywhere in ``spec``."""
    return bool(_group_sizes(spec))


def _group_sizes(spec: Any) -> set[int | None]:
    """Returns the ``norm_batch`` of all batch norms in ``spec``; None where it is open."""
    found = set()
    replace_batch_norms(spec, lambda norm: found.add(norm.norm_batch) or norm)
    return found


def three_sources(
    spec: Spec,
    state: State,
    *,
    measure: Callable[[Spec, State, Mode, int], Result],
    collect: Callable[[Spec, State, Any], State],
    population: Any,
    batch_size: int,
) -> dict[str, Result]:
    """Returns what a trained network is worth by three sources of statistics.

    ``running``: the running averages of training; ``precise``: population statistics computed
    anew over training images with frozen weights; ``batch``: those of test batches, in groups
    of each norm's ``norm_batch`` (all images of a batch where that is open). Without a batch norm
    there is one result, given three times.

    Args:
      spec: what was trained.
      state: its running statistics.
      measure: (spec, state, mode, multiple) to a result; batches of the test images must be a
        multiple of so many images.
      collect: (spec, state, batch of the population) to the state after `Mode.MOMENTS`.
      population: training images as training saw them: arrays with one leading axis; what does
        not fill a last batch is left out.
      batch_size: images per forward pass, made a multiple of the groups of all norms.

    Raises:
      ValueError: the population does not fill whole groups of all norms.
    """
    running = measure(spec, state, Mode.EVAL, 1)
    groups = sorted(size for size in _group_sizes(spec) if size is not None)
    if not has_batch_norm(spec):
        return dict.fromkeys(("running", "precise", "batch"), running)
    size = len(jax.tree.leaves(population)[0])
    multiple = math.lcm(*groups)
    group = whole_groups(min(batch_size, size), multiple)
    count = size // group * group
    if not count:
        raise ValueError(
            f"evaluate: {size} training images do not fill whole statistics groups of "
            f"norm_batch={', '.join(map(str, groups))}; give {multiple} or more"
        )
    chunks = (
        jax.tree.map(lambda leaf, i=i: leaf[i : i + group], population)
        for i in range(0, count, group)
    )
    exact = population_state(functools.partial(collect, spec), chunks, state)
    return {
        "running": running,
        "precise": measure(spec, exact, Mode.EVAL, 1),
        "batch": measure(spec, state, Mode.BATCH_EVAL, multiple),
    }


def whole_groups(batch_size: int, group: int) -> int:
    """Returns the largest multiple of ``group`` up to ``batch_size``, and at least one group."""
    return max(batch_size // group, 1) * group


def filled_batches(total: int, size: int) -> Iterator[np.ndarray]:
    """Yields the numbers of ``total`` images in batches of ``size``, all of them full.

    The last one is filled up with the first images, whose second results are to be dropped.
    """
    for start in range(0, total, size):
        yield np.arange(start, start + size) % total


def population_state(
    collect: Callable[[State, Any], State], batches: Iterable[Any], state: State
) -> State:
    """Returns ``state`` with its running statistics replaced by those of ``batches`` together.

    "Precise BN" (arXiv:2105.07576, section 3.1): with frozen weights every batch is normalized
    by its own statistics, and the moments of all are merged by count (Chan's formula), so that
    the variance includes how the batches' means differ. Where pyramid levels share statistics,
    those of all levels are merged (section 5.2).

    Args:
      collect: (state, batch) to the state after a network in `Mode.MOMENTS`.
      batches: training batches; 10^3 to 10^4 images are enough.
      state: the running statistics to replace; those of norms that see no value are kept.

    Raises:
      ValueError: there are no batches.
    """
    is_state = lambda node: isinstance(node, NormState)
    of_norms = lambda change, *trees: jax.tree.map(
        lambda node, *others: change(node, *others) if is_state(node) else node,
        *trees,
        is_leaf=is_state,
    )
    start = total = of_norms(_without_values, state)
    for batch in batches:
        total = collect(total, batch)
    if total is start:
        raise ValueError("population_state: no batches; give at least one")
    return of_norms(_filled, total, state)


def _without_values(state):
    nothing = jnp.zeros_like
    return dataclasses.replace(
        state, mean=nothing(state.mean), var=nothing(state.var), count=nothing(state.count)
    )


def _filled(moments, running):
    """Returns the moments with the count of training; the running ones where there is no value."""
    some = (moments.count > 0)[..., None]
    return NormState(
        mean=jnp.where(some, moments.mean, running.mean),
        var=jnp.where(some, moments.var, running.var),
        count=running.count,
        seen=moments.seen,
    )
