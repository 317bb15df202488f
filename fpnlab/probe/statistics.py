"""How far running statistics are from those of the population, layer by layer."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fpnlab.model.norm import NormState


@dataclasses.dataclass(frozen=True)
class Drift:
    """The distance of running from population statistics in one norm, or one level of it."""

    name: str
    """Path of the norm in the state; with the level's position where levels keep their own."""
    mean_shift: float
    """Mean over channels of ``|mean - mean_pop| / deviation_pop``."""
    log_variance_ratio: float
    """Mean over channels of ``|log(var / var_pop)|``."""
    count: float
    """Values per channel in one statistics group of training."""


def statistics_drift(running: Any, population: Any, *, eps: float = 1e-5) -> list[Drift]:
    """Returns the drift of every batch norm, in the order of the state.

    Why running averages fail at small batches is the subject of arXiv:2105.07576, section 3.

    Args:
      running: a state with running statistics.
      population: the same with those of ``evaluate.population_state``.
      eps: added to all variances, as in the norms.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(running, is_leaf=_is_state)
    others = jax.tree.leaves(population, is_leaf=_is_state)
    drifts = []
    for (path, one), other in zip(paths, others):
        if not _is_state(one):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        one, other = jax.device_get((one, other))
        if one.mean.ndim == 1:
            drifts.append(_drift(name, one, other, eps))
            continue
        for level in range(len(one.mean)):
            at = lambda state, level=level: jax.tree.map(lambda leaf: leaf[level], state)
            drifts.append(_drift(f"{name}/{level}", at(one), at(other), eps))
    return drifts


def _is_state(node):
    return isinstance(node, NormState)


def _drift(name, one, other, eps):
    shift = np.abs(one.mean - other.mean) / np.sqrt(other.var + eps)
    ratio = np.abs(np.log((one.var + eps) / (other.var + eps)))
    return Drift(name, float(shift.mean()), float(ratio.mean()), float(one.count))
