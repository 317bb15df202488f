"""What the norm's batch does to gradients, and what gradients do to weights."""

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
        flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        found = np.stack([flat(jax.device_get(gradient(o, norm_batch))) for o in orders])
        found = found.astype(np.float64)
        noise[norm_batch] = float(found.var(0, ddof=1).sum() / np.square(found.mean(0)).sum())
    return noise


def effective_rates(params: Any, updates: Any) -> dict[str, float]:
    """Returns, for each kernel, how far one update turns it: ``|update| / |kernel|``.

    A kernel before a norm has no scale of its own: what counts is the angle, so that the
    learning rate acts divided by the squared norm of the kernel ("L2 regularization versus
    batch and weight normalization", van Laarhoven, arXiv:1706.05350, section 3).

    Args:
      params: parameters before the update.
      updates: what the update added to them.
    """
    rates = {}
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    for (path, weight), change in zip(paths, jax.tree.leaves(updates)):
        if path[-1].name == "kernel":
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            rates[name] = float(jnp.linalg.norm(change) / jnp.linalg.norm(weight))
    return rates
