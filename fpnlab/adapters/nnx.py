"""Every layer and model as a Flax NNX module."""

from typing import Any

from flax import nnx

from fpnlab.adapters.shapes import init_like, mode_of, shapes, widths_of
from fpnlab.adapters.trees import from_names, to_names
from fpnlab.nn.layers import apply
from fpnlab.types import Mode


class Layer(nnx.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as an NNX module.

    Every array is a variable under the name it has in Linen (``module.scale``,
    ``module.stem["norm"]["scale"]``): ``nnx.Param`` for parameters, ``nnx.BatchStat`` for the
    running statistics, which a call with an updating mode replaces. The numbers are those of the
    functions, to the bit.

    Args:
      spec: what to compute.
      like: an input, of which only widths are read; or just its channels in place of each map.
      mode: where norms take their statistics from; may be given in the call instead.
      use_running_average: Flax's flag in place of a mode; set by ``train()`` and ``eval()``, and
        False where neither is given, as in ``nnx.BatchNorm``.
      rngs: its ``params`` stream draws the parameters.
    """

    def __init__(
        self,
        spec: Any,
        like: Any,
        *,
        mode: Mode | None = None,
        use_running_average: bool | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.spec, self.widths = nnx.static(spec), nnx.static(widths_of(like))
        self.mode = mode
        neither = mode is None and use_running_average is None
        self.use_running_average = False if neither else use_running_average
        params, state = init_like(rngs.params(), spec, self.widths)
        variables = _variables(nnx.Param, to_names(params), {})
        variables = _variables(nnx.BatchStat, to_names(state), variables)
        for name, value in variables.items():
            setattr(self, name, _dictionaries(value))

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
        output, new = apply(self.spec, *_trees(self), x, mode, **options)
        if mode.update != "none":
            nnx.update(self, to_names(new))
        return output

    def trees(self) -> tuple[Any, Any]:
        """Returns parameters and running statistics as the functions take them."""
        return _trees(self)


def _trees(layer):
    """Returns parameters and statistics; no method, so that ``nnx.tabulate`` has no row for it."""
    kinds = (nnx.Param, nnx.BatchStat)
    named = (nnx.to_pure_dict(nnx.state(layer, kind)) for kind in kinds)
    params, state = (
        from_names(part, names) for part, names in zip(shapes(layer.spec, layer.widths), named)
    )
    return params, state


def _variables(kind, named, into):
    """Returns ``into`` with one variable of ``kind`` for each array of ``named``."""
    merged = dict(into)
    for name, value in named.items():
        nested = isinstance(value, dict)
        merged[name] = _variables(kind, value, into.get(name, {})) if nested else kind(value)
    return merged


def _dictionaries(value):
    if not isinstance(value, dict):
        return value
    return nnx.Dict({name: _dictionaries(part) for name, part in value.items()})
