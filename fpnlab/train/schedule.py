"""Learning rates as functions of the examples seen, so that no schedule knows the batch size."""

import itertools
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fpnlab.spec import Fraction, Inside, Positive, SpecError, spec


@spec
class Cosine:
    """Linear warm-up, then half a cosine down to zero (arXiv:1608.03983, equation 5)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Annotated[float, Fraction] = 0.05
    """Share of the examples over which the rate rises, in equal parts a step."""


@spec
class Steps:
    """Linear warm-up, then a constant rate that drops at milestones."""

    kind: Literal["steps"] = "steps"
    warmup: Annotated[float, Fraction] = 0.05
    """Share of the examples over which the rate rises, in equal parts a step."""
    milestones: Annotated[tuple[float, ...], Inside] = (0.6, 0.8)
    """Shares of the examples at which the rate drops."""
    factor: Annotated[float, Positive] = 0.1
    """Factor of the rate at a drop."""

    def __post_init__(self):
        if any(late <= early for early, late in itertools.pairwise(self.milestones)):
            raise SpecError("Steps", [("milestones", f"is {self.milestones}; they must rise")])


Schedule = Cosine | Steps


def scheduled(
    schedule: Schedule, examples: int, seen: Int[Array, ""] | int, batch: int
) -> Float[Array, ""]:
    """Returns the share of the peak learning rate of the step after ``seen`` of ``examples``.

    With ``t = seen / examples``, the rate is that of the step's first example, but for the
    warm-up, ``min(1, (seen + batch) / (warmup * examples))``, which is that of its last: no step
    has the rate 0, and a run of one step trains (as in arXiv:1706.02677, section 2.2, whose
    warm-up starts above 0). Cosine: ``(1 + cos(pi u)) / 2`` with ``u = (t - warmup) / (1 -
    warmup)`` from 0 to 1. Steps: ``factor ** k`` after ``k`` milestones; milestone ``m`` is
    reached where ``seen >= round(m * examples)``, compared as whole examples, so that it is the
    same step in every program.

    Args:
      schedule: which one.
      examples: training images seen in all.
      seen: those seen before the step.
      batch: images of the step.
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
