"""What norms take: maps of any rank and floating dtype, meshes of both kinds, JAX's strict modes.

The file is also the script of the tests over eight devices, whose number is fixed when JAX starts.
"""

import functools
import inspect
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fpnlab.nn.norm_layer import apply_norm, init_norm
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.ops import norm as ops
from fpnlab.types import Mode

C = 4
NORMS = {
    "batch_norm_train": {"eps": 1e-3},
    "batch_norm_train of 2": {"eps": 1e-3, "norm_batch": 2},
    "batch_renorm_train": {"eps": 1e-3, "r_max": 1.5, "d_max": 0.5},
    "batch_norm_eval": {"eps": 1e-3},
    "layer_norm hwc": {"eps": 1e-3, "axes": "hwc"},
    "layer_norm c": {"eps": 1e-3, "axes": "c"},
    "group_norm": {"eps": 1e-3, "groups": 2},
    "instance_norm": {"eps": 1e-3},
    "rms_norm hwc": {"eps": 1e-3, "axes": "hwc"},
    "rms_norm c": {"eps": 1e-3, "axes": "c"},
    "filter_response_norm": {"eps": 1e-3},
    "dynamic_tanh": {},
}
"""Every function of ``ops.norm``, by its name and a word, with its options."""
SHAPES = [(8, C), (8, 5, C), (8, 3, 5, C), (8, 2, 3, 5, C)]
"""Dense layers, sequences, images, volumes."""
CENTRED = [n for n in NORMS if n.startswith(("batch_norm_train", "layer", "group", "instance"))]
VECTORS = {"mean": 0.3, "var": 2.0, "scale": 1.0, "bias": 0.2, "threshold": -0.5}


def arrays_of(name, dtype=np.float32):
    """The parameters and statistics of a norm, in the order of its arguments."""
    parameters = inspect.signature(getattr(ops, name.split()[0])).parameters
    wave = np.linspace(0.0, 0.3, C)
    vectors = {key: jnp.asarray(start + wave, dtype) for key, start in VECTORS.items()}
    vectors["alpha"] = jnp.asarray(0.6, dtype)
    return [vectors[key] for key in parameters if key in vectors]


def maps_of(shape, dtype=np.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 2.0, shape), dtype)


def run(name, x, *arrays, mask=None):
    """The normalized maps, without moments."""
    mask = {} if mask is None else {"mask": mask}
    function = getattr(ops, name.split()[0])
    if __name__ != "__main__":  # Without the checker of shapes of the tests: users have none.
        function = inspect.unwrap(function)
    y = function(x, *arrays, **NORMS[name], **mask)
    return y[0] if isinstance(y, tuple) else y


def defined(name, x, vectors, mask=None):
    """The definition of every norm in float64 NumPy, for maps of any rank."""
    x = np.asarray(x, np.float64)
    space = tuple(range(1, x.ndim - 1))
    vectors = [np.asarray(v, np.float64) for v in vectors]
    weight = np.ones(x.shape) if mask is None else mask[..., None] * np.ones(C)
    options = NORMS[name]

    def moments(values, weight, axes, center=True):
        count = weight.sum(axes, keepdims=True)
        mean = (weight * values).sum(axes, keepdims=True) / count if center else 0.0
        return mean, (weight * (values - mean) ** 2).sum(axes, keepdims=True) / count

    def normalized(values, weight, axes, center=True):
        mean, var = moments(values, weight, axes, center)
        return (values - mean) / np.sqrt(var + options["eps"])

    over = {"hwc": (*space, x.ndim - 1), "c": (x.ndim - 1,)}
    match name.split()[0]:
        case "batch_norm_train":
            size = options.get("norm_batch", len(x))
            parts = [slice(i, i + size) for i in range(0, len(x), size)]
            y = [normalized(x[p], weight[p], (0, *space)) for p in parts]
            return np.concatenate(y) * vectors[0] + vectors[1]
        case "batch_renorm_train":
            mean, var, scale, bias = vectors
            own, own_var = moments(x, weight, (0, *space))
            deviation = np.sqrt(var + options["eps"])
            r = np.clip(np.sqrt(own_var + options["eps"]) / deviation, 1 / 1.5, 1.5)
            d = np.clip((own - mean) / deviation, -0.5, 0.5)
            return (normalized(x, weight, (0, *space)) * r + d) * scale + bias
        case "batch_norm_eval":
            mean, var, scale, bias = vectors
            return (x - mean) / np.sqrt(var + options["eps"]) * scale + bias
        case "layer_norm":
            weight = np.ones(x.shape) if options["axes"] == "c" else weight
            return normalized(x, weight, over[options["axes"]]) * vectors[0] + vectors[1]
        case "group_norm":
            split = lambda v: v.reshape(*v.shape[:-1], options["groups"], -1)
            y = normalized(split(x), split(weight), (*space, x.ndim))
            return y.reshape(x.shape) * vectors[0] + vectors[1]
        case "instance_norm":
            return normalized(x, weight, space) * vectors[0] + vectors[1]
        case "rms_norm":
            weight = np.ones(x.shape) if options["axes"] == "c" else weight
            return normalized(x, weight, over[options["axes"]], center=False) * vectors[0]
        case "filter_response_norm":
            scale, bias, threshold = vectors
            y = normalized(x, weight, space, center=False) if space else x / np.sqrt(x**2 + 1e-3)
            return np.maximum(y * scale + bias, threshold)
        case "dynamic_tanh":
            alpha, scale, bias = vectors
            return scale * np.tanh(alpha * x) + bias


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_its_definition_on_maps_of_any_rank(name, shape, masked):
    x, arrays = maps_of(shape), arrays_of(name)
    mask = None
    if masked:
        if "mask" not in inspect.signature(getattr(ops, name.split()[0])).parameters:
            pytest.skip("it takes no mask")
        mask = np.random.default_rng(1).random(shape[:-1]) < 0.7
        mask[(slice(None), *(0 for _ in shape[1:-1]))] = True  # no image without a valid pixel
    if name == "instance_norm" and len(shape) == 2:
        with pytest.raises(ValueError, match="one value in each set of statistics"):
            run(name, x, *arrays, mask=mask)
        return
    y = run(name, x, *arrays, mask=mask)
    np.testing.assert_allclose(y, defined(name, x, arrays, mask), rtol=2e-5, atol=2e-5)


def test_every_norm_of_the_module_is_tested_here():
    functions = {n: f for n, f in vars(ops).items() if inspect.isfunction(f) and n[0] != "_"}
    own = {n for n, f in functions.items() if f.__module__ == ops.__name__}
    of_maps = {n for n in own if "x" in inspect.signature(functions[n]).parameters}
    assert of_maps == {name.split()[0] for name in NORMS} | {"affine"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool, np.complex64])
@pytest.mark.parametrize("name", NORMS)
def test_maps_that_are_no_real_floating_point_numbers_are_an_error(name, dtype):
    with pytest.raises(TypeError, match=f"the map is {np.dtype(dtype)}.*convert it first"):
        run(name, jnp.ones((8, 2, 2, C), dtype), *arrays_of(name))


@pytest.mark.parametrize("name", NORMS)
def test_parameters_of_another_shape_are_an_error(name):
    arrays = arrays_of(name)
    for i in range(len(arrays)):
        for wrong in (jnp.ones(1), jnp.ones(C + 1), jnp.ones((1, C))):
            with pytest.raises(ValueError, match=r"has shape \(.*must be"):
                run(name, maps_of(SHAPES[2]), *arrays[:i], wrong, *arrays[i + 1 :])


@pytest.mark.parametrize("name", NORMS)
def test_masks_that_would_broadcast_are_an_error(name):
    if "mask" not in inspect.signature(getattr(ops, name.split()[0])).parameters:
        pytest.skip("it takes no mask")
    wrong = [jnp.ones((8, 3, 1), bool), jnp.ones((1, 3, 5), bool), jnp.ones((8, 3, 5), jnp.float32)]
    for mask in wrong:
        with pytest.raises(ValueError, match=r"the mask is .* must be bool of shape \(8, 3, 5\)"):
            run(name, maps_of(SHAPES[2]), *arrays_of(name), mask=mask)


@pytest.mark.parametrize("shape", [(0, 3, 5, C), (8, 0, 5, C)])
@pytest.mark.parametrize("name", NORMS)
def test_an_empty_map_has_an_empty_result_but_no_batch_statistics(name, shape):
    x = jnp.zeros(shape)
    if name.startswith("batch") and name != "batch_norm_eval":
        with pytest.raises(ValueError, match=r"an empty map .* has no batch statistics"):
            run(name, x, *arrays_of(name))
    else:
        assert run(name, x, *arrays_of(name)).shape == shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", NORMS)
def test_every_dtype_passes_under_strict_promotion_of_dtypes_and_ranks(name, dtype):
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        x = maps_of(SHAPES[2], dtype)
        loss = lambda x, *arrays: run(name, x, *arrays).astype(jnp.float32).sum()
        y, gradient = run(name, x, *arrays_of(name)), jax.grad(loss)(x, *arrays_of(name))
    assert y.dtype == gradient.dtype == dtype
    exact = defined(name, np.asarray(x).astype(np.float64), arrays_of(name))
    digits = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(y).astype(np.float64), exact, rtol=digits, atol=digits * 4
    )


@pytest.mark.parametrize("deviations", [0.0, 3.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", CENTRED)
def test_large_means_cost_no_digits_besides_those_of_the_map_itself(name, deviations):
    x = maps_of((4, 9, 9, C)) / 2 + np.float32(deviations)
    x = x + jnp.asarray([0.0, 3.0, -2.0, 1.0]) * (name != "layer_norm c")
    unit = [jnp.ones(C), jnp.zeros(C)]
    exact = defined(name, x, unit)
    error = np.abs(np.asarray(run(name, x, *unit), np.float64) - exact).max()
    assert error <= 64 * 2.0**-24 * np.abs(exact).max()


def test_given_statistics_of_any_dtype_and_size_cost_no_digits():
    x = maps_of((2, 3, 3, C)) + 1e4
    mean, var, scale, bias = jnp.full(C, 1e4), jnp.ones(C), jnp.ones(C), jnp.zeros(C)
    exact = defined("batch_norm_eval", x, (mean, var, scale, bias))
    np.testing.assert_allclose(run("batch_norm_eval", x, mean, var, scale, bias), exact, rtol=1e-6)
    short = [v.astype(jnp.bfloat16) for v in (scale * 0.3, var, scale, bias)]
    x = maps_of((2, 3, 3, C))
    exact = defined("batch_norm_eval", x, [np.asarray(v, np.float64) for v in short])
    np.testing.assert_allclose(run("batch_norm_eval", x, *short), exact, rtol=2e-6, atol=2e-6)
    with jax.enable_x64(True):
        x = maps_of((2, 3, 3, C), np.float64)
        single = [v.astype(jnp.float32) for v in (scale * 0.3, var, scale, bias)]
        y = run("batch_norm_eval", x, *single)
        exact = defined("batch_norm_eval", x, [np.asarray(v, np.float64) for v in single])
        np.testing.assert_allclose(y, exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "x64"),
    [("bfloat16", False), ("float32", False), ("float32", True), ("float64", True)],
)
def test_steps_can_be_scanned_because_statistics_keep_their_dtypes(dtype, x64):
    norm = BatchNorm(norm_batch=2)
    with jax.enable_x64(x64):
        params, state = init_norm(norm, C)
        x = maps_of((3, 4, 5, C), dtype)
        step = lambda state, x: apply_norm(norm, params, state, x, Mode.TRAIN)[::-1]
        last, _ = jax.lax.scan(step, state, x)
        for one in x:
            state, _ = step(state, one)
    assert {leaf.dtype for leaf in jax.tree.leaves(last)} == {np.dtype("float32")}
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(state)):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in NORMS if n != "batch_norm_train of 2"])
def test_a_norm_is_exported_for_batches_of_any_size(name):
    (b,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 3, 5, C), jnp.float32)
    arrays = arrays_of(name)
    exported = jax.export.export(jax.jit(functools.partial(run, name)))(x, *arrays)
    for batch in (1, 6):
        x = maps_of((batch, 3, 5, C))
        np.testing.assert_allclose(exported.call(x, *arrays), run(name, x, *arrays), atol=1e-5)


def over_a_mesh(kind):
    """The largest differences, by norm, of values and gradients over eight devices and on one."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    found = {}
    for name in [*NORMS, "upsample_nearest", "max_pool", "global_average_pool", "conv", "conv 1x1"]:
        x = maps_of((16, 4, 4, C))
        function, arrays = cases(name)
        weights = maps_of(jax.eval_shape(function, x, *arrays).shape, seed=3)
        loss = lambda x, *arrays: (function(x, *arrays) * weights).sum()
        every = tuple(range(1 + len(arrays)))
        expected = (function(x, *arrays), jax.grad(loss, every)(x, *arrays))
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
        y = jax.jit(function)(sharded, *arrays)
        assert y.sharding.spec[0] == "d", (name, y.sharding)
        with jax.set_mesh(mesh):  # The gradient of an affine map no longer has its sharded input.
            got = (y, jax.jit(jax.grad(loss, every))(sharded, *arrays))
        error = lambda a, b: float(
            np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(b).max(), 1.0)
        )
        found[name] = max(jax.tree.leaves(jax.tree.map(error, got, expected)))
        eager = function(sharded, *arrays)
        found[f"{name}, eager"] = error(eager, expected[0])
    return found


def cases(name):
    """A function of maps and arrays, and these arrays."""
    from fpnlab.ops.convolution import conv
    from fpnlab.ops.pooling import global_average_pool, max_pool
    from fpnlab.ops.resize import upsample_nearest

    plain = {
        "upsample_nearest": (upsample_nearest, []),
        "max_pool": (max_pool, []),
        "global_average_pool": (global_average_pool, []),
        "conv": (functools.partial(conv, stride=2), [maps_of((3, 3, C, 6), seed=1)]),
        "conv 1x1": (conv, [maps_of((1, 1, C, 6), seed=1)]),
    }
    return plain[name] if name in plain else (functools.partial(run, name), arrays_of(name))


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_values_and_gradients_over_a_mesh_are_those_of_one_device(kind):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, __file__, kind],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * (len(NORMS) + 5)
    assert {name: error for name, error in found.items() if not error < 1e-5} == {}


if __name__ == "__main__":
    print(json.dumps(over_a_mesh(getattr(AxisType, sys.argv[1]))))
