"""Population statistics of batch norm, computed with frozen weights, and its evaluation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.nn.norm_layer import NormState
from fpnlab.types import Mode

Spec = TypeVar("Spec")
State = TypeVar("State")
Batches = TypeVar("Batches")
Result = TypeVar("Result")


def has_batch_norm(spec: object) -> bool:
    """Returns whether there is a batch norm anywhere in ``spec``."""
    return bool(_group_sizes(spec))


def _group_sizes(spec: object) -> set[int | None]:
    """Returns the ``norm_batch`` of all batch norms in ``spec``; None where it is unset."""
    found: set[int | None] = set()
    replace_batch_norms(spec, lambda norm: found.add(norm.norm_batch) or norm)
    return found


def three_sources(
    spec: Spec,
    state: State,
    *,
    measure: Callable[[Spec, State, Mode, int], Result],
    collect: Callable[[Spec, State, Batches], State],
    population: Batches,
    batch_size: int,
) -> dict[str, Result]:
    """Returns the evaluation of a trained network by three sources of batch-norm statistics.

    ``running``: the running averages of training; ``precise``: population statistics, estimated
    from training images with frozen weights; ``batch``: those of test batches, in groups of each
    norm's ``norm_batch`` (all images of a batch where that is unset). Without a batch norm there
    is one result, returned three times.

    Args:
      spec: The trained model.
      state: Its running statistics.
      measure: Function of (spec, state, mode, multiple) that evaluates the model on the test
        images, in batches of a multiple of ``multiple`` images.
      collect: Function of (spec, state, batch of the population) to the state after a forward
        pass in `Mode.MOMENTS`.
      population: Augmented training images: a tree of arrays with one leading axis; images that
        do not fill a last batch are left out.
      batch_size: Images per forward pass, rounded to a multiple of the groups of all norms.

    Raises:
      ValueError: The population does not fill whole groups of all norms.
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
    """Yields the numbers of ``total`` images in full batches of ``size``.

    The last batch is filled up with the first images; drop their repeated results.
    """
    for start in range(0, total, size):
        yield np.arange(start, start + size) % total


def population_state(
    collect: Callable[[State, Batches], State], batches: Iterable[Batches], state: State
) -> State:
    """Returns ``state`` with its running statistics replaced by those of ``batches`` together.

    "Precise BN" (arXiv:2105.07576, section 3.1): with frozen weights every batch is normalized
    by its own statistics, and the moments of all are merged by count (Chan's formula), so that
    the variance includes how the batches' means differ. Where pyramid levels share statistics,
    those of all levels are merged (section 5.2).

    Args:
      collect: Function of (state, batch) to the state after a forward pass in `Mode.MOMENTS`.
      batches: Training batches; 10^3 to 10^4 images are enough.
      state: The running statistics to replace; norms without any value keep theirs.

    Raises:
      ValueError: There are no batches.
    """
    is_state = lambda node: isinstance(node, NormState)

    def of_norms(change: Callable[..., NormState], *trees: State) -> State:
        """Returns the first tree with ``change`` applied to the states of all norms."""
        apply = lambda node, *others: change(node, *others) if is_state(node) else node
        return jax.tree.map(apply, *trees, is_leaf=is_state)

    start = total = of_norms(_without_values, state)
    for batch in batches:
        total = collect(total, batch)
    if total is start:
        raise ValueError("population_state: no batches; give at least one")
    return of_norms(_filled, total, state)


def _without_values(state: NormState) -> NormState:
    """Returns moments of no value, into which the first batch is merged.

    Their mean and variance have no weight; norms that are not updated (frozen ones) need theirs.
    """
    return dataclasses.replace(state, count=jnp.zeros_like(state.count))


def _filled(moments: NormState, running: NormState) -> NormState:
    """Returns the moments with the count of training; the running ones where count is 0."""
    some = (moments.count > 0)[..., None]
    return NormState(
        mean=jnp.where(some, moments.mean, running.mean),
        var=jnp.where(some, moments.var, running.var),
        count=running.count,
        seen=moments.seen,
    )
