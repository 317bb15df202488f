"""Lesions: trained networks with blocks deleted or swapped (arXiv:1605.06431, section 4)."""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from fpnlab.diagnostics.blockwise import Blockwise, Map, block_places, open_gates
from fpnlab.evaluate.accuracy import accuracy_metrics
from fpnlab.evaluate.bn_statistics import filled_batches, population_state
from fpnlab.nn.backbone import Backbone
from fpnlab.nn.block import BlockParams, BlockState, Gate
from fpnlab.nn.classifier import Classifier, ClassifierParams, ClassifierState, apply_classifier
from fpnlab.types import Key, Mode

Values = TypeVar("Values", BlockParams, BlockState)
Lesion = tuple[int | None, ...]
"""For each place of a network the number of the block in it; None for a deleted block."""


class LesionMetrics(NamedTuple):
    """Metrics of a network with each of several lesions."""

    error: Float[np.ndarray, " l"]
    """Share of wrong predictions, 0 to 1."""
    loss: Float[np.ndarray, " l"]
    """Mean cross-entropy in nats."""


def deletable_blocks(spec: Backbone) -> tuple[int, ...]:
    """Returns the numbers of the blocks that can be deleted.

    All blocks of a residual network: what is left of one that changes the shape is its shortcut. Of
    a plain network only blocks that keep the shape, which are replaced by the identity.
    """
    return tuple(
        i
        for i, place in enumerate(block_places(spec))
        if place.block.skip or not place.block.changes_shape
    )


def delete_blocks(spec: Backbone, blocks: Collection[int]) -> Lesion:
    """Returns the lesion without some blocks' branches (arXiv:1605.06431, sections 4.1, 4.2).

    Args:
      spec: The network.
      blocks: Numbers of the deleted blocks from 0, in order of depth; none: the whole network.

    Raises:
      ValueError: A block does not exist, or is one of a plain network that changes the shape.
    """
    _check_numbers(spec, blocks)
    can = deletable_blocks(spec)
    for i in blocks:
        if i not in can:
            raise ValueError(
                f"lesions: {_described(spec, i)} changes the shape and has no shortcut, so that it "
                f"cannot be deleted; these can: {_listed(can)}"
            )
    return tuple(None if i in blocks else i for i in range(len(block_places(spec))))


def single_deletions(spec: Backbone) -> dict[int, Lesion]:
    """Returns the lesion of each single block that can be deleted, by its number."""
    return {i: delete_blocks(spec, [i]) for i in deletable_blocks(spec)}


def random_deletions(key: Key, spec: Backbone, count: int, draws: int) -> list[Lesion]:
    """Returns lesions that delete ``count`` random blocks each (arXiv:1605.06431, section 4.2).

    Args:
      key: Draws the blocks, without replacement among those that can be deleted.
      spec: The network.
      count: Number of deleted blocks.
      draws: Number of lesions.

    Raises:
      ValueError: Fewer than ``count`` blocks can be deleted, or ``count`` is negative.
    """
    can = np.array(deletable_blocks(spec), int)
    if not 0 <= count <= len(can):
        raise ValueError(
            f"lesions: {count} blocks cannot be deleted at random among the {len(can)} that can be "
            f"deleted ({_listed(can)}); give a count from 0 to {len(can)}"
        )
    orders = (jax.random.permutation(k, len(can)) for k in jax.random.split(key, draws))
    return [delete_blocks(spec, can[np.asarray(order)[:count]].tolist()) for order in orders]


def swap_partners(spec: Backbone, block: int) -> tuple[int, ...]:
    """Returns the numbers of the other blocks with the same layers and shapes as ``block``."""
    places = block_places(spec)
    return tuple(i for i, p in enumerate(places) if i != block and p.block == places[block].block)


def swap_blocks(spec: Backbone, swaps: Sequence[tuple[int, int]]) -> Lesion:
    """Returns the lesion with blocks in each other's place (arXiv:1605.06431, section 4.3).

    A block takes its parameters and its statistics with it.

    Args:
      spec: The network.
      swaps: Pairs of places whose blocks are swapped, one after the other; numbers from 0.

    Raises:
      ValueError: A block does not exist, or two blocks have different layers or shapes.
    """
    order = list(range(len(block_places(spec))))
    for first, second in swaps:
        _check_numbers(spec, (first, second))
        partners = swap_partners(spec, first)
        if second not in (first, *partners):
            raise ValueError(
                f"lesions: {_described(spec, first)} and {_described(spec, second)} differ in "
                f"shape or layers; block {first} can be swapped with: {_listed(partners)}"
            )
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def random_swaps(key: Key, spec: Backbone, count: int, draws: int) -> list[Lesion]:
    """Returns lesions of ``count`` swaps of random pairs of equal blocks each.

    Raises:
      ValueError: No two blocks of the network are equal.
    """
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(block_places(spec))), 2)
        if j in swap_partners(spec, i)
    ]
    if not pairs:
        raise ValueError(
            "lesions: no two blocks of the network have the same layers and shapes; use a network "
            "with stages of three blocks or more"
        )
    drawn = jax.random.randint(key, (draws, count), 0, len(pairs))
    return [swap_blocks(spec, [pairs[i] for i in row]) for row in np.asarray(drawn)]


def measure_lesions(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    lesions: Sequence[Lesion],
    images: Num[Array | np.ndarray, "n h w 3"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    population: Num[Array | np.ndarray, "p h w 3"] | None = None,
    batch_size: int = 250,
) -> LesionMetrics:
    """Returns error and loss of a trained classifier with each of the lesions.

    Lesions share the maps before the first block in which they differ, and branches of deleted
    blocks are not computed.

    Args:
      classifier: The trained classifier.
      params: Its parameters.
      state: Its running statistics.
      lesions: As from ``delete_blocks`` or ``swap_blocks``.
      images: Test images.
      labels: Class numbers.
      population: Training images from which the statistics of batch norms are estimated anew for
        each lesion (``evaluate.population_state``); images that do not fill a last batch are left
        out. None: each norm has its running statistics of training, as in the paper.
      batch_size: Images per forward pass.

    Raises:
      ValueError: ``lesions`` is empty, or has another number of places than the network has blocks.
    """
    count = len(block_places(classifier.backbone))
    if not lesions or {len(lesion) for lesion in lesions} != {count}:
        raise ValueError(
            f"lesions: expected one or more lesions of {count} places, one for each block; got "
            f"{len(lesions)} of {sorted({len(lesion) for lesion in lesions})} places"
        )
    if population is None:
        run = Blockwise(classifier, params, state)
        of_batch = lambda batch: dict(_each_lesion(run, lesions, batch))
    else:
        changed = [
            _with_statistics(classifier, params, state, lesion, population, batch_size)
            for lesion in lesions
        ]
        of_batch = lambda batch: {
            i: _logits(classifier, *changed, batch) for i, changed in enumerate(changed)
        }
    size = min(batch_size, len(images))
    parts = [
        jax.device_get(of_batch(jnp.asarray(images[index])))
        for index in filled_batches(len(images), size)
    ]
    found = []
    for i in range(len(lesions)):
        logits = np.concatenate([part[i] for part in parts])[: len(images)]
        found.append(accuracy_metrics(logits, labels))
    return LesionMetrics(
        error=np.array([1 - one["accuracy"] for one in found]),
        loss=np.array([one["loss"] for one in found]),
    )


def _each_lesion(
    run: Blockwise, lesions: Sequence[Lesion], images: Num[Array, "b h w 3"]
) -> Iterator[tuple[int, Float[Array, "b k"]]]:
    """Yields the number of each lesion with its logits.

    Goes through the tree of the lesions' common beginnings, depth first, so that few maps are kept.
    """
    todo: list[tuple[int, Map, list[int]]] = [(0, run.first(images), list(range(len(lesions))))]
    while todo:
        at, x, group = todo.pop()
        if at == len(run.places):
            logits = run.last(x)
            yield from ((i, logits) for i in group)
            continue
        x = run.between(x, at) if at else x
        for source in {lesions[i][at]: None for i in group}:
            y = run.block(x, at, "skip" if source is None else "sum", source)
            todo.append((at + 1, y, [i for i in group if lesions[i][at] == source]))


def _with_statistics(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    lesion: Lesion,
    population: Num[Array | np.ndarray, "p h w 3"],
    batch_size: int,
) -> tuple[ClassifierParams, ClassifierState, Gate]:
    """Returns the network with a lesion: parameters, statistics of the population, and gates."""
    order = [at if source is None else source for at, source in enumerate(lesion)]
    stages = _reordered(params.backbone.stages, order)
    backbone = dataclasses.replace(params.backbone, stages=stages)
    params = dataclasses.replace(params, backbone=backbone)
    states = _reordered(state.backbone.stages, order)
    state = dataclasses.replace(state, backbone=dataclasses.replace(state.backbone, stages=states))
    kept = jnp.array([source is not None for source in lesion], jnp.float32)
    gates = dataclasses.replace(open_gates(len(lesion)), branch=kept)
    size = min(batch_size, len(population))
    batches = (
        jnp.asarray(population[i : i + size]) for i in range(0, len(population) - size + 1, size)
    )
    collect = lambda state, batch: _collect(classifier, params, state, gates, batch)
    return params, population_state(collect, batches, state), gates


def _reordered(
    stages: tuple[tuple[Values, ...], ...], order: Sequence[int]
) -> tuple[tuple[Values, ...], ...]:
    """Returns the parameters or states of blocks in another order."""
    blocks = list(itertools.chain.from_iterable(stages))
    moved = iter([blocks[i] for i in order])
    return tuple(tuple(next(moved) for _ in stage) for stage in stages)


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    gates: Gate,
    images: Num[Array, "b h w 3"],
) -> Float[Array, "b k"]:
    return apply_classifier(classifier, params, state, images, Mode.EVAL, gates=gates)[0]


@functools.partial(jax.jit, static_argnums=0)
def _collect(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    gates: Gate,
    images: Num[Array, "b h w 3"],
) -> ClassifierState:
    return apply_classifier(classifier, params, state, images, Mode.MOMENTS, gates=gates)[1]


def _check_numbers(spec: Backbone, blocks: Collection[int]) -> None:
    count = len(block_places(spec))
    wrong = [i for i in blocks if not 0 <= i < count]
    if wrong:
        raise ValueError(
            f"lesions: block {wrong[0]} does not exist; the network has blocks 0 to {count - 1}"
        )


def _described(spec: Backbone, i: int) -> str:
    block = block_places(spec)[i].block
    name = spec.layout.block_names[i]
    return f"block {i} ({name}: {block.inputs} to {block.outputs} channels, stride {block.stride})"


def _listed(blocks: Sequence[int] | np.ndarray) -> str:
    return ", ".join(map(str, blocks)) or "none"
