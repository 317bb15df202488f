"""Flax Linen module of any layer or model."""

import dataclasses
from typing import TypeVar

import flax.linen as nn
import jax
from jaxtyping import PyTree

from fpnlab.adapters.shapes import init_like, mode_of, shapes, widths_of
from fpnlab.adapters.trees import from_names, to_names
from fpnlab.nn import layers
from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.types import Mode

T = TypeVar("T")


class Layer(nn.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as a Linen module.

    Parameters are plain arrays in the collection ``params`` by their names (``scale``, ``kernel``,
    ...), running statistics in ``batch_stats``, which must be mutable in training, as for
    ``nn.BatchNorm``. A norm without statistics has no such collection. Results equal those of the
    functions bit for bit. As in Flax, an ``axis_name`` need not be bound to initialize.

    Attributes:
      spec: Spec of the layer.
      mode: Source of the statistics of norms, and whether they are updated; may be given in the
        call instead.
      use_running_average: Flax's flag instead of a mode, so that ``Layer(BatchNorm())`` can replace
        ``nn.BatchNorm()``.
    """

    spec: layers.Layer
    mode: Mode | None = None
    use_running_average: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: PyTree,
        *,
        mode: Mode | None = None,
        use_running_average: bool | None = None,
        **options: PyTree,
    ) -> PyTree:
        """Returns the output of the layer.

        Args:
          x: Input of the layer.
          mode: Overrides that of the module.
          use_running_average: Overrides that of the module.
          **options: Further arguments of ``fpnlab.apply``: ``mask``, ``key``, ``extent``.

        Raises:
          ValueError: Neither or both of ``mode`` and ``use_running_average`` are given, or
            ``params`` are of an older version.
        """
        mode = mode_of((mode, use_running_average), (self.mode, self.use_running_average))
        spec, widths = self.spec, widths_of(x)
        like, like_state = shapes(spec, widths)
        init = lambda key: init_like(key, spec, widths)
        drawn = to_names(init(self.make_rng("params"))[0]) if self.is_initializing() else {}
        if self.has_variable("params", "organ"):
            raise ValueError(
                "params: found a single tree `organ`, from an older version; convert it by "
                'fpnlab.adapters.trees.to_names(params["organ"]), and batch_stats alike'
            )
        draw = lambda key, name: drawn[name] if drawn else to_names(init(key)[0])[name]
        params = {name: self.param(name, draw, name) for name in to_names(like)}
        start = lambda name: to_names(init(jax.random.key(0))[1])[name]
        state = {n: self.variable("batch_stats", n, start, n) for n in to_names(like_state)}
        if self.is_initializing():  # No axis needs to be bound: statistics are not updated.
            spec = _without_axis(spec)
        values = {name: variable.value for name, variable in state.items()}
        trees = from_names(like, params), from_names(like_state, values)
        output, new = layers.apply(spec, *trees, x, mode, **options)
        if mode.update != "none" and not self.is_initializing():
            for name, value in to_names(new).items():
                state[name].value = value
        return output


def _without_axis(spec: T) -> T:
    return replace_batch_norms(spec, lambda norm: dataclasses.replace(norm, axis_name=None))
