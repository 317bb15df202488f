"""Parameters and running statistics from the arrays of PyTorch's networks, and back."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from fpnlab.errors import WeightsError
from fpnlab.nn.backbone import Backbone, init_backbone
from fpnlab.nn.classifier import Classifier, init_classifier, init_dense
from fpnlab.types import Key
from fpnlab.weights.torch_names import HEADS, Scheme, TorchName, torch_names

DENSE = "params.dense."
"""Beginning of the places of the dense layer."""
MOST_HINTS = 20
"""Largest number of missing names for each of which a near one is looked for."""


def import_weights(
    spec: Classifier | Backbone,
    arrays: Mapping[str, ArrayLike],
    *,
    new_head: Key | None = None,
) -> tuple[PyTree, PyTree]:
    """Returns the parameters and the state of a network from arrays with the names of PyTorch.

    The names are those of torchvision, of timm, or of the CIFAR ResNets of Y. Idelbayev, whichever
    the arrays have. For the spec of a backbone the layers after it are left out. With padded
    shortcuts the order of channels differs: PyTorch's have half of the zeros before the channels,
    those of fpnlab all after them.

    The network computes what PyTorch's does if its norms do: in evaluation those of
    ``BatchNorm()``, whose eps is PyTorch's 1e-5, and in training those of
    ``BatchNorm(unbiased=True, decay=0.9, reference_batch=b)`` for batches of b images. (PyTorch's
    running variance is unbiased, and its ``momentum`` of 0.1 is one minus the decay.)
    ``pixel_mean`` and ``pixel_deviation`` of the `Classifier` are the mean and the deviation of
    PyTorch's images times 255. Running statistics count as collected from
    ``num_batches_tracked`` batches of ``reference_batch`` images, or from one batch where that is 0
    or missing; their ``count`` is 1, as no file has it.

    Args:
      spec: The network.
      arrays: Arrays by name, such as those of ``read_weights``; they are converted to float32.
      new_head: Draws a new dense layer, whatever number of classes the arrays have; None to import
        it.

    Raises:
      TypeError: PyTorch has no names for the network.
      WeightsError: Names are missing or unexpected, or arrays have other shapes; all are listed.
    """
    names = _likely_names(spec, arrays)
    shapes = jax.eval_shape(lambda key: _init(spec, key), jax.random.key(0))
    leaves, structure = _leaves(shapes, names)
    drawn: dict[str, object] = {}
    if new_head is not None and isinstance(spec, Classifier):
        dense = init_dense(new_head, spec)
        drawn = {f"{DENSE}kernel": dense.kernel, f"{DENSE}bias": dense.bias}
    left_out = () if isinstance(spec, Classifier) else HEADS
    if drawn:
        left_out = tuple(leaf.torch.name for leaf in leaves if leaf.place in drawn)
    given = {name: a for name, a in arrays.items() if not (left_out and name.startswith(left_out))}
    _check(given, [leaf for leaf in leaves if leaf.place not in drawn])
    values = [drawn[leaf.place] if leaf.place in drawn else _here(leaf, given) for leaf in leaves]
    built = jax.tree_util.tree_unflatten(structure, values)
    return built["params"], built["state"]


def export_weights(
    spec: Classifier | Backbone, params: PyTree, state: PyTree, *, names: Scheme = "torchvision"
) -> dict[str, np.ndarray]:
    """Returns a state_dict for PyTorch's network: its names, and float32 arrays of its shapes.

    Its inverse is ``import_weights``, where the conventions are.

    Args:
      spec: The network.
      params: Its parameters.
      state: Its running statistics.
      names: Whose names the arrays get.

    Raises:
      TypeError: PyTorch has no names for the network.
    """
    leaves, _ = _leaves({"params": params, "state": state}, torch_names(spec, names))
    return {leaf.torch.name: _there(leaf) for leaf in leaves if leaf.torch.storing != "count"}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """An array of parameters or state."""

    place: str
    torch: TorchName
    value: Array | np.ndarray | jax.ShapeDtypeStruct
    """Its values here, or only their shape."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Its shape in PyTorch."""
        shape = self.value.shape
        match self.torch.storing:
            case "kernel":
                return shape[3], shape[2], shape[0], shape[1]
            case "pixel" | "matrix":
                return shape[-1], shape[-2]
            case "scale":
                return (*shape, 1, 1)
        return shape

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array of PyTorch has this shape, but for axes of one element."""
        if self.torch.storing in ("kernel", "matrix"):
            return shape == self.torch_shape
        drop = lambda sizes: [size for size in sizes if size != 1]
        return drop(shape) == drop(self.torch_shape)


def _init(spec: Classifier | Backbone, key: Key) -> dict[str, PyTree]:
    init = init_classifier if isinstance(spec, Classifier) else init_backbone
    params, state = init(key, spec)  # type: ignore[arg-type]
    return {"params": params, "state": state}


def _leaves(
    trees: dict[str, PyTree], names: Mapping[str, TorchName]
) -> tuple[list[_Leaf], jax.tree_util.PyTreeDef]:
    """Returns the arrays of parameters and state with their names in PyTorch, and the structure."""
    found, structure = jax.tree_util.tree_flatten_with_path(trees)
    places = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if nameless := [place for place in places if place not in names]:
        raise TypeError(
            f"weights: torchvision and timm have nothing like {', '.join(nameless[:5])}"
            f"{' ...' if len(nameless) > 5 else ''}; expected convolutions, and norms with scale "
            "and bias, and of branch scales those of ConvNeXt"
        )
    return [_Leaf(p, names[p], value) for p, (_, value) in zip(places, found)], structure


def _likely_names(
    spec: Classifier | Backbone, arrays: Mapping[str, ArrayLike]
) -> dict[str, TorchName]:
    """Returns the names of the scheme of which the arrays have most."""
    tables = [torch_names(spec, scheme) for scheme in get_args(Scheme)]
    return max(tables, key=lambda table: sum(row.name in arrays for row in table.values()))


def _here(leaf: _Leaf, arrays: Mapping[str, ArrayLike]) -> Array:
    """Returns the values of a leaf from arrays that were checked."""
    shape = leaf.value.shape
    match leaf.torch.storing:
        case "count":
            return jnp.ones(shape, jnp.float32)
        case "batches":
            batches = max(int(np.asarray(arrays.get(leaf.torch.name, 1))), 1)
            return jnp.full(shape, batches * leaf.torch.batch, jnp.float32)
        case "kernel":
            array = np.asarray(arrays[leaf.torch.name]).transpose(2, 3, 1, 0)
        case "pixel" | "matrix":
            array = np.asarray(arrays[leaf.torch.name]).reshape(leaf.torch_shape).T
        case _:
            array = np.asarray(arrays[leaf.torch.name])
    array = array.reshape(shape)
    if leaf.torch.inputs is not None:
        array = array[..., leaf.torch.inputs, :]
    if leaf.torch.outputs is not None:
        array = array[..., leaf.torch.outputs]
    # A copy: JAX may keep an array of NumPy in place, which PyTorch may train on.
    return jnp.array(array, jnp.float32)


def _there(leaf: _Leaf) -> np.ndarray:
    """Returns the values of a leaf in PyTorch's form."""
    array = np.array(leaf.value, np.float32)
    if leaf.torch.inputs is not None:
        array = array[..., np.argsort(leaf.torch.inputs), :]
    if leaf.torch.outputs is not None and array.ndim:
        array = array[..., np.argsort(leaf.torch.outputs)]
    match leaf.torch.storing:
        case "kernel":
            array = array.transpose(3, 2, 0, 1)
        case "pixel" | "matrix":
            array = array.reshape(leaf.torch_shape[::-1]).T
        case "batches":
            return np.asarray(np.rint(array / leaf.torch.batch), np.int64)
    return np.ascontiguousarray(array).reshape(leaf.torch_shape)


def _check(arrays: Mapping[str, ArrayLike], leaves: Sequence[_Leaf]) -> None:
    """Raises a WeightsError that lists all names and shapes that are not those of the leaves."""
    wanted = {leaf.torch.name: leaf for leaf in leaves if leaf.torch.storing != "count"}
    unexpected = [name for name in arrays if name not in wanted]
    missing, lines = [], []
    for name, leaf in wanted.items():
        if name in arrays:
            shape = np.shape(arrays[name])
            if not leaf.accepts(shape):
                lines.append(f"{name}: has the shape {shape}; expected {leaf.torch_shape}")
        elif leaf.torch.storing != "batches":  # Which PyTorch before 1.0 did not have.
            missing.append(name)
    for name in missing:
        few = len(missing) <= MOST_HINTS
        near = difflib.get_close_matches(name, unexpected, n=1, cutoff=0.8) if few else []
        hint = f"; did you mean its {near[0]} {np.shape(arrays[near[0]])}?" if near else ""
        lines.append(f"{name}: missing; expected the shape {wanted[name].torch_shape}{hint}")
    lines += [f"{name}: unexpected, of the shape {np.shape(arrays[name])}" for name in unexpected]
    if lines:
        raise WeightsError(
            "\n  ".join(
                [
                    f"weights: {len(lines)} of {len({*arrays, *wanted})} names do not fit the "
                    "network; give its own spec, and new_head for another number of classes:",
                    *lines,
                ]
            )
        )
