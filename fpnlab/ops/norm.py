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

Variances are biased, in float32 or wider, and accurate however large the mean is against the
deviation (``ops.moments``). The result has the dtype of ``x``. Where ``mask`` is given, pixels
outside of it stay out of the statistics; they are still mapped like the others.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from fpnlab.ops.moments import local_moments, mean_square, merge_moments, merge_over, rescale
from fpnlab.types import Moments

AxisName = str | tuple[str, ...]
_AXES = {"hwc": (1, 2, 3), "c": (3,)}


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
        (synchronised batch norm, MegDet, arXiv:1711.07240).

    Returns:
      The normalized maps, and the moments of the whole batch: mean and var ``[c]``, count ``[]``.

    Raises:
      ValueError: the batch does not split into groups of ``norm_batch`` (on several devices, of
        parts of a device's images or of whole devices), or a group has one value per channel
        (its variance is zero, so that the output would not depend on ``x``).
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
    wide = _wide(x)
    moments, shift = local_moments(wide, _AXES[axes], mask)
    gain = lax.rsqrt(moments.var + eps)
    if axes == "c":
        scaled = rescale(wide, shift, moments.mean, gain, jnp.zeros_like(gain)) * scale + bias
    else:
        scaled = rescale(wide, shift, moments.mean, gain * scale, bias)
    return scaled.astype(x.dtype)


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
    c = x.shape[-1]
    check_groups(c, groups)
    wide = _wide(x)
    moments, shift = local_moments(wide, (1, 2), mask)
    # All channels of an image have the same count, so that their moments weigh the same.
    split = lambda values: values.reshape(-1, groups, c // groups)
    mean = split(moments.mean).mean(-1, keepdims=True)
    spread = jnp.square(split(moments.mean) - mean)
    var = (split(moments.var) + spread).mean(-1, keepdims=True)
    join = lambda values: jnp.broadcast_to(values, split(shift).shape).reshape(shift.shape)
    gain = join(lax.rsqrt(var + eps)) * scale
    return rescale(wide, shift, join(mean), gain, bias).astype(x.dtype)


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
    wide = _wide(x)
    moments, shift = local_moments(wide, (1, 2), mask)
    gain = lax.rsqrt(moments.var + eps) * scale
    return rescale(wide, shift, moments.mean, gain, bias).astype(x.dtype)


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
    wide = _wide(x)
    gain = lax.rsqrt(mean_square(wide, _AXES[axes], mask) + eps)
    # A product of both would be as large as the map where each pixel has a gain of its own.
    scaled = wide * gain * scale if axes == "c" else wide * (gain * scale)
    return scaled.astype(x.dtype)


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
    gain = lax.rsqrt(mean_square(wide, (1, 2), mask) + eps) * scale
    return _cut(wide, gain, bias, threshold).astype(x.dtype)


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


def check_groups(channels: int, groups: int) -> None:
    """Refuses a number of groups that does not divide the channels, and says which do."""
    if groups < 1 or channels % groups:
        fits = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(
            f"group norm: {channels} channels do not split into {groups} groups; these do: "
            f"{', '.join(map(str, fits))}"
        )


@jax.custom_jvp
def _cut(x, gain, bias, threshold):
    """Returns ``max(x * gain + bias, threshold)``; where both are equal, the threshold learns.

    The rule masks the cotangents once, for every sum over them; autodiff keeps the map before the
    maximum, and masks the cotangents for either side of it.
    """
    return jnp.maximum(x * gain + bias, threshold)


@_cut.defjvp
def _cut_jvp(primals: Any, tangents: Any) -> Any:
    x, gain, bias, threshold = primals
    dx, dgain, dbias, dthreshold = tangents
    passed = dx * gain + x * dgain + (dbias - dthreshold)
    return _cut(*primals), dthreshold + jnp.where(x * gain + bias > threshold, passed, 0)


def _batch_norm(x, scale, bias, eps, norm_batch, mask, axis_name, renorm=None):
    """Returns ``x`` normalized within its groups, and the moments of all of them together."""
    b, h, w, c = x.shape
    shards = lax.axis_size(axis_name) if axis_name else 1
    group = norm_batch or b * shards
    _check_group(b, h, w, group, shards)
    images = min(group, b)
    # A group's images make one tall image.
    tall = _wide(x).reshape(b // images, images * h, w, c)
    mask = None if mask is None else mask.reshape(tall.shape[:3])
    local, shift = local_moments(tall, (1, 2), mask)
    local = Moments(
        count=local.count.squeeze((1, 2, 3)),
        mean=local.mean.squeeze((1, 2)),
        var=local.var.squeeze((1, 2)),
    )
    if group > b:
        groups, whole = _merge_devices(local, group // b, axis_name, shards)
    else:
        groups, whole = local, merge_moments(local)
        whole = merge_over(whole, axis_name) if axis_name else whole
    gain = lax.rsqrt(groups.var + eps)
    if renorm is not None:
        running_mean, running_var, r_max, d_max = renorm
        running_gain = lax.rsqrt(running_var + eps)
        r = jnp.clip(jnp.sqrt(groups.var + eps) * running_gain, 1 / r_max, r_max)
        d = jnp.clip((groups.mean - running_mean) * running_gain, -d_max, d_max)
        gain, bias = gain * lax.stop_gradient(r), lax.stop_gradient(d) * scale + bias
    spread = lambda values: jnp.atleast_2d(values)[:, None, None]
    y = rescale(tall, shift, spread(groups.mean), spread(gain * scale), spread(bias))
    return y.astype(x.dtype).reshape(x.shape), whole


def _merge_devices(own, devices, axis_name, shards):
    """Returns the moments ``[1 c]`` of the group of devices that this one is in, and of all."""
    row = lax.axis_index(axis_name) // devices
    # Each adds its images to the row of its group.
    put = lambda leaf: (
        jnp.zeros((shards // devices, *leaf.shape[1:]), leaf.dtype).at[row].set(leaf[0])
    )
    groups = merge_over(jax.tree.map(put, own), axis_name)
    return jax.tree.map(lambda leaf: leaf[row][None], groups), merge_moments(groups)


def _check_group(b, h, w, group, shards):
    fits = [
        k for k in range(1, b * shards + 1) if b * shards % k == 0 and (b % k == 0 or k % b == 0)
    ]
    if group not in fits:
        where = f" ({b} on each of {shards} devices)" if shards > 1 else ""
        raise ValueError(
            f"batch norm: a batch of {b * shards} images{where} does not split into groups of "
            f"norm_batch={group}; these do: {', '.join(map(str, fits))}"
        )
    if group * h * w == 1:
        raise ValueError(
            f"batch norm: one value per channel (norm_batch={group} on a {h}x{w} map), so its "
            "output would be its bias whatever the input; use norm_batch >= 2, a larger image, "
            "fewer pyramid levels, or a norm that does not use the batch"
        )


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
