"""Every organ as one Flax NNX module."""

from typing import Any

import jax
from flax import nnx

from fpnlab.adapters.organs import mode_of, organ
from fpnlab.types import Mode


class Organ(nnx.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as an NNX module.

    Every array is a variable under its path: ``nnx.Param`` for parameters, ``nnx.BatchStat`` for
    the running statistics, which a call with an updating mode replaces. The numbers are those of
    the functions, to the bit.

    Args:
      spec: what to compute.
      like: an input, of which only widths are read; or just its channels in place of each map.
      mode: where norms take their statistics from; may be given in the call instead.
      use_running_average: Flax's flag in place of a mode; set by ``train()`` and ``eval()``, and
        False where neither is given, as in ``nnx.BatchNorm``.
      sizes: of a head alone: ``{"anchors": ..., "classes": ...}``.
      rngs: its ``params`` stream draws the parameters.
    """

    def __init__(
        self,
        spec: Any,
        like: Any,
        *,
        mode: Mode | None = None,
        use_running_average: bool | None = None,
        sizes: dict[str, int] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.organ = nnx.static(organ(spec, like, sizes or {}))
        params, state = self.organ.init(rngs.params())
        self.layout = nnx.static([(jax.tree.structure(t), _names(t)) for t in (params, state)])
        self.params = _variables(nnx.Param, params)
        self.batch_stats = _variables(nnx.BatchStat, state)
        self.mode = mode
        neither = mode is None and use_running_average is None
        self.use_running_average = False if neither else use_running_average

    def __call__(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        use_running_average: bool | None = None,
        **options: Any,
    ) -> Any:
        """Returns what the organ's ``apply_`` function returns, without the state."""
        mode = mode_of((mode, use_running_average), (self.mode, self.use_running_average))
        *outputs, new = self.organ.apply(*self.trees(), x, mode, **options)
        if mode.update != "none":
            for name, leaf in zip(_names(new), jax.tree.leaves(new)):
                self.batch_stats[name].set_value(leaf)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def trees(self) -> tuple[Any, Any]:
        """Returns parameters and running statistics as the functions take them."""
        params, state = (
            jax.tree.unflatten(structure, [variables[name].get_value() for name in names])
            for (structure, names), variables in zip(self.layout, (self.params, self.batch_stats))
        )
        return params, state


def _variables(kind, tree):
    """Returns one variable a leaf, by the leaf's path: what NNX's filters and optimizers know."""
    leaves = jax.tree.leaves(tree)
    return nnx.Dict({name: kind(leaf) for name, leaf in zip(_names(tree), leaves)})


def _names(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
