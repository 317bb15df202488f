"""What a fresh or trained network does to the size of its activations, block by block."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.model.backbone import ResNet, ResNetParams, ResNetState, apply_resnet
from fpnlab.types import Mode


@dataclasses.dataclass(frozen=True)
class Signal:
    """Moments of one map (arXiv:2101.08692, section 3)."""

    name: str
    """Stage and block."""
    squared_mean: float
    """Mean over channels of the squared channel mean."""
    variance: float
    """Mean over channels of the channel variance."""


def resnet_signals(
    resnet: ResNet,
    params: ResNetParams,
    state: ResNetState,
    images: Float[Array, "b h w 3"],
    mode: Mode,
) -> list[Signal]:
    """Returns the moments of every block's output, in the order of depth.

    See "Characterizing signal propagation", Brock et al., arXiv:2101.08692, section 3: without
    normalization the variance grows with depth, with it it is reset at every stage.
    """
    signals = []

    def watch(name, x):
        wide = x.astype(jnp.float32)
        mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
        signals.append((name, jnp.square(mean).mean(), var.mean()))

    apply_resnet(resnet, params, state, images, mode, watch=watch)
    return [Signal(name, *map(float, jax.device_get(numbers))) for name, *numbers in signals]
