"""Curvature of a loss: Hessian-vector products, eigenvalues, and steps along the gradient."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from fpnlab.types import Key

Loss = Callable[[PyTree], Float[Array, ""]]
"""Function of the parameters to a loss."""


class LossAlongGradient(NamedTuple):
    """A loss and its gradient at points ``params - rate * gradient`` (arXiv:1805.11604, fig. 4)."""

    rates: Float[np.ndarray, " r"]
    """Learning rates of the steps."""
    loss: Float[np.ndarray, " r"]
    """The loss after each step (figure 4a)."""
    gradient_change: Float[np.ndarray, " r"]
    """Norm of the gradient's change, ``|g(rate) - g(0)|`` (figure 4b)."""
    smoothness: Float[np.ndarray, " r"]
    """The change divided by the length of the step; the largest is the effective smoothness
    ``beta`` (figure 4c), and the limit at rate 0 is the curvature along the gradient."""


def hessian_vector(loss: Loss, params: PyTree, vector: PyTree) -> PyTree:
    """Returns the Hessian of ``loss`` times ``vector``: the derivative of the gradient along it.

    Forward over reverse mode, so that the Hessian is never built; every layer of the package can be
    differentiated in both modes.
    """
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def hessian_eigenvalues(
    key: Key, loss: Loss, params: PyTree, *, steps: int = 30
) -> Float[np.ndarray, " s"]:
    """Returns the Ritz values of the Hessian by Lanczos' method, the largest first.

    The outer ones are the leading eigenvalues of both signs, more exact the more steps are made;
    the inner ones are no eigenvalues. Each new vector is orthogonalized twice against all earlier
    ones, without which eigenvalues would be found repeatedly (Golub and Van Loan, Matrix
    Computations, section 10.3). An eigenvalue is found once, whatever its multiplicity.

    Args:
      key: Draws the first vector.
      loss: Function of the parameters, with the images and the mode of the norms in it.
      params: The point.
      steps: Hessian-vector products; fewer if the vectors span an invariant space before.

    Raises:
      ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"hessian_eigenvalues: steps is {steps}; give 1 or more")
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def product(flat: Float[Array, " p"], vector: Float[Array, " p"]) -> Float[Array, " p"]:
        return jax.jvp(jax.grad(lambda at: loss(unravel(at))), (flat,), (vector,))[1]

    basis = np.zeros((min(steps, len(flat)), len(flat)))
    vector = np.asarray(jax.random.normal(key, flat.shape), np.float64)
    diagonal, beside, scale = [], [], 0.0
    for i in range(len(basis)):
        basis[i] = vector / np.linalg.norm(vector)
        vector = np.asarray(product(flat, jnp.asarray(basis[i], flat.dtype)), np.float64)
        diagonal.append(basis[i] @ vector)
        for _ in range(2):
            vector = vector - basis[: i + 1].T @ (basis[: i + 1] @ vector)
        beside.append(np.linalg.norm(vector))
        scale = max(scale, abs(diagonal[-1]), beside[-1])
        if beside[-1] <= 1e-6 * scale:  # Rounding alone is left: an invariant space.
            break
    values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return np.asarray(values)[::-1]


def loss_along_gradient(loss: Loss, params: PyTree, rates: Sequence[float]) -> LossAlongGradient:
    """Returns the loss and the change of its gradient along one step of gradient descent.

    "How does batch normalization help optimization?", Santurkar et al., arXiv:1805.11604, section
    3.1: the smaller the changes, the longer the steps that the gradient foretells. There the rates
    are about 0.4 to 4 times that of training.

    Args:
      loss: Function of the parameters, with the images and the mode of the norms in it.
      params: The start of the step.
      rates: Learning rates, above 0.

    Raises:
      ValueError: A rate is not above 0, or the gradient is zero or not finite.
    """
    if any(not rate > 0 for rate in rates):
        raise ValueError(f"loss_along_gradient: rates are {list(rates)}; give rates above 0")
    flat, unravel = ravel_pytree(params)
    value = jax.jit(jax.value_and_grad(lambda at: loss(unravel(at))))
    _, start = value(flat)
    length = float(jnp.linalg.norm(start))
    if not 0 < length < np.inf:
        raise ValueError(
            f"loss_along_gradient: the norm of the gradient is {length}, so that it has no "
            "direction; give other parameters"
        )
    losses, changes = [], []
    for rate in rates:
        there, gradient = value(flat - rate * start)
        losses.append(float(there))
        changes.append(float(jnp.linalg.norm(gradient - start)))
    steps, change = np.array(rates), np.array(changes)
    return LossAlongGradient(steps, np.array(losses), change, change / (steps * length))
