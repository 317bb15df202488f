"""Convolution followed by normalization, the building block of blocks, pyramids and heads."""

import math
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.norm_layer import NormParams, NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import Norm
from fpnlab.ops.convolution import conv
from fpnlab.ops.kernel import scale_standardize_kernel, standardize_kernel
from fpnlab.ops.random import draw_normal
from fpnlab.spec import Bounds, Count, NonNegative, spec
from fpnlab.types import Key, Mode, tree

Kernel = Literal["free", "standardized", "scaled"]
"""Parametrization of convolution kernels: as stored; weight standardization (arXiv:1903.10520,
equation 2); scaled weight standardization with a learned gain (arXiv:2101.08692, equation 1)."""


@spec
class ConvNorm:
    """A square convolution, and the norm of its output.

    An odd kernel is padded with ``size // 2`` zeros on each side, an even one is not padded (those
    of patches have the stride of their size).
    """

    size: Annotated[int, Bounds(least=1.0, most=99.0)]
    """Height and width of the kernel, pixels."""
    inputs: Annotated[int, Count]
    """Input channels."""
    outputs: Annotated[int, Count]
    """Output channels."""
    stride: Annotated[int, Count] = 1
    """Step of the kernel along both axes, pixels."""
    groups: Annotated[int, Count] = 1
    """Groups of channels that are convolved separately; `inputs` of them: a depthwise one."""
    bias: bool = False
    """If true, the convolution has a bias, which is added before the norm."""
    norm: Norm | None
    """Normalization of the output; none: the output itself."""
    kernel: Kernel = "free"
    """Parametrization of the kernel."""
    initial_scale: float = 1.0
    """Initial value of the norm's scale (gamma)."""
    deviation: Annotated[float | None, NonNegative] = None
    """Standard deviation of the initial kernel; none: sqrt(2 / fan-out) (arXiv:1502.01852).

    The fan-out is the number of outputs that an input unit reaches, those of its own group."""

    def __post_init__(self) -> None:
        if self.inputs % self.groups or self.outputs % self.groups:
            both = math.gcd(self.inputs, self.outputs)
            fits = [g for g in range(1, both + 1) if both % g == 0]
            raise ValueError(
                f"convolution: {self.inputs} input and {self.outputs} output channels do not split "
                f"into {self.groups} groups; these do: {', '.join(map(str, fits))}"
            )


@tree
class ConvNormParams:
    """Kernel and norm parameters of a `ConvNorm`."""

    kernel: Float[Array, "k k i o"]
    """The kernel as it is stored, before its parametrization."""
    norm: NormParams | None
    """Parameters of the norm; None without a norm."""
    bias: Float[Array, " o"] | None = None
    """Bias of the convolution; None without one."""
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
    shape = (layer.size, layer.size, layer.inputs // layer.groups, layer.outputs)
    deviation = layer.deviation
    if deviation is None:
        deviation = math.sqrt(2 * layer.groups / (layer.size * layer.size * layer.outputs))
    norm, state = None, None
    if layer.norm is not None:
        norm, state = init_norm(
            layer.norm,
            layer.outputs,
            scale=layer.initial_scale,
            affine_levels=affine_levels,
            state_levels=state_levels,
        )
    kernel = draw_normal(key, shape, deviation)
    bias = jnp.zeros((layer.outputs,)) if layer.bias else None
    gain = jnp.ones((layer.outputs,)) if layer.kernel == "scaled" else None
    return ConvNormParams(kernel=kernel, norm=norm, bias=bias, gain=gain), state


def apply_convolution(
    layer: ConvNorm, params: ConvNormParams, x: Float[Array, "b *space i"]
) -> Float[Array, "b ... o"]:
    """Returns the convolution of ``x`` with the parametrized kernel, before the norm.

    A kernel of one pixel without stride is a dense layer, for any number of space axes.
    """
    kernel = params.kernel
    match layer.kernel:
        case "standardized":
            kernel = standardize_kernel(kernel)
        case "scaled":
            assert params.gain is not None
            kernel = scale_standardize_kernel(kernel, params.gain)
    kernel = kernel.astype(x.dtype)
    if x.ndim != 4 and layer.size == layer.stride == layer.groups == 1:
        y = x @ kernel[0, 0]
    else:
        padding = None if layer.size % 2 else 0
        y = conv(x, kernel, stride=layer.stride, padding=padding, groups=layer.groups)
    return y if params.bias is None else y + params.bias.astype(x.dtype)


def apply_conv_norm(
    layer: ConvNorm,
    params: ConvNormParams,
    state: NormState | None,
    x: Float[Array, "b *space i"],
    mode: Mode,
    *,
    mask: Bool[Array, "b ..."] | None = None,
) -> tuple[Float[Array, "b ... o"], NormState | None]:
    """Returns the normalized convolution of ``x``, and the norm's new state.

    ``mask``, of the size of the result, has the pixels that enter statistics; None for all.
    """
    y = apply_convolution(layer, params, x)
    if layer.norm is None or params.norm is None:
        return y, state
    return apply_norm(layer.norm, params.norm, state, y, mode, mask=mask)


def downsample_mask(
    mask: Bool[Array, "b *space"] | None, stride: int
) -> Bool[Array, "b ..."] | None:
    """Returns the mask of a map ``stride`` times smaller: the value of each cell's first pixel."""
    return mask if mask is None or stride == 1 else mask[:, ::stride, ::stride]
