"""Signal propagation: mean and variance of the activations, block by block."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.backbone import Backbone, BackboneParams, BackboneState, capture_backbone
from fpnlab.nn.conv_norm import downsample_mask
from fpnlab.ops.moments import local_moments, merge_moments
from fpnlab.types import Mode, Moments


@dataclasses.dataclass(frozen=True)
class Signal:
    """Moments of the output of one block (arXiv:2101.08692, section 3)."""

    name: str
    """Name of the stage and block."""
    squared_mean: float
    """Mean over channels of the squared channel mean."""
    variance: float
    """Mean over channels of the channel variance."""


def block_signals(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
) -> list[Signal]:
    """Returns the moments of every block's output, in the order of depth.

    See "Characterizing signal propagation", Brock et al., arXiv:2101.08692, section 3: without
    normalization the variance grows with depth; normalization resets it at every stage.

    Args:
      spec: The backbone.
      params: Its parameters.
      state: Its running statistics.
      images: A batch of standardized images.
      mode: Source of the statistics of batch norms.
      mask: Pixels that enter statistics and moments; None: all of them.
    """
    found = jax.device_get(_moments(spec, mode, params, state, images, mask))
    return [Signal(name, float(mean), float(var)) for name, (mean, var) in found.items()]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    spec: Backbone,
    mode: Mode,
    params: BackboneParams,
    state: BackboneState,
    images: Float[Array, "b h w 3"],
    mask: Bool[Array, "b h w"] | None,
) -> collections.OrderedDict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns squared mean and variance of each output, averaged over channels, by name.

    They are in an OrderedDict because ``jit`` would sort the names of a dict.
    """
    _, _, outputs = capture_backbone(spec, params, state, images, mode, mask=mask)
    return collections.OrderedDict((name, _of_map(x, mask)) for name, x in outputs.items())


def _of_map(
    x: Float[Array, "b h w c"], mask: Bool[Array, "b hm wm"] | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the means over channels of the squared mean and of the variance of a map."""
    inside = _mask_of(x, mask)
    parts, *_ = local_moments(x.astype(jnp.float32), (1, 2), inside)
    flat = lambda leaf: leaf.reshape(len(x), -1)
    count, mean, var = flat(parts.count)[:, 0], flat(parts.mean), flat(parts.var)
    whole = merge_moments(Moments(count=count, mean=mean, var=var))
    return jnp.square(whole.mean).mean(), whole.var.mean()


def _mask_of(
    x: Float[Array, "b h w c"], mask: Bool[Array, "b hm wm"] | None
) -> Bool[Array, "b h w"] | None:
    """Returns ``mask`` downsampled to ``x``, by the power of two that gives its height."""
    if mask is None:
        return None
    height = mask.shape[1]
    strides = (2**k for k in range(height.bit_length()))
    return downsample_mask(mask, next(s for s in strides if -(-height // s) == x.shape[1]))
