"""Transformations of convolution kernels: weight standardization and folding of batch norm."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def standardize_kernel(
    kernel: Float[Array, "kh kw i o"], *, eps: float = 1e-10
) -> Float[Array, "kh kw i o"]:
    """Returns the kernel with mean 0 and variance 1 over the inputs of each output channel.

    See "Weight Standardization", Qiao et al., arXiv:1903.10520, equations 7 and 8.
    """
    axes = (0, 1, 2)
    centered = kernel - kernel.mean(axes)
    return centered * lax.rsqrt(jnp.square(centered).mean(axes) + eps)


def scale_standardize_kernel(
    kernel: Float[Array, "kh kw i o"], gain: Float[Array, " o"], *, eps: float = 1e-4
) -> Float[Array, "kh kw i o"]:
    """Returns the standardized kernel divided by the root of its fan-in, times ``gain``.

    See "Characterizing signal propagation", Brock et al., arXiv:2101.08692, equation 2: it keeps
    the variance of activations, which lets a residual network train without normalizing them.
    The variance times the fan-in is kept above ``eps`` (as in NFNets, arXiv:2102.06171).
    """
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    centered = kernel - kernel.mean((0, 1, 2))
    var = jnp.square(centered).mean((0, 1, 2))
    return centered * lax.rsqrt(jnp.maximum(var * fan_in, eps)) * gain


def fold_batch_norm(
    kernel: Float[Array, "kh kw i o"],
    mean: Float[Array, " o"],
    var: Float[Array, " o"],
    scale: Float[Array, " o"],
    bias: Float[Array, " o"],
    *,
    eps: float,
) -> tuple[Float[Array, "kh kw i o"], Float[Array, " o"]]:
    """Returns kernel and bias of the convolution with a batch norm folded in, for inference.

    It equals the convolution followed by ``batch_norm_eval``, up to rounding.
    """
    gain = scale * lax.rsqrt(var + eps)
    return kernel * gain, bias - mean * gain
