"""One step of training: state and batch in, better state and logs out."""

import dataclasses
import math
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from fpnlab.model.detector import (
    Detector,
    DetectorParams,
    DetectorState,
    apply_detector,
    detector_anchors,
    init_detector,
)
from fpnlab.ops.keys import named_key
from fpnlab.train.objective import Objective, detection_loss
from fpnlab.train.schedule import Cosine, Schedule, scheduled
from fpnlab.types import Batch, Key, Mode, spec, tree


@spec
class Sgd:
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.9
    """Share of the old velocity kept per step."""


@spec
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    b1: float = 0.9
    """Share of the old first moment kept per step."""
    b2: float = 0.999
    """Share of the old second moment kept per step."""


@spec
class Train:
    """How parameters are made better. All lengths are in examples, never in steps."""

    examples: int
    """Training images seen in all, repeats included."""
    batch_size: int
    """Images per optimizer step."""
    optimizer: Sgd | AdamW = Sgd()
    """What turns gradients into updates."""
    learning_rate: float
    """Peak rate at `reference_batch` images a step."""
    rule: Literal["constant", "linear", "sqrt"] = "linear"
    """How the peak rate grows with `batch_size / reference_batch` (arXiv:1706.02677)."""
    reference_batch: int = 32
    """Batch size to which `learning_rate` refers."""
    schedule: Schedule = Cosine()
    """Share of the peak rate over the examples seen."""
    weight_decay: float = 1e-4
    """L2 decay of kernels; never of scales and biases."""
    clip_norm: float | None = 10.0
    """Largest norm of the whole gradient; none: no limit."""
    ema_examples: int | None = None
    """Evaluate weights averaged over about so many last examples; none: the last weights."""
    statistics: Literal["batch", "running"] = "batch"
    """What normalizes in training: the batch, or the running statistics that it then updates."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and statistics stay float32."""

    def __post_init__(self):
        for name in ("examples", "batch_size", "reference_batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.batch_size > self.examples:
            raise ValueError(f"batch_size is {self.batch_size}, more than examples={self.examples}")

    @property
    def steps(self) -> int:
        """Optimizer steps in all; examples that do not fill a last batch are not used."""
        return self.examples // self.batch_size

    @property
    def peak_rate(self) -> float:
        """The learning rate that `rule` gives this batch size."""
        ratio = self.batch_size / self.reference_batch
        return (
            self.learning_rate
            * {"constant": 1, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.rule]
        )


@tree
class TrainState:
    """All that training carries from one step to the next."""

    params: DetectorParams
    """Float32 parameters."""
    state: DetectorState
    """Running statistics."""
    optimizer: Any
    """The optimizer's own state."""
    average: DetectorParams | None
    """Averaged parameters, where `Train.ema_examples` asks for them."""
    step: Int[Array, ""]
    """Steps done."""
    seed: UInt32[Array, " 2"]
    """Raw key of everything that is random in a step."""
    refused: Int[Array, ""]
    """Updates that were not applied, because loss or gradient was not finite."""


def init_train(key: Key, detector: Detector, train: Train) -> TrainState:
    """Returns the state before the first step."""
    params, state = init_detector(key, detector)
    return TrainState(
        params=params,
        state=state,
        optimizer=_optimizer(train).init(cast(Any, params)),
        # A copy: donated buffers must not be shared between two leaves.
        average=jax.tree.map(jnp.copy, params) if train.ema_examples else None,
        step=jnp.zeros((), jnp.int32),
        seed=jax.random.key_data(named_key(key, "step")),
        refused=jnp.zeros((), jnp.int32),
    )


def train_step(
    detector: Detector, objective: Objective, train: Train, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns the state after one optimizer step, and what happened in it.

    An update whose loss or gradient is not finite is refused: parameters, statistics and
    optimizer stay as they were, and ``refused`` counts it.

    Args:
      detector: what is trained.
      objective: what it is trained for.
      train: how.
      state: the state before.
      batch: images and boxes.

    Returns:
      The state after, and the logs ``loss``, ``loss_class``, ``loss_box``,
      ``gradient_norm`` (before clipping) and ``learning_rate``.
    """
    anchors = detector_anchors(detector, *batch.images.shape[1:3])
    images = batch.images.astype(train.precision)

    mode = Mode(stats=train.statistics)
    drop = jax.random.fold_in(jax.random.wrap_key_data(state.seed), state.step)

    def loss_of(params):
        output, new = apply_detector(
            detector, params, state.state, images, mode, extent=batch.extent, key=drop
        )
        loss, parts = detection_loss(objective, output, anchors, batch)
        return loss, (parts, new)

    (loss, (logs, new_state)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    seen = state.step * train.batch_size
    rate = train.peak_rate * scheduled(train.schedule, train.examples, seen)
    params = cast(Any, state.params)  # optax has no name for trees of dataclasses
    updates, optimizer = _optimizer(train).update(gradient, state.optimizer, params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    average = None
    if train.ema_examples:
        keep = math.exp(-train.batch_size / train.ema_examples)
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state.average, params)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    after = TrainState(
        params=params,
        state=new_state,
        optimizer=optimizer,
        average=average,
        step=state.step + 1,
        seed=state.seed,
        refused=state.refused,
    )
    before = dataclasses.replace(state, step=state.step + 1, refused=state.refused + 1)
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, before)
    return kept, {**logs, "gradient_norm": norm, "learning_rate": rate}


def _optimizer(train: Train) -> optax.GradientTransformation:
    """Returns the direction of the update at rate 1, pointing uphill."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].name == "kernel", params
    )
    decay = optax.add_decayed_weights(train.weight_decay, mask=kernels)
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    match train.optimizer:
        case Sgd(momentum=momentum):
            return optax.chain(clip, decay, optax.trace(momentum, nesterov=True))
        case AdamW(b1=b1, b2=b2):
            return optax.chain(clip, optax.scale_by_adam(b1, b2), decay)
