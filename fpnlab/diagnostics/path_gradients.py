"""Gradients by the length of the paths that they flow through (arXiv:1605.06431, section 3.3).

A residual network of n blocks has ``2**n`` paths: in each block one through the branch, and one
through the shortcut. The length of a path is the number of its branches. A block that changes the
shape is one of the n; its shortcut is the padding or projection, which passes the gradient on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.diagnostics.blockwise import Blockwise, Map, Term
from fpnlab.nn.classifier import Classifier, ClassifierParams, ClassifierState
from fpnlab.types import Key, Mode


@dataclasses.dataclass(frozen=True)
class PathGradients:
    """Norms of the gradient at the input of the first block, through single paths by length."""

    norms: Float[np.ndarray, "l s"]
    """Norm for each length from 0 to n, and each sampled path: that of the gradient of an image's
    cross-entropy, in nats per unit of the input, averaged over images."""

    @property
    def blocks(self) -> int:
        """Number n of blocks."""
        return len(self.norms) - 1

    @property
    def paths(self) -> Float[np.ndarray, " l"]:
        """Share of the ``2**n`` paths by length: the binomial distribution of probability 1/2."""
        return scipy.stats.binom.pmf(np.arange(self.blocks + 1), self.blocks, 0.5)

    @property
    def contributions(self) -> Float[np.ndarray, " l"]:
        """Share of the sum of all paths' norms by length (figure 6c): mean norm times ``paths``."""
        product = self.norms.mean(1) * self.paths
        return product / product.sum()


def sample_path_gradients(
    key: Key,
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    samples: int = 100,
    mode: Mode = Mode.EVAL,
) -> PathGradients:
    """Returns the norms of the gradient through random paths of every length.

    The forward pass is that of the whole network; backward, the gradient flows only through the
    branches of k random blocks, and only through the shortcuts of the others.

    Args:
      key: Draws the paths.
      classifier: A residual classifier.
      params: Its parameters.
      state: Its running statistics.
      images: A batch, the same for all paths.
      labels: Class numbers.
      samples: Paths of each length; the paper has 1,000 measurements.
      mode: Source of the statistics; batch statistics for a network at initialization.

    Raises:
      ValueError: The network is plain, or ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(f"path gradients: samples is {samples}; give 1 or more")
    run = _residual(classifier, params, state, mode)
    inputs, outputs = run.forward(jnp.asarray(images))
    top = run.loss_gradient(outputs[-1], jnp.asarray(labels))
    count = len(run.places)
    order = jax.random.uniform(key, (count + 1, samples, count)).argsort(-1).argsort(-1)
    paths = np.asarray(order) < np.arange(count + 1)[:, None, None]
    norms = [[_norm(_through(run, inputs, outputs, top, path)) for path in row] for row in paths]
    return PathGradients(np.array(norms))


def gradients_by_length(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    mode: Mode = Mode.EVAL,
) -> Float[Array, "l b _ _ _"]:
    """Returns the gradient at the input of the first block through all paths of each length.

    Exact, without sampling: the gradients of all lengths add up to that of the network. Where those
    of paths cancel, their sum has a smaller norm than ``PathGradients.contributions`` suggests.

    Args:
      classifier: A residual classifier of n blocks.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      labels: Class numbers.
      mode: Source of the statistics.

    Returns:
      The gradient of each image's cross-entropy through the paths of length 0 to n.

    Raises:
      ValueError: The network is plain.
    """
    run = _residual(classifier, params, state, mode)
    inputs, outputs = run.forward(jnp.asarray(images))
    of_length = [run.loss_gradient(outputs[-1], jnp.asarray(labels))]
    for at in reversed(range(len(run.places))):
        back = lambda term, g, at=at: _back(run, inputs, outputs, at, term, g)
        skips = [back("skip", gradient) for gradient in of_length]
        branches = [back("branch", gradient) for gradient in of_length]
        middle = [skip + branch for skip, branch in zip(skips[1:], branches)]
        of_length = [skips[0], *middle, branches[-1]]
    return jnp.stack(of_length)


def effective_lengths(
    contributions: Float[np.ndarray, " l"], share: float = 0.95
) -> tuple[int, int]:
    """Returns the first and the last length of the shortest interval with a share of the gradient.

    Args:
      contributions: Share of each length from 0 on, such as ``PathGradients.contributions``.
      share: Least share of the sum that lies in the interval.

    Raises:
      ValueError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"effective_lengths: share is {share}; give one above 0 and at most 1")
    sums = np.concatenate([[0.0], np.cumsum(contributions)])
    least = share * sums[-1] * (1 - 1e-12)
    intervals = [
        (last - first, -(sums[last + 1] - sums[first]), first)
        for first in range(len(contributions))
        for last in range(first, len(contributions))
        if sums[last + 1] - sums[first] >= least
    ]
    extent, _, first = min(intervals)
    return first, first + extent


def _residual(
    classifier: Classifier, params: ClassifierParams, state: ClassifierState, mode: Mode
) -> Blockwise:
    run = Blockwise(classifier, params, state, mode)
    if not all(place.block.skip for place in run.places):
        raise ValueError(
            "path gradients: a plain network has a single path; give a residual one (skip = true)"
        )
    return run


def _back(
    run: Blockwise, inputs: list[Map], outputs: list[Map], at: int, term: Term, gradient: Map
) -> Map:
    """Returns the gradient by the output of the block before block ``at``."""
    gradient = run.pull(inputs[at], outputs[at], at, term, gradient)
    return run.pull_between(outputs[at - 1], at, gradient) if at else gradient


def _through(
    run: Blockwise,
    inputs: list[Map],
    outputs: list[Map],
    gradient: Map,
    path: Bool[np.ndarray, " n"],
) -> Map:
    """Returns the gradient at the input of the first block, through the branches of a path."""
    for at in reversed(range(len(path))):
        term: Term = "branch" if path[at] else "skip"
        gradient = _back(run, inputs, outputs, at, term, gradient)
    return gradient


def _norm(gradient: Map) -> float:
    """Returns the mean over images of the norm."""
    return float(jnp.sqrt(jnp.square(gradient).sum((1, 2, 3))).mean())
