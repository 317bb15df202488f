"""The RetinaNet head: two small towers shared over the pyramid, for classes and for boxes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fpnlab.model.block import ConvNormParams, apply_conv_norm, init_conv_norm
from fpnlab.model.norm import NoNorm, Norm, NormState
from fpnlab.ops.conv import conv
from fpnlab.ops.keys import named_key
from fpnlab.types import Features, Key, Mode, spec, tree


@spec
class RetinaHead:
    """Towers shared over levels; each level keeps its own norm statistics (arXiv:1708.02002).

    Why per level: the levels' maps differ in distribution, so that statistics pooled over them
    at test time fit none (arXiv:2105.07576, section 5.2).
    """

    depth: int = 4
    """3x3 convolutions in each tower."""
    norm: Norm = NoNorm()
    """After each convolution of a tower."""
    prior: float = 0.01
    """Probability of an object that every anchor starts with (arXiv:1708.02002, section 4.1)."""

    def __post_init__(self):
        if self.depth < 0:
            raise ValueError(f"depth is {self.depth}; it must be 0 or more")
        if not 0 < self.prior < 1:
            raise ValueError(f"prior is {self.prior}; it must lie between 0 and 1")


@tree
class Predictor:
    """A last convolution with a bias."""

    kernel: Float[Array, "3 3 d o"]
    bias: Float[Array, " o"]


@tree
class HeadParams:
    """The towers, and the predictors on top of them."""

    class_tower: tuple[ConvNormParams, ...]
    box_tower: tuple[ConvNormParams, ...]
    class_predictor: Predictor
    box_predictor: Predictor


@tree
class HeadState:
    """The running statistics of the towers' norms, each ``[levels, channels]``."""

    class_tower: tuple[NormState | None, ...]
    box_tower: tuple[NormState | None, ...]


def init_head(
    key: Key, head: RetinaHead, *, channels: int, levels: int, anchors: int, classes: int
) -> tuple[HeadParams, HeadState]:
    """Returns a head over pyramid maps of ``channels``, with ``anchors`` boxes a cell."""

    def tower(name):
        made = [
            init_conv_norm(named_key(key, name, i), head.norm, 3, channels, channels, levels=levels)
            for i in range(head.depth)
        ]
        return tuple(p for p, _ in made), tuple(s for _, s in made)

    def predictor(name, outputs, bias):
        kernel = 0.01 * jax.random.normal(named_key(key, name), (3, 3, channels, outputs))
        return Predictor(kernel=kernel, bias=jnp.full((outputs,), bias, jnp.float32))

    class_tower, class_state = tower("class_tower")
    box_tower, box_state = tower("box_tower")
    params = HeadParams(
        class_tower=class_tower,
        box_tower=box_tower,
        class_predictor=predictor(
            "class_predictor", anchors * classes, -math.log((1 - head.prior) / head.prior)
        ),
        box_predictor=predictor("box_predictor", anchors * 4, 0.0),
    )
    return params, HeadState(class_tower=class_state, box_tower=box_state)


def apply_head(
    head: RetinaHead, params: HeadParams, state: HeadState, pyramid: Features, mode: Mode
) -> tuple[Float[Array, "b cells k"], Float[Array, "b cells 4"], HeadState]:
    """Returns one row an anchor, finest level first: class logits and box deltas; and the state.

    Both are float32. The rows follow ``ops.anchors``: level, then row, column, anchor.
    """

    def side(tower, states, predictor, outputs):
        rows = []
        for i, level in enumerate(sorted(pyramid)):
            x, new = pyramid[level], []
            for p, s in zip(tower, states):
                x, s = apply_conv_norm(head.norm, p, s, x, mode, level=i)
                x = jax.nn.relu(x)
                new.append(s)
            states = tuple(new)
            y = conv(x, predictor.kernel.astype(x.dtype)).astype(jnp.float32) + predictor.bias
            rows.append(y.reshape(y.shape[0], -1, outputs))
        return jnp.concatenate(rows, 1), states

    anchors = params.box_predictor.bias.size // 4
    classes = params.class_predictor.bias.size // anchors
    logits, class_state = side(
        params.class_tower, state.class_tower, params.class_predictor, classes
    )
    deltas, box_state = side(params.box_tower, state.box_tower, params.box_predictor, 4)
    return logits, deltas, HeadState(class_tower=class_state, box_tower=box_state)
