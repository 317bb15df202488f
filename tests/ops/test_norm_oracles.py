"""Norms and their gradients against Flax Linen, Flax NNX and PyTorch.

The frameworks compute in float64 on the values that fpnlab gets in float32, bfloat16 or float64,
so that the tolerance is the cost of fpnlab's own rounding: 64 roundings of numbers that the
division by ``sqrt(var + EPS)`` has made ``1 / sqrt(EPS)`` times larger at most, and the one
rounding of a bfloat16 result.
"""

import dataclasses
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

from fpnlab.nn.norm_layer import NormParams, NormState, init_norm
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm

from .norm_cases import (
    ARMS,
    CENTERED,
    EPS,
    FAST_COMPILE,
    Arm,
    define,
    distance,
    double,
    far_maps,
    fill,
    maps,
    run,
    without_bias,
)

HWC = {"reduction_axes": (1, 2, 3), "feature_axes": -1}
FLAX = {
    "batch_norm": ("BatchNorm", {"use_running_average": False}),
    "batch_norm_eval": ("BatchNorm", {"use_running_average": True}),
    "layer_norm_hwc": ("LayerNorm", HWC),
    "layer_norm_c": ("LayerNorm", {}),
    "group_norm": ("GroupNorm", {}),
    "instance_norm": ("InstanceNorm", {}),
    "rms_norm_hwc": ("RMSNorm", HWC),
    "rms_norm_c": ("RMSNorm", {}),
}
"""The arms that Flax and PyTorch have, too."""
# They differ from an arm above in the update of statistics, or in a gradient alone.
VARIANTS = {name for name in ARMS if name.endswith(("no_update", "moments", "running"))}
VARIANTS |= {"frozen", "frozen_affine"}
ONLY_HERE = {"ghost_of_two", "ghost_of_one", "renorm", "renorm_ghost"}
ONLY_HERE |= {"filter_response_norm", "dynamic_tanh", "none"}
# A smaller example that fails as well is not worth the minutes of compiling the ones between.
PHASES = set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}


def test_every_norm_has_an_oracle_or_a_reason_to_have_none():
    assert sorted([*FLAX, *VARIANTS, *ONLY_HERE]) == sorted(ARMS)


def running(scale):
    """Returns a running mean and variance like the scale, which bfloat16 holds."""
    channel = np.arange(len(scale))
    return [values.astype(scale.dtype) for values in (channel / 8, channel / 4 + 2)]


def arm_of(name, groups):
    arm = ARMS[name]
    grouped = isinstance(arm.norm, GroupNorm)
    return dataclasses.replace(arm, norm=GroupNorm(groups=groups, eps=EPS)) if grouped else arm


def ours(name, groups, x, scale, bias):
    params = NormParams(scale=scale, bias=None if name.startswith("rms") else bias)
    mean, var = map(jnp.asarray, running(scale))
    state = NormState(mean=mean, var=var, count=0.0, seen=0.0) if "batch" in name else None
    return run(arm_of(name, groups), params, state, x)[0]


def flax_module(library, name, groups, *channels, fast=False, **rngs):
    kind, options = FLAX[name]
    options = options | ({"num_groups": groups} if kind == "GroupNorm" else {}) | rngs
    return getattr(library, kind)(*channels, epsilon=EPS, use_fast_variance=fast, **options)


def linen(name, groups, x, scale, bias, fast=False):
    # Flax's variance in one pass is off by more than the tolerance where a set is nearly constant.
    module = flax_module(nn, name, groups, fast=fast)
    mean, var = map(jnp.asarray, running(scale))
    variables = {
        "params": {"scale": scale} | ({} if name.startswith("rms") else {"bias": bias}),
        "batch_stats": {"mean": mean, "var": var},
    }
    return module.apply(variables, x, mutable=["batch_stats"])[0]


def flax_nnx(name, groups, x, scale, bias):
    module = flax_module(nnx, name, groups, len(scale), rngs=nnx.Rngs(0))
    mean, var = map(jnp.asarray, running(scale))
    for variable, value in {"scale": scale, "bias": bias, "mean": mean, "var": var}.items():
        if getattr(module, variable, None) is not None:
            getattr(module, variable).set_value(value)
    return module(x)


def forward_and_backward(norm, name, groups, x, scale, bias, cotangent):
    """Returns the maps, and the gradients of x, scale and bias."""
    y, pullback = jax.vjp(functools.partial(norm, name, groups), x, scale, bias)
    return y, *pullback(cotangent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def our_numbers(name, groups, *arrays):
    """Returns those of fpnlab, for arrays in float32, and with maps and cotangents in bfloat16."""
    x, scale, bias, cotangent = arrays
    short = (x.astype(jnp.bfloat16), scale, bias, cotangent.astype(jnp.bfloat16))
    return {
        dtype: forward_and_backward(ours, name, groups, *given)
        for dtype, given in (("float32", arrays), ("bfloat16", short))
    }


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST_COMPILE)
def exact_numbers(name, groups, *arrays):
    """Returns those of fpnlab and of both forms of Flax, for arrays in float64."""
    return {
        norm.__name__: forward_and_backward(norm, name, groups, *arrays)
        for norm in (ours, linen, flax_nnx)
    }


def pytorch(name, groups, x, scale, bias, cotangent):
    """Returns the same of PyTorch, in NumPy."""
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    F = torch.nn.functional
    given = [torch.tensor(a) for a in running(scale)]
    x, scale, bias, cotangent = (torch.tensor(a) for a in (x, scale, bias, cotangent))
    for leaf in (x, scale, bias):
        leaf.requires_grad_()
    nchw, shape = x.permute(0, 3, 1, 2), x.shape
    y = {
        "batch_norm": lambda: F.batch_norm(nchw, None, None, scale, bias, training=True, eps=EPS),
        "batch_norm_eval": lambda: F.batch_norm(nchw, *given, scale, bias, eps=EPS),
        "layer_norm_hwc": lambda: F.group_norm(nchw, 1, scale, bias, eps=EPS),
        "layer_norm_c": lambda: F.layer_norm(x, shape[3:], scale, bias, eps=EPS),
        "group_norm": lambda: F.group_norm(nchw, groups, scale, bias, eps=EPS),
        # Its instance_norm does not take a map of one pixel, whatever the batch.
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
    # One value a channel is an error of PyTorch and of batch norm.
    b, h, w = draw(sizes.filter(lambda size: np.prod(size) > 1))
    c = draw(st.integers(1, 12))
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = 1 + 2 * random.normal(size=(b, h, w, c))
    values = (x, random.normal(1, 0.3, c), random.normal(size=c), random.normal(size=x.shape))
    short = [a.astype(ml_dtypes.bfloat16).astype(np.float64) for a in values]
    return groups, *short


@pytest.mark.parametrize("name", FLAX)
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


@pytest.mark.parametrize("name", [name for name in CENTERED if name in FLAX])
def test_the_fast_variance_of_flax_loses_all_digits_that_norms_keep(name):
    params, state = fill(ARMS[name])
    given = jnp.asarray(far_maps()), params.scale, params.bias
    y = jax.jit(linen, static_argnums=(0, 1, 5))(name, 2, *given, True)
    exact, _ = define(ARMS[name], *double((params, state, far_maps())))
    assert not distance(without_bias(params, y), without_bias(params, exact)) < 0.1


def twenty_batches(dtype):
    """Returns batches with a drifting mean and deviation, which `dtype` holds."""
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
    step = jax.jit(lambda state, x: run(Arm(norm, "c"), params, state, x)[1])
    for x in twenty_batches(dtype):
        state = step(state, x)
    mean, var = theirs(norm, twenty_batches(dtype))
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.var, var, rtol=1e-5)
