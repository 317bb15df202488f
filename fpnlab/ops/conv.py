"""Convolution of NHWC images with HWIO kernels, arranged so that training is fast on CPUs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

UNROLLED = 16
"""Longest mapped axis whose convolutions are written out one by one on a CPU."""


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

    The gradient is a ``jax.custom_vjp``: reverse mode only. A 1x1 kernel without padding is a
    matrix product instead, and differentiates in both modes.

    Args:
      x: images.
      w: kernel, of the dtype of ``x``.
      stride: step of the window along both axes, in pixels.
      padding: rows and columns of zeros on each of the four sides. ``None`` is ``(k - 1) // 2``:
        an odd kernel then gives ``ceil(h / stride)`` rows, as PyTorch's ``padding=k // 2``
        does; XLA's ``"SAME"`` is shifted by a pixel where ``stride`` is even.

    Raises:
      TypeError: ``x`` and ``w`` differ in dtype.
      ValueError: ``padding`` is left out for a kernel of even size.
    """
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
    return _conv(stride, padding, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride: int, padding: int, x: Array, w: Array) -> Array:
    return _forward(stride, padding)(x, w)


def _conv_fwd(stride: int, padding: int, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _forward(stride, padding)(x, w), (x, w)


def _conv_bwd(
    stride: int, padding: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, w = residuals
    dx = _input_gradient(stride, padding, x.shape[1:3])(dy, w)
    dw = _kernel_gradient(stride, padding, w.shape[:2])(x, dy)
    return dx, dw


_conv.defvjp(_conv_fwd, _conv_bwd)


def _plain(stride: int, padding: int, x: Array, w: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# The three convolutions of a training step, each as a function of two arrays. They are kept by
# their static arguments, so that JAX sees the same function again and need not trace it anew.


@functools.cache
def _forward(stride: int, padding: int) -> Callable[[Array, Array], Array]:
    return _mapped(functools.partial(_plain, stride, padding), fold=True)


@functools.cache
def _input_gradient(
    stride: int, padding: int, size: tuple[int, int]
) -> Callable[[Array, Array], Array]:
    def gradient(dy, w):
        x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2]), dy.dtype)
        return jax.linear_transpose(lambda x: _plain(stride, padding, x, w), x)(dy)[0]

    return _mapped(gradient, fold=True)


@functools.cache
def _kernel_gradient(
    stride: int, padding: int, size: tuple[int, int]
) -> Callable[[Array, Array], Array]:
    def xla(x, dy):
        w = jax.ShapeDtypeStruct((*size, x.shape[3], dy.shape[3]), dy.dtype)
        return jax.linear_transpose(lambda w: _plain(stride, padding, x, w), w)(dy)[0]

    def cpu(x, dy):
        # The same convolution that XLA makes of this gradient: images and channels change
        # places, and `dy` is the kernel. XLA fuses the two transpositions with whatever
        # element-wise arithmetic produced x and dy, and so repeats all of that (in a ResNet
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


def _apart(x: Array, axes: tuple[int, ...]) -> Array:
    """Returns the transposed ``x``, compiled apart from what computes ``x``."""
    # XLA:CPU drops optimization barriers before it fuses; it keeps calls it may not inline.
    with set_xla_metadata(inlineable="false"):
        return _transpose(x, axes)


_transpose = jax.jit(jnp.transpose, static_argnums=1)


def _mapped(
    f: Callable[[Array, Array], Array], *, fold: bool = False
) -> Callable[[Array, Array], Array]:
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
