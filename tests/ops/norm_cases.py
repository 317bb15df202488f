"""Table of all norms in all modes, the sets of values that they normalize, and their definition.

An arm declares its statistics once, by the axes that separate the sets of values that are averaged
together (`sets`). Everything else follows: the definition in NumPy averages over these sets, one
value may influence another where both are in one set, and a set of one value is an error.
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
# One shape for most tests, because compiling is nearly all that they cost.
SHAPE = (4, 3, 2, 4)
C = SHAPE[-1]
# For programs that run once, where compiling takes nearly all the time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
MODES = [
    Mode(stats=stats, update=update, stochastic=stochastic)
    for stats in ("batch", "running")
    for update in ("none", "running", "moments")
    for stochastic in (True, False)
]
# With the 8 images that `fill` puts into `seen`: factors within 1.2, shifts within 0.1.
LIMITS = Renorm(r_max=1.4, d_max=0.4, start=4, r_full=12, d_full=20)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A norm in a mode."""

    norm: Norm
    over: str
    """The axes that separate the sets of its statistics: of n (images), g (groups of 2 images),
    s (positions in space), c (channels), p (pairs of channels); `nsc`, without statistics."""
    mode: Mode = Mode.TRAIN

    @property
    def sees(self):
        """The axes that separate the sets of values that may influence each other's output."""
        given = isinstance(self.norm, BatchNorm) and self.mode.stats == "running"
        return "nsc" if given else self.over

    @property
    def takes_batch_statistics(self):
        return isinstance(self.norm, BatchNorm) and (
            self.mode.stats == "batch" or self.mode.update != "none"
        )

    @property
    def takes_mask(self):
        """Whether a mask can change anything: where statistics over pixels are taken."""
        return self.takes_batch_statistics or "s" not in self.sees

    @property
    def centers(self):
        """Whether it normalizes by a mean and a variance of its own."""
        own = isinstance(self.norm, BatchNorm) and self.mode.stats == "batch"
        return own or isinstance(self.norm, LayerNorm | GroupNorm | InstanceNorm)

    @property
    def renormalizes(self):
        trains = (self.mode.stats, self.mode.update) == ("batch", "running")
        return trains and isinstance(self.norm, BatchNorm) and self.norm.renorm is not None

    def rejects(self, shape):
        """Whether a map of this shape is an error: one value in each set of its statistics."""
        takes = self.takes_batch_statistics or self.centers
        return takes and len(np.unique(sets(self.over, shape))) == np.prod(shape)


def batch(mode=Mode.TRAIN, over="c", **fields):
    return Arm(BatchNorm(eps=EPS, decay=0.75, reference_batch=8, **fields), over, mode)


ARMS = {
    "batch_norm": batch(),
    "batch_norm_no_update": batch(Mode.BATCH_EVAL),
    "batch_norm_moments": batch(Mode.MOMENTS),
    "batch_norm_eval": batch(Mode.EVAL),
    "batch_norm_running": batch(Mode(stats="running", update="running")),
    "batch_norm_running_moments": batch(Mode(stats="running", update="moments")),
    "ghost_of_two": batch(over="gc", norm_batch=2, unbiased=True),
    "ghost_of_one": batch(over="nc", norm_batch=1),
    "renorm": batch(renorm=LIMITS),
    "renorm_ghost": batch(over="gc", renorm=LIMITS, norm_batch=2),
    "renorm_no_update": batch(Mode.BATCH_EVAL, renorm=LIMITS),
    "renorm_running": batch(Mode(stats="running", update="running"), renorm=LIMITS),
    "frozen": Arm(FrozenBatchNorm(eps=EPS), "nsc"),
    "frozen_affine": Arm(FrozenBatchNorm(eps=EPS, affine=True), "nsc"),
    "layer_norm_hwc": Arm(LayerNorm(axes="hwc", eps=EPS), "n"),
    "layer_norm_c": Arm(LayerNorm(axes="c", eps=EPS), "ns"),
    "group_norm": Arm(GroupNorm(group_channels=2, eps=EPS), "np"),
    "instance_norm": Arm(InstanceNorm(eps=EPS), "nc"),
    "rms_norm_hwc": Arm(RmsNorm(axes="hwc", eps=EPS), "n"),
    "rms_norm_c": Arm(RmsNorm(axes="c", eps=EPS), "ns"),
    "filter_response_norm": Arm(FilterResponseNorm(eps=EPS), "nc"),
    "dynamic_tanh": Arm(DynamicTanh(alpha=0.6), "nsc"),
    "none": Arm(NoNorm(), "nsc"),
}
ALIASES = {
    "group_norm": (GroupNorm(groups=2, eps=EPS), GroupNorm(eps=EPS)),
}
"""Other specs of an arm's norm on maps of 4 channels."""

MASKED = [(name, masked) for name, arm in ARMS.items() for masked in {False, arm.takes_mask}]
TAKES_MASK = [name for name, arm in ARMS.items() if arm.takes_mask]
# A norm computes the same where it updates nothing.
COMPUTED = [name for name in ARMS if not name.endswith("no_update")]
CENTERED = [name for name in COMPUTED if ARMS[name].centers]
# One arm of each norm: what holds for their functions whatever the mode.
NORMS = [name for name, arm in ARMS.items() if arm.mode == Mode.TRAIN] + ["batch_norm_eval"]


def over_axis(arm):
    """Returns an arm over the shards of the mapped axis `d`."""
    return dataclasses.replace(arm, norm=dataclasses.replace(arm.norm, axis_name="d"))


def sets(axes, shape):
    """Returns the number of each value's set."""
    n, *space, c = np.indices(shape)
    s = np.zeros(shape, int)
    for axis in space:
        s = s * (axis.max(initial=0) + 1) + axis
    along = {"n": n, "g": n // 2, "s": s, "c": c, "p": c // 2}
    number = np.zeros(shape, int)
    for axis in axes:
        number = number * (along[axis].max(initial=0) + 1) + along[axis]
    return number


def run(arm, params, state, x, mask=None):
    """Returns the normalized maps and the new state of an arm."""
    mask = None if mask is None else jnp.asarray(mask)
    return apply_norm(arm.norm, params, state, jnp.asarray(x), arm.mode, mask=mask)


def moments_of(state):
    """Returns the mean and the variance of a state; nothing without one."""
    return () if state is None else (state.mean, state.var)


def with_gradients(arm, params, state, x, weights, mask=None):
    """Returns maps, new state, and gradients of parameters and maps.

    They are those of the sum of maps, new mean and new variance times ``weights``, of which those
    that are left out are 0.
    """

    def outputs(params, x):
        y, new = run(arm, params, state, x, mask)
        return [y, *moments_of(new)], new

    found, pullback, new = jax.vjp(outputs, params, x, has_aux=True)
    given = [*weights, 0.0, 0.0][: len(found)]
    cotangents = [jnp.broadcast_to(w, f.shape).astype(f.dtype) for f, w in zip(found, given)]
    return found[0], new, *pullback(cotangents)


compute = jax.jit(with_gradients, static_argnums=0)
compute_once = jax.jit(with_gradients, static_argnums=0, compiler_options=FAST_COMPILE)


def exactly(arm, params, state, x, weights, mask=None):
    """Returns the same in float64 (which `test_norm.py` compares with the definition)."""
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, double((params, state, x, weights)))
        return double(compute_once(arm, *wide, mask))


def fill(arm, channels=C, dtype=jnp.float32, threshold=-0.3):
    """Returns parameters and state of an arm that differ in every channel."""
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


def far_maps():
    """Returns maps of which each set has a mean of ten thousand deviations."""
    # Neighbors along every axis lie on either side of the mean, so that no set is nearly constant.
    size = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)
    return np.float32(1e4) + (size * (-1.0) ** np.indices(SHAPE).sum(0)).astype(np.float32)


def weights_of(shape=SHAPE):
    """Returns weights of maps, mean and variance, of mean 0."""
    random = np.random.default_rng(3)
    return tuple(2 * random.normal(size=size) for size in (shape, shape[-1:], shape[-1:]))


def some_pixels(shape=SHAPE, seed=1):
    """Returns a mask with at least one pixel of each image, which differs between images."""
    mask = np.random.default_rng(seed).random(shape[:-1]) < 0.7
    if len(shape) > 2:
        mask[(slice(None), *(0 for _ in shape[1:-1]))] = True
        mask[(slice(0, 2), *(-1 for _ in shape[1:-1]))] = False
    else:
        mask[0] = True
    return mask


def double(tree):
    """Returns the leaves in float64 NumPy."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def define(arm, params, state, x, mask=None, at=None):
    """Returns the maps and the new state of an arm by its definition, in float64.

    Args:
      arm: The norm and its mode.
      params: Its parameters in NumPy.
      state: Its state in NumPy.
      x: Maps of any rank.
      mask: Pixels that count.
      at: Parameters, state and maps for what has no gradient, the affine map of frozen statistics
        and the correction of a renorm; None for those given.
    """
    norm = arm.norm
    if at is not None and isinstance(norm, FrozenBatchNorm) and not norm.affine:
        params = at[0]
    valid = np.ones(x.shape, bool)
    if mask is not None and arm.takes_mask:
        valid = np.broadcast_to(mask[..., None], x.shape)
    scale = 1 if params.scale is None else params.scale
    bias = 0 if params.bias is None else params.bias
    mean, var = _moments(x, sets(arm.sees, x.shape), valid)
    if isinstance(norm, FrozenBatchNorm) or (state is not None and arm.mode.stats == "running"):
        y = (x - state.mean) / np.sqrt(state.var + norm.eps)
    elif isinstance(norm, RmsNorm | FilterResponseNorm):
        y = x / np.sqrt(var + mean**2 + norm.eps)
    elif isinstance(norm, DynamicTanh):
        y = np.tanh(params.alpha * x)
    elif isinstance(norm, NoNorm):
        y = x
    else:
        y = (x - mean) / np.sqrt(var + norm.eps)
    if arm.renormalizes:
        r, d = _correction(arm, *(at[1:] if at else (state, x)), valid)
        y = y * r + d
    y = y * scale + bias
    y = y if params.threshold is None else np.maximum(y, params.threshold)
    return y, _updated(arm, state, x, valid)


def _moments(x, number, valid):
    """Returns mean and biased variance of the valid values of each value's set; 0 of none."""
    number, weight = number.ravel(), valid.ravel().astype(np.float64)
    values = np.where(valid, x, 0).ravel()
    count = np.maximum(np.bincount(number, weight), 1)
    mean = (np.bincount(number, weight * values) / count)[number]
    var = (np.bincount(number, weight * (values - mean) ** 2) / count)[number]
    return mean.reshape(x.shape), var.reshape(x.shape)


def _updated(arm, state, x, valid):
    norm, images = arm.norm, len(x)
    if not isinstance(norm, BatchNorm) or arm.mode.update == "none":
        return state
    mean, var = (m.reshape(-1, x.shape[-1])[0] for m in _moments(x, sets("c", x.shape), valid))
    count = valid[..., 0].sum()
    seen = state.seen + images
    if arm.mode.update == "moments":
        own, total = count / max(count + state.count, 1), count + state.count
        both = (1 - own) * state.mean + own * mean
        spread = (1 - own) * (state.mean - both) ** 2 + own * (mean - both) ** 2
        var = (1 - own) * state.var + own * var + spread
        return NormState(mean=both, var=var, count=total, seen=seen)
    if norm.unbiased:
        var = var * count / max(count - 1, 1)
    keep = norm.decay ** (images / norm.reference_batch) if count else 1.0
    return NormState(
        mean=keep * state.mean + (1 - keep) * mean,
        var=keep * state.var + (1 - keep) * var,
        count=count * (norm.norm_batch or images) / images,
        seen=seen,
    )


def _correction(arm, state, x, valid):
    limits, seen = arm.norm.renorm, float(state.seen)
    share = lambda full: np.clip((seen - limits.start) / (full - limits.start), 0, 1)
    r_max = 1 + (limits.r_max - 1) * share(limits.r_full)
    d_max = limits.d_max * share(limits.d_full)
    mean, var = _moments(x, sets(arm.sees, x.shape), valid)
    sigma = np.sqrt(state.var + arm.norm.eps)
    r = np.clip(np.sqrt(var + arm.norm.eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - state.mean) / sigma, -d_max, d_max)


def assert_close(found, expected, **tolerance):
    """Asserts that two trees have the same structure, and leaves that are close."""
    leaves = zip(jax.tree.leaves(double(found)), jax.tree.leaves(double(expected)), strict=True)
    for leaf, other in leaves:
        np.testing.assert_allclose(leaf, other, **tolerance)


def distance(found, exact):
    """Returns how far an array is from the exact one, in lengths of that."""
    return np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)


def without_bias(params, y):
    """Returns maps without the bias, which would hide how wrong they are."""
    return np.asarray(y, np.float64) - (0 if params.bias is None else np.asarray(params.bias))
