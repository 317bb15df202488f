"""Gradient noise by the batch of batch norms, and relative update sizes of kernels."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fpnlab.types import Key


def gradient_noise(
    gradient: Callable[[Int[Array, " images"], int], PyTree],
    key: Key,
    images: int,
    norm_batches: Sequence[int],
    *,
    draws: int = 8,
) -> dict[int, float]:
    """Returns the noise of the gradient that batch statistics alone cause, by ``norm_batch``.

    Each draw divides the same images into other statistics groups. Without a batch norm the
    gradient of their mean loss would not change; with one it changes more, the smaller the groups
    are. The noise is the trace of the gradient's covariance over the squared norm of its mean.

    Args:
      gradient: Function of (order of the images, norm_batch) to the gradient of their mean loss.
      key: Key of the orders.
      images: Number of images.
      norm_batches: Sizes of statistics groups, in images.
      draws: Number of orders for each size; 2 or more.

    Raises:
      ValueError: ``draws`` is below 2.
    """
    if draws < 2:
        raise ValueError(f"gradient_noise: draws is {draws}; it must be at least 2, for a variance")
    orders = [jax.random.permutation(k, images) for k in jax.random.split(key, draws)]
    noise = {}
    for norm_batch in norm_batches:
        mean, squares = np.zeros(()), np.zeros(())
        for seen, order in enumerate(orders, start=1):
            found = _flat(gradient(order, norm_batch))
            off = found - mean
            # Welford's update, so that one gradient at a time is in memory.
            mean = mean + off / seen
            squares = squares + off * (found - mean)
        noise[norm_batch] = float(squares.sum() / (draws - 1) / np.square(mean).sum())
    return noise


def _flat(tree: PyTree) -> Float[np.ndarray, " n"]:
    leaves = jax.tree.leaves(jax.device_get(tree))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def effective_rates(before: PyTree, after: PyTree) -> dict[str, float]:
    """Returns the relative size ``|update| / |kernel|`` of one update by kernel.

    The scale of a kernel before a norm has no effect: only the angle of an update matters, so that
    the learning rate is effectively divided by the squared norm of the kernel ("L2 regularization
    versus batch and weight normalization", van Laarhoven, arXiv:1706.05350, section 3).

    Args:
      before: Parameters before the update.
      after: Parameters after the update.
    """
    old, new = kernels_by_name(before), kernels_by_name(after)
    ratios = jax.device_get(_ratios(list(old.values()), list(new.values())))
    return dict(zip(old, map(float, ratios)))


def kernels_by_name(params: PyTree) -> dict[str, Array | np.ndarray]:
    """Returns the kernels by their paths, in the order of the parameters."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): leaf
        for path, leaf in paths
        if path[-1].name == "kernel"
    }


@jax.jit
def _ratios(old: list[Array], new: list[Array]) -> Float[Array, " kernels"]:
    """Returns all ratios in one array, for one program and one transfer from the device."""
    norm = jnp.linalg.norm
    return jnp.stack([norm(b - a) / norm(a) for a, b in zip(old, new)])
