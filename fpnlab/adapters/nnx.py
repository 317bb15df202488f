"""Flax NNX module of any layer or model."""

from collections.abc import Mapping

from flax import nnx
from jaxtyping import PyTree

from fpnlab.adapters.shapes import init_like, mode_of, shapes, widths_of
from fpnlab.adapters.trees import from_names, to_names
from fpnlab.nn import layers
from fpnlab.types import Mode


class Layer(nnx.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as an NNX module.

    Every array is a variable under the name it has in Linen (``module.scale``,
    ``module.stem["norm"]["scale"]``): ``nnx.Param`` for parameters, ``nnx.BatchStat`` for the
    running statistics, which a call with an updating mode replaces. Results equal those of the
    functions bit for bit.

    Args:
      spec: Spec of the layer.
      like: An input, of which only the channels are read; or the channels in place of each map.
      mode: Source of the statistics of norms; may be given in the call instead.
      use_running_average: Flax's flag instead of a mode; set by ``train()`` and ``eval()``, and
        False if neither is given, as in ``nnx.BatchNorm``.
      rngs: Its ``params`` stream draws the parameters.
    """

    def __init__(
        self,
        spec: layers.Layer,
        like: PyTree,
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
        """
        mode = mode_of((mode, use_running_average), (self.mode, self.use_running_average))
        output, new = layers.apply(self.spec, *_trees(self), x, mode, **options)
        if mode.update != "none":
            nnx.update(self, to_names(new))
        return output

    def trees(self) -> tuple[PyTree, PyTree]:
        """Returns parameters and running statistics as arguments for the functions."""
        return _trees(self)


def _trees(layer: Layer) -> tuple[PyTree, PyTree]:
    """Returns parameters and statistics; not a method, which ``nnx.tabulate`` would list."""
    kinds = (nnx.Param, nnx.BatchStat)
    named = (nnx.to_pure_dict(nnx.state(layer, kind)) for kind in kinds)
    params, state = (
        from_names(part, names) for part, names in zip(shapes(layer.spec, layer.widths), named)
    )
    return params, state


def _variables(
    kind: type[nnx.Variable], named: Mapping[str, PyTree], into: Mapping[str, PyTree]
) -> dict[str, PyTree]:
    """Returns ``into`` with one variable of ``kind`` for each array of ``named``."""
    merged = dict(into)
    for name, value in named.items():
        nested = isinstance(value, dict)
        merged[name] = _variables(kind, value, into.get(name, {})) if nested else kind(value)
    return merged


def _dictionaries(value: PyTree) -> PyTree:
    if not isinstance(value, dict):
        return value
    return nnx.Dict({name: _dictionaries(part) for name, part in value.items()})
