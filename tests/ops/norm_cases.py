"""Every norm in every mode that changes it, what its statistics span, and its definition in NumPy.

An arm's statistics are described once, by numbering the sets of values that are averaged together
(`sets`). The definition averages over these sets, and the declared influence of one value on
another is that both are in one set.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fpnlab.nn.norm_layer import NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import (
    BatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoNorm,
    Norm,
    Renorm,
    RmsNorm,
)
from fpnlab.types import Mode

EPS = 1e-3
SHAPE = (4, 2, 2, 4)
# For what is compiled to run once, where compiling takes nearly all the time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
RUNNING = Mode(stats="running", update="running")
# With the 8 images that `fill` says were seen: factors within 1.2, shifts within 0.1.
LIMITS = Renorm(r_max=1.4, d_max=0.2, start=0, r_full=16, d_full=16)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A norm in a mode."""

    norm: Norm
    mode: Mode
    sees: str
    """The axes that tell sets of statistics apart: of n (images), g (groups of 2 images), h, w,
    c (channels), p (pairs of channels); `nhwc`, a set a value, for norms without statistics."""

    @property
    def takes_mask(self):
        """Whether a mask can change anything: where statistics of pixels are taken."""
        updates = isinstance(self.norm, BatchNorm) and self.mode.update != "none"
        return "h" not in self.sees or updates


def batch(mode, sees="c", **fields):
    norm = BatchNorm(eps=EPS, decay=0.75, reference_batch=4, **fields)
    return Arm(norm, mode, sees if mode.stats == "batch" else "nhwc")


ARMS = {
    "batch_norm": batch(Mode.TRAIN),
    "batch_norm_no_update": batch(Mode.BATCH_EVAL),
    "batch_norm_running": batch(RUNNING),
    "batch_norm_eval": batch(Mode.EVAL),
    "ghost_of_two": batch(Mode.TRAIN, "gc", norm_batch=2, unbiased=True),
    "ghost_of_one": batch(Mode.TRAIN, "nc", norm_batch=1),
    "renorm": batch(Mode.TRAIN, renorm=LIMITS),
    "renorm_ghost": batch(Mode.TRAIN, "gc", renorm=LIMITS, norm_batch=2),
    "renorm_no_update": batch(Mode.BATCH_EVAL, renorm=LIMITS),
    "renorm_running": batch(RUNNING, renorm=LIMITS),
    "frozen": Arm(FrozenBatchNorm(eps=EPS, affine=True), Mode.TRAIN, "nhwc"),
    "layer_norm_hwc": Arm(LayerNorm(axes="hwc", eps=EPS), Mode.TRAIN, "n"),
    "layer_norm_c": Arm(LayerNorm(axes="c", eps=EPS), Mode.TRAIN, "nhw"),
    "group_norm": Arm(GroupNorm(group_channels=2, eps=EPS), Mode.TRAIN, "np"),
    "instance_norm": Arm(InstanceNorm(eps=EPS), Mode.TRAIN, "nc"),
    "rms_norm_hwc": Arm(RmsNorm(axes="hwc", eps=EPS), Mode.TRAIN, "n"),
    "rms_norm_c": Arm(RmsNorm(axes="c", eps=EPS), Mode.TRAIN, "nhw"),
    "filter_response_norm": Arm(FilterResponseNorm(eps=EPS), Mode.TRAIN, "nc"),
    "dynamic_tanh": Arm(DynamicTanh(), Mode.TRAIN, "nhwc"),
    "none": Arm(NoNorm(), Mode.TRAIN, "nhwc"),
}


def sets(sees, shape):
    """Returns the number of each value's set of statistics."""
    n, h, w, c = np.indices(shape)
    axes = {"n": n, "g": n // 2, "h": h, "w": w, "c": c, "p": c // 2}
    number = np.zeros(shape, int)
    for axis in sees:
        number = number * (axes[axis].max() + 1) + axes[axis]
    return number


def run(arm, params, state, x, mask=None):
    """Returns the normalized maps and the new state of an arm."""
    return apply_norm(arm.norm, params, state, x, arm.mode, mask=mask)


def fill(arm, channels=SHAPE[-1], dtype=jnp.float32, threshold=-0.3):
    """Returns parameters and state of an arm in which no two channels are alike."""
    plain = BatchNorm() if isinstance(arm.norm, FrozenBatchNorm) else arm.norm
    # A NoNorm has a scale where it does not start at one.
    params, state = init_norm(plain, channels, scale=0.5)
    spread = lambda low, high: jnp.asarray(np.linspace(low, high, channels), dtype)
    some = {"scale": spread(0.5, 1.5), "bias": spread(-1.0, 1.0)}
    some |= {"threshold": spread(threshold - 0.2, threshold), "alpha": jnp.asarray(0.6, dtype)}
    params = dataclasses.replace(
        params, **{name: leaf for name, leaf in some.items() if getattr(params, name) is not None}
    )
    if state is not None:
        count = lambda value: jnp.asarray(value, dtype)
        mean, var = spread(0.2, 1.4), spread(2.0, 5.0)
        state = NormState(mean=mean, var=var, count=count(16), seen=count(8))
    return params, state


def maps(shape=SHAPE, seed=0, dtype=np.float32):
    """Returns maps of mean 1 and deviation 2."""
    return (1 + 2 * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def some_pixels(shape=SHAPE):
    """Returns a mask that leaves each image, and no two neighbors the same, some pixels."""
    mask = np.random.default_rng(1).random(shape[:3]) < 0.7
    mask[:, 0, 0] = True
    mask[:2, -1, -1] = False
    return mask


def double(tree):
    """Returns the leaves in float64 NumPy."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def define(arm, params, state, x, mask=None, at=None):
    """Returns what an arm says it computes, in float64: the maps, and the new mean and variance.

    Args:
      arm: which one.
      params: its parameters in NumPy.
      state: its state in NumPy.
      x: maps.
      mask: pixels that count.
      at: state and maps from which a renorm takes the factor and the shift, which have no gradient;
        None for ``state`` and ``x``.
    """
    norm, mode = arm.norm, arm.mode
    valid = np.ones(x.shape, bool)
    if mask is not None and arm.takes_mask:
        valid = np.broadcast_to(mask[..., None], x.shape)
    scale = 1 if params.scale is None else params.scale
    bias = 0 if params.bias is None else params.bias
    mean, var = _moments(x, sets(arm.sees, x.shape), valid)
    new = None
    if isinstance(norm, BatchNorm | FrozenBatchNorm):
        new = _updated(arm, state, x, valid)
    if isinstance(norm, FrozenBatchNorm) or (state is not None and mode.stats == "running"):
        y = (x - state.mean) / np.sqrt(state.var + norm.eps)
    elif isinstance(norm, RmsNorm | FilterResponseNorm):
        y = x / np.sqrt(var + mean**2 + norm.eps)
    elif isinstance(norm, DynamicTanh):
        y = np.tanh(params.alpha * x)
    elif isinstance(norm, NoNorm):
        y = x
    else:
        y = (x - mean) / np.sqrt(var + norm.eps)
    if isinstance(norm, BatchNorm) and norm.renorm and mode == Mode.TRAIN:
        r, d = _correction(arm, *(at or (state, x)), valid)
        y = y * r + d
    y = y * scale + bias
    return (y if params.threshold is None else np.maximum(y, params.threshold)), new


def _moments(x, number, valid):
    """Returns mean and biased variance of the valid values of each value's set; 0 of none."""
    number, weight = number.ravel(), valid.ravel().astype(np.float64)
    values = np.where(valid, x, 0).ravel()
    count = np.maximum(np.bincount(number, weight), 1)
    mean = (np.bincount(number, weight * values) / count)[number]
    var = (np.bincount(number, weight * (values - mean) ** 2) / count)[number]
    return mean.reshape(x.shape), var.reshape(x.shape)


def _updated(arm, state, x, valid):
    if isinstance(arm.norm, FrozenBatchNorm) or arm.mode.update == "none":
        return state.mean, state.var
    mean, var = (moment[0, 0, 0] for moment in _moments(x, sets("c", x.shape), valid))
    count = valid[..., 0].sum()
    if arm.norm.unbiased:
        var = var * count / max(count - 1, 1)
    keep = arm.norm.decay ** (len(x) / arm.norm.reference_batch) if count else 1.0
    return keep * state.mean + (1 - keep) * mean, keep * state.var + (1 - keep) * var


def _correction(arm, state, x, valid):
    share = float(state.seen) / 16
    r_max, d_max = 1 + (LIMITS.r_max - 1) * share, LIMITS.d_max * share
    mean, var = _moments(x, sets(arm.sees, x.shape), valid)
    sigma = np.sqrt(state.var + arm.norm.eps)
    r = np.clip(np.sqrt(var + arm.norm.eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - state.mean) / sigma, -d_max, d_max)
