"""Moments of maps: taken within each image, and merged into those of a norm.

Norms differ in what they take together only: layer norm an image, instance norm a channel of an
image; batch norm and group norm merge the channels of images, the one over the images of a group,
the other over the channels of a group.

Variances come from one reading of the map, ``E[z^2] - E[z]^2`` of ``z = x - shift``, whose rounding
grows by ``1 + (mean - shift)^2 / var``: without a shift that leaves no digit where the mean is 10^4
deviations. Two shifts keep it to 17, or 11, at most:

* The mean of a part of the values. Of m values among n, the mean lies within ``sqrt(n / m)``
  deviations of the mean of all, whatever the values are: ``(shift - mean)^2 <= sum over the m of
  (x - mean)^2 / m <= n / m * var``. So rounding grows by ``1 + n / m``.
* None, and if then ``mean^2 / var`` proves too large somewhere, the mean: a second reading, which
  maps within a network hardly ever need. On CPU that is faster, because the first sums need not
  wait; under ``vmap`` both readings are made. An accelerator would have to wait for the branch.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from fpnlab.types import Moments

FAR = 10.0
"""Squared mean over variance beyond which a shift is needed."""


def local_moments(
    x: Float[Array, "b h w c"], axes: tuple[int, ...], mask: Bool[Array, "b h w"] | None = None
) -> tuple[Moments, Float[Array, "b #h #w #c"], Float[Array, "b #h #w #c"]]:
    """Returns the moments of each image over space (1, 2), channels (3,), or both (1, 2, 3).

    Args:
      x: maps, float32 or wider.
      axes: what the moments are taken over; its axes are kept with length 1.
      mask: pixels that count; None for all of them. Over the channels of each pixel alone it
        changes nothing.

    Returns:
      Moments (those of no value are 0), whose count is ``[b 1 1 1]``; a shift near the means,
      which has no gradient; and the means minus the shift, which keep digits that the means
      lose where they are large. Both are for ``rescale``.
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

    ``x - shift`` is exact where both are near (Sterbenz's lemma), so that large means cost no
    digits. Gradients of ``offset`` and ``gain`` are two sums over the map, of the cotangents and
    of the cotangents times ``x - shift``.
    """
    return _scale(x, shift, gain) + (bias - offset * gain)


def merge_moments(parts: Moments) -> Moments:
    """Returns the moments of all values together, from those of parts along the first axis.

    Chan, Golub & LeVeque 1979, equation 2.1: counts add, means average by count, and the
    variance takes in the spread of the means. (The average of the variances misses that.)
    Parts without values weigh nothing.
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


# XLA fuses ``x - shift`` into a sum over it only where the sum is its one reader, and on CPU
# writes it to memory otherwise. So every reader below subtracts a shift of its own, and the
# gradients are written as rules, for autodiff would let all of them read one difference.


@jax.custom_jvp
def _scale(x, shift, gain):
    """Returns ``(x - shift) * gain``; the shift counts as a constant."""
    return (x - shift) * gain


@_scale.defjvp
def _scale_jvp(primals: Any, tangents: Any) -> Any:
    x, shift, gain = primals
    dx, _, dgain = tangents
    return _scale(x, shift, gain), dx * gain + (x - _own(shift, 3)) * dgain


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shifted_means(axes, x, weight):
    """Returns a shift near the mean, and the (weighted) means of ``x - shift`` and its square.

    The shift counts as a constant.
    """
    if weight is not None:
        shift = _average(axes, weight, jnp.where(weight, x, 0))
        return shift, *_means(axes, x, shift, weight)
    return _means_and_shift(axes, x)


@_shifted_means.defjvp
def _shifted_means_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    x, weight = primals
    dx = tangents[0] if weight is None else jnp.where(weight, tangents[0], 0)
    average = functools.partial(_average, axes, weight)
    means = _shifted_means(axes, x, weight)
    shift = lax.stop_gradient(means[0])
    along = average(dx), 2 * average(_off(x, shift, weight, 0) * dx)
    return means, (jnp.zeros_like(shift), *along)


@functools.partial(jax.jit, static_argnums=0)  # Outside of jit, too, branches are compiled once.
def _means_and_shift(axes, x):
    by_part = functools.partial(_shift_by_part, axes)
    return lax.platform_dependent(x, cpu=functools.partial(_shift_if_far, axes), default=by_part)


def _shift_by_part(axes, x):
    shift = _part(x, axes).mean(axes, keepdims=True)
    return shift, *_means(axes, x, shift, None)


def _shift_if_far(axes, x):
    mean, square = x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)
    # False for what is not finite as well: squares may overflow where deviations do not.
    near = jnp.square(mean) <= FAR * (square - jnp.square(mean))
    as_they_are = jnp.zeros_like(mean), mean, square

    def read_again():
        shifted = mean, *_means(axes, x, mean, None)
        # Sets of values that need no shift keep their digits, whatever stands beside them.
        return tuple(jnp.where(near, old, new) for old, new in zip(as_they_are, shifted))

    return lax.cond(near.all(), lambda: as_they_are, read_again)


def _means(axes, x, shift, weight):
    average = functools.partial(_average, axes, weight)
    off = functools.partial(_off, x, shift, weight)
    return average(off(1)), average(jnp.square(off(2)))


def _weight(mask, axes):
    """Returns which values count, ``[b h w 1]``; None for all of them."""
    return None if mask is None or axes == (3,) else mask[..., None]


def _part(x, axes):
    """Returns the first sixteenth of the rows or channels over ``axes``, rounded up."""
    return lax.slice_in_dim(x, 0, (x.shape[axes[0]] + 15) // 16, axis=axes[0])


def _average(axes, weight, values):
    """Returns the mean of values that are 0 where the weight is; 0 where no value counts."""
    if weight is None:
        return values.mean(axes, keepdims=True)
    # The weight has one channel, the values may have more.
    channels = values.shape[3] if 3 in axes else 1
    count = weight.sum(axes, keepdims=True, dtype=values.dtype) * channels
    return values.sum(axes, keepdims=True) / jnp.maximum(count, 1)


def _off(x, shift, weight, reader):
    off = x - _own(shift, reader)
    return off if weight is None else jnp.where(weight, off, 0)


def _own(shift, reader):
    for _ in range(reader):
        shift = lax.optimization_barrier(shift)
    return shift
