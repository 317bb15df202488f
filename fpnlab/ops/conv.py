"""Convolution of NHWC images with HWIO kernels, arranged so that training is fast on CPUs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fpnlab.ops.sharding import compiler_sharded

Bilinear = Callable[[Array, Array], Array]

UNROLLED = 16
"""Longest mapped axis whose convolutions are written out one by one on a CPU."""


@compiler_sharded(lambda spec: PartitionSpec(spec[0]))
def conv(
    x: Float[Array, "b h w i"],
    w: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Float[Array, "b _ _ o"]:
    """Returns the cross-correlation of ``x`` with ``w``, which deep learning calls convolution.

    Values and gradients are those of ``jax.lax.conv_general_dilated``. Two things differ, on
    CPUs only: how the gradient of the kernel is computed, and what ``vmap`` over kernels makes
    (convolutions one after the other, where XLA would make a grouped one, several times
    slower). A program exported for several platforms carries both ways.

    It differentiates in reverse mode, any number of times, and not in forward mode
    (``jax.custom_vjp``): neither ``jvp`` nor ``linearize``. A 1x1 kernel without padding is a
    matrix product instead, and differentiates in both modes.

    Args:
      x: images.
      w: kernel, of the dtype of ``x``.
      stride: step of the window along both axes, in pixels.
      padding: rows and columns of zeros on each of the four sides. ``None`` is ``(k - 1) // 2``:
        an odd kernel then gives ``ceil(h / stride)`` rows, as PyTorch's ``padding=k // 2``
        does; XLA's ``"SAME"`` is shifted by a pixel where ``stride`` is even.

    Raises:
      TypeError: ``x`` is not of real floating-point numbers, or ``w`` of another dtype.
      ValueError: ``x`` or ``w`` has not four axes, or ``padding`` is left out for a kernel of even
        size.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(
            f"conv: x has shape {x.shape} and w {w.shape}; give images [b, h, w, i] and a kernel "
            "[kh, kw, i, o]"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"conv: x is {x.dtype}; it must be of real floating-point numbers, pictures e.g. "
            "x.astype(jnp.float32)"
        )
    if x.dtype != w.dtype:
        raise TypeError(f"conv: x is {x.dtype} and w is {w.dtype}; cast one of them")
    if padding is None:
        if w.shape[0] != w.shape[1] or w.shape[0] % 2 == 0:
            raise ValueError(
                f"conv: a kernel of {w.shape[0]}x{w.shape[1]} needs an explicit padding; "
                "only square kernels of odd size have a default"
            )
        padding = w.shape[0] // 2
    if w.shape[:2] == (1, 1) and padding == 0:
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], w[0, 0])
    return _conv(x, w, stride, padding)


# The forward convolution, the gradient of its input and that of its kernel are bilinear, and the
# derivatives of each are the other two: three custom_vjp that point at one another, so that
# gradients can be differentiated again.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, stride: int, padding: int) -> Array:
    return _forward(stride, padding)(x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_dx(dy: Array, w: Array, size: tuple[int, int], stride: int, padding: int) -> Array:
    return _input_gradient(size, stride, padding)(dy, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_dw(x: Array, dy: Array, size: tuple[int, int], stride: int, padding: int) -> Array:
    return _kernel_gradient(size, stride, padding)(x, dy)


def _conv_bwd(stride, padding, operands, ct):
    x, w = operands
    dx = _conv_dx(ct, w, x.shape[1:3], stride, padding)
    return dx, _conv_dw(x, ct, w.shape[:2], stride, padding)


def _conv_dx_bwd(size, stride, padding, operands, ct):
    dy, w = operands
    return _conv(ct, w, stride, padding), _conv_dw(ct, dy, w.shape[:2], stride, padding)


def _conv_dw_bwd(size, stride, padding, operands, ct):
    x, dy = operands
    return _conv_dx(dy, ct, x.shape[1:3], stride, padding), _conv(x, ct, stride, padding)


_conv.defvjp(lambda x, w, *static: (_conv(x, w, *static), (x, w)), _conv_bwd)
_conv_dx.defvjp(lambda dy, w, *static: (_conv_dx(dy, w, *static), (dy, w)), _conv_dx_bwd)
_conv_dw.defvjp(lambda x, dy, *static: (_conv_dw(x, dy, *static), (x, dy)), _conv_dw_bwd)


# The same three as functions of two arrays, kept by their static arguments: JAX meets the same
# function again and need not trace it anew.


@functools.cache
def _forward(stride: int, padding: int) -> Bilinear:
    return _mapped(lambda x, w: _plain(x, w, stride, padding), fold=True)


@functools.cache
def _input_gradient(size: tuple[int, int], stride: int, padding: int) -> Bilinear:
    def gradient(dy, w):
        x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
        return jax.linear_transpose(lambda x: _plain(x, w, stride, padding), x)(dy)[0]

    return _mapped(gradient, fold=True)


@functools.cache
def _kernel_gradient(size: tuple[int, int], stride: int, padding: int) -> Bilinear:
    def xla(x, dy):
        w = jax.ShapeDtypeStruct((*size, x.shape[3], dy.shape[3]), dy.dtype)
        return jax.linear_transpose(lambda w: _plain(x, w, stride, padding), w)(dy)[0]

    def cpu(x, dy):
        # The same convolution that XLA makes of this gradient: images and channels change
        # places, and `dy` is the kernel. XLA would fuse the two transpositions with whatever
        # element-wise arithmetic produced x and dy, and so repeat all of that (in a ResNet
        # the whole chain of residual sums) in the order of memory that suits it least.
        ends = [
            (n - 1) * stride + k - m - padding for n, k, m in zip(dy.shape[1:3], size, x.shape[1:3])
        ]
        dw = jax.lax.conv_general_dilated(
            _apart(x, (3, 1, 2, 0)),
            _apart(dy, (1, 2, 0, 3)),
            (1, 1),
            [(padding, end) for end in ends],
            rhs_dilation=(stride, stride),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return dw.transpose(1, 2, 0, 3)

    return _mapped(lambda x, dy: jax.lax.platform_dependent(x, dy, cpu=cpu, default=xla))


def _plain(x: Array, w: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _apart(x: Array, axes: tuple[int, ...]) -> Array:
    """Returns the transposed ``x``, compiled apart from what computes ``x``."""
    # XLA:CPU drops optimization barriers before it fuses; it keeps calls it may not inline.
    with set_xla_metadata(inlineable="false"):
        return _transpose(x, axes)


_transpose = jax.jit(jnp.transpose, static_argnums=1)


def _mapped(f: Bilinear, *, fold: bool = False) -> Bilinear:
    """Returns ``f(images, other)`` with a batching rule made for CPUs.

    Args:
      f: a convolution of two arrays, the first with images along its first axis.
      fold: whether a mapped axis of the images alone is more images.
    """
    rule = jax.custom_batching.custom_vmap(f)

    @rule.def_vmap
    def _(length, mapped, images, other):
        if fold and not mapped[1]:
            y = rule(images.reshape(-1, *images.shape[2:]), other)
            return y.reshape(length, -1, *y.shape[1:]), True

        def one_by_one(*args):
            at = lambda i: [arg[i] if m else arg for arg, m in zip(args, mapped)]
            return jnp.stack([rule(*at(i)) for i in range(length)])

        def together(*args):
            return jax.vmap(f, in_axes=[0 if m else None for m in mapped])(*args)

        cpu = one_by_one if length <= UNROLLED else together
        return jax.lax.platform_dependent(images, other, cpu=cpu, default=together), True

    return rule
