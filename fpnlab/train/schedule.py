"""Learning rates as functions of the examples seen, so that no schedule knows the batch size."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fpnlab.spec import spec


@spec
class Cosine:
    """Linear warm-up, then half a cosine down to zero (arXiv:1608.03983, equation 5)."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = 0.05
    """Share of the examples over which the rate rises from zero."""

    def __post_init__(self):
        _check_warmup(self.warmup)


@spec
class Steps:
    """Linear warm-up, then a constant rate that drops at milestones."""

    kind: Literal["steps"] = "steps"
    warmup: float = 0.05
    """Share of the examples over which the rate rises from zero."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of the examples at which the rate drops."""
    factor: float = 0.1
    """What a drop multiplies the rate by."""

    def __post_init__(self):
        _check_warmup(self.warmup)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones are {self.milestones}; they must rise")


Schedule = Cosine | Steps


def scheduled(schedule: Schedule, examples: int, seen: Int[Array, ""] | int) -> Float[Array, ""]:
    """Returns the share of the peak learning rate after ``seen`` of ``examples`` examples."""
    done = jnp.asarray(seen, jnp.float32) / examples
    rise = jnp.minimum(done / schedule.warmup, 1.0) if schedule.warmup else jnp.ones(())
    match schedule:
        case Cosine():
            rest = jnp.clip((done - schedule.warmup) / (1 - schedule.warmup), 0, 1)
            return rise * 0.5 * (1 + jnp.cos(jnp.pi * rest))
        case Steps():
            drops = (done >= jnp.array(schedule.milestones)).sum()
            return rise * schedule.factor**drops


def _check_warmup(warmup):
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is {warmup}; it is a share of the examples, from 0 to below 1")
