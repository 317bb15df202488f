"""Convolution of NHWC images with HWIO kernels, with derivatives that are fast on CPU."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fpnlab.ops.convolution_cpu import (
    Window,
    input_gradient,
    kernel_gradient,
    plain,
    plain_input_gradient,
    plain_kernel_gradient,
)
from fpnlab.ops.depthwise_cpu import (
    depthwise,
    depthwise_input_gradient,
    depthwise_kernel_gradient,
)
from fpnlab.ops.sharding import compiler_sharded

Bilinear = Callable[[Array, Array], Array]
Sized = Callable[[Array, Array, Window], Array]

UNROLLED = 16
"""Longest vmapped axis over kernels that is unrolled into separate convolutions on CPU."""


@compiler_sharded(lambda spec: PartitionSpec(spec[0]))
def conv(
    x: Float[Array, "b h w i"],
    w: Float[Array, "kh kw g o"],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> Float[Array, "b _ _ o"]:
    """Returns the cross-correlation of ``x`` with ``w``, which deep learning calls convolution.

    Values and gradients equal those of ``jax.lax.conv_general_dilated``. Their computation differs
    on CPU only: that of the kernel gradient, of groups, and of ``vmap`` over kernels (separate
    convolutions, where XLA would use a grouped one, several times slower). A program exported for
    several platforms contains both variants.

    It can be differentiated in forward and reverse mode, any number of times and in any order.
    Without padding and groups, a 1x1 kernel and one as large as the stride are matrix products.

    Args:
      x: Images.
      w: Kernel, of the dtype of ``x``, for ``g = i / groups`` input channels.
      stride: Step of the window along both axes, in pixels.
      padding: Rows and columns of zeros on each of the four sides. ``None`` is ``(k - 1) // 2``:
        an odd kernel then gives ``ceil(h / stride)`` rows, as PyTorch's ``padding=k // 2``
        does; XLA's ``"SAME"`` is shifted by a pixel where ``stride`` is even.
      groups: Sets of adjacent input and output channels that are convolved separately
        (arXiv:1611.05431); as many as channels make it a depthwise convolution.

    Raises:
      TypeError: ``x`` is not of real floating-point numbers, or ``w`` of another dtype.
      ValueError: ``x`` or ``w`` does not have four axes, their channels do not split into the
        groups or do not fit, ``padding`` is None for a kernel of even size, or the kernel is larger
        than the padded images.
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
    _check_channels(x.shape[3], w.shape[2], w.shape[3], groups)
    if any(n + 2 * padding < k for n, k in zip(x.shape[1:3], w.shape)):
        raise ValueError(
            f"conv: images of {x.shape[1]}x{x.shape[2]} with padding {padding} are smaller than "
            f"the kernel of {w.shape[0]}x{w.shape[1]}; use larger images or a smaller kernel"
        )
    if groups == 1 and padding == 0 and w.shape[:2] in ((1, 1), (stride, stride)):
        return _patches(x, w, stride)
    return _conv(x, w, stride, padding, groups)


def _check_channels(inputs: int, per_group: int, outputs: int, groups: int) -> None:
    if groups < 1 or inputs % groups or outputs % groups:
        most = math.gcd(inputs, outputs)
        fits = ", ".join(str(g) for g in range(1, most + 1) if most % g == 0)
        raise ValueError(
            f"conv: {inputs} input and {outputs} output channels do not split into {groups} "
            f"groups; these do: {fits}"
        )
    if per_group * groups != inputs:
        raise ValueError(
            f"conv: x has {inputs} channels in {groups} groups, and w takes {per_group} in each; "
            f"give a kernel [kh, kw, {inputs // groups}, o]"
        )


def _patches(x: Array, w: Array, stride: int) -> Array:
    """Returns the convolution of windows that do not overlap, as a matrix product."""
    k = w.shape[0]
    rows, columns = ((n - k) // stride + 1 for n in x.shape[1:3])
    if k == 1:
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], w[0, 0])
    x = x[:, : rows * k, : columns * k].reshape(-1, rows, k, columns, k, x.shape[3])
    return jnp.einsum("bhywxi,yxio->bhwo", x, w)


# The convolution, its input gradient and its kernel gradient are bilinear, and the two transposes
# of each are the other two. They are three primitives that refer to each other, so derivatives in
# both modes and of any order consist of these three. (A custom_vjp has no forward mode, and for a
# custom_jvp JAX would transpose the tangents with its own rules.) Batching a primitive gives the
# same primitive with more axes, so this also holds for derivatives of vmapped convolutions.


_Vmaps = tuple[tuple[bool, ...], tuple[bool, ...]]
"""For the first and the second operand: whether each vmap, outermost first, maps it."""


def _primitive(name: str, make: Callable[[Window], Bilinear]) -> Primitive:
    """Returns the primitive of a bilinear function, without derivative rules yet.

    Args:
      name: Name of the primitive in jaxprs.
      make: Returns the function of two arrays for given sizes, in terms of other primitives.
    """

    @functools.cache
    def function(window: Window, vmaps: _Vmaps) -> Bilinear:
        f = make(window)
        for pair in reversed(list(zip(*vmaps))):
            f = jax.vmap(f, in_axes=[0 if m else None for m in pair])
        return f

    def run(a: Array, b: Array, *, window: Window, vmaps: _Vmaps) -> Array:
        return function(window, vmaps)(a, b)

    def abstract(a: object, b: object, *, window: Window, vmaps: _Vmaps) -> object:
        # Traced, because a result has more than a shape and a dtype: its sharding, and the mesh
        # axes that it varies over.
        return jax.make_jaxpr(function(window, vmaps))(a, b).out_avals[0]

    def batch(
        operands: Sequence[Array],
        axes: Sequence[int | None],
        *,
        window: Window,
        vmaps: _Vmaps,
    ) -> tuple[Array, int]:
        operands = [a if i is None else jnp.moveaxis(a, i, 0) for a, i in zip(operands, axes)]
        first, second = ((i is not None, *inner) for i, inner in zip(axes, vmaps))
        return primitive.bind(*operands, window=window, vmaps=(first, second)), 0

    primitive = Primitive(name)
    primitive.def_impl(jax.jit(run, static_argnames=("window", "vmaps")))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    return primitive


def _conv(x: Array, w: Array, stride: int, padding: int, groups: int) -> Array:
    window = Window(x.shape[1:3], w.shape, stride, padding, groups)
    return _conv_p.bind(*_varying_alike(x, w), window=window, vmaps=((), ()))


def _varying_alike(*arrays: Array) -> list[Array]:
    """Returns the arrays marked as varying over the same mesh axes, as ``shard_map`` requires."""
    varying = [jax.typeof(a).mat.varying for a in arrays]
    missing = [tuple(sorted(frozenset().union(*varying) - axes)) for axes in varying]
    return [jax.lax.pcast(a, m, to="varying") if m else a for a, m in zip(arrays, missing)]


def _forward(window: Window) -> Bilinear:
    return _by_platform(window, plain, depthwise if window.depthwise else plain, fold=True)


def _input_gradient(window: Window) -> Bilinear:
    cpu = plain_input_gradient
    if window.groups > 1:
        cpu = depthwise_input_gradient if window.depthwise else input_gradient
    return _by_platform(window, plain_input_gradient, cpu, fold=True)


def _kernel_gradient(window: Window) -> Bilinear:
    cpu = depthwise_kernel_gradient if window.depthwise else kernel_gradient
    return _by_platform(window, plain_kernel_gradient, cpu)


def _by_platform(window: Window, default: Sized, cpu: Sized, *, fold: bool = False) -> Bilinear:
    """Returns the function of two arrays that is ``cpu`` on CPUs, with a fast batching rule."""
    other = lambda a, b: default(a, b, window)
    on_cpu = lambda a, b: cpu(a, b, window)
    choice = lambda a, b: jax.lax.platform_dependent(a, b, cpu=on_cpu, default=other)
    run = other if cpu is default else choice
    # The sums of a depthwise convolution stay one loop under a vmap.
    return run if window.depthwise else _mapped(run, fold=fold)


def _mapped(f: Bilinear, *, fold: bool = False) -> Bilinear:
    """Returns ``f(images, other)`` with a batching rule that is fast on CPU.

    Args:
      f: A convolution of two arrays, the first with images along its first axis.
      fold: If true, a vmap over the images alone merges the mapped axis into the image axis.
    """
    rule = jax.custom_batching.custom_vmap(f)

    @rule.def_vmap
    def _(length: int, mapped: Sequence[bool], images: Array, other: Array) -> tuple[Array, bool]:
        if fold and not mapped[1]:
            y = rule(images.reshape(-1, *images.shape[2:]), other)
            return y.reshape(length, -1, *y.shape[1:]), True

        def one_by_one(*args: Array) -> Array:
            at = lambda i: [arg[i] if m else arg for arg, m in zip(args, mapped)]
            return jnp.stack([rule(*at(i)) for i in range(length)])

        def together(*args: Array) -> Array:
            return jax.vmap(f, in_axes=[0 if m else None for m in mapped])(*args)

        cpu = one_by_one if length <= UNROLLED else together
        return jax.lax.platform_dependent(images, other, cpu=cpu, default=together), True

    return rule


def _transposed(position: int, by: Primitive, at: int) -> Callable[..., Array]:
    """Returns the rule that transposes a primitive with respect to its operand ``position``.

    Args:
      position: Operand in which the primitive is linear; the other one is constant.
      by: Primitive that computes the transpose.
      at: Operand of ``by`` that takes the cotangent; the other one takes the constant.
    """

    def rule(ct: Array, *operands: object, window: Window, vmaps: _Vmaps) -> Array:
        # The operand at `position` is a placeholder of JAX, not an array.
        new, new_vmaps = [operands[1 - position]], [vmaps[1 - position]]
        new.insert(at, ct)
        new_vmaps.insert(at, (True,) * len(vmaps[0]))
        y = by.bind(*new, window=window, vmaps=tuple(new_vmaps))
        shared = tuple(i for i, mapped in enumerate(vmaps[position]) if not mapped)
        return y.sum(shared) if shared else y

    return rule


_conv_p = _primitive("conv", _forward)
_dx_p = _primitive("conv_input_gradient", _input_gradient)
_dw_p = _primitive("conv_kernel_gradient", _kernel_gradient)
ad.defbilinear(_conv_p, _transposed(0, _dx_p, 0), _transposed(1, _dw_p, 1))  # of (x, w)
ad.defbilinear(_dx_p, _transposed(0, _conv_p, 0), _transposed(1, _dw_p, 0))  # of (dy, w)
ad.defbilinear(_dw_p, _transposed(0, _dx_p, 1), _transposed(1, _conv_p, 1))  # of (x, dy)
