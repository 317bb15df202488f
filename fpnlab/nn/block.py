"""Residual blocks and their plain twins: basic, bottleneck, pre-activation, ConvNeXt, dense."""

import functools
from collections.abc import Callable
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
from fpnlab.nn.norm_layer import NormParams, NormState, activate, apply_norm, init_norm
from fpnlab.nn.norm_specs import NoNorm, Norm
from fpnlab.ops.pooling import average_pool
from fpnlab.ops.random import named_key
from fpnlab.ops.residual import drop_path, gate_gradient
from fpnlab.spec import Bounds, Count, Fraction, spec
from fpnlab.types import Key, Mode, tree

BlockKind = Literal["basic", "bottleneck", "convnext", "dense"]
Shortcut = Literal["projection", "pad", "projection_all", "pooled_projection"]
"""Shortcuts of arXiv:1512.03385, section 4.1, and of ResNet-D (arXiv:1812.01187, figure 2c):

* `pad` (option A): where the shape changes, the input subsampled and padded with channels of zeros;
* `projection` (option B): a 1x1 convolution where the shape changes;
* `projection_all` (option C): a 1x1 convolution in every block;
* `pooled_projection` (ResNet-D): where the shape changes, an average pooling with the stride and a
  1x1 convolution without.
"""
BranchScale = Literal["zero_last", "one", "skip_init", "layer_scale"]
"""Scale of a residual branch at initialization:

* `zero_last`: the scale of its last norm starts at 0 (arXiv:1706.02677, section 5.1);
* `one`: as drawn;
* `skip_init`: a learned number that starts at 0 (arXiv:2002.10444; ReZero, arXiv:2003.04887);
* `layer_scale`: a learned number per channel that starts at `layer_scale` (arXiv:2103.17239).
"""


@spec
class Block:
    """A residual block ``shortcut(x) + branch(x)``, or its plain twin ``branch(x)``.

    The output of a basic, bottleneck or dense block that is not pre-activated goes through a ReLU
    (arXiv:1512.03385, equations 1, 2).
    """

    kind: BlockKind
    """`basic`: two 3x3; `bottleneck`: 1x1, 3x3, 1x1 to four times `width`; `convnext`: depthwise
    7x7, 1x1 to four times `width`, GELU, 1x1 (arXiv:2201.03545, figure 4); `dense`: `layers` dense
    layers."""
    inputs: Annotated[int, Count]
    """Channels of the input."""
    width: Annotated[int, Count]
    """Channels of the branch; a bottleneck's output has four times as many."""
    stride: Literal[1, 2]
    """2 halves the map."""
    norm: Norm
    """After each convolution of the branch except the last; before each, for a pre-activation."""
    last_norm: Norm
    """The last norm of the branch."""
    shortcut_norm: Norm | None
    """After the convolution of the shortcut, if it has one; none: no norm."""
    preactivation: bool = False
    """If true, norm and ReLU precede each convolution (arXiv:1603.05027, figure 4e), and a
    projection has their result as its input."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a bottleneck with the stride: the 3x3 (PyTorch), or the first 1x1 (paper)."""
    inner: Annotated[int | None, Count] = None
    """Channels of a bottleneck's 3x3 convolution; none: `width`."""
    groups: Annotated[int, Count] = 1
    """Groups of a bottleneck's 3x3 convolution (arXiv:1611.05431)."""
    layers: Annotated[int, Bounds(least=1.0, most=100.0)] = 2
    """Layers of a dense block's branch."""
    skip: bool = True
    """If false, the plain twin: the same layers, without shortcut, branch scale and stochastic
    depth."""
    shortcut: Shortcut = "projection"
    """The shortcut."""
    branch_scale: BranchScale | None = None
    """Scale of the branch; none: `layer_scale` for ConvNeXt, `one` for a pre-activation, else
    `zero_last`."""
    layer_scale: float = 1e-6
    """Initial value of the scales of `layer_scale`."""
    kernel: Kernel = "free"
    """Parametrization of the convolution kernels."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Probability that the branch is dropped for an image in training (stochastic depth)."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.width * (4 if self.kind == "bottleneck" else 1)

    @property
    def changes_shape(self) -> bool:
        """True if the output is smaller than the input or has other channels."""
        return self.stride != 1 or self.inputs != self.outputs

    @property
    def scaling(self) -> BranchScale:
        """Scale of the branch; ``one`` for a plain block."""
        if not self.skip:
            return "one"
        default = "layer_scale" if self.kind == "convnext" else "zero_last"
        return self.branch_scale or ("one" if self.preactivation else default)

    @property
    def branch(self) -> list[ConvNorm]:
        """The convolutions of the branch, each with the norm that follows it."""
        return _branch(self)

    @property
    def projection(self) -> ConvNorm | None:
        """The 1x1 convolution of the shortcut; None if the shortcut has no parameters."""
        wanted = self.shortcut == "projection_all" or (
            self.changes_shape and self.shortcut in ("projection", "pooled_projection")
        )
        if not (wanted and self.skip):
            return None
        return ConvNorm(
            size=1,
            inputs=self.inputs,
            outputs=self.outputs,
            stride=1 if self.shortcut == "pooled_projection" else self.stride,
            norm=self.shortcut_norm,
            kernel=self.kernel,
        )


@tree
class BlockParams:
    """Parameters of a block; None for layers that it does not have."""

    branch: tuple[ConvNormParams, ...]
    """The convolutions of the branch, in order."""
    shortcut: ConvNormParams | None
    """The projection of the shortcut."""
    input_norm: NormParams | None = None
    """The norm before the first convolution of a pre-activation."""
    scale: Float[Array, "*c"] | None = None
    """Scale of the branch: one number, or one per channel."""


@tree
class BlockState:
    """The running statistics of the norms of a block."""

    branch: tuple[NormState | None, ...]
    shortcut: NormState | None
    input_norm: NormState | None = None


@tree
class Gate:
    """Factors of the two terms of a block, and of the gradients through them.

    All are 1 in an unchanged network. A block is deleted by ``branch`` = 0, as in arXiv:1605.06431,
    section 4.1; the output of a plain block is then its input.
    """

    branch: Float[Array, "*n"]
    """Factor of the branch; a plain block has ``branch * F(x) + (1 - branch) * x``."""
    skip: Float[Array, "*n"]
    """Factor of the shortcut."""
    branch_gradient: Float[Array, "*n"]
    """Factor of the gradient through the branch; the output does not depend on it."""
    skip_gradient: Float[Array, "*n"]
    """Factor of the gradient through the shortcut; the output does not depend on it."""


def init_block(key: Key, block: Block) -> tuple[BlockParams, BlockState]:
    """Returns initial parameters and state; a plain twin has the kernels of its residual block."""
    made = [
        init_conv_norm(named_key(key, "branch", i), layer) for i, layer in enumerate(block.branch)
    ]
    shortcut = shortcut_state = first = first_state = scale = None
    if block.projection is not None:
        shortcut, shortcut_state = init_conv_norm(named_key(key, "shortcut"), block.projection)
    if block.preactivation:
        first, first_state = init_norm(block.norm, block.inputs)
    match block.scaling:
        case "skip_init":
            scale = jnp.zeros(())
        case "layer_scale":
            scale = jnp.full((block.outputs,), block.layer_scale)
    params = BlockParams(
        branch=tuple(p for p, _ in made), shortcut=shortcut, input_norm=first, scale=scale
    )
    states = tuple(s for _, s in made)
    return params, BlockState(branch=states, shortcut=shortcut_state, input_norm=first_state)


def apply_block(
    block: Block,
    params: BlockParams,
    state: BlockState,
    x: Float[Array, "b *space i"],
    mode: Mode,
    *,
    mask: Bool[Array, "b *space"] | None = None,
    key: Key | None = None,
    gate: Gate | None = None,
) -> tuple[Float[Array, "b ... o"], BlockState]:
    """Returns the output of the block and the new state.

    Args:
      block: The layer.
      params: Its parameters.
      state: Its running statistics.
      x: Maps of a batch; for a dense block any number of space axes, none too.
      mode: Source and update of statistics, and whether stochastic layers are active.
      mask: Pixels of ``x`` that enter statistics; None for all of them.
      key: Draws the dropped branches; needed if ``drop_path`` is above 0 and the mode is
        stochastic.
      gate: Factors of branch and shortcut; None for an unchanged block.

    Raises:
      ValueError: Branches are dropped and ``key`` is None, or ``gate`` deletes a plain block that
        has fewer channels in its output than in its input.
    """
    wanted = gate is not None
    y, short, new = block_terms(block, params, state, x, mode, mask=mask, plain_skip=wanted)
    if block.skip and block.drop_path and mode.stochastic:
        if key is None:
            raise ValueError("block: drop_path is above 0 and the mode stochastic; give a key")
        y = drop_path(key, y, rate=block.drop_path)
    return activate_block(block, _combined(block, y, short, gate)), new


def block_terms(
    block: Block,
    params: BlockParams,
    state: BlockState,
    x: Float[Array, "b *space i"],
    mode: Mode,
    *,
    mask: Bool[Array, "b *space"] | None = None,
    plain_skip: bool = False,
) -> tuple[Float[Array, "b ... o"], Float[Array, "b ... o"] | None, BlockState]:
    """Returns the two terms of a block, branch and shortcut, and the new state.

    ``activate_block`` of their sum is the output of ``apply_block`` without stochastic depth.

    Args:
      block: The layer.
      params: Its parameters.
      state: Its running statistics.
      x: Maps of a batch.
      mode: Source and update of statistics.
      mask: Pixels of ``x`` that enter statistics; None for all of them.
      plain_skip: If true, the shortcut of a plain block is its input, padded with zeros; if false,
        None.

    Raises:
      ValueError: ``plain_skip`` is given for a plain block that has fewer channels in its output
        than in its input.
    """
    h, first = x, state.input_norm
    if block.preactivation and params.input_norm is not None:
        h, first = apply_norm(block.norm, params.input_norm, first, x, mode, mask=mask)
        h = activate(block.norm, h)
    y, states = _apply_branch(block, params, state, h, mode, mask)
    if params.scale is not None:
        y = params.scale.astype(y.dtype) * y
    short, short_state = None, state.shortcut
    if block.skip and block.projection is not None:
        short, short_state = _project(block, params, state, h, mode, mask)
    elif block.skip or plain_skip:
        short = _padded(block, x)
    return y, short, BlockState(branch=states, shortcut=short_state, input_norm=first)


def activate_block(block: Block, y: Float[Array, "b *space o"]) -> Float[Array, "b *space o"]:
    """Returns the activation of the sum of a block's terms: a ReLU, or none (see `Block`)."""
    return y if block.kind == "convnext" or block.preactivation else jax.nn.relu(y)


def _apply_branch(
    block: Block,
    params: BlockParams,
    state: BlockState,
    y: Float[Array, "b *space i"],
    mode: Mode,
    mask: Bool[Array, "b *space"] | None,
) -> tuple[Float[Array, "b ... o"], tuple[NormState | None, ...]]:
    """Returns the output of the branch, and the new states of its norms."""
    states, branch = [], block.branch
    for i, layer in enumerate(branch):
        mask = downsample_mask(mask, layer.stride)
        y, new = apply_conv_norm(layer, params.branch[i], state.branch[i], y, mode, mask=mask)
        if i < len(branch) - 1:
            y = _activation(block, i)(y)
        states.append(new)
    return y, tuple(states)


def _activation(block: Block, i: int) -> Callable[[Array], Array]:
    """Returns the activation after convolution ``i`` of the branch, which is not the last."""
    if block.kind == "convnext":
        return functools.partial(jax.nn.gelu, approximate=False) if i else lambda y: y
    return functools.partial(activate, block.branch[i].norm or NoNorm())


def _project(
    block: Block,
    params: BlockParams,
    state: BlockState,
    x: Float[Array, "b *space i"],
    mode: Mode,
    mask: Bool[Array, "b *space"] | None,
) -> tuple[Float[Array, "b ... o"], NormState | None]:
    """Returns the projection of a block's input, and the new state of its norm."""
    assert block.projection is not None
    assert params.shortcut is not None
    if block.shortcut == "pooled_projection" and block.stride > 1:
        x = average_pool(x, size=block.stride)
    mask = downsample_mask(mask, block.stride)
    return apply_conv_norm(block.projection, params.shortcut, state.shortcut, x, mode, mask=mask)


def _padded(block: Block, x: Float[Array, "b *space i"]) -> Float[Array, "b ... o"]:
    """Returns the first pixel of each cell, padded with zeros to the channels of the output."""
    if not block.changes_shape:
        return x
    if block.outputs < block.inputs:
        raise ValueError(
            f"block: a gate cannot delete a plain block of {block.inputs} input and "
            f"{block.outputs} output channels; only one that does not reduce them"
        )
    x = x if block.stride == 1 else x[:, :: block.stride, :: block.stride]
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, block.outputs - block.inputs),))


def _combined(block: Block, branch: Array, short: Array | None, gate: Gate | None) -> Array:
    """Returns the sum of branch and shortcut, each with its gate; the branch of a plain block."""
    if gate is None or short is None:
        return branch if short is None else branch + short
    cast = lambda factor: factor.astype(branch.dtype)
    branch = cast(gate.branch) * gate_gradient(branch, cast(gate.branch_gradient))
    skip = cast(gate.skip) if block.skip else 1 - cast(gate.branch)
    return branch + skip * gate_gradient(short, cast(gate.skip_gradient))


def _branch(block: Block) -> list[ConvNorm]:
    width, inner = block.width, block.inner or block.width
    make = functools.partial(ConvNorm, kernel=block.kernel)
    match block.kind:
        case "convnext":
            # Biases and the deviation of the kernels: arXiv:2201.03545, appendix A.1.
            make = functools.partial(make, bias=True, deviation=0.02)
            return [
                make(size=7, inputs=width, outputs=width, groups=width, norm=block.norm),
                make(size=1, inputs=width, outputs=4 * width, norm=None),
                make(size=1, inputs=4 * width, outputs=width, norm=None),
            ]
        case "basic":
            rows = [(3, width, block.stride, 1), (3, width, 1, 1)]
        case "bottleneck":
            first = block.stride if block.stride_in == "1x1" else 1
            rows = [
                (1, inner, first, 1),
                (3, inner, block.stride // first, block.groups),
                (1, block.outputs, 1, 1),
            ]
        case "dense":
            rows = [(1, width, 1, 1)] * block.layers
    norms: list[Norm | None] = [*[block.norm] * (len(rows) - 1), block.last_norm]
    if block.preactivation:  # The first of them precedes the first convolution.
        norms = [*norms[1:], None]
    widths = [block.inputs, *(outputs for _, outputs, _, _ in rows)]
    last = 0.0 if block.scaling == "zero_last" else 1.0
    return [
        make(
            size=size,
            inputs=inputs,
            outputs=outputs,
            stride=stride,
            groups=groups,
            norm=norm,
            initial_scale=last if i == len(rows) - 1 else 1.0,
        )
        for i, (inputs, (size, outputs, stride, groups), norm) in enumerate(
            zip(widths, rows, norms)
        )
    ]


def _check(block: Block) -> None:
    """Raises ValueError for fields that do not fit together."""
    if block.skip and block.shortcut == "pad" and block.outputs < block.inputs:
        raise ValueError(
            f"block: a padded shortcut cannot reduce {block.inputs} channels to "
            f"{block.outputs}; use shortcut = 'projection', or widths that never decrease"
        )
    if block.kind != "bottleneck" and (block.groups > 1 or block.inner is not None):
        raise ValueError(
            f"block: groups and the inner width are those of a bottleneck, and the block is "
            f"{block.kind}; use a bottleneck, or leave them out"
        )
    inner = block.inner or block.width
    if inner % block.groups:
        fits = [g for g in range(1, inner + 1) if inner % g == 0]
        raise ValueError(
            f"block: the {inner} channels of the 3x3 convolution do not split into "
            f"{block.groups} groups; these do: {', '.join(map(str, fits))}"
        )
    if block.kind in ("convnext", "dense") and block.stride != 1:
        raise ValueError(f"block: a {block.kind} block has stride 1, not {block.stride}")
    if block.kind == "convnext" and (block.inputs != block.width or block.preactivation):
        raise ValueError(
            f"block: a convnext block keeps its {block.inputs} channels and has no pre-activation; "
            "use width = inputs and preactivation = false"
        )
    if block.scaling == "zero_last" and (block.preactivation or block.kind == "convnext"):
        what = "pre-activation" if block.preactivation else "convnext"
        raise ValueError(
            f"block: the branch of a {what} block does not end in a norm whose scale could start "
            "at zero (zero_last); use branch_scale = 'skip_init', 'layer_scale' or 'one'"
        )
