"""Normalizations of NHWC maps, as functions of the map and its affine parameters.

All of them compute ``y = (x - mean) / sqrt(var + eps) * scale + bias`` and differ only in
the values over which mean and variance run:

| function | statistics over | learns from other images |
|---|---|---|
| ``batch_norm_train`` | n, h, w of ``norm_batch`` images, per channel | yes |
| ``batch_norm_eval`` | none: they are given | no |
| ``layer_norm(axes="hwc")`` | h, w, c of one image | no |
| ``layer_norm(axes="c")`` | c at one pixel | no |
| ``group_norm`` | h, w and the channels of one group of one image | no |

Variances are biased and two-pass, in float32 or wider: ``E[x^2] - E[x]^2`` loses all digits
when the mean is large against the deviation. The result has the dtype of ``x``.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fpnlab.types import Moments


def batch_norm_train(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    norm_batch: int | None = None,
) -> tuple[Float[Array, "b h w c"], Moments]:
    """Returns ``x`` normalized by the statistics of its own batch, and these statistics.

    See "Batch Normalization", Ioffe & Szegedy, arXiv:1502.03167, algorithm 1. With
    ``norm_batch`` smaller than the batch, statistics are taken over contiguous groups of so
    many images ("ghost batches", Hoffer et al., arXiv:1705.08741); the returned moments are
    those of the whole batch, merged by Chan's formula. PyTorch keeps the unbiased variance in
    its running average and Flax the biased one; here it is always biased.

    Args:
      x: maps of ``b`` images.
      scale: gamma.
      bias: beta.
      eps: added to the variance.
      norm_batch: images in a statistics group; None for all of them.

    Returns:
      The normalized maps, and the moments of the whole batch: mean and var ``[c]``, count ``[]``.

    Raises:
      ValueError: the batch does not split into groups of ``norm_batch``, or a group has one
        value per channel (its variance is zero, so that the output would not depend on ``x``).
    """
    b, h, w, c = x.shape
    group = norm_batch or b
    if b % group:
        raise ValueError(
            f"batch norm: a batch of {b} images does not split into groups of norm_batch={group}; "
            f"these do: {', '.join(str(k) for k in range(1, b + 1) if b % k == 0)}"
        )
    if group * h * w == 1:
        raise ValueError(
            f"batch norm: one value per channel (norm_batch={group} on a {h}x{w} map), so its "
            "output would be its bias whatever the input; use norm_batch >= 2, a larger image, "
            "fewer pyramid levels, or a norm that does not use the batch"
        )
    grouped = x.reshape(b // group, group, h, w, c)
    y, mean, var = _normalize(grouped, (1, 2, 3), scale, bias, eps)
    count = jnp.full((b // group,), group * h * w, mean.dtype)
    parts = Moments(count=count, mean=mean.reshape(-1, c), var=var.reshape(-1, c))
    return y.reshape(x.shape), merge_moments(parts)


def batch_norm_eval(
    x: Float[Array, "b h w c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` normalized by the statistics given: one affine map a channel.

    See arXiv:1502.03167, algorithm 2, step 11.
    """
    gain = scale * lax.rsqrt(var + eps)
    return (x.astype(mean.dtype) * gain + (bias - mean * gain)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    axes: Literal["hwc", "c"],
    eps: float,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` normalized over ``axes`` of each image, with an affine map a channel.

    See "Layer Normalization", Ba et al., arXiv:1607.06450, equation 3. For convolutions the
    name has two meanings, so that the axes have no default: ``"hwc"`` takes all units of the
    layer (the paper's definition; arXiv:1803.08494, equation 4; equal to ``group_norm`` with
    one group), ``"c"`` the channels at each pixel (ConvNeXt, arXiv:2201.03545; the default of
    Flax's ``LayerNorm``).
    """
    over = {"hwc": (1, 2, 3), "c": (3,)}[axes]
    return _normalize(x, over, scale, bias, eps)[0]


def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    eps: float,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` normalized over space and ``c / groups`` neighbouring channels of each image.

    See "Group Normalization", Wu & He, arXiv:1803.08494, equation 7.

    Raises:
      ValueError: the channels do not split into ``groups``.
    """
    b, h, w, c = x.shape
    check_groups(c, groups)
    grouped = x.reshape(b, h, w, groups, c // groups)
    affine = (scale.reshape(groups, -1), bias.reshape(groups, -1))
    return _normalize(grouped, (1, 2, 4), *affine, eps)[0].reshape(x.shape)


def check_groups(channels: int, groups: int) -> None:
    """Refuses a number of groups that does not divide the channels, and says which do."""
    if groups < 1 or channels % groups:
        fits = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(
            f"group norm: {channels} channels do not split into {groups} groups; these do: "
            f"{', '.join(map(str, fits))}"
        )


def merge_moments(parts: Moments) -> Moments:
    """Returns the moments of all values together, from those of parts along the first axis.

    Chan, Golub & LeVeque 1979, equation 2.1: counts add, means average by count, and the
    variance takes in the spread of the means. (The average of the variances misses that.)
    """
    count = parts.count.sum(0)
    share = (parts.count / count)[..., None]
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + jnp.square(parts.mean - mean))).sum(0)
    return Moments(count=count, mean=mean, var=var)


def _normalize(x, axes, scale, bias, eps):
    """Returns normalized ``x``, and mean and variance over ``axes`` (kept with length 1)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    # What the mean lost to rounding is found again among the small centred values. It is no
    # function of x in exact arithmetic, so it has no gradient.
    lost = lax.stop_gradient((wide - mean).mean(axes, keepdims=True))
    mean = mean + lost
    centred = wide - mean
    var = jnp.square(centred).mean(axes, keepdims=True)
    y = centred * (lax.rsqrt(var + eps) * scale) + bias
    return y.astype(x.dtype), mean, var
