"""Residual blocks: basic and bottleneck, with projection or padded shortcuts."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fpnlab.nn.conv_norm import (
    ConvNorm,
    ConvNormParams,
    Kernel,
    apply_conv_norm,
    downsample_mask,
    init_conv_norm,
)
from fpnlab.nn.norm_layer import NormState, activate
from fpnlab.nn.norm_specs import Norm
from fpnlab.ops.random import named_key
from fpnlab.ops.residual import drop_path
from fpnlab.spec import Count, Fraction, spec
from fpnlab.types import Key, Mode, tree


@spec
class Block:
    """A residual block: ``relu(branch(x) + shortcut(x))`` (arXiv:1512.03385, equations 1, 2)."""

    kind: Literal["basic", "bottleneck"]
    """`basic`: two 3x3; `bottleneck`: 1x1, 3x3 (which carries the stride), 1x1 four times wider."""
    inputs: Annotated[int, Count]
    """Channels of the input."""
    width: Annotated[int, Count]
    """Channels inside the branch."""
    stride: Literal[1, 2]
    """2 halves the map."""
    norm: Norm
    """After each convolution of the branch except the last."""
    last_norm: Norm
    """After the last convolution of the branch."""
    shortcut_norm: Norm
    """After the convolution of the shortcut, if it has one."""
    shortcut: Literal["projection", "pad"] = "projection"
    """Shortcut if the shape changes: a 1x1 convolution (option B), or the input
    subsampled and padded with channels of zeros, without parameters (option A)."""
    kernel: Kernel = "free"
    """Parametrization of the convolution kernels."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Probability that the branch is dropped for an image in training (stochastic depth)."""

    def __post_init__(self) -> None:
        if self.shortcut == "pad" and self.outputs < self.inputs:
            raise ValueError(
                f"block: a padded shortcut cannot reduce {self.inputs} channels to "
                f"{self.outputs}; use shortcut = 'projection', or widths that never decrease"
            )

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.width * (4 if self.kind == "bottleneck" else 1)

    @property
    def branch(self) -> list[ConvNorm]:
        """The convolutions of the residual branch; the scale of the last starts at zero.

        (arXiv:1706.02677, section 5.1; here for all norms alike.)
        """
        inner, out, last = self.norm, self.outputs, self.last_norm
        if self.kind == "basic":
            rows = [(3, self.width, self.stride, inner), (3, out, 1, last)]
        else:
            rows = [
                (1, self.width, 1, inner),
                (3, self.width, self.stride, inner),
                (1, out, 1, last),
            ]
        widths = [self.inputs, *(outputs for _, outputs, _, _ in rows)]
        return [
            ConvNorm(
                size=size,
                inputs=inputs,
                outputs=outputs,
                stride=stride,
                norm=norm,
                kernel=self.kernel,
                initial_scale=0.0 if i == len(rows) - 1 else 1.0,
            )
            for i, (inputs, (size, outputs, stride, norm)) in enumerate(zip(widths, rows))
        ]

    @property
    def projection(self) -> ConvNorm | None:
        """The 1x1 convolution of the shortcut; None if the shortcut has no parameters."""
        changes = self.stride != 1 or self.inputs != self.outputs
        if not (changes and self.shortcut == "projection"):
            return None
        return ConvNorm(
            size=1,
            inputs=self.inputs,
            outputs=self.outputs,
            stride=self.stride,
            norm=self.shortcut_norm,
            kernel=self.kernel,
        )


@tree
class BlockParams:
    """Parameters of the branch's convolutions in order, and of a projection shortcut."""

    branch: tuple[ConvNormParams, ...]
    shortcut: ConvNormParams | None


@tree
class BlockState:
    """The running statistics of the branch's norms, and of the shortcut's."""

    branch: tuple[NormState | None, ...]
    shortcut: NormState | None


def init_block(key: Key, block: Block) -> tuple[BlockParams, BlockState]:
    """Returns initial parameters and state; the last scale of the branch is zero."""
    made = [
        init_conv_norm(named_key(key, "branch", i), layer) for i, layer in enumerate(block.branch)
    ]
    shortcut, shortcut_state = None, None
    if block.projection is not None:
        shortcut, shortcut_state = init_conv_norm(named_key(key, "shortcut"), block.projection)
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
      block: The layer.
      params: Its parameters.
      state: Its running statistics.
      x: Maps of a batch.
      mode: Source and update of statistics, and whether stochastic layers are active.
      mask: Pixels of ``x`` that enter statistics; None for all of them.
      key: Draws the dropped branches; needed if ``drop_path`` is above 0 and the mode is
        stochastic.

    Raises:
      ValueError: Branches are dropped and ``key`` is None.
    """
    out_mask = downsample_mask(mask, block.stride)
    y, y_mask, states, branch = x, mask, [], block.branch
    for i, layer in enumerate(branch):
        y_mask = out_mask if layer.stride == block.stride else y_mask
        y, new = apply_conv_norm(layer, params.branch[i], state.branch[i], y, mode, mask=y_mask)
        y = y if i == len(branch) - 1 else activate(layer.norm, y)
        states.append(new)
    if block.drop_path and mode.stochastic:
        if key is None:
            raise ValueError("block: drop_path is above 0 and the mode stochastic; give a key")
        y = drop_path(key, y, rate=block.drop_path)
    short, short_state = x, None
    if params.shortcut is not None and block.projection is not None:
        short, short_state = apply_conv_norm(
            block.projection, params.shortcut, state.shortcut, x, mode, mask=out_mask
        )
    elif x.shape != y.shape:
        short = _subsampled(x, block.stride, block.outputs)
    return jax.nn.relu(y + short), BlockState(branch=tuple(states), shortcut=short_state)


def _subsampled(x: Array, stride: int, channels: int) -> Array:
    """Returns the first pixel of each cell, padded with zeros to ``channels`` channels."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((0, channels - x.shape[-1]),))
