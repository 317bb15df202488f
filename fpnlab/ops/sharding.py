"""Functions of maps that are sharded over a mesh with Explicit axes, JAX's default."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

F = TypeVar("F", bound=Callable[..., Any])


def compiler_sharded(out_specs: Callable[[PartitionSpec], Any]) -> Callable[[F], F]:
    """Returns a decorator for functions whose inner shardings the compiler chooses.

    Over Explicit axes JAX asks for the sharding of every reshape that splits or merges a sharded
    axis. Such a function has none that a user should care for: where its first argument is
    sharded over Explicit axes, it runs as over Auto axes, and only its results get shardings.

    Args:
      out_specs: from the partition of the first argument to those of the results, in their
        structure.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(x, *args, **kwargs):
            if not _is_explicit(x):
                return function(x, *args, **kwargs)
            leaves, structure = jax.tree.flatten((args, kwargs))
            is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
            static = tuple(None if a else leaf for a, leaf in zip(is_array, leaves))
            run = functools.partial(_over_auto_axes, function, out_specs, structure, static)
            # Outside of jit JAX knows no mesh for the constants of the function.
            run = run if isinstance(x, jax.core.Tracer) else _jitted(*run.args)
            return run(x, *(leaf for a, leaf in zip(is_array, leaves) if a))

        return wrapped  # type: ignore[return-value]

    return decorate


def _over_auto_axes(function, out_specs, structure, static, x, *arrays):
    """Returns ``function(x, ...)``, whose arrays among its arguments are ``arrays``."""
    mesh, spec = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec

    def of_arrays(x, *arrays):
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf for leaf in static]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(x, *args, **kwargs)

    place = lambda spec: NamedSharding(mesh, spec)
    is_spec = lambda node: isinstance(node, PartitionSpec)
    results = jax.tree.map(place, out_specs(spec), is_leaf=is_spec)
    types = zip(mesh.axis_names, mesh.axis_types)
    axes = tuple(name for name, kind in types if kind is AxisType.Explicit)
    return jax.sharding.auto_axes(of_arrays, axes=axes, out_sharding=results)(x, *arrays)


@functools.lru_cache(maxsize=256)
def _jitted(*static):
    return jax.jit(functools.partial(_over_auto_axes, *static))


def _is_explicit(x):
    """Returns whether an array is sharded over Explicit axes."""
    if not isinstance(x, jax.Array):
        return False
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
