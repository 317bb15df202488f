"""The convolution with its norm, and the residual blocks made of it."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.norm_layer import Norm, NormParams, NormState, activate, apply_norm, init_norm
from fpnlab.ops.conv import conv
from fpnlab.ops.kernel import scale_standardize_kernel, standardize_kernel
from fpnlab.ops.random import named_key
from fpnlab.ops.residual import drop_path
from fpnlab.spec import Count, Fraction, spec
from fpnlab.types import Key, Mode, tree


@tree
class ConvNormParams:
    """A convolution without bias, and the norm after it."""

    kernel: Float[Array, "k k i o"]
    norm: NormParams
    gain: Float[Array, " o"] | None = None
    """Gain of a scaled standardized kernel."""


def init_conv_norm(
    key: Key,
    norm: Norm,
    size: int,
    inputs: int,
    outputs: int,
    *,
    scale: float = 1.0,
    deviation: float | None = None,
    affine_levels: int | None = None,
    state_levels: int | None = None,
) -> tuple[ConvNormParams, NormState | None]:
    """Returns a ``size x size`` kernel and its norm.

    The kernel is drawn from a normal distribution of the ``deviation`` given, or of variance 2 /
    fan-out (arXiv:1502.01852, section 2.2); the other arguments are those of ``init_norm``.
    """
    deviation = math.sqrt(2 / (size * size * outputs)) if deviation is None else deviation
    kernel = deviation * jax.random.normal(key, (size, size, inputs, outputs))
    norm_params, state = init_norm(
        norm, outputs, scale=scale, affine_levels=affine_levels, state_levels=state_levels
    )
    gain = jnp.ones((outputs,)) if norm.kernel == "scaled" else None
    return ConvNormParams(kernel=kernel, norm=norm_params, gain=gain), state


def apply_kernel(
    norm: Norm, params: ConvNormParams, x: Float[Array, "b h w i"], *, stride: int = 1
) -> Float[Array, "b _ _ o"]:
    """Returns the convolution of ``x`` with the kernel as its norm wants it, without the norm."""
    kernel = params.kernel
    match norm.kernel:
        case "standardized":
            kernel = standardize_kernel(kernel)
        case "scaled":
            assert params.gain is not None
            kernel = scale_standardize_kernel(kernel, params.gain)
    return conv(x, kernel.astype(x.dtype), stride=stride)


def apply_conv_norm(
    norm: Norm,
    params: ConvNormParams,
    state: NormState | None,
    x: Float[Array, "b h w i"],
    mode: Mode,
    *,
    stride: int = 1,
    mask: Bool[Array, "b _ _"] | None = None,
) -> tuple[Float[Array, "b _ _ o"], NormState | None]:
    """Returns the normalized convolution of ``x``, and the norm's new state.

    ``mask`` has the size of the result.
    """
    y = apply_kernel(norm, params, x, stride=stride)
    return apply_norm(norm, params.norm, state, y, mode, mask=mask)


def thinned(mask: Bool[Array, "b h w"] | None, stride: int) -> Bool[Array, "b _ _"] | None:
    """Returns the mask of a map ``stride`` times smaller: that of each cell's first pixel."""
    return None if mask is None else mask[:, ::stride, ::stride]


@spec
class Block:
    """A residual block: ``relu(branch(x) + shortcut(x))`` (arXiv:1512.03385, equations 1, 2)."""

    kind: Literal["basic", "bottleneck"]
    """`basic`: two 3x3; `bottleneck`: 1x1, 3x3 (which carries the stride), 1x1 four times wider."""
    inputs: Annotated[int, Count]
    """Channels of the maps that come in."""
    width: Annotated[int, Count]
    """Channels inside the branch."""
    stride: Literal[1, 2]
    """2 halves the map."""
    norm: Norm
    """After each convolution of the branch but the last."""
    last_norm: Norm
    """After the last convolution of the branch."""
    shortcut_norm: Norm
    """After the shortcut's convolution, where it has one."""
    shortcut: Literal["projection", "pad"] = "projection"
    """What a shortcut is where the shape changes: a 1x1 convolution (option B), or the input
    subsampled and padded with channels of zeros, without parameters (option A)."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Share of the images for which the branch is left out in training."""

    def __post_init__(self):
        if self.shortcut == "pad" and self.outputs < self.inputs:
            raise ValueError(
                f"block: a padded shortcut cannot bring {self.inputs} channels down to "
                f"{self.outputs}; use shortcut = 'projection', or widths that never shrink"
            )

    @property
    def outputs(self) -> int:
        """Channels of the maps that go out."""
        return self.width * (4 if self.kind == "bottleneck" else 1)

    @property
    def branch(self) -> list[tuple[int, int, int, Norm]]:
        """Kernel size, channels out, stride and norm of each convolution of the branch."""
        if self.kind == "basic":
            return [
                (3, self.width, self.stride, self.norm),
                (3, self.width, 1, self.last_norm),
            ]
        return [
            (1, self.width, 1, self.norm),
            (3, self.width, self.stride, self.norm),
            (1, self.outputs, 1, self.last_norm),
        ]

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution: only where the shape changes (option B)."""
        changes = self.stride != 1 or self.inputs != self.outputs
        return changes and self.shortcut == "projection"


@tree
class BlockParams:
    """The branch's convolutions in order, and the shortcut's where it projects."""

    branch: tuple[ConvNormParams, ...]
    shortcut: ConvNormParams | None


@tree
class BlockState:
    """The running statistics of the branch's norms, and of the shortcut's."""

    branch: tuple[NormState | None, ...]
    shortcut: NormState | None


def init_block(key: Key, block: Block) -> tuple[BlockParams, BlockState]:
    """Returns a block that starts as its shortcut: the branch's last scale is zero.

    (arXiv:1706.02677, section 5.1; here for all norms alike.)
    """
    made, inputs = [], block.inputs
    for i, (size, outputs, _, norm) in enumerate(block.branch):
        scale = 0.0 if i == len(block.branch) - 1 else 1.0
        layer = named_key(key, "branch", i)
        made.append(init_conv_norm(layer, norm, size, inputs, outputs, scale=scale))
        inputs = outputs
    shortcut, shortcut_state = None, None
    if block.projects:
        shortcut, shortcut_state = init_conv_norm(
            named_key(key, "shortcut"), block.shortcut_norm, 1, block.inputs, block.outputs
        )
    params = BlockParams(branch=tuple(p for p, _ in made), shortcut=shortcut)
    return params, BlockState(branch=tuple(s for _, s in made), shortcut=shortcut_state)


def apply_block(
    block: Block,
    params: BlockParams,
    state: BlockState,
    x: Float[Array, "b h w i"],
    mode: Mode,
    *,
    mask: Bool[Array, "b h w"] | None = None,
    key: Key | None = None,
) -> tuple[Float[Array, "b _ _ o"], BlockState]:
    """Returns ``relu(branch(x) + shortcut(x))`` and the new state.

    Args:
      block: what to compute.
      params: its parameters.
      state: its running statistics.
      x: maps of a batch.
      mode: where norms take their statistics from.
      mask: pixels of ``x`` that enter statistics; None for all of them.
      key: draws the images that skip the branch; needed where ``drop_path`` is above 0 and
        the mode is stochastic.
    """
    out_mask = thinned(mask, block.stride)
    y, y_mask, states = x, mask, []
    for i, (_, _, stride, norm) in enumerate(block.branch):
        y_mask = out_mask if stride == block.stride else y_mask
        y, new = apply_conv_norm(
            norm, params.branch[i], state.branch[i], y, mode, stride=stride, mask=y_mask
        )
        y = y if i == len(block.branch) - 1 else activate(norm, y)
        states.append(new)
    if block.drop_path and mode.stochastic:
        if key is None:
            raise ValueError("block: drop_path is above 0 and the mode stochastic; give a key")
        y = drop_path(key, y, rate=block.drop_path)
    short, short_state = x, None
    if params.shortcut is not None:
        short, short_state = apply_conv_norm(
            block.shortcut_norm,
            params.shortcut,
            state.shortcut,
            x,
            mode,
            stride=block.stride,
            mask=out_mask,
        )
    elif x.shape != y.shape:
        short = _subsampled(x, block.stride, block.outputs)
    return jax.nn.relu(y + short), BlockState(branch=tuple(states), shortcut=short_state)


def _subsampled(x: Array, stride: int, channels: int) -> Array:
    """Returns the first pixel of each cell, with channels of zeros behind its own."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((0, channels - x.shape[-1]),))
