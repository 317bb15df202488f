"""Gradients by depth, and their correlation between inputs (arXiv:1702.08591)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num

from fpnlab.diagnostics.blockwise import Blockwise
from fpnlab.diagnostics.gradients import kernels_by_name
from fpnlab.nn.classifier import (
    Classifier,
    ClassifierParams,
    ClassifierState,
    apply_classifier,
)
from fpnlab.types import Mode


def block_gradients(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    mode: Mode = Mode.BATCH_EVAL,
) -> dict[str, float]:
    """Returns the norm of the gradient at the input of the first block and at each block's output.

    Root mean square over images of the gradient's norm, for the cross-entropy of an image in nats.
    With batch statistics the losses of all images are summed, since each depends on all.

    Args:
      classifier: The model.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      labels: Class numbers.
      mode: Source of the statistics; those of the batch are right at initialization, too.
    """
    run = Blockwise(classifier, params, state, mode)
    inputs, outputs = run.forward(jnp.asarray(images))
    gradient = run.loss_gradient(outputs[-1], jnp.asarray(labels))
    names = classifier.backbone.layout.block_names
    found = {}
    for at in reversed(range(len(names))):
        found[names[at]] = _root_mean_square(gradient)
        gradient = run.pull(inputs[at], outputs[at], at, "sum", gradient)
        gradient = run.pull_between(outputs[at - 1], at, gradient) if at else gradient
    found["input"] = _root_mean_square(gradient)
    return dict(reversed(found.items()))


def kernel_gradients(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "b h w 3"],
    labels: Int[Array | np.ndarray, " b"],
    *,
    mode: Mode = Mode.BATCH_EVAL,
) -> dict[str, float]:
    """Returns the norm of the mean cross-entropy's gradient by each kernel, by name.

    Args:
      classifier: The model.
      params: Its parameters.
      state: Its running statistics.
      images: A batch.
      labels: Class numbers.
      mode: Source of the statistics.
    """
    found = _params_gradient(
        classifier, mode, params, state, jnp.asarray(images), jnp.asarray(labels)
    )
    return {name: float(jnp.linalg.norm(leaf)) for name, leaf in kernels_by_name(found).items()}


def line_of_images(
    first: Num[Array | np.ndarray, "h w 3"], last: Num[Array | np.ndarray, "h w 3"], count: int
) -> Float[Array, "n h w 3"]:
    """Returns ``count`` images in equal steps on the line from the first image to the last.

    Raises:
      ValueError: ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f"line_of_images: count is {count}; give 2 or more, for both ends")
    at = jnp.linspace(0, 1, count)[:, None, None, None]
    return (1 - at) * jnp.asarray(first, jnp.float32) + at * jnp.asarray(last, jnp.float32)


def input_gradients(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array | np.ndarray, "n h w 3"],
    *,
    mode: Mode = Mode.EVAL,
) -> Float[Array, "k n h w 3"]:
    """Returns the gradient of each logit by each image.

    Args:
      classifier: The model.
      params: Its parameters.
      state: Its running statistics.
      images: Images, such as from ``line_of_images``.
      mode: Source of the statistics.
    """
    images = jnp.asarray(images, jnp.float32)
    gradients = [
        _logit_gradient(classifier, mode, params, state, images, direction)
        for direction in jnp.eye(classifier.classes)
    ]
    return jnp.stack(gradients)


def gradient_correlation(
    gradients: Float[Array | np.ndarray, "d n *input"],
) -> Float[np.ndarray, "n n"]:
    """Returns the correlation of the gradients between inputs, averaged over draws.

    "The shattered gradients problem", Balduzzi et al., arXiv:1702.08591, sections 2, 3: in plain
    networks it decays exponentially with depth, as white noise, and far slower in residual ones.
    Gradients have mean 0 over draws, so that no mean is subtracted.

    Args:
      gradients: Gradients for each draw (other initial weights, other logits) and input.

    Returns:
      ``c[i, j] / sqrt(c[i, i] c[j, j])`` with the covariance ``c`` of the gradients at inputs i, j.

    Raises:
      ValueError: The gradient at an input is zero in all draws.
    """
    flat = np.asarray(gradients, np.float64)
    flat = flat.reshape(*flat.shape[:2], -1)
    covariance = np.einsum("dip,djp->ij", flat, flat)
    size = np.sqrt(np.diag(covariance))
    if not size.all():
        raise ValueError(
            f"gradient_correlation: the gradient at input {int(size.argmin())} is zero in all "
            "draws; leave the input out"
        )
    return covariance / np.outer(size, size)


def correlation_by_distance(correlation: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Returns the mean correlation of inputs by their distance on a line (figure 2 there).

    Args:
      correlation: Correlations of inputs in equal steps.
    """
    return np.array([np.diag(correlation, lag).mean() for lag in range(len(correlation))])


def _root_mean_square(gradient: Float[Array, "b ..."]) -> float:
    return float(jnp.sqrt(jnp.square(gradient).sum() / len(gradient)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _params_gradient(
    classifier: Classifier,
    mode: Mode,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
    labels: Int[Array, " b"],
) -> ClassifierParams:
    def loss(params: ClassifierParams) -> Float[Array, ""]:
        logits, _ = apply_classifier(classifier, params, state, images, mode)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logit_gradient(
    classifier: Classifier,
    mode: Mode,
    params: ClassifierParams,
    state: ClassifierState,
    images: Float[Array, "n h w 3"],
    direction: Float[Array, " k"],
) -> Float[Array, "n h w 3"]:
    logits = lambda x: (apply_classifier(classifier, params, state, x, mode)[0] @ direction).sum()
    return jax.grad(logits)(images)
