"""Moments of feature maps: computed within each image, then merged into those of a norm.

Norms differ only in the values that share statistics: layer norm takes an image, instance norm a
channel of an image; batch norm and group norm merge the moments of channels of images, batch norm
over the images of a group, group norm over the channels of a group.

Variances are computed in one pass over the map, as ``E[z^2] - E[z]^2`` of ``z = x - shift``. The
rounding error grows by the factor ``1 + (mean - shift)^2 / var``: without a shift no digit is left
where the mean is 10^4 standard deviations. Two choices of the shift bound it by 17 or 11:

* The mean of a subset of the values. The mean of m among n values lies within ``sqrt(n / m)``
  standard deviations of the mean of all, for any values: ``(shift - mean)^2 <= sum over the m of
  (x - mean)^2 / m <= n / m * var``. So the rounding error grows by at most ``1 + n / m``.
* None, and if ``mean^2 / var`` is then too large somewhere, the mean, in a second pass, which maps
  within a network hardly ever need. This is faster on CPU, because the first sums do not wait for
  a shift; under ``vmap`` both passes are computed. An accelerator would have to wait for the
  branch.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from fpnlab.types import Moments

ShiftedMeans = tuple[Array, Array, Array]
"""A shift, and the means of ``x - shift`` and of its square, each ``[b 1 1 1]`` or ``[b 1 1 c]``
or ``[b h w 1]``."""
FAR = 10.0
"""Squared mean over variance above which a shift is needed."""


def local_moments(
    x: Float[Array, "b h w c"], axes: tuple[int, ...], mask: Bool[Array, "b h w"] | None = None
) -> tuple[Moments, Float[Array, "b #h #w #c"], Float[Array, "b #h #w #c"]]:
    """Returns the moments of each image over space (1, 2), channels (3,), or both (1, 2, 3).

    Args:
      x: Maps, float32 or wider.
      axes: Axes to reduce, kept with length 1.
      mask: Pixels that count; None for all of them. It has no effect on moments over the channels
        of each pixel.

    Returns:
      The moments (0 where no value counts), with counts ``[b 1 1 1]``; a shift near the means,
      without a gradient; and the means minus the shift, which keep digits that large means lose.
      The last two are for ``rescale``.
    """
    weight = _weight(mask, axes)
    if weight is None:
        size = math.prod(x.shape[a] for a in axes)
        count = jnp.full((x.shape[0], 1, 1, 1), size, x.dtype)
    else:
        count = weight.sum((1, 2, 3), keepdims=True, dtype=x.dtype)
        count = count * (x.shape[3] if 3 in axes else 1)
    shift, offset, square = _shifted_means(axes, x, weight)
    var = jnp.maximum(square - jnp.square(offset), 0)
    return Moments(count=count, mean=shift + offset, var=var), shift, offset


def mean_square(
    x: Float[Array, "b h w c"], axes: tuple[int, ...], mask: Bool[Array, "b h w"] | None = None
) -> Float[Array, "b #h #w #c"]:
    """Returns the mean of the squares, over the axes and pixels of ``local_moments``."""
    weight = _weight(mask, axes)
    counted = x if weight is None else jnp.where(weight, x, 0)
    return _average(axes, weight, jnp.square(counted))


def rescale(
    x: Float[Array, "b h w c"],
    shift: Float[Array, "#b #h #w #c"],
    offset: Float[Array, "#b #h #w #c"],
    gain: Float[Array, "#b #h #w #c"],
    bias: Float[Array, "#b #h #w #c"],
) -> Float[Array, "b h w c"]:
    """Returns ``(x - shift - offset) * gain + bias``, where the mean is ``shift + offset``.

    ``x - shift`` is exact where both are close (Sterbenz's lemma), so that large means lose no
    digits. The gradients of ``offset`` and ``gain`` are two sums over the map, of the cotangents
    and of the cotangents times ``x - shift``.
    """
    return _scale(x, shift, gain) + (bias - offset * gain)


def merge_moments(parts: Moments) -> Moments:
    """Returns the moments of all values together, from those of parts along the first axis.

    Chan, Golub & LeVeque 1979, equation 2.1: counts add up, means are averaged by count, and the
    variance includes the spread of the means (which an average of the variances would miss).
    Parts without values have weight 0.
    """
    count = parts.count.sum(0)
    share = (parts.count / jnp.maximum(count, 1))[..., None]
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + jnp.square(parts.mean - mean[None]))).sum(0)
    return Moments(count=count, mean=mean, var=var)


def merge_over(part: Moments, axis_name: str | tuple[str, ...]) -> Moments:
    """Returns the moments of all shards together: ``merge_moments`` over a named axis."""
    count = lax.psum(part.count, axis_name)
    share = (part.count / jnp.maximum(count, 1))[..., None]
    mean = lax.psum(share * part.mean, axis_name)
    var = lax.psum(share * (part.var + jnp.square(part.mean - mean)), axis_name)
    return Moments(count=count, mean=mean, var=var)


# XLA:CPU fuses ``x - shift`` into a reduction only if that is its single consumer; otherwise it
# writes the difference to memory. So every consumer below subtracts its own copy of the shift
# (`_own`), and derivatives are written as custom rules, because autodiff would make all consumers
# share one difference.


@jax.custom_jvp
def _scale(
    x: Float[Array, "b h w c"],
    shift: Float[Array, "#b #h #w #c"],
    gain: Float[Array, "#b #h #w #c"],
) -> Float[Array, "b h w c"]:
    """Returns ``(x - shift) * gain``, differentiated with a constant shift."""
    return (x - shift) * gain


@_scale.defjvp
def _scale_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    x, shift, gain = primals
    dx, _, dgain = tangents
    return _scale(x, shift, gain), dx * gain + (x - _own(shift, 3)) * dgain


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted_means(
    axes: tuple[int, ...], x: Float[Array, "b h w c"], weight: Bool[Array, "b h w 1"] | None
) -> ShiftedMeans:
    """Returns a shift near the mean, and the (weighted) means of ``x - shift`` and its square.

    They are differentiated with a constant shift.
    """
    if weight is not None:
        shift = _average(axes, weight, jnp.where(weight, x, 0))
        return shift, *_means(axes, x, shift, weight)
    return _means_and_shift(axes, x)


@_shifted_means.defjvp
def _shifted_means_jvp(
    axes: tuple[int, ...],
    primals: tuple[Array, Array | None],
    tangents: tuple[Array, Array | np.ndarray | None],  # That of a mask has no values.
) -> tuple[ShiftedMeans, ShiftedMeans]:
    x, weight = primals
    dx = tangents[0] if weight is None else jnp.where(weight, tangents[0], 0)
    average = functools.partial(_average, axes, weight)
    means = _shifted_means(axes, x, weight)
    shift = lax.stop_gradient(means[0])
    along = average(dx), 2 * average(_off(x, shift, weight, 0) * dx)
    return means, (jnp.zeros_like(shift), *along)


@functools.partial(jax.jit, static_argnums=0)  # So that eager callers compile the branches once.
def _means_and_shift(axes: tuple[int, ...], x: Float[Array, "b h w c"]) -> ShiftedMeans:
    by_part = functools.partial(_shift_by_part, axes)
    return lax.platform_dependent(x, cpu=functools.partial(_shift_if_far, axes), default=by_part)


def _shift_by_part(axes: tuple[int, ...], x: Float[Array, "b h w c"]) -> ShiftedMeans:
    shift = _part(x, axes).mean(axes, keepdims=True)
    return shift, *_means(axes, x, shift, None)


def _shift_if_far(axes: tuple[int, ...], x: Float[Array, "b h w c"]) -> ShiftedMeans:
    mean, square = x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)
    # Also false where the squares are not finite: they may overflow where deviations do not.
    near = jnp.square(mean) <= FAR * (square - jnp.square(mean))
    unshifted = jnp.zeros_like(mean), mean, square

    def second_pass() -> ShiftedMeans:
        shifted = mean, *_means(axes, x, mean, None)
        # Sets of values that need no shift keep their result, independent of the other sets.
        first, second, third = (jnp.where(near, old, new) for old, new in zip(unshifted, shifted))
        return first, second, third

    return lax.cond(near.all(), lambda: unshifted, second_pass)


def _means(
    axes: tuple[int, ...],
    x: Float[Array, "b h w c"],
    shift: Float[Array, "b #h #w #c"],
    weight: Bool[Array, "b h w 1"] | None,
) -> tuple[Float[Array, "b #h #w #c"], Float[Array, "b #h #w #c"]]:
    average = functools.partial(_average, axes, weight)
    off = functools.partial(_off, x, shift, weight)
    return average(off(1)), average(jnp.square(off(2)))


def _weight(
    mask: Bool[Array, "b h w"] | None, axes: tuple[int, ...]
) -> Bool[Array, "b h w 1"] | None:
    """Returns the mask of the values that count; None for all of them."""
    return None if mask is None or axes == (3,) else mask[..., None]


def _part(x: Float[Array, "b h w c"], axes: tuple[int, ...]) -> Float[Array, "b _ _ _"]:
    """Returns the first sixteenth of ``x`` along the first of ``axes``, rounded up."""
    return lax.slice_in_dim(x, 0, (x.shape[axes[0]] + 15) // 16, axis=axes[0])


def _average(
    axes: tuple[int, ...],
    weight: Bool[Array, "b h w 1"] | None,
    values: Float[Array, "b h w c"],
) -> Float[Array, "b #h #w #c"]:
    """Returns the mean of the values that count; 0 if none does.

    Args:
      axes: Axes to reduce, kept with length 1.
      weight: Values that count; None for all of them.
      values: Must be 0 where they do not count.
    """
    if weight is None:
        return values.mean(axes, keepdims=True)
    # The weight has one channel, the values may have more.
    channels = values.shape[3] if 3 in axes else 1
    count = weight.sum(axes, keepdims=True, dtype=values.dtype) * channels
    return values.sum(axes, keepdims=True) / jnp.maximum(count, 1)


def _off(
    x: Float[Array, "b h w c"],
    shift: Float[Array, "b #h #w #c"],
    weight: Bool[Array, "b h w 1"] | None,
    reader: int,
) -> Float[Array, "b h w c"]:
    """Returns ``x - shift``, 0 where values do not count, with the shift of `_own`."""
    off = x - _own(shift, reader)
    return off if weight is None else jnp.where(weight, off, 0)


def _own(shift: Array, reader: int) -> Array:
    """Returns a copy of the shift that XLA does not merge with those of other readers.

    Common subexpression elimination sees a different number of barriers for each reader.
    """
    for _ in range(reader):
        shift = lax.optimization_barrier(shift)
    return shift
