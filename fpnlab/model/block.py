"""The convolution with its norm, and the residual blocks made of it."""

import math
from typing import Literal

import jax
from jaxtyping import Array, Float

from fpnlab.model.norm import Norm, NormParams, NormState, apply_norm, init_norm
from fpnlab.ops.conv import conv
from fpnlab.ops.keys import named_key
from fpnlab.types import Key, Mode, spec, tree


@tree
class ConvNormParams:
    """A convolution without bias, and the norm after it."""

    kernel: Float[Array, "k k i o"]
    norm: NormParams


def init_conv_norm(
    key: Key,
    norm: Norm,
    size: int,
    inputs: int,
    outputs: int,
    *,
    scale: float = 1.0,
    levels: int | None = None,
) -> tuple[ConvNormParams, NormState | None]:
    """Returns a ``size x size`` kernel and its norm.

    The kernel is drawn from a normal distribution of variance 2 / fan-out (arXiv:1502.01852,
    section 2.2); ``scale`` and ``levels`` are those of ``init_norm``.
    """
    deviation = math.sqrt(2 / (size * size * outputs))
    kernel = deviation * jax.random.normal(key, (size, size, inputs, outputs))
    norm_params, state = init_norm(norm, outputs, scale=scale, levels=levels)
    return ConvNormParams(kernel=kernel, norm=norm_params), state


def apply_conv_norm(
    norm: Norm,
    params: ConvNormParams,
    state: NormState | None,
    x: Float[Array, "b h w i"],
    mode: Mode,
    *,
    stride: int = 1,
    level: int | None = None,
) -> tuple[Float[Array, "b _ _ o"], NormState | None]:
    """Returns the normalized convolution of ``x``, and the norm's new state."""
    y = conv(x, params.kernel.astype(x.dtype), stride=stride)
    return apply_norm(norm, params.norm, state, y, mode, level=level)


@spec
class Block:
    """A residual block: ``relu(branch(x) + shortcut(x))`` (arXiv:1512.03385, equations 1, 2)."""

    kind: Literal["basic", "bottleneck"]
    """`basic`: two 3x3; `bottleneck`: 1x1, 3x3 (which carries the stride), 1x1 four times wider."""
    inputs: int
    """Channels of the maps that come in."""
    width: int
    """Channels inside the branch."""
    stride: int
    """1, or 2 to halve the map."""
    norm: Norm
    """After each convolution."""

    @property
    def outputs(self) -> int:
        """Channels of the maps that go out."""
        return self.width * (4 if self.kind == "bottleneck" else 1)

    @property
    def branch(self) -> list[tuple[int, int, int]]:
        """Kernel size, channels out and stride of each convolution of the branch."""
        if self.kind == "basic":
            return [(3, self.width, self.stride), (3, self.width, 1)]
        return [(1, self.width, 1), (3, self.width, self.stride), (1, self.outputs, 1)]

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution: only where the shape changes (option B)."""
        return self.stride != 1 or self.inputs != self.outputs


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
    for i, (size, outputs, _) in enumerate(block.branch):
        scale = 0.0 if i == len(block.branch) - 1 else 1.0
        made.append(
            init_conv_norm(
                named_key(key, "branch", i), block.norm, size, inputs, outputs, scale=scale
            )
        )
        inputs = outputs
    shortcut, shortcut_state = None, None
    if block.projects:
        shortcut, shortcut_state = init_conv_norm(
            named_key(key, "shortcut"), block.norm, 1, block.inputs, block.outputs
        )
    params = BlockParams(branch=tuple(p for p, _ in made), shortcut=shortcut)
    return params, BlockState(branch=tuple(s for _, s in made), shortcut=shortcut_state)


def apply_block(
    block: Block,
    params: BlockParams,
    state: BlockState,
    x: Float[Array, "b h w i"],
    mode: Mode,
) -> tuple[Float[Array, "b _ _ o"], BlockState]:
    """Returns ``relu(branch(x) + shortcut(x))`` and the new state."""
    y, states = x, []
    for i, (_, _, stride) in enumerate(block.branch):
        y, new = apply_conv_norm(
            block.norm, params.branch[i], state.branch[i], y, mode, stride=stride
        )
        y = y if i == len(block.branch) - 1 else jax.nn.relu(y)
        states.append(new)
    short, short_state = x, None
    if params.shortcut is not None:
        short, short_state = apply_conv_norm(
            block.norm, params.shortcut, state.shortcut, x, mode, stride=block.stride
        )
    return jax.nn.relu(y + short), BlockState(branch=tuple(states), shortcut=short_state)
