"""Normalizations of NHWC maps, as functions of the map and its affine parameters.

Those that take statistics compute ``y = (x - mean) / sqrt(var + eps) * scale + bias`` and differ
only in the values over which mean and variance run:

| function | statistics over | depends on other images |
|---|---|---|
| ``batch_norm_train`` | n, h, w of ``norm_batch`` images, per channel | yes |
| ``batch_renorm_train`` | the same, corrected towards running ones | yes |
| ``batch_norm_eval`` | none: they are given | no |
| ``layer_norm(axes="hwc")`` | h, w, c of one image | no |
| ``layer_norm(axes="c")`` | c at one pixel | no |
| ``group_norm`` | h, w and the channels of one group of one image | no |
| ``instance_norm`` | h, w of one channel of one image | no |
| ``rms_norm`` | as ``layer_norm``, about zero instead of the mean | no |
| ``filter_response_norm`` | h, w of one channel of one image, about zero | no |
| ``dynamic_tanh`` | none | no |

Variances are biased and two-pass, in float32 or wider: ``E[x^2] - E[x]^2`` loses all digits
when the mean is large against the deviation. The result has the dtype of ``x``. Where ``mask``
is given, pixels outside of it stay out of the statistics; they are still mapped like the others.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from fpnlab.types import Moments

AxisName = str | tuple[str, ...]


def batch_norm_train(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    norm_batch: int | None = None,
    mask: Bool[Array, "b h w"] | None = None,
    axis_name: AxisName | None = None,
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
      mask: pixels that count; None for all of them.
      axis_name: mapped axes (``vmap``, ``shard_map``) whose images belong to the batch
        (synchronised batch norm, MegDet, arXiv:1711.07240); each shard is one group then.

    Returns:
      The normalized maps, and the moments of the whole batch: mean and var ``[c]``, count ``[]``.

    Raises:
      ValueError: the batch does not split into groups of ``norm_batch``, groups are asked for
        within a batch that spans devices, or a group has one value per channel (its variance is
        zero, so that the output would not depend on ``x``).
    """
    return _batch_norm(x, scale, bias, eps, norm_batch, mask, axis_name)


def batch_renorm_train(
    x: Float[Array, "b h w c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    r_max: float | Float[Array, ""],
    d_max: float | Float[Array, ""],
    norm_batch: int | None = None,
    mask: Bool[Array, "b h w"] | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "b h w c"], Moments]:
    """Returns ``x`` batch-normalized and moved towards running statistics, and its moments.

    See "Batch Renormalization", Ioffe, arXiv:1702.03275, algorithm 1: ``x_hat = (x - mu_B) /
    sigma_B * r + d`` with ``r = sigma_B / sigma`` within ``[1/r_max, r_max]`` and ``d = (mu_B -
    mu) / sigma`` within ``[-d_max, d_max]``, both without a gradient. ``r_max = 1, d_max = 0``
    is batch norm; where neither is clipped, the result is that of the running statistics, with
    batch norm's gradient.

    Args:
      x: maps of ``b`` images.
      mean: running mean.
      var: running variance.
      scale: gamma.
      bias: beta.
      eps: added to both variances.
      r_max: largest factor.
      d_max: largest shift, in running deviations.
      norm_batch: as in ``batch_norm_train``.
      mask: as in ``batch_norm_train``.
      axis_name: as in ``batch_norm_train``.

    Raises:
      ValueError: as in ``batch_norm_train``.
    """
    running = (mean, var, r_max, d_max)
    return _batch_norm(x, scale, bias, eps, norm_batch, mask, axis_name, running)


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


def fold_batch_norm(
    kernel: Float[Array, "kh kw i o"],
    mean: Float[Array, " o"],
    var: Float[Array, " o"],
    scale: Float[Array, " o"],
    bias: Float[Array, " o"],
    *,
    eps: float,
) -> tuple[Float[Array, "kh kw i o"], Float[Array, " o"]]:
    """Returns the kernel and bias of the one convolution that does both, for inference.

    A convolution followed by ``batch_norm_eval`` is a convolution with these, exact up to
    rounding.
    """
    gain = scale * lax.rsqrt(var + eps)
    return kernel * gain, bias - mean * gain


def layer_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    axes: Literal["hwc", "c"],
    eps: float,
    mask: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` normalized over ``axes`` of each image, with an affine map a channel.

    See "Layer Normalization", Ba et al., arXiv:1607.06450, equation 3. For convolutions the
    name has two meanings, so that the axes have no default: ``"hwc"`` takes all units of the
    layer (the paper's definition; arXiv:1803.08494, equation 4; equal to ``group_norm`` with
    one group), ``"c"`` the channels at each pixel (ConvNeXt, arXiv:2201.03545; the default of
    Flax's ``LayerNorm``), where a mask changes nothing.
    """
    if axes == "c":
        return _normalize(x, (3,), scale, bias, eps)
    return _normalize(x, (1, 2, 3), scale, bias, eps, _weight(mask))


def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    eps: float,
    mask: Bool[Array, "b h w"] | None = None,
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
    weight = None if mask is None else _weight(mask)[..., None]
    return _normalize(grouped, (1, 2, 4), *affine, eps, weight).reshape(x.shape)


def instance_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    mask: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` normalized over space, each channel of each image by itself.

    See "Instance Normalization", Ulyanov et al., arXiv:1607.08022, equation 4. It is
    ``group_norm`` with a group a channel, and ``batch_norm_train`` with ``norm_batch=1``.
    """
    return _normalize(x, (1, 2), scale, bias, eps, _weight(mask))


def rms_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    *,
    axes: Literal["hwc", "c"],
    eps: float,
    mask: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` divided by its root mean square over ``axes`` of each image.

    See "Root Mean Square Layer Normalization", Zhang & Sennrich, arXiv:1910.07467, equation 4:
    a layer norm that neither centres nor shifts.
    """
    over, weight = ((1, 2, 3), _weight(mask)) if axes == "hwc" else ((3,), None)
    wide = _wide(x)
    power = _mean(jnp.square(wide), over, weight, None)
    return (wide * lax.rsqrt(power + eps) * scale).astype(x.dtype)


def filter_response_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    threshold: Float[Array, " c"],
    *,
    eps: float,
    mask: Bool[Array, "b h w"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns ``x`` divided by its root mean square over space, cut from below at ``threshold``.

    See "Filter Response Normalization Layer", Singh & Krishnan, arXiv:1911.09737, equations 1 to
    5: the division leaves a mean, and the thresholded linear unit ``max(y, threshold)`` takes
    the place of the rectifier behind it.
    """
    wide = _wide(x)
    power = _mean(jnp.square(wide), (1, 2), _weight(mask), None)
    y = wide * lax.rsqrt(power + eps) * scale + bias
    return jnp.maximum(y, threshold).astype(x.dtype)


def dynamic_tanh(
    x: Float[Array, "b h w c"],
    alpha: Float[Array, ""],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
) -> Float[Array, "b h w c"]:
    """Returns ``scale * tanh(alpha * x) + bias``: the shape of a layer norm without statistics.

    See "Transformers without Normalization", Zhu et al., arXiv:2503.10622, equation 1.
    """
    return (scale * jnp.tanh(alpha * _wide(x)) + bias).astype(x.dtype)


def standardize_kernel(
    kernel: Float[Array, "kh kw i o"], *, eps: float = 1e-10
) -> Float[Array, "kh kw i o"]:
    """Returns the kernel with mean 0 and variance 1 over the inputs of each output channel.

    See "Weight Standardization", Qiao et al., arXiv:1903.10520, equations 7 and 8.
    """
    axes = (0, 1, 2)
    centred = kernel - kernel.mean(axes)
    return centred * lax.rsqrt(jnp.square(centred).mean(axes) + eps)


def scale_standardize_kernel(
    kernel: Float[Array, "kh kw i o"], gain: Float[Array, " o"], *, eps: float = 1e-4
) -> Float[Array, "kh kw i o"]:
    """Returns the standardized kernel divided by the root of its fan-in, times ``gain``.

    See "Characterizing signal propagation", Brock et al., arXiv:2101.08692, equation 2: it keeps
    the variance of activations, which lets a residual network train without normalizing them.
    The variance times the fan-in is kept above ``eps`` (as in NFNets, arXiv:2102.06171).
    """
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    centred = kernel - kernel.mean((0, 1, 2))
    var = jnp.square(centred).mean((0, 1, 2))
    return centred * lax.rsqrt(jnp.maximum(var * fan_in, eps)) * gain


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
    Parts without values weigh nothing.
    """
    count = parts.count.sum(0)
    share = (parts.count / jnp.maximum(count, 1))[..., None]
    mean = (share * parts.mean).sum(0)
    var = (share * (parts.var + jnp.square(parts.mean - mean))).sum(0)
    return Moments(count=count, mean=mean, var=var)


def _batch_norm(x, scale, bias, eps, norm_batch, mask, axis_name, renorm=None):
    """Returns ``x`` normalized within its groups, and the moments of all of them together."""
    b, h, w, c = x.shape
    shards = lax.axis_size(axis_name) if axis_name else 1
    group = norm_batch or b * shards
    _check_group(b, h, w, group, shards)
    spans = axis_name if group > b else None
    images = min(group, b)
    grouped = x.reshape(b // images, images, h, w, c)
    weight = None if mask is None else _weight(mask).reshape(b // images, images, h, w, 1)
    wide = _wide(grouped)
    mean, var = _moments(wide, (1, 2, 3), weight, spans)
    if renorm is None:
        # One product by a vector of channels: its backward pass is cheaper than that of two.
        y = (wide - mean) * (lax.rsqrt(var + eps) * scale) + bias
    else:
        running_mean, running_var, r_max, d_max = renorm
        gain = lax.rsqrt(running_var + eps)
        r = jnp.clip(jnp.sqrt(var + eps) * gain, 1 / r_max, r_max)
        d = jnp.clip((mean - running_mean) * gain, -d_max, d_max)
        y = (wide - mean) * lax.rsqrt(var + eps)
        y = (y * lax.stop_gradient(r) + lax.stop_gradient(d)) * scale + bias
    y = y.astype(x.dtype).reshape(x.shape)
    count = jnp.asarray(images * h * w, mean.dtype) if weight is None else weight.sum((1, 2, 3, 4))
    count = jnp.broadcast_to(count if spans is None else lax.psum(count, spans), mean.shape[:1])
    parts = Moments(count=count, mean=mean.reshape(-1, c), var=var.reshape(-1, c))
    moments = merge_moments(parts)
    return y, moments if spans == axis_name else _merge_over(moments, axis_name)


def _merge_over(part, axis_name):
    """Returns the moments of all shards together: ``merge_moments`` over a named axis."""
    count = lax.psum(part.count, axis_name)
    share = part.count / jnp.maximum(count, 1)
    mean = lax.psum(share * part.mean, axis_name)
    var = lax.psum(share * (part.var + jnp.square(part.mean - mean)), axis_name)
    return Moments(count=count, mean=mean, var=var)


def _check_group(b, h, w, group, shards):
    if group > b and group != b * shards:
        raise ValueError(
            f"batch norm: norm_batch={group} spans more than the {b} images of this device but not "
            f"all {b * shards}; use {b * shards}, or a divisor of {b}"
        )
    if group <= b and b % group:
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


def _normalize(x, axes, scale, bias, eps, weight=None):
    """Returns ``x`` normalized by mean and variance over ``axes``."""
    wide = _wide(x)
    mean, var = _moments(wide, axes, weight, None)
    y = (wide - mean) * (lax.rsqrt(var + eps) * scale) + bias
    return y.astype(x.dtype)


def _moments(wide, axes, weight, axis_name):
    """Returns mean and biased variance over ``axes`` (kept with length 1), in two passes."""
    mean = _mean(wide, axes, weight, axis_name)
    # What the mean lost to rounding is found again among the small centred values. It is no
    # function of x in exact arithmetic, so it has no gradient.
    mean = mean + lax.stop_gradient(_mean(wide - mean, axes, weight, axis_name))
    return mean, _mean(jnp.square(wide - mean), axes, weight, axis_name)


def _mean(values, axes, weight, axis_name):
    """Returns the (weighted) mean over ``axes`` and named axes; 0 where no value counts."""
    if weight is None:
        mean = values.mean(axes, keepdims=True)
        return lax.pmean(mean, axis_name) if axis_name else mean
    total = jnp.where(weight > 0, values, 0).sum(axes, keepdims=True)
    # The weight has one channel, the values have all of them.
    channels = [values.shape[a] // weight.shape[a] for a in axes]
    count = weight.sum(axes, keepdims=True) * math.prod(channels)
    if axis_name:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)


def _weight(mask: Array | None) -> Any:
    return None if mask is None else mask[..., None].astype(jnp.float32)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
