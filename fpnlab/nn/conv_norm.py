"""Convolution followed by normalization, the building block of blocks, pyramids and heads."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.norm_layer import NormParams, NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import Norm
from fpnlab.ops.convolution import conv
from fpnlab.ops.kernel import scale_standardize_kernel, standardize_kernel
from fpnlab.spec import Bounds, Count, NonNegative, spec
from fpnlab.types import Key, Mode, tree

Kernel = Literal["free", "standardized", "scaled"]
"""Parametrization of convolution kernels: as stored; weight standardization (arXiv:1903.10520,
equation 2); scaled weight standardization with a learned gain (arXiv:2101.08692, equation 1)."""


@spec
class ConvNorm:
    """A square convolution without bias, and the norm of its output."""

    size: Annotated[int, Bounds(least=1.0, most=99.0)]
    """Height and width of the kernel, pixels."""
    inputs: Annotated[int, Count]
    """Input channels."""
    outputs: Annotated[int, Count]
    """Output channels."""
    stride: Annotated[int, Count] = 1
    """Step of the kernel along both axes, pixels."""
    norm: Norm
    """Normalization of the output."""
    kernel: Kernel = "free"
    """Parametrization of the kernel."""
    initial_scale: float = 1.0
    """Initial value of the norm's scale (gamma)."""
    deviation: Annotated[float | None, NonNegative] = None
    """Standard deviation of the initial kernel; none: sqrt(2 / fan-out) (arXiv:1502.01852)."""


@tree
class ConvNormParams:
    """Kernel and norm parameters of a `ConvNorm`."""

    kernel: Float[Array, "k k i o"]
    """The kernel as it is stored, before its parametrization."""
    norm: NormParams
    """Parameters of the norm."""
    gain: Float[Array, " o"] | None = None
    """Gain of a ``scaled`` kernel; None for other parametrizations."""


def init_conv_norm(
    key: Key,
    layer: ConvNorm,
    *,
    affine_levels: int | None = None,
    state_levels: int | None = None,
) -> tuple[ConvNormParams, NormState | None]:
    """Returns parameters with a normally distributed kernel, and the norm's state.

    Args:
      key: Draws the kernel.
      layer: The layer.
      affine_levels: Pyramid levels with norm parameters of their own, see ``init_norm``.
      state_levels: Pyramid levels with running statistics of their own.

    Raises:
      ValueError: From ``init_norm``.
    """
    shape = (layer.size, layer.size, layer.inputs, layer.outputs)
    deviation = layer.deviation
    if deviation is None:
        deviation = math.sqrt(2 / (layer.size * layer.size * layer.outputs))
    norm, state = init_norm(
        layer.norm,
        layer.outputs,
        scale=layer.initial_scale,
        affine_levels=affine_levels,
        state_levels=state_levels,
    )
    kernel = deviation * jax.random.normal(key, shape)
    gain = jnp.ones((layer.outputs,)) if layer.kernel == "scaled" else None
    return ConvNormParams(kernel=kernel, norm=norm, gain=gain), state


def apply_convolution(
    layer: ConvNorm, params: ConvNormParams, x: Float[Array, "b h w i"]
) -> Float[Array, "b _ _ o"]:
    """Returns the convolution of ``x`` with the parametrized kernel, before the norm."""
    kernel = params.kernel
    match layer.kernel:
        case "standardized":
            kernel = standardize_kernel(kernel)
        case "scaled":
            assert params.gain is not None
            kernel = scale_standardize_kernel(kernel, params.gain)
    return conv(x, kernel.astype(x.dtype), stride=layer.stride)


def apply_conv_norm(
    layer: ConvNorm,
    params: ConvNormParams,
    state: NormState | None,
    x: Float[Array, "b h w i"],
    mode: Mode,
    *,
    mask: Bool[Array, "b _ _"] | None = None,
) -> tuple[Float[Array, "b _ _ o"], NormState | None]:
    """Returns the normalized convolution of ``x``, and the norm's new state.

    ``mask``, of the size of the result, has the pixels that enter statistics; None for all.
    """
    y = apply_convolution(layer, params, x)
    return apply_norm(layer.norm, params.norm, state, y, mode, mask=mask)


def downsample_mask(mask: Bool[Array, "b h w"] | None, stride: int) -> Bool[Array, "b _ _"] | None:
    """Returns the mask of a map ``stride`` times smaller: the value of each cell's first pixel."""
    return None if mask is None else mask[:, ::stride, ::stride]
