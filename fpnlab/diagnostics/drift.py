"""Distance between running and population statistics of batch norms, layer by layer."""

import dataclasses

import jax
import numpy as np
from jaxtyping import PyTree

from fpnlab.nn.norm_layer import NormState, at_level


@dataclasses.dataclass(frozen=True)
class Drift:
    """Distance between running and population statistics of one norm, or of one level of it."""

    name: str
    """Path of the norm in the state."""
    level: int | None
    """Index of the level if levels have separate statistics; None otherwise."""
    mean_shift: float
    """Mean over channels of ``|mean - mean_pop| / deviation_pop``."""
    log_variance_ratio: float
    """Mean over channels of ``|log(var / var_pop)|``."""
    count: float
    """Values per channel in one statistics group of training."""


def statistics_drift(running: PyTree, population: PyTree, *, eps: float = 1e-5) -> list[Drift]:
    """Returns the drift of every batch norm, in the order of the state.

    For the failure of running averages at small batches see arXiv:2105.07576, section 3.

    Args:
      running: A state with running statistics.
      population: The state with the statistics of ``evaluate.population_state``.
      eps: Constant added to all variances, as in the norms.
    """
    running, population = jax.device_get((running, population))
    paths, _ = jax.tree_util.tree_flatten_with_path(running, is_leaf=_is_state)
    others = jax.tree.leaves(population, is_leaf=_is_state)
    drifts = []
    for (path, one), other in zip(paths, others):
        if not _is_state(one):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for level in [None] if one.mean.ndim == 1 else range(len(one.mean)):
            at = at_level(one, level), at_level(other, level)
            drifts.append(_drift(name, level, *at, eps))
    return drifts


def _is_state(node: object) -> bool:
    return isinstance(node, NormState)


def _drift(name: str, level: int | None, one: NormState, other: NormState, eps: float) -> Drift:
    shift = np.abs(one.mean - other.mean) / np.sqrt(other.var + eps)
    ratio = np.abs(np.log((one.var + eps) / (other.var + eps)))
    return Drift(name, level, float(shift.mean()), float(ratio.mean()), float(one.count))
