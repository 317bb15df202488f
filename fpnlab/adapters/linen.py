"""Every organ as one Flax Linen module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from fpnlab.adapters.organs import mode_of, organ
from fpnlab.types import Mode


class Organ(nn.Module):
    """A norm, block, backbone, neck, head or detector of fpnlab as a Linen module.

    Parameters are the entry ``organ`` of the collection ``params``, running statistics that of
    ``batch_stats``: make this one mutable in training, as for ``nn.BatchNorm``. The numbers are
    those of the functions, to the bit.

    Attributes:
      spec: what to compute.
      mode: where norms take their statistics from, and whether they update them; may be given
        in the call instead.
      use_running_average: Flax's flag in place of a mode, so that ``Organ(BatchNorm())`` stands
        where ``nn.BatchNorm()`` stood.
      sizes: of a head alone: ``{"anchors": ..., "classes": ...}``.
    """

    spec: Any
    mode: Mode | None = None
    use_running_average: bool | None = None
    sizes: Mapping[str, int] | None = None

    @nn.compact
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
        this = organ(self.spec, x, dict(self.sizes or {}))
        params = self.param("organ", lambda key: this.init(key)[0])
        state = self.variable("batch_stats", "organ", lambda: this.init(jax.random.key(0))[1])
        *outputs, new = this.apply(params, state.value, x, mode, **options)
        # Making the module must not count as a step of training.
        if mode.update != "none" and not self.is_initializing():
            state.value = new
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
