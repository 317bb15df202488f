"""Every layer and model as a Flax Linen module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from fpnlab.adapters.shapes import init_like, mode_of, shapes, widths_of
from fpnlab.adapters.trees import from_names, to_names
from fpnlab.nn.layers import apply
from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.types import Mode


class Layer(nn.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as a Linen module.

    Parameters are plain arrays of the collection ``params`` by their names (``scale``, ``kernel``,
    ...), running statistics those of ``batch_stats``: make this one mutable in training, as for
    ``nn.BatchNorm``. A norm without statistics has no such collection. The numbers are those of the
    functions, to the bit. As in Flax, an ``axis_name`` need not be bound to initialize.

    Attributes:
      spec: what to compute.
      mode: where norms take their statistics from, and whether they update them; may be given
        in the call instead.
      use_running_average: Flax's flag in place of a mode, so that ``Layer(BatchNorm())`` stands
        where ``nn.BatchNorm()`` stood.
    """

    spec: Any
    mode: Mode | None = None
    use_running_average: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        use_running_average: bool | None = None,
        **options: Any,
    ) -> Any:
        """Returns the output of the layer; ``options`` are those of ``fpnlab.apply``."""
        mode = mode_of((mode, use_running_average), (self.mode, self.use_running_average))
        spec, widths = self.spec, widths_of(x)
        like, like_state = shapes(spec, widths)
        init = lambda key: init_like(key, spec, widths)
        drawn = to_names(init(self.make_rng("params"))[0]) if self.is_initializing() else {}
        if self.has_variable("params", "organ"):
            raise ValueError(
                "params: one array `organ`, as older versions made them; convert it by "
                'fpnlab.adapters.trees.to_names(params["organ"]), and batch_stats alike'
            )
        draw = lambda key, name: drawn[name] if drawn else to_names(init(key)[0])[name]
        params = {name: self.param(name, draw, name) for name in to_names(like)}
        start = lambda name: to_names(init(jax.random.key(0))[1])[name]
        state = {n: self.variable("batch_stats", n, start, n) for n in to_names(like_state)}
        if self.is_initializing():  # No axis need be bound, and no step of training is made.
            spec = _without_axis(spec)
        values = {name: variable.value for name, variable in state.items()}
        trees = from_names(like, params), from_names(like_state, values)
        output, new = apply(spec, *trees, x, mode, **options)
        if mode.update != "none" and not self.is_initializing():
            for name, value in to_names(new).items():
                state[name].value = value
        return output


def _without_axis(spec):
    return replace_batch_norms(spec, lambda norm: dataclasses.replace(norm, axis_name=None))
