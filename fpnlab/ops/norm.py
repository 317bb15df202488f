"""Normalization of maps ``[b, *space, c]``, as functions of the map and its affine parameters.

There may be any number of space (or time) axes: two for images, one for sequences, three for
volumes, none for dense layers. Below, ``h, w`` denotes all of them, as in ``axes="hwc"``.

Those with statistics compute ``y = (x - mean) / sqrt(var + eps) * scale + bias`` and differ
only in the values over which mean and variance are taken:

| function | statistics over | depends on other images |
|---|---|---|
| ``batch_norm_train`` | n, h, w of ``norm_batch`` images, per channel | yes |
| ``batch_renorm_train`` | the same, corrected toward running ones | yes |
| ``batch_norm_eval`` | none: they are arguments | no |
| ``layer_norm(axes="hwc")`` | h, w, c of one image | no |
| ``layer_norm(axes="c")`` | c at one pixel | no |
| ``group_norm`` | h, w and the channels of one group of one image | no |
| ``instance_norm`` | h, w of one channel of one image | no |
| ``rms_norm`` | as ``layer_norm``, about zero instead of the mean | no |
| ``filter_response_norm`` | h, w of one channel of one image, about zero | no |
| ``dynamic_tanh`` | none | no |

Variances are biased. Functions compute in the widest of float32 and the dtypes of the map and its
parameters; the result has the dtype of ``x``. However large the mean is relative to the standard
deviation, normalized values differ from those of exact arithmetic by at most ``64 * 2**-24`` of the
largest (float32; ``ops.moments``; tested up to a mean of 10^6 standard deviations). That is the
error of the arithmetic alone: the rounding of ``x`` itself adds ``2**-24 * mean / deviation``.

With a ``mask``, pixels outside of it do not enter the statistics, but are normalized like the
others. An empty map has an empty result, but no batch statistics.

All functions raise a TypeError for maps of integers, booleans or complex numbers, and a ValueError
for parameters, statistics or masks of another shape. They also raise a ValueError if centered
statistics are over a single value, because the output would then be the bias for any input. About
zero (``rms_norm``, ``filter_response_norm``), a single value keeps its sign.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from fpnlab.ops.moments import local_moments, mean_square, merge_moments, merge_over, rescale
from fpnlab.ops.sharding import compiler_sharded
from fpnlab.types import Moments

AxisName = str | tuple[str, ...]
_AXES = {"hwc": (1, 2, 3), "c": (3,)}
NOT_SHARDED: Any = PartitionSpec()  # Takes the place of an array in `Moments`.
_same = compiler_sharded(lambda spec: spec)
_same_and_moments = compiler_sharded(
    lambda spec: (spec, Moments(count=NOT_SHARDED, mean=NOT_SHARDED, var=NOT_SHARDED))
)


@_same_and_moments
def batch_norm_train(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    norm_batch: int | None = None,
    mask: Bool[Array, "b *space"] | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "b *space c"], Moments]:
    """Returns ``x`` normalized by the statistics of its own batch, and these statistics.

    See "Batch Normalization", Ioffe & Szegedy, arXiv:1502.03167, algorithm 1. With
    ``norm_batch`` smaller than the batch, statistics are taken over contiguous groups of that
    many images ("ghost batches", Hoffer et al., arXiv:1705.08741); the returned moments are
    those of the whole batch, merged by Chan's formula. PyTorch keeps the unbiased variance in
    its running average and Flax the biased one; here it is always biased.

    Args:
      x: Maps of ``b`` images.
      scale: gamma.
      bias: beta.
      eps: Added to the variance.
      norm_batch: Images in a statistics group; None for all of them.
      mask: Pixels that count; None for all of them.
      axis_name: Mapped axes (``vmap``, ``shard_map``) over which the batch extends
        (synchronized batch norm, MegDet, arXiv:1711.07240).

    Returns:
      The normalized maps, and the moments of the whole batch: mean and var ``[c]``, count ``[]``.

    Raises:
      ValueError: The batch does not split into groups of ``norm_batch`` (on several devices, a
        group must be a part of one device's images, or all images of several devices), or a group
        has one value per channel (with variance 0, so that the output would not depend on ``x``).
    """
    maps, mask, (scale, bias) = _prepared("batch norm", x, mask, scale=scale, bias=bias)
    y, moments = _batch_norm(maps, scale, bias, eps, norm_batch, mask, axis_name)
    return y.astype(x.dtype).reshape(x.shape), moments


@_same_and_moments
def batch_renorm_train(
    x: Float[Array, "b *space c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    r_max: float | Float[Array, ""],
    d_max: float | Float[Array, ""],
    norm_batch: int | None = None,
    mask: Bool[Array, "b *space"] | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Float[Array, "b *space c"], Moments]:
    """Returns ``x`` batch-normalized and moved toward running statistics, and its moments.

    See "Batch Renormalization", Ioffe, arXiv:1702.03275, algorithm 1: ``x_hat = (x - mu_B) /
    sigma_B * r + d`` with ``r = sigma_B / sigma`` within ``[1/r_max, r_max]`` and ``d = (mu_B -
    mu) / sigma`` within ``[-d_max, d_max]``, both without a gradient. ``r_max = 1, d_max = 0``
    is batch norm; where neither is clipped, the result is that of the running statistics, with
    batch norm's gradient.

    Args:
      x: Maps of ``b`` images.
      mean: Running mean.
      var: Running variance.
      scale: gamma.
      bias: beta.
      eps: Added to both variances.
      r_max: Largest factor.
      d_max: Largest shift, in running standard deviations.
      norm_batch: As in ``batch_norm_train``.
      mask: As in ``batch_norm_train``.
      axis_name: As in ``batch_norm_train``.

    Raises:
      ValueError: As in ``batch_norm_train``.
    """
    vectors = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    maps, mask, (scale, bias, mean, var) = _prepared("batch renorm", x, mask, **vectors)
    running = (mean, var, r_max, d_max)
    y, moments = _batch_norm(maps, scale, bias, eps, norm_batch, mask, axis_name, running)
    return y.astype(x.dtype).reshape(x.shape), moments


@_same
def batch_norm_eval(
    x: Float[Array, "b *space c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` normalized by given statistics: one affine map per channel.

    See arXiv:1502.03167, algorithm 2, step 11; the mean is subtracted first, because ``x * gain +
    (bias - mean * gain)`` loses the digits of a mean of many deviations.
    """
    vectors = {"mean": mean, "var": var, "scale": scale, "bias": bias}
    maps, _, (mean, var, scale, bias) = _prepared("batch norm", x, None, **vectors)
    y = (maps - mean) * (scale * lax.rsqrt(var + eps)) + bias
    return y.astype(x.dtype).reshape(x.shape)


@_same
def layer_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    axes: Literal["hwc", "c"],
    eps: float,
    mask: Bool[Array, "b *space"] | None = None,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` normalized over ``axes`` of each image, with an affine map per channel.

    See "Layer Normalization", Ba et al., arXiv:1607.06450, equation 3. For convolutions the
    name has two meanings, so that the axes have no default: ``"hwc"`` takes all units of the
    layer (the paper's definition; arXiv:1803.08494, equation 4; equal to ``group_norm`` with
    one group), ``"c"`` takes the channels at each pixel (ConvNeXt, arXiv:2201.03545; the default of
    Flax's ``LayerNorm``), where a mask has no effect.
    """
    maps, mask, (scale, bias) = _prepared("layer norm", x, mask, scale=scale, bias=bias)
    over = maps.shape[3] if axes == "c" else math.prod(maps.shape[1:])
    _check_several("layer norm", over, x, "a wider or larger map")
    if 0 in maps.shape:
        return x
    moments, shift, offset = local_moments(maps, _AXES[axes], mask)
    gain = lax.rsqrt(moments.var + eps)
    if axes == "c":
        scaled = rescale(maps, shift, offset, gain, jnp.zeros_like(gain)) * scale + bias
    else:
        scaled = rescale(maps, shift, offset, gain * scale, bias)
    return scaled.astype(x.dtype).reshape(x.shape)


@_same
def group_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    eps: float,
    mask: Bool[Array, "b *space"] | None = None,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` normalized over space and ``c / groups`` neighboring channels of each image.

    See "Group Normalization", Wu & He, arXiv:1803.08494, equation 7.

    Raises:
      ValueError: The channels do not split into ``groups``.
    """
    maps, mask, (scale, bias) = _prepared("group norm", x, mask, scale=scale, bias=bias)
    b, h, w, c = maps.shape
    check_groups(c, groups)
    remedy = "fewer groups (two channels in each), a larger map, or layer norm"
    _check_several("group norm", h * w * (c // groups), x, remedy)
    if 0 in maps.shape:
        return x
    moments, shift, offset = local_moments(maps, (1, 2), mask)
    # All channels of an image have the same count, so their moments have equal weights. Means are
    # merged relative to the shift of the group's first channel, so that large ones lose no digits.
    split = lambda values: values.reshape(b, 1, groups, c // groups)
    apart = split(shift) - split(shift)[..., :1]
    means = apart + split(offset)
    mean = means.mean(-1, keepdims=True)
    var = (split(moments.var) + jnp.square(means - mean)).mean(-1, keepdims=True)
    join = lambda values: jnp.broadcast_to(values, means.shape).reshape(b, 1, 1, c)
    gain = join(lax.rsqrt(var + eps)) * scale
    y = rescale(maps, shift, join(mean - apart), gain, bias)
    return y.astype(x.dtype).reshape(x.shape)


@_same
def instance_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    eps: float,
    mask: Bool[Array, "b *space"] | None = None,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` normalized over space, separately for each channel of each image.

    See "Instance Normalization", Ulyanov et al., arXiv:1607.08022, equation 4. It is
    ``group_norm`` with one channel per group, and ``batch_norm_train`` with ``norm_batch=1``.
    """
    maps, mask, (scale, bias) = _prepared("instance norm", x, mask, scale=scale, bias=bias)
    remedy = "a larger map, or a norm over several channels (layer norm, group norm)"
    _check_several("instance norm", math.prod(maps.shape[1:3]), x, remedy)
    if 0 in maps.shape:
        return x
    moments, shift, offset = local_moments(maps, (1, 2), mask)
    gain = lax.rsqrt(moments.var + eps) * scale
    return rescale(maps, shift, offset, gain, bias).astype(x.dtype).reshape(x.shape)


@_same
def rms_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    *,
    axes: Literal["hwc", "c"],
    eps: float,
    mask: Bool[Array, "b *space"] | None = None,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` divided by its root mean square over ``axes`` of each image.

    See "Root Mean Square Layer Normalization", Zhang & Sennrich, arXiv:1910.07467, equation 4:
    a layer norm that neither centers nor shifts.
    """
    maps, mask, (scale,) = _prepared("RMS norm", x, mask, scale=scale)
    if 0 in maps.shape:
        return x
    gain = lax.rsqrt(mean_square(maps, _AXES[axes], mask) + eps)
    # With one gain per pixel, `gain * scale` would be as large as the map.
    scaled = maps * gain * scale if axes == "c" else maps * (gain * scale)
    return scaled.astype(x.dtype).reshape(x.shape)


@_same
def filter_response_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    threshold: Float[Array, " c"],
    *,
    eps: float,
    mask: Bool[Array, "b *space"] | None = None,
) -> Float[Array, "b *space c"]:
    """Returns ``x`` divided by its root mean square over space, cut from below at ``threshold``.

    See "Filter Response Normalization Layer", Singh & Krishnan, arXiv:1911.09737, equations 1 to
    5: the division leaves a mean, and the thresholded linear unit ``max(y, threshold)`` takes
    the place of the rectifier behind it.
    """
    vectors = {"scale": scale, "bias": bias, "threshold": threshold}
    maps, mask, (scale, bias, threshold) = _prepared("filter response norm", x, mask, **vectors)
    if 0 in maps.shape:
        return x
    gain = lax.rsqrt(mean_square(maps, (1, 2), mask) + eps) * scale
    return _cut(maps, gain, bias, threshold).astype(x.dtype).reshape(x.shape)


@_same
def dynamic_tanh(
    x: Float[Array, "b *space c"],
    alpha: Float[Array, ""],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
) -> Float[Array, "b *space c"]:
    """Returns ``scale * tanh(alpha * x) + bias``: the shape of a layer norm without statistics.

    See "Transformers without Normalization", Zhu et al., arXiv:2503.10622, equation 1.
    """
    maps, _, (scale, bias) = _prepared("dynamic tanh", x, None, scale=scale, bias=bias)
    if alpha.shape != ():
        raise ValueError(f"dynamic tanh: alpha has shape {alpha.shape}; it must be one number, ()")
    y = scale * jnp.tanh(alpha.astype(maps.dtype) * maps) + bias
    return y.astype(x.dtype).reshape(x.shape)


@_same
def affine(
    x: Float[Array, "b *space c"], scale: Float[Array, " c"] | None, bias: Float[Array, " c"]
) -> Float[Array, "b *space c"]:
    """Returns ``x * scale + bias``, or ``x + bias`` without a scale, as a layer without statistics.

    It is computed in float32 or wider, so that gradients are summed in that dtype, too.
    """
    vectors = {"bias": bias} if scale is None else {"bias": bias, "scale": scale}
    maps, _, (bias, *gain) = _prepared("affine map", x, None, **vectors)
    y = (maps * gain[0] if gain else maps) + bias
    return y.astype(x.dtype).reshape(x.shape)


def check_groups(channels: int, groups: int) -> None:
    """Checks that ``groups`` divides ``channels``.

    Raises:
      ValueError: It does not; the message lists the numbers that do.
    """
    if groups < 1 or channels % groups:
        fits = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(
            f"group norm: {channels} channels do not split into {groups} groups; these do: "
            f"{', '.join(map(str, fits))}"
        )


@jax.custom_jvp
def _cut(
    x: Float[Array, "b h w c"],
    gain: Float[Array, "b 1 1 c"],
    bias: Float[Array, "1 1 1 c"],
    threshold: Float[Array, "1 1 1 c"],
) -> Float[Array, "b h w c"]:
    """Returns ``max(x * gain + bias, threshold)``; ties give their gradient to the threshold.

    The custom rule masks the cotangents once for all sums over them. Autodiff would store the map
    before the maximum, and mask the cotangents separately for both of its arguments.
    """
    return jnp.maximum(x * gain + bias, threshold)


@_cut.defjvp
def _cut_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    x, gain, bias, threshold = primals
    dx, dgain, dbias, dthreshold = tangents
    passed = dx * gain + x * dgain + (dbias - dthreshold)
    return _cut(*primals), dthreshold + jnp.where(x * gain + bias > threshold, passed, 0)


def _batch_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "1 1 1 c"],
    bias: Float[Array, "1 1 1 c"],
    eps: float,
    norm_batch: int | None,
    mask: Bool[Array, "b h w"] | None,
    axis_name: AxisName | None,
    renorm: tuple[Array, Array, float | Array, float | Array] | None = None,
) -> tuple[Float[Array, "b h w c"], Moments]:
    """Returns ``x`` normalized within its groups, and the moments of all of them together.

    Args:
      x: Maps.
      scale: gamma.
      bias: beta.
      eps: Added to the variance.
      norm_batch: Images in a statistics group; None for all of them.
      mask: Pixels that count; None for all of them.
      axis_name: Mapped axes over which the batch extends.
      renorm: Running mean and variance, ``r_max`` and ``d_max`` of batch renormalization.
    """
    b, h, w, c = x.shape
    shards = lax.axis_size(axis_name) if axis_name else 1
    group = norm_batch or b * shards
    _check_group(x, norm_batch, shards)
    images = b if group == b * shards or group > b else group
    # Stack the images of a group into one tall image.
    tall = x.reshape(b // images, images * h, w, c)
    mask = None if mask is None else mask.reshape(tall.shape[:3])
    local, shift, offset = local_moments(tall, (1, 2), mask)
    groups = Moments(
        count=local.count.squeeze((1, 2, 3)),
        mean=local.mean.squeeze((1, 2)),
        var=local.var.squeeze((1, 2)),
    )
    spread = lambda values: values[:, None, None]
    if images < group:
        groups, whole = _merge_devices(groups, group // b, axis_name, shards)
        offset = spread(groups.mean) - shift
    else:
        whole = merge_moments(groups)
        whole = merge_over(whole, axis_name) if axis_name else whole
    mean, var = spread(groups.mean), spread(groups.var)
    gain = lax.rsqrt(var + eps)
    if renorm is not None:
        running_mean, running_var, r_max, d_max = renorm
        running_gain = lax.rsqrt(running_var + eps)
        r = jnp.clip(jnp.sqrt(var + eps) * running_gain, 1 / r_max, r_max)
        d = jnp.clip((mean - running_mean) * running_gain, -d_max, d_max)
        gain, bias = gain * lax.stop_gradient(r), lax.stop_gradient(d) * scale + bias
    return rescale(tall, shift, offset, gain * scale, bias).reshape(x.shape), whole


def _merge_devices(
    own: Moments, devices: int, axis_name: AxisName | None, shards: int
) -> tuple[Moments, Moments]:
    """Returns the moments ``[1 c]`` of the group of this device, and those ``[c]`` of all groups.

    Args:
      own: Moments of this device's images, ``[1 c]``.
      devices: Devices in a group.
      axis_name: Mapped axes over which the batch extends.
      shards: Devices in all.
    """
    assert axis_name is not None
    row = lax.axis_index(axis_name) // devices
    # Each device fills the row of its group in a table of all groups, which merging then sums over
    # the devices: rows without values have count 0 and weight 0.
    put = lambda leaf: (
        jnp.zeros((shards // devices, *leaf.shape[1:]), leaf.dtype).at[row].set(leaf[0])
    )
    groups = merge_over(jax.tree.map(put, own), axis_name)
    return jax.tree.map(lambda leaf: leaf[row][None], groups), merge_moments(groups)


def _check_group(x: Float[Array, "b h w c"], norm_batch: int | None, shards: int) -> None:
    b, h, w, c = x.shape
    group = norm_batch or b * shards
    if 0 in x.shape:
        raise ValueError(f"batch norm: an empty map ({b}x{h}x{w}x{c}) has no batch statistics")
    total = b * shards
    fits = lambda k: total % k == 0 and (b % k == 0 or k % b == 0)
    # The whole batch always fits, also if its size is symbolic (`jax.export`).
    if group != total and (group < 1 or not fits(group)):
        where = f" ({b} on each of {shards} devices)" if shards > 1 else ""
        sizes = ", ".join(str(k) for k in range(1, total + 1) if fits(k))
        raise ValueError(
            f"batch norm: a batch of {total} images{where} does not split into groups of "
            f"norm_batch={group}; these do: {sizes}"
        )
    if group * h * w == 1:
        raise ValueError(
            f"batch norm: one value per channel (norm_batch={group} on a {h}x{w} map), so that its "
            "output would be its bias whatever the input; use norm_batch >= 2, a larger image, "
            "fewer pyramid levels, or layer norm"
        )


def _check_several(name: str, count: int, x: Array, remedy: str) -> None:
    if count == 1:
        raise ValueError(
            f"{name}: a map of shape {x.shape} has one value in each set of statistics, so that "
            f"the output would be the bias whatever the input; use {remedy}"
        )


def _prepared(
    name: str, x: Array, mask: Array | np.ndarray | None, **vectors: Array
) -> tuple[Float[Array, "b h w c"], Bool[Array, "b h w"] | None, list[Array]]:
    """Returns maps ``[b h w c]``, mask ``[b h w]`` and vectors ``[1 1 1 c]``, in one wide dtype.

    Raises:
      TypeError: Values are not real floating-point numbers.
      ValueError: Shapes do not fit.
    """
    for what, array in {"the map": x, **vectors}.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name}: {what} is {array.dtype}, and a norm needs real floating-point numbers; "
                "convert it first, pictures e.g. by x.astype(jnp.float32) / 255"
            )
    if x.ndim < 2:
        raise ValueError(f"{name}: the map has shape {x.shape}; it must be [b, *space, c]")
    b, *space, c = x.shape
    for what, vector in vectors.items():
        if vector.shape != (c,):
            raise ValueError(
                f"{name}: {what} has shape {vector.shape}, and the map {x.shape}; it must be ({c},)"
            )
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != bool):
        raise ValueError(
            f"{name}: the mask is {mask.dtype} of shape {mask.shape}, and the map of shape "
            f"{x.shape}; it must be bool of shape {x.shape[:-1]}"
        )
    # NumPy's promotion, because JAX's may be in strict mode, where mixed dtypes are errors.
    dtypes = [x.dtype, *(v.dtype for v in vectors.values())]
    dtype = functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))
    h, w = space if len(space) == 2 else (math.prod(space), 1)
    maps = x.astype(dtype).reshape(b, h, w, c)
    mask = None if mask is None else jnp.asarray(mask).reshape(b, h, w)
    return maps, mask, [v.astype(dtype)[None, None, None] for v in vectors.values()]
