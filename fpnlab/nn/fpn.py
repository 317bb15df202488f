"""Feature pyramid network (FPN): lateral connections and a top-down path."""

import collections
from typing import Annotated, Literal

import jax
from jaxtyping import Array, Bool, Float

from fpnlab.nn.conv_norm import (
    ConvNorm,
    ConvNormParams,
    Kernel,
    apply_conv_norm,
    downsample_mask,
    init_conv_norm,
)
from fpnlab.nn.norm_layer import NormState
from fpnlab.nn.norm_specs import NoNorm, Norm
from fpnlab.ops.random import named_key
from fpnlab.ops.resize import upsample_nearest
from fpnlab.spec import Bounds, spec
from fpnlab.types import Features, Intermediates, Key, Mode, tree


@spec
class Fpn:
    """A top-down pyramid with lateral connections (arXiv:1612.03144, figure 3)."""

    channels: Annotated[int, Bounds(least=1.0, most=1e5)] = 256
    """Channels of every pyramid map."""
    min_level: Annotated[int, Bounds(least=0.0, most=16.0)] = 3
    """Finest level; its stride is 2**min_level pixels."""
    max_level: Annotated[int, Bounds(least=0.0, most=16.0)] = 7
    """Coarsest level; levels above the backbone's are computed by 3x3 convolutions of stride 2."""
    extra_from: Literal["p", "c"] = "p"
    """Input of the first level above the backbone: the top pyramid map (p) or backbone map (c)."""
    norm: Norm = NoNorm()
    """After each lateral and output convolution, unless overridden below."""
    lateral_norm: Norm | None = None
    """After each lateral convolution; none: `norm`."""
    output_norm: Norm | None = None
    """After each output convolution; none: `norm`."""
    kernel: Kernel = "free"
    """Parametrization of all convolution kernels."""

    def __post_init__(self) -> None:
        if self.min_level > self.max_level:
            raise ValueError(
                f"min_level is {self.min_level} and max_level {self.max_level}; "
                "min_level must not be above max_level"
            )

    @property
    def levels(self) -> range:
        """The levels, finest first."""
        return range(self.min_level, self.max_level + 1)

    def lateral_layer(self, inputs: int) -> ConvNorm:
        """Returns the 1x1 convolution of a backbone map with ``inputs`` channels."""
        norm = self.lateral_norm or self.norm
        return ConvNorm(size=1, inputs=inputs, outputs=self.channels, norm=norm, kernel=self.kernel)

    def output_layer(self, inputs: int, stride: int) -> ConvNorm:
        """Returns the 3x3 convolution from a map with ``inputs`` channels to a pyramid map."""
        return ConvNorm(
            size=3,
            inputs=inputs,
            outputs=self.channels,
            stride=stride,
            norm=self.output_norm or self.norm,
            kernel=self.kernel,
        )


@tree
class FpnParams:
    """Lateral 1x1 and output 3x3 convolutions by level; the extra levels have outputs only."""

    lateral: dict[int, ConvNormParams]
    output: dict[int, ConvNormParams]


@tree
class FpnState:
    """The running statistics of the norms, by level."""

    lateral: dict[int, NormState | None]
    output: dict[int, NormState | None]


def init_fpn(key: Key, fpn: Fpn, channels: dict[int, int]) -> tuple[FpnParams, FpnState]:
    """Returns initial parameters and state.

    Args:
      key: Draws the kernels.
      fpn: The pyramid.
      channels: Channels of the backbone maps by level.

    Raises:
      ValueError: A level that the backbone does not have, and that no stride-2 convolution on top
        of its maps can compute.
    """
    top = max(channels)
    missing = [level for level in fpn.levels if level not in channels and level <= top]
    if missing or fpn.min_level > top:
        raise ValueError(
            f"neck: pyramid levels {fpn.min_level} to {fpn.max_level} need the backbone's "
            f"level {(missing or [fpn.min_level])[0]}; it has {sorted(channels)}"
        )
    lateral, output = {}, {}
    for level in fpn.levels:
        if level in channels:
            layer = fpn.lateral_layer(channels[level])
            lateral[level] = init_conv_norm(named_key(key, "lateral", level), layer)
        extra_c = level == top + 1 and fpn.extra_from == "c"
        layer = fpn.output_layer(channels[top] if extra_c else fpn.channels, 1 + (level > top))
        output[level] = init_conv_norm(named_key(key, "output", level), layer)
    part = lambda made, i: {level: pair[i] for level, pair in made.items()}
    return (
        FpnParams(lateral=part(lateral, 0), output=part(output, 0)),
        FpnState(lateral=part(lateral, 1), output=part(output, 1)),
    )


def apply_fpn(
    fpn: Fpn,
    params: FpnParams,
    state: FpnState,
    features: Features,
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
) -> tuple[Features, FpnState]:
    """Returns the pyramid maps by level, and the new state.

    Upsampling repeats pixels; if the finer map has an odd side, the last row or column of the
    upsampled one is dropped. Level top+1 is a convolution of stride 2 of P or C of the backbone's
    top, and each level above one of the rectified level below (arXiv:1708.02002, footnote 2).
    ``mask``, of the size of the images, selects the pixels that enter statistics.
    """
    pyramid, state, _ = capture_fpn(fpn, params, state, features, mode, mask=mask)
    return pyramid, state


def capture_fpn(
    fpn: Fpn,
    params: FpnParams,
    state: FpnState,
    features: Features,
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
) -> tuple[Features, FpnState, Intermediates]:
    """Returns the outputs of ``apply_fpn``, and those of all convolutions with their norms."""
    lateral_state, output_state, merged, pyramid = {}, {}, {}, {}
    outputs: Intermediates = collections.OrderedDict()
    above = None
    for level in sorted(params.lateral, reverse=True):
        layer = fpn.lateral_layer(features[level].shape[-1])
        x, lateral_state[level] = apply_conv_norm(
            layer,
            params.lateral[level],
            state.lateral[level],
            features[level],
            mode,
            mask=downsample_mask(mask, 2**level),
        )
        outputs[f"lateral {level}"] = x
        above = merged[level] = x if above is None else x + _upsample_like(above, x)
    top = max(params.lateral)
    for level in fpn.levels:
        if level <= top:
            x, stride = merged[level], 1
        elif level == top + 1:
            x, stride = (pyramid[top] if fpn.extra_from == "p" else features[top]), 2
        else:
            x, stride = jax.nn.relu(pyramid[level - 1]), 2
        pyramid[level], output_state[level] = apply_conv_norm(
            fpn.output_layer(x.shape[-1], stride),
            params.output[level],
            state.output[level],
            x,
            mode,
            mask=downsample_mask(mask, 2**level),
        )
        outputs[f"output {level}"] = pyramid[level]
    return pyramid, FpnState(lateral=lateral_state, output=output_state), outputs


def _upsample_like(
    x: Float[Array, "b _ _ d"], like: Float[Array, "b h w d"]
) -> Float[Array, "b h w d"]:
    return upsample_nearest(x)[:, : like.shape[1], : like.shape[2]]
