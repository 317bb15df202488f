"""Inputs of norms: dtypes, empty and invalid maps, symbolic shapes, meshes of both kinds.

The file is also the script of the test over eight devices, whose number is fixed when JAX starts.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.ops.convolution import conv
from fpnlab.ops.pooling import global_average_pool, max_pool
from fpnlab.ops.resize import upsample_nearest

from .norm_cases import (
    ARMS,
    FAST_COMPILE,
    NORMS,
    C,
    assert_close,
    compute,
    define,
    double,
    fill,
    maps,
    run,
    weights_of,
)

IMAGES = (8, 3, 5, C)


@pytest.fixture
def unchecked():
    """Switches off the shape checker of the tests, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def invalid_inputs(arm, params, state):
    """Yields parameters, state, maps and mask of which one has a wrong dtype or shape."""
    x = jnp.asarray(maps(IMAGES))
    for dtype in (jnp.uint8, jnp.int32, bool, jnp.complex64):
        yield params, state, x.astype(dtype), None
    yield params, state, x[0, 0, 0], None
    leaves, structure = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        for wrong in (jnp.ones(1), jnp.ones(C + 1), jnp.ones((1, C)), leaf.astype(int)):
            changed = structure.unflatten([*leaves[:i], wrong, *leaves[i + 1 :]])
            if leaf.shape or wrong.shape:  # alpha is converted, whatever its dtype
                yield changed, state, x, None
    if arm.sees == "nsc" and state is not None:
        for wrong in (jnp.ones(1), jnp.ones(C + 1), jnp.ones((1, C))):
            yield params, dataclasses.replace(state, mean=wrong), x, None
            yield params, dataclasses.replace(state, var=wrong), x, None
    if arm.takes_mask or ("s" in arm.over and arm.centers):
        yield params, state, x, jnp.ones((8, 3, 1), bool)
        yield params, state, x, jnp.ones((1, 3, 5), bool)
        yield params, state, x, jnp.ones((8, 3, 5), jnp.float32)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.usefixtures("unchecked")
def test_no_norm_converts_integers_or_broadcasts_parameters_statistics_and_masks(name):
    arm = ARMS[name]
    for params, state, x, mask in invalid_inputs(arm, *fill(arm)):
        with pytest.raises((TypeError, ValueError), match=r"must be|convert it first"):
            run(arm, params, state, x, mask)


@pytest.mark.parametrize("shape", [(0, 3, 5, C), (8, 0, 5, C)], ids=str)
@pytest.mark.parametrize("name", ARMS)
def test_an_empty_map_has_an_empty_result_but_no_batch_statistics(name, shape):
    arm = ARMS[name]
    if arm.takes_batch_statistics:
        with pytest.raises(ValueError, match=r"an empty map .* has no batch statistics"):
            run(arm, *fill(arm), jnp.zeros(shape))
    else:
        assert run(arm, *fill(arm), jnp.zeros(shape))[0].shape == shape


DTYPES = [(dtype, "float32") for dtype in ("bfloat16", "float16", "float32", "float64")]


@pytest.mark.parametrize(("dtype", "given"), [*DTYPES, ("float32", "bfloat16")])
@pytest.mark.parametrize("name", ARMS)
def test_norms_compute_in_the_widest_dtype_and_keep_those_of_maps_and_state(name, dtype, given):
    """Even where JAX promotes neither dtypes nor ranks."""
    arm = ARMS[name]
    # An update of statistics narrower than the maps is promoted.
    narrower = dtype in ("float32", "float64") and dtype != given
    promoted = narrower and isinstance(arm.norm, BatchNorm) and arm.mode.update != "none"
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard" if promoted else "strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        x = jnp.asarray(maps(), dtype)
        params, state = fill(arm, dtype=given)
        y, new = jax.jit(run, static_argnums=0, compiler_options=FAST_COMPILE)(
            arm, params, state, x
        )
        of_params, of_x = jax.eval_shape(
            functools.partial(compute, arm), params, state, x, weights_of()
        )[2:]
    assert y.dtype == of_x.dtype == dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves((new, of_params))} == {given}
    exact, after = define(arm, *double((params, state, x)))
    # The limits of a renorm have the dtype of the state.
    coarsest = max((dtype, given) if arm.renormalizes else (dtype,), key=lambda d: jnp.finfo(d).eps)
    digits = 4 * float(jnp.finfo(coarsest).eps)
    np.testing.assert_allclose(double(y), exact, rtol=digits, atol=digits * 4)
    assert_close(new, after, rtol=max(1e-5, float(jnp.finfo(given).eps)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_steps_of_batch_norm_can_be_scanned(dtype):
    arm = ARMS["ghost_of_two"]
    with jax.enable_x64(dtype == "float64"):
        params, state = fill(arm)
        x = jnp.asarray(maps((3, 4, 5, C)), dtype)
        step = lambda state, x: run(arm, params, state, x)[::-1]
        last, _ = jax.lax.scan(step, state, x)
        for one in x:
            state, _ = step(state, one)
    assert_close(last, state, rtol=1e-6)


# One arm of each function of `ops.norm` and its choices, without those that differ in the layer.
DISTINCT = [name for name in NORMS if name not in ("ghost_of_one", "renorm_ghost", "frozen")]


@pytest.mark.parametrize("name", [name for name in DISTINCT if name != "ghost_of_two"])
def test_a_norm_is_exported_for_batches_of_any_size(name):
    (b,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 3, 5, C), jnp.float32)
    arm = ARMS[name]
    params, state = fill(arm)
    normalize = lambda params, state, x: run(arm, params, state, x)[0]
    exported = jax.export.export(jax.jit(normalize))(params, state, x)
    for images in (1, 6):
        x = jnp.asarray(maps((images, 3, 5, C)))
        found, expected = exported.call(params, state, x), normalize(params, state, x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


OTHERS = {
    "upsample_nearest": (upsample_nearest, []),
    "max_pool": (max_pool, []),
    "global_average_pool": (global_average_pool, []),
    "conv": (functools.partial(conv, stride=2), [maps((3, 3, C, 6), seed=1)]),
    "conv 1x1": (conv, [maps((1, 1, C, 6), seed=1)]),
}


def cases():
    """Yields names, functions of maps and arrays, and these arrays."""
    for name in DISTINCT:
        normalize = lambda x, params, state, arm=ARMS[name]: run(arm, params, state, x)[0]
        yield name, normalize, fill(ARMS[name])
    for name, (function, arrays) in OTHERS.items():
        yield name, function, [jnp.asarray(array) for array in arrays]


def over_meshes():
    """Returns the largest differences between values and gradients over 8 devices and on 1."""
    kinds = AxisType.Explicit, AxisType.Auto
    meshes = {kind.name: jax.make_mesh((8,), ("d",), axis_types=(kind,)) for kind in kinds}
    error = lambda a, b: float(
        np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(b).max(), 1.0)
    )
    x, found = jnp.asarray(maps((16, 4, 4, C))), {}
    for name, function, arrays in cases():
        weights = weights_of(jax.eval_shape(function, x, *arrays).shape)[0].astype(np.float32)

        def loss(x, *arrays, function=function, weights=weights):
            return (function(x, *arrays) * weights).sum()

        gradient = jax.grad(loss, tuple(range(1 + len(arrays))))
        expected = jax.jit(lambda *given: (function(*given), gradient(*given)))(x, *arrays)
        for kind, mesh in meshes.items():
            sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
            y = jax.jit(function)(sharded, *arrays)
            assert y.sharding.spec[0] == "d", (name, y.sharding)
            with jax.set_mesh(mesh):  # The gradient of an affine map no longer has its input.
                got = y, jax.jit(gradient)(sharded, *arrays)
            errors = jax.tree.leaves(jax.tree.map(error, got, expected))
            found[f"{name}, {kind}"] = max(errors)
            found[f"{name}, {kind}, eager"] = error(function(sharded, *arrays), expected[0])
    return found


def test_values_and_gradients_over_a_mesh_are_those_of_one_device():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.test_norm_inputs"],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4 * (len(DISTINCT) + len(OTHERS))
    assert {name: error for name, error in found.items() if not error < 1e-5} == {}


if __name__ == "__main__":
    print(json.dumps(over_meshes()))
