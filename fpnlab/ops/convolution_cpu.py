"""Convolutions and their gradients in the forms that XLA compiles to fast code for CPUs."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

NARROWEST = 16
"""Fewest input channels of the dense gradients that compute that of a grouped kernel."""
MOST_BLOCKS = 32
"""Most dense gradients that compute that of a grouped kernel; each takes time to compile."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Sizes of a convolution; the operands of a gradient alone do not determine all of them."""

    images: tuple[int, ...]
    """Height and width of the images."""
    kernel: tuple[int, ...]
    """Shape of the kernel, [kh, kw, i / groups, o]."""
    stride: int
    padding: int
    groups: int

    @property
    def depthwise(self) -> bool:
        """True if each output channel depends on one input channel, of the same index."""
        return self.groups > 1 and self.kernel[2:] == (1, self.groups)

    @property
    def blocks(self) -> int:
        """Number of dense gradients that compute that of the kernel on CPU."""
        channels = self.groups * self.kernel[2]
        fits = (n for n in range(1, min(self.groups, MOST_BLOCKS) + 1) if self.groups % n == 0)
        return max((n for n in fits if channels // n >= NARROWEST), default=1)


def plain(x: Float[Array, "b h w i"], w: Float[Array, "kh kw g o"], window: Window) -> Array:
    """Returns the convolution as XLA computes it."""
    return jax.lax.conv_general_dilated(
        x,
        w,
        (window.stride, window.stride),
        [(window.padding, window.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def plain_input_gradient(
    dy: Float[Array, "b p q o"], w: Float[Array, "kh kw g o"], window: Window
) -> Float[Array, "b h w i"]:
    """Returns the gradient of ``plain`` by the images, as XLA computes it."""
    shape = (dy.shape[0], *window.images, w.shape[2] * window.groups)
    x = jax.typeof(dy).update(shape=shape)
    return jax.linear_transpose(lambda x: plain(x, w, window), x)(dy)[0]


def plain_kernel_gradient(
    x: Float[Array, "b h w i"], dy: Float[Array, "b p q o"], window: Window
) -> Float[Array, "kh kw g o"]:
    """Returns the gradient of ``plain`` by the kernel, as XLA computes it."""
    w = jax.typeof(dy).update(shape=window.kernel)
    return jax.linear_transpose(lambda w: plain(x, w, window), w)(dy)[0]


def input_gradient(
    dy: Float[Array, "b p q o"], w: Float[Array, "kh kw g o"], window: Window
) -> Float[Array, "b h w i"]:
    """Returns the gradient of ``plain`` by the images.

    A step of the window becomes zeros in ``dy``: XLA's transposed convolution with groups is
    several times slower.
    """
    return plain_input_gradient(dilated(dy, window), w, dataclasses.replace(window, stride=1))


def dilated(dy: Float[Array, "b p q o"], window: Window) -> Float[Array, "b r s o"]:
    """Returns the gradient by the output with stride 1, of which each ``stride``-th was taken."""
    steps = [(0, 0, 0)]
    for n, k, m in zip(window.images, window.kernel, dy.shape[1:3]):
        rest = n + 2 * window.padding - k - (m - 1) * window.stride
        steps.append((0, rest, window.stride - 1))
    return jax.lax.pad(dy, jnp.zeros((), dy.dtype), [*steps, (0, 0, 0)])


def kernel_gradient(
    x: Float[Array, "b h w i"], dy: Float[Array, "b p q o"], window: Window
) -> Float[Array, "kh kw g o"]:
    """Returns the gradient of ``plain`` by the kernel.

    Groups are computed in a few blocks, as gradients of dense kernels whose diagonals are taken.
    """
    # The convolution that XLA uses for this gradient, too: images and channels are swapped, and
    # `dy` is the kernel. XLA would fuse the two transpositions with the element-wise operations
    # that produced x and dy, and so recompute all of these (in a ResNet the whole chain of residual
    # sums) in an unfavorable memory order.
    stride, padding, blocks = window.stride, window.padding, window.blocks
    sizes = zip(dy.shape[1:3], window.kernel, x.shape[1:3])
    ends = [(n - 1) * stride + k - m - padding for n, k, m in sizes]
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=[(padding, end) for end in ends],
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    images = jnp.split(_transpose(x, axes=(3, 1, 2, 0)), blocks)
    kernels = jnp.split(_transpose(dy, axes=(1, 2, 0, 3)), blocks, axis=-1)
    dw = jnp.stack([convolve(a, b) for a, b in zip(images, kernels)])
    return _diagonal(dw.transpose(2, 3, 1, 0, 4), window.groups // blocks)


def _diagonal(w: Float[Array, "kh kw i n o"], groups: int) -> Float[Array, "kh kw g no"]:
    """Returns the kernel of ``n * groups`` groups from the dense kernels of ``n`` blocks."""
    kh, kw, inputs, blocks, outputs = w.shape
    w = w.reshape(kh, kw, groups, inputs // groups, blocks, groups, outputs // groups)
    w = jnp.diagonal(w, axis1=2, axis2=5)  # [kh, kw, g, n, outputs, groups]
    return w.swapaxes(-1, -2).reshape(kh, kw, inputs // groups, blocks * outputs)


def apart(function: Callable[..., Array], *static: str) -> Callable[..., Array]:
    """Returns ``function`` such that XLA does not fuse it with the operations around it."""
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*args: Array, **kwargs: object) -> Array:
        # XLA:CPU removes optimization barriers before fusion, but keeps calls that are not
        # inlineable.
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call


_transpose = apart(jnp.transpose, "axes")
