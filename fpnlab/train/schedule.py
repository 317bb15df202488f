"""Learning rate schedules as functions of the examples seen, so of no batch size."""

import itertools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fpnlab.spec import Fraction, Inside, Positive, SpecError, spec


@spec
class Cosine:
    """Linear warm-up, then cosine decay to zero (arXiv:1608.03983, equation 5)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Annotated[float, Fraction] = 0.05
    """Share of the examples over which the rate rises linearly."""


@spec
class Steps:
    """Linear warm-up, then a piecewise constant rate that drops at milestones."""

    kind: Literal["steps"] = "steps"
    warmup: Annotated[float, Fraction] = 0.05
    """Share of the examples over which the rate rises linearly."""
    milestones: Annotated[tuple[float, ...], Inside] = (0.6, 0.8)
    """Shares of the examples at which the rate drops."""
    factor: Annotated[float, Positive] = 0.1
    """Factor that multiplies the rate at each milestone."""

    def __post_init__(self) -> None:
        if any(late <= early for early, late in itertools.pairwise(self.milestones)):
            raise SpecError("Steps", [("milestones", f"is {self.milestones}; they must rise")])


Schedule = Cosine | Steps


def scheduled(
    schedule: Schedule, examples: int, seen: Int[Array, ""] | int, batch: int
) -> Float[Array, ""]:
    """Returns the share of the peak learning rate for the step after ``seen`` of ``examples``.

    With ``t = seen / examples``, the rate is that of the step's first example, except in the
    warm-up, ``min(1, (seen + batch) / (warmup * examples))``, which uses its last: no step has
    the rate 0, and a run of one step trains (arXiv:1706.02677, section 2.2, also starts its
    warm-up above 0). Cosine: ``(1 + cos(pi u)) / 2`` with ``u = (t - warmup) / (1 - warmup)``
    from 0 to 1. Steps: ``factor ** k`` after ``k`` milestones; milestone ``m`` is reached when
    ``seen >= round(m * examples)``, compared in integers, so that rounding in different programs
    does not move it.

    Args:
      schedule: The schedule.
      examples: Training images seen in the whole run.
      seen: Images seen before the step.
      batch: Images in the step.
    """
    done = jnp.asarray(seen, jnp.float32) / examples
    warm = done + batch / examples
    rise = jnp.minimum(warm / schedule.warmup, 1.0) if schedule.warmup else jnp.ones(())
    match schedule:
        case Cosine():
            rest = jnp.clip((done - schedule.warmup) / (1 - schedule.warmup), 0, 1)
            return rise * 0.5 * (1 + jnp.cos(jnp.pi * rest))
        case Steps():
            limits = [round(milestone * examples) for milestone in schedule.milestones]
            drops = (jnp.asarray(seen, jnp.int32) >= jnp.asarray(limits, jnp.int32)).sum()
            return rise * schedule.factor ** drops.astype(jnp.float32)


def first_other_rate(
    schedule: Schedule, examples: tuple[int, int], batch: int, steps: int
) -> int | None:
    """Returns the first step at which runs of two lengths differ in their rate; None if none does.

    Args:
      schedule: The schedule.
      examples: Training images seen in either whole run.
      batch: Images in a step.
      steps: Number of steps that are compared, from step 0.
    """
    seen = batch * jnp.arange(steps)
    rates = [
        np.asarray(jax.vmap(lambda at, n=n: scheduled(schedule, n, at, batch))(seen))
        for n in examples
    ]
    differing = np.flatnonzero(rates[0] != rates[1])
    return int(differing[0]) if differing.size else None
