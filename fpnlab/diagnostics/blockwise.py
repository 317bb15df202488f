"""A classifier run block by block: equal blocks share one compiled program.

Runs of a network that differ only from some block on can share the maps before it, and a term of a
block that is not needed is not computed.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

from fpnlab.nn.backbone import (
    Backbone,
    BackboneParams,
    BackboneState,
    apply_downsample,
    apply_output,
    apply_stem,
)
from fpnlab.nn.block import Block, BlockParams, BlockState, Gate, activate_block, block_terms
from fpnlab.nn.classifier import Classifier, ClassifierParams, ClassifierState, apply_head
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.types import Mode

Term = Literal["sum", "branch", "skip"]
"""Terms of a block that are computed: both, or one of them alone."""
Map = Float[Array, "b _ _ _"]
"""Input or output of a block."""


class BlockPlace(NamedTuple):
    """The place of a block in a network."""

    block: Block
    """The block, without stochastic depth."""
    stage: int
    """Number of its stage."""
    index: int
    """Its number in the stage."""
    level: int
    """Level of the stage."""


@functools.lru_cache(maxsize=256)
def block_places(spec: Backbone) -> tuple[BlockPlace, ...]:
    """Returns the places of all blocks of a network, in order of depth."""
    return tuple(
        BlockPlace(dataclasses.replace(block, drop_path=0.0), i, j, level)
        for i, (level, blocks) in enumerate(spec.layout.stages.items())
        for j, block in enumerate(blocks)
    )


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """A classifier with parameters and statistics, as functions of its parts."""

    classifier: Classifier
    """The model."""
    params: ClassifierParams
    """Its parameters."""
    state: ClassifierState
    """Its statistics."""
    mode: Mode = Mode.EVAL
    """Source of the statistics; stochastic layers are off, and nothing is updated."""

    @property
    def places(self) -> tuple[BlockPlace, ...]:
        """The places of all blocks, in order of depth."""
        return block_places(self.classifier.backbone)

    def first(self, images: Num[Array, "b h w 3"]) -> Map:
        """Returns the input of the first block."""
        x = _first(self.classifier, self.mode, self.params, self.state, images)
        return self.between(x, 0)

    def between(self, x: Map, at: int) -> Map:
        """Returns the input of block ``at`` from the output of the block before it."""
        if not self._downsamples(at):
            return x
        own = self.params.backbone, self.state.backbone
        return _between(self.classifier.backbone, self.mode, self.places[at].level, *own, x)

    def block(self, x: Map, at: int, term: Term = "sum", source: int | None = None) -> Map:
        """Returns the output of block ``at``, after the activation.

        Args:
          x: Its input.
          at: Number of the block.
          term: Terms that are computed; the other one is zero.
          source: Number of the block whose parameters and statistics it has; None: its own.
        """
        return _block(*self._block(at, source), term, x)

    def forward(self, images: Num[Array, "b h w 3"]) -> tuple[list[Map], list[Map]]:
        """Returns the inputs and the outputs of all blocks."""
        inputs, outputs = [self.first(images)], []
        for at in range(len(self.places)):
            if at:
                inputs.append(self.between(outputs[-1], at))
            outputs.append(self.block(inputs[-1], at))
        return inputs, outputs

    def last(self, x: Map) -> Float[Array, "b k"]:
        """Returns the logits from the output of the last block."""
        return _last(self.classifier, self.mode, self.params, self.state, x)

    def loss_gradient(self, x: Map, labels: Int[Array, " b"]) -> Map:
        """Returns the gradient of the summed cross-entropy by the output of the last block."""
        return _loss_gradient(self.classifier, self.mode, self.params, self.state, x, labels)

    def pull(self, x: Map, y: Map, at: int, term: Term, gradient: Map) -> Map:
        """Returns the gradient by the input of block ``at``, through one or both of its terms.

        Args:
          x: Its input.
          y: Its output, which decides where the gradient passes the activation.
          at: Number of the block.
          term: Terms that the gradient flows through.
          gradient: The gradient by its output.
        """
        return _pull(*self._block(at), term, x, y, gradient)

    def push(self, x: Map, y: Map, at: int, term: Term, tangent: Map) -> Map:
        """Returns the change of the output of block ``at`` with its input, as ``pull`` does."""
        return _push(*self._block(at), term, x, y, tangent)

    def pull_between(self, x: Map, at: int, gradient: Map) -> Map:
        """Returns the gradient by the output ``x`` of the block before block ``at``."""
        if not self._downsamples(at):
            return gradient
        return jax.vjp(functools.partial(self.between, at=at), x)[1](gradient)[0]

    def push_between(self, x: Map, at: int, tangent: Map) -> Map:
        """Returns the change of the input of block ``at`` with the output of the one before it."""
        if not self._downsamples(at):
            return tangent
        return jax.jvp(functools.partial(self.between, at=at), (x,), (tangent,))[1]

    def _downsamples(self, at: int) -> bool:
        place = self.places[at]
        return not place.index and place.level in self.classifier.backbone.layout.downsamples

    def _block(
        self, at: int, source: int | None = None
    ) -> tuple[Block, Mode, BlockParams, BlockState]:
        place = self.places[at if source is None else source]
        params = self.params.backbone.stages[place.stage][place.index]
        state = self.state.backbone.stages[place.stage][place.index]
        return self.places[at].block, self.mode, params, state


def open_gates(count: int) -> Gate:
    """Returns the gates of an unchanged network of ``count`` blocks."""
    ones = jnp.ones(count)
    return Gate(branch=ones, skip=ones, branch_gradient=ones, skip_gradient=ones)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(
    classifier: Classifier,
    mode: Mode,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
) -> Map:
    x = standardize_pixels(images, classifier.pixel_mean, classifier.pixel_deviation)
    return apply_stem(classifier.backbone, params.backbone, state.backbone, x, mode).x


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _between(
    spec: Backbone, mode: Mode, level: int, params: BackboneParams, state: BackboneState, x: Map
) -> Map:
    return apply_downsample(spec, params, state, level, x, mode)[0]


def _term(
    block: Block, mode: Mode, params: BlockParams, state: BlockState, term: Term, x: Map
) -> Map:
    """Returns the terms of a block before its activation."""
    wanted = term == "skip"  # Of a plain block, which has no other term in its sum.
    branch, short, _ = block_terms(block, params, state, x, mode, plain_skip=wanted)
    match term:
        case "sum":
            return branch if short is None else branch + short
        case "branch":
            return branch
        case "skip":
            assert short is not None
            return short


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _block(
    block: Block, mode: Mode, params: BlockParams, state: BlockState, term: Term, x: Map
) -> Map:
    return activate_block(block, _term(block, mode, params, state, term, x))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _pull(
    block: Block,
    mode: Mode,
    params: BlockParams,
    state: BlockState,
    term: Term,
    x: Map,
    y: Map,
    gradient: Map,
) -> Map:
    _, pull = jax.vjp(functools.partial(_term, block, mode, params, state, term), x)
    return pull(_through_activation(block, y, gradient))[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _push(
    block: Block,
    mode: Mode,
    params: BlockParams,
    state: BlockState,
    term: Term,
    x: Map,
    y: Map,
    tangent: Map,
) -> Map:
    _, change = jax.jvp(
        functools.partial(_term, block, mode, params, state, term), (x,), (tangent,)
    )
    return _through_activation(block, y, change)


def _through_activation(block: Block, y: Map, change: Map) -> Map:
    """Returns a gradient or tangent after the derivative of the activation with output ``y``."""
    return jax.jvp(functools.partial(activate_block, block), (y,), (change,))[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last(
    classifier: Classifier, mode: Mode, params: ClassifierParams, state: ClassifierState, x: Map
) -> Float[Array, "b k"]:
    spec, level = classifier.backbone, max(classifier.backbone.layout.stages)
    x, _ = apply_output(spec, params.backbone, state.backbone, level, x, mode)
    return apply_head(classifier, params, state, x, mode)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss_gradient(
    classifier: Classifier,
    mode: Mode,
    params: ClassifierParams,
    state: ClassifierState,
    x: Map,
    labels: Int[Array, " b"],
) -> Map:
    def loss(x: Map) -> Float[Array, ""]:
        logits = _last(classifier, mode, params, state, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    return jax.grad(loss)(x)
