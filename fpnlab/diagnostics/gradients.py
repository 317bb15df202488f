"""Gradient noise by the batch of a norm, and relative update sizes of kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.types import Key


def gradient_noise(
    gradient: Callable[[Any, int], Any],
    key: Key,
    images: int,
    norm_batches: Sequence[int],
    *,
    draws: int = 8,
) -> dict[int, float]:
    """Returns, for each ``norm_batch``, how noisy batch statistics alone make the gradient.

    The same images are dealt into statistics groups anew in each draw. Without a batch norm the
    gradient of their mean loss would not change; with one it does, the more the smaller the
    groups. The number is the trace of its covariance over the squared norm of its mean.

    Args:
      gradient: (order of the images ``[images]``, norm_batch) to the gradient of their mean loss.
      key: draws the orders.
      images: number of images.
      norm_batches: sizes of statistics groups to compare.
      draws: orders for each; 2 or more.

    Raises:
      ValueError: fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"gradient_noise: draws is {draws}; a spread needs 2 or more")
    orders = [jax.random.permutation(k, images) for k in jax.random.split(key, draws)]
    noise = {}
    for norm_batch in norm_batches:
        mean, squares = np.zeros(()), np.zeros(())
        for seen, order in enumerate(orders, start=1):
            found = _flat(gradient(order, norm_batch))
            off = found - mean
            # Welford's update: one gradient at a time is in memory.
            mean = mean + off / seen
            squares = squares + off * (found - mean)
        noise[norm_batch] = float(squares.sum() / (draws - 1) / np.square(mean).sum())
    return noise


def _flat(tree):
    leaves = jax.tree.leaves(jax.device_get(tree))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def effective_rates(before: Any, after: Any) -> dict[str, float]:
    """Returns, for each kernel, how far one update turns it: ``|update| / |kernel|``.

    A kernel before a norm has no scale of its own: what counts is the angle, so that the
    learning rate acts divided by the squared norm of the kernel ("L2 regularization versus
    batch and weight normalization", van Laarhoven, arXiv:1706.05350, section 3).

    Args:
      before: parameters before the update.
      after: the same after it.
    """
    old, new = _kernels(before), _kernels(after)
    ratios = jax.device_get(_ratios(list(old.values()), list(new.values())))
    return dict(zip(old, map(float, ratios)))


def _kernels(params):
    """Returns the kernels by their paths, in the order of the parameters."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): leaf
        for path, leaf in paths
        if path[-1].name == "kernel"
    }


@jax.jit
def _ratios(old, new):
    """Returns all ratios in one array: one program, one transfer."""
    norm = jnp.linalg.norm
    return jnp.stack([norm(b - a) / norm(a) for a, b in zip(old, new)])
