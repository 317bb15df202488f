"""Norms and their gradients: against Flax Linen, Flax NNX, PyTorch, and float64 NumPy.

The frameworks compute in float64 on the values that fpnlab gets in float32, bfloat16 or float64,
so that the tolerance is what fpnlab's own rounding may cost: 64 roundings of numbers that the
division by ``sqrt(var + EPS)`` has made ``1 / sqrt(EPS)`` times larger at most, and the one
rounding of a bfloat16 result.
"""

import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from fpnlab.nn.norm_layer import NormParams, NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from fpnlab.types import Mode

from .norm_cases import ARMS, EPS, FAST_COMPILE, define, double, fill, maps, run, some_pixels

NAMES = [
    "batch_norm",
    "layer_norm_hwc",
    "layer_norm_c",
    "group_norm",
    "instance_norm",
    "rms_norm_hwc",
    "rms_norm_c",
]
HWC = (1, 2, 3)
SEEN = 8.0
# A smaller example that fails as well is not worth the minutes of compiling the ones between.
PHASES = set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}


def our_norm(name, groups):
    return {
        "batch_norm": BatchNorm(eps=EPS),
        "layer_norm_hwc": LayerNorm(axes="hwc", eps=EPS),
        "layer_norm_c": LayerNorm(axes="c", eps=EPS),
        "group_norm": GroupNorm(groups=groups, eps=EPS),
        "instance_norm": InstanceNorm(eps=EPS),
        "rms_norm_hwc": RmsNorm(axes="hwc", eps=EPS),
        "rms_norm_c": RmsNorm(axes="c", eps=EPS),
    }[name]


def ours(name, groups, x, scale, bias):
    norm = our_norm(name, groups)
    _, state = init_norm(norm, len(scale))
    bias = None if isinstance(norm, RmsNorm) else bias
    params = NormParams(scale=scale, bias=bias)
    return apply_norm(norm, params, state, x, Mode.TRAIN)[0]


def linen(name, groups, x, scale, bias):
    # Flax's variance in one pass is off by more than the tolerance where a set is nearly constant.
    options = {"epsilon": EPS, "use_fast_variance": False}
    module = {
        "batch_norm": lambda: nn.BatchNorm(use_running_average=False, **options),
        "layer_norm_hwc": lambda: nn.LayerNorm(reduction_axes=HWC, feature_axes=-1, **options),
        "layer_norm_c": lambda: nn.LayerNorm(**options),
        "group_norm": lambda: nn.GroupNorm(num_groups=groups, **options),
        "instance_norm": lambda: nn.InstanceNorm(**options),
        "rms_norm_hwc": lambda: nn.RMSNorm(reduction_axes=HWC, feature_axes=-1, **options),
        "rms_norm_c": lambda: nn.RMSNorm(**options),
    }[name]()
    variables = {
        "params": {"scale": scale} | ({} if name.startswith("rms") else {"bias": bias}),
        "batch_stats": {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)},
    }
    return module.apply(variables, x, mutable=["batch_stats"])[0]


def flax_nnx(name, groups, x, scale, bias):
    options = {"epsilon": EPS, "use_fast_variance": False, "rngs": nnx.Rngs(0)}
    c = len(scale)
    module = {
        "batch_norm": lambda: nnx.BatchNorm(c, use_running_average=False, **options),
        "layer_norm_hwc": lambda: nnx.LayerNorm(c, reduction_axes=HWC, feature_axes=-1, **options),
        "layer_norm_c": lambda: nnx.LayerNorm(c, **options),
        "group_norm": lambda: nnx.GroupNorm(c, num_groups=groups, **options),
        "instance_norm": lambda: nnx.InstanceNorm(c, **options),
        "rms_norm_hwc": lambda: nnx.RMSNorm(c, reduction_axes=HWC, feature_axes=-1, **options),
        "rms_norm_c": lambda: nnx.RMSNorm(c, **options),
    }[name]()
    values = {"scale": scale, "bias": bias, "mean": jnp.zeros(c), "var": jnp.ones(c)}
    for variable in values.keys() & vars(module):
        if getattr(module, variable) is not None:
            getattr(module, variable).set_value(values[variable])
    return module(x)


def forward_and_backward(norm, name, groups, x, scale, bias, cotangent):
    """Returns the maps, and the gradients of x, scale and bias."""
    y, pullback = jax.vjp(functools.partial(norm, name, groups), x, scale, bias)
    return y, *pullback(cotangent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def our_numbers(name, groups, *arrays):
    """Returns them of fpnlab, for arrays in float32, and with maps and cotangents in bfloat16."""
    x, scale, bias, cotangent = arrays
    short = (x.astype(jnp.bfloat16), scale, bias, cotangent.astype(jnp.bfloat16))
    return {
        dtype: forward_and_backward(ours, name, groups, *given)
        for dtype, given in (("float32", arrays), ("bfloat16", short))
    }


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)
def exact_numbers(name, groups, *arrays):
    """Returns them of fpnlab and the two of Flax, for arrays in float64."""
    return {
        norm.__name__: forward_and_backward(norm, name, groups, *arrays)
        for norm in (ours, linen, flax_nnx)
    }


def pytorch(name, groups, x, scale, bias, cotangent):
    """Returns the same of PyTorch, in NumPy."""
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    F = torch.nn.functional
    x, scale, bias, cotangent = (torch.tensor(a) for a in (x, scale, bias, cotangent))
    for leaf in (x, scale, bias):
        leaf.requires_grad_()
    nchw, shape = x.permute(0, 3, 1, 2), x.shape
    y = {
        "batch_norm": lambda: F.batch_norm(nchw, None, None, scale, bias, training=True, eps=EPS),
        "layer_norm_hwc": lambda: F.group_norm(nchw, 1, scale, bias, eps=EPS),
        "layer_norm_c": lambda: F.layer_norm(x, shape[3:], scale, bias, eps=EPS),
        "group_norm": lambda: F.group_norm(nchw, groups, scale, bias, eps=EPS),
        # Its instance_norm refuses a map of one pixel, whatever the batch.
        "instance_norm": lambda: F.group_norm(nchw, shape[3], scale, bias, eps=EPS),
        "rms_norm_hwc": lambda: F.rms_norm(x, shape[1:], None, eps=EPS) * scale,
        "rms_norm_c": lambda: F.rms_norm(x, shape[3:], scale, eps=EPS),
    }[name]()
    y = y if name.startswith("rms") or name.endswith("_c") else y.permute(0, 2, 3, 1)
    gradients = torch.autograd.grad(
        (y * cotangent).sum(), (x, scale, bias), allow_unused=True, materialize_grads=True
    )
    return [a.detach().numpy() for a in (y, *gradients)]


@st.composite
def inputs(draw):
    """Values of a shape: maps, scale, bias and cotangent, which bfloat16 holds; and groups."""
    sizes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
    # One value a channel is refused by PyTorch, and by batch norm.
    b, h, w = draw(sizes.filter(lambda size: np.prod(size) > 1))
    c = draw(st.integers(1, 12))
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = 1 + 2 * random.normal(size=(b, h, w, c))
    values = (x, random.normal(1, 0.3, c), random.normal(size=c), random.normal(size=x.shape))
    short = [a.astype(ml_dtypes.bfloat16).astype(np.float64) for a in values]
    return groups, *short


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(inputs())
@hypothesis.settings(max_examples=3, deadline=None, phases=PHASES)
def test_norms_and_their_gradients_are_those_of_three_frameworks(name, drawn):
    groups, *arrays = drawn
    b, h, w, c = arrays[0].shape
    sets = {"instance_norm": h * w, "group_norm": h * w * c // groups, "layer_norm_c": c}
    hypothesis.assume(sets.get(name, h * w * c) > 1)  # One value alone is an error.
    with jax.enable_x64(True):
        exact = exact_numbers(name, groups, *(jnp.asarray(a) for a in arrays))
        exact = jax.tree.map(np.asarray, exact)
    found = our_numbers(name, groups, *(jnp.asarray(a, jnp.float32) for a in arrays))
    found |= {"float64": exact.pop("ours")}
    theirs = exact | {"pytorch": pytorch(name, groups, *arrays)}
    for dtype, numbers in found.items():
        assert [a.dtype.name for a in numbers[:2]] == [dtype, dtype]
        precision = 64 * float(jnp.finfo(jnp.promote_types(dtype, jnp.float32)).eps)
        for framework, expected in theirs.items():
            for a, b, what in zip(numbers, expected, ("y", "dx", "dscale", "dbias")):
                np.testing.assert_allclose(
                    np.asarray(a, np.float64),
                    b,
                    rtol=2**-8 if a.dtype == jnp.bfloat16 else precision,
                    atol=precision / np.sqrt(EPS),
                    err_msg=f"{what} in {dtype} against {framework}",
                )


def twenty_batches(dtype):
    """Returns batches whose mean and deviation drift, which `dtype` holds."""
    x = maps((8, 2, 3, 4))
    return [jnp.asarray(x * (1 + 0.1 * i) + i, dtype) for i in range(20)]


def statistics_of_linen(norm, batches):
    module = nn.BatchNorm(use_running_average=False, momentum=norm.decay, use_fast_variance=False)
    variables = module.init(jax.random.key(0), batches[0])
    step = jax.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"])[1])
    for x in batches:
        variables = {**variables, **step(variables, x)}
    return variables["batch_stats"]["mean"], variables["batch_stats"]["var"]


def statistics_of_nnx(norm, batches):
    module = nnx.BatchNorm(4, momentum=norm.decay, use_fast_variance=False, rngs=nnx.Rngs(0))
    step = nnx.jit(lambda module, x: module(x))
    for x in batches:
        step(module, x)
    return module.mean.get_value(), module.var.get_value()


def statistics_of_pytorch(norm, batches):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    module = torch.nn.BatchNorm2d(4, momentum=1 - norm.decay)
    for x in batches:
        tensor = torch.tensor(np.asarray(x, np.float32)).permute(0, 3, 1, 2)
        module(tensor.bfloat16() if x.dtype == jnp.bfloat16 else tensor)
    return module.running_mean.numpy(), module.running_var.numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("theirs", "unbiased"),
    [(statistics_of_linen, False), (statistics_of_nnx, False), (statistics_of_pytorch, True)],
    ids=["linen", "nnx", "pytorch"],
)
def test_running_statistics_are_the_frameworks_over_twenty_steps(theirs, unbiased, dtype):
    norm = BatchNorm(reference_batch=8, unbiased=unbiased)
    params, state = init_norm(norm, 4)
    step = jax.jit(lambda state, x: apply_norm(norm, params, state, x, Mode.TRAIN)[1])
    for x in twenty_batches(dtype):
        state = step(state, x)
    mean, var = theirs(norm, twenty_batches(dtype))
    assert state.mean.dtype == state.var.dtype == jnp.float32
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, var, rtol=1e-5)


def trees_of(arm):
    """Returns what an arm is differentiated by: parameters, running mean and variance, maps."""
    params, state = fill(arm, dtype=jnp.float64)
    return params, state and (state.mean, state.var), jnp.asarray(maps(dtype=np.float64))


def compute(how, arm, mask, trees, *at):
    """Returns the maps and, of a norm with state, the new mean and variance, in one list."""
    params, moments, x = trees
    state = moments and NormState(mean=moments[0], var=moments[1], count=SEEN, seen=SEEN)
    y, new = how(arm, params, state, x, mask, *at)
    return [y, *((new.mean, new.var) if isinstance(new, NormState) else new or ())]


def weighted(outputs):
    """Returns one number in which every output has a share."""
    random = np.random.default_rng(3)
    return sum((output * random.normal(size=output.shape)).sum() for output in outputs)


def central_differences(function, trees, step=1e-5):
    """Returns the gradient of a NumPy function, entry by entry."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.array, trees))
    gradients = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, gradient in zip(leaves, gradients):
        for index in np.ndindex(leaf.shape):
            kept, values = leaf[index], []
            for sign in (1, -1):
                leaf[index] = kept + sign * step
                values.append(function(jax.tree.unflatten(structure, leaves)))
            leaf[index] = kept
            gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradients


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def derivatives(arm, mask, trees, direction):
    """Returns outputs and gradient of an arm, and derivatives found in other ways."""
    outputs = functools.partial(compute, run, arm, mask)
    loss = lambda trees: (weighted(outputs(trees)), outputs(trees))
    by_maps = lambda x: weighted(outputs((*trees[:2], x)))
    slope, x, along = jax.grad(by_maps), trees[2], direction[2]
    gradient, found = jax.grad(loss, has_aux=True)(trees)
    return {
        "outputs": found,
        "gradient": gradient,
        "forward": jax.jvp(outputs, (trees,), (direction,))[1],
        "hessian": jax.hessian(by_maps)(x),
        "reverse over reverse": jax.grad(lambda x: jnp.vdot(slope(x), along))(x),
    }


MASKED = [(name, masked) for name, arm in ARMS.items() for masked in {False, arm.takes_mask}]


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_norms_and_their_derivatives_are_those_of_the_definition(name, masked):
    arm, mask = ARMS[name], some_pixels() if masked else None
    random = np.random.default_rng(5)
    with jax.enable_x64(True):
        trees = trees_of(arm)
        direction = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), trees)
        found = double(derivatives(arm, mask, trees, direction))
    exact = double(trees)
    state = exact[1] and NormState(mean=exact[1][0], var=exact[1][1], count=SEEN, seen=SEEN)
    of_trees = lambda trees: compute(define, arm, mask, trees, (state, exact[2]))
    for output, expected in zip(found["outputs"], of_trees(exact), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)

    loss = lambda trees: weighted(of_trees(trees))
    leaves = jax.tree.leaves(found["gradient"])
    for leaf, expected in zip(leaves, central_differences(loss, exact), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-7, atol=1e-7)
    forward = sum((a * b).sum() for a, b in zip(leaves, jax.tree.leaves(double(direction))))
    np.testing.assert_allclose(weighted(found["forward"]), forward, rtol=1e-11, atol=1e-11)

    along, step = np.asarray(direction[2]), 1e-4
    at = lambda x, sign: loss((*exact[:2], x + sign * step * along))
    slope = lambda x: (at(x, 1) - at(x, -1)) / (2 * step)
    (curvature,) = central_differences(slope, exact[2], step)
    np.testing.assert_allclose(found["reverse over reverse"], curvature, rtol=1e-5, atol=1e-5)
    hessian = found["hessian"].reshape(along.size, along.size)
    product = found["reverse over reverse"].ravel()
    np.testing.assert_allclose(hessian @ along.ravel(), product, rtol=1e-10, atol=1e-11)
