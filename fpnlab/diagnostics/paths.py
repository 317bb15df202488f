"""The unraveled view: a residual network of n blocks as a sum over ``2**n`` paths.

For linear blocks ``F, G, H``: ``(1 + H)(1 + G)(1 + F) x0 = x0 + F x0 + G x0 + G F x0 + ...``
("Residual networks behave like ensembles of relatively shallow networks", Veit et al.,
arXiv:1605.06431, section 3). The outputs of other networks are not such a sum, and
``Unraveled.residue`` measures by how much; their derivatives are.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.diagnostics.blockwise import Blockwise, Map, Term
from fpnlab.nn.classifier import Classifier, ClassifierParams, ClassifierState
from fpnlab.types import Mode

MOST_BLOCKS = 12
"""Largest number of blocks whose paths are all computed."""


@dataclasses.dataclass(frozen=True)
class Unraveled:
    """The terms of a residual network of n blocks, one for each path."""

    paths: Bool[np.ndarray, "p n"]
    """True where a path goes through the branch of a block. Path ``i`` has the bits of ``i``, the
    first block as the lowest: none, F, G, G F, H, H F, H G, H G F."""
    terms: Float[Array, "p b h w c"]
    """The term of each path."""
    whole: Float[Array, "b h w c"]
    """The same of the network."""

    @property
    def lengths(self) -> Int[np.ndarray, " p"]:
        """Number of branches of each path; binomially distributed over 0 to n."""
        return self.paths.sum(1)

    @property
    def residue(self) -> float:
        """Norm of the network minus the sum of the paths, relative to that of the network."""
        rest = self.whole - self.terms.sum(0)
        return float(jnp.linalg.norm(rest.ravel()) / jnp.linalg.norm(self.whole.ravel()))


def unravel_outputs(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    *,
    mode: Mode = Mode.EVAL,
) -> Unraveled:
    """Returns the output of each path at the last block, before output norm and dense layer.

    A path is the network with one term of each block, branch or shortcut, and the activations that
    follow them. The sum over all paths is the output of the network if branches and activations are
    linear for these inputs; of other networks, there is a residue.

    Args:
      classifier: A residual classifier of at most `MOST_BLOCKS` blocks.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      mode: Source of the statistics.

    Raises:
      ValueError: The network is plain, or has more blocks.
    """
    run = _few_blocks(classifier, params, state, mode)
    x = run.first(jnp.asarray(images))
    between = lambda x, at: run.between(x, at) if at else x
    step = lambda x, at, term: run.block(between(x, at), at, term)
    return _all_paths(len(run.places), x, step, run.forward(jnp.asarray(images))[1][-1])


def unravel_tangents(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    direction: Float[Array | np.ndarray, "b h w 3"],
    *,
    mode: Mode = Mode.EVAL,
) -> Unraveled:
    """Returns the directional derivative of the last block's output through each path.

    Exact for every residual network: the Jacobian of a block is the sum of those of its branch and
    of its shortcut (both times the derivative of the activation at the sum), so that the Jacobian
    of the network is the sum over all paths of their products.

    Args:
      classifier: A residual classifier of at most `MOST_BLOCKS` blocks.
      params: Its parameters.
      state: Its running statistics.
      images: A batch, at which the network is linearized.
      direction: The change of the images.
      mode: Source of the statistics.

    Raises:
      ValueError: The network is plain, or has more blocks.
    """
    run = _few_blocks(classifier, params, state, mode)
    images, direction = jnp.asarray(images), jnp.asarray(direction)
    inputs, outputs = run.forward(images)

    def step(tangent: Map, at: int, term: Term) -> Map:
        tangent = run.push_between(outputs[at - 1], at, tangent) if at else tangent
        return run.push(inputs[at], outputs[at], at, term, tangent)

    network = lambda images: run.forward(images)[1][-1]
    _, start = jax.jvp(run.first, (images,), (direction,))
    _, whole = jax.jvp(network, (images,), (direction,))
    return _all_paths(len(inputs), start, step, whole)


def _all_paths(
    count: int, start: Map, step: Callable[[Map, int, Term], Map], whole: Map
) -> Unraveled:
    """Returns the results of ``step`` through ``count`` blocks along all paths."""
    values = [start]
    for at in range(count):
        values = [step(x, at, "skip") for x in values] + [step(x, at, "branch") for x in values]
    numbers = np.arange(2**count)
    paths = (numbers[:, None] >> np.arange(count)) % 2 == 1
    return Unraveled(paths, jnp.stack(values), whole)


def _few_blocks(
    classifier: Classifier, params: ClassifierParams, state: ClassifierState, mode: Mode
) -> Blockwise:
    run = Blockwise(classifier, params, state, mode)
    count = len(run.places)
    if count > MOST_BLOCKS:
        raise ValueError(
            f"unravel: {count} blocks have 2**{count} paths; give a network of at most "
            f"{MOST_BLOCKS} blocks, or sample paths with sample_path_gradients"
        )
    if not all(place.block.skip for place in run.places):
        raise ValueError("unravel: a plain network has a single path; give a residual one")
    return run
