"""Support for arrays that are sharded over a mesh with Explicit axes, the default of JAX."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import PyTreeDef
from jaxtyping import Array

F = TypeVar("F", bound=Callable[..., object])


def compiler_sharded(out_specs: Callable[[PartitionSpec], object]) -> Callable[[F], F]:
    """Returns a decorator for functions with intermediate shardings chosen by the compiler.

    Over Explicit axes JAX requires an explicit sharding for every reshape that splits or merges a
    sharded axis. Those are implementation details of the decorated function: if its first argument
    is sharded over Explicit axes, it runs with Auto axes, and only its results get shardings.

    Args:
      out_specs: Returns the partitions of the results, in their tree structure, from that of the
        first argument.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(x: object, *args: object, **kwargs: object) -> object:
            if not (isinstance(x, jax.Array) and _is_explicit(x)):
                return function(x, *args, **kwargs)
            leaves, structure = jax.tree.flatten((args, kwargs))
            is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
            static = tuple(None if a else leaf for a, leaf in zip(is_array, leaves))
            run = functools.partial(_over_auto_axes, function, out_specs, structure, static)
            # Outside of jit JAX has no mesh for the constants of the function.
            run = run if isinstance(x, jax.core.Tracer) else _jitted(*run.args)
            return run(x, *(leaf for a, leaf in zip(is_array, leaves) if a))

        return wrapped  # type: ignore[return-value]

    return decorate


def _over_auto_axes(
    function: Callable[..., object],
    out_specs: Callable[[PartitionSpec], object],
    structure: PyTreeDef,
    static: tuple[object, ...],
    x: Array,
    *arrays: Array | np.ndarray,
) -> object:
    """Returns ``function(x, ...)`` computed over Auto axes.

    Args:
      function: The function.
      out_specs: See ``compiler_sharded``.
      structure: Tree structure of its further arguments ``(args, kwargs)``.
      static: Leaves of these arguments; None in place of each array.
      x: First argument, sharded over Explicit axes.
      *arrays: The arrays among the leaves.
    """
    mesh, spec = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec

    def of_arrays(x: Array, *arrays: Array | np.ndarray) -> object:
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
def _jitted(
    function: Callable[..., object],
    out_specs: Callable[[PartitionSpec], object],
    structure: PyTreeDef,
    static: tuple[object, ...],
) -> Callable[..., object]:
    return jax.jit(functools.partial(_over_auto_axes, function, out_specs, structure, static))


def _is_explicit(x: Array) -> bool:
    """Returns whether an array is sharded over Explicit axes."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
