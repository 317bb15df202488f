"""The training step with its recipe, optimizer and state."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, UInt32

from fpnlab.compiler import check_backend
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, Count, Fraction, NonNegative, Positive, SpecError, spec
from fpnlab.train.accumulate import gradient
from fpnlab.train.schedule import Cosine, Schedule, scheduled
from fpnlab.types import Intermediates, Key, Mode, tree

Logs = dict[str, Float[Array, ""]]


class LossOutput(NamedTuple):
    """Auxiliary outputs of the loss of a batch."""

    logs: Logs
    """The loss and its parts, and ``count``, the number of anchors or images they average over."""
    state: PyTree
    """The state after the batch."""
    intermediates: Intermediates
    """Outputs of all layers."""


@runtime_checkable
class Trainable(Protocol):
    """Interface of a model with its objective, as used by a training step."""

    def init(self, key: Key) -> tuple[PyTree, PyTree]:
        """Returns initial parameters and state."""

    def trained(self, params: PyTree) -> PyTree:
        """Returns a tree like ``params`` that is False for parameters that are not trained."""

    def loss(
        self,
        params: PyTree,
        state: PyTree,
        batch: PyTree,
        mode: Mode,
        *,
        precision: str,
        key: Key,
    ) -> tuple[Float[Array, ""], LossOutput]:
        """Returns the loss of a batch, and its auxiliary outputs.

        Args:
          params: Parameters.
          state: Running statistics.
          batch: Images with their annotations.
          mode: Source and update of statistics, and whether stochastic parts are on.
          precision: Dtype of the computation.
          key: Random key of the stochastic layers.
        """


@spec
class Sgd:
    """Stochastic gradient descent with Nesterov momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Fraction] = 0.9
    """Share of the old velocity kept per step."""


@spec
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    b1: Annotated[float, Fraction] = 0.9
    """Share of the old first moment kept per step."""
    b2: Annotated[float, Fraction] = 0.999
    """Share of the old second moment kept per step."""


@spec
class Train:
    """Training recipe. All lengths but `updates` are in examples."""

    examples: Annotated[int | None, Count] = None
    """Training images seen in all, repeats included; none: those of `updates`."""
    updates: Annotated[int | None, Count] = None
    """Optimizer steps in all, as many at every batch size; none: those of `examples`."""
    batch_size: Annotated[int, Count]
    """Images per optimizer step."""
    micro_batch: Annotated[int | None, Count] = None
    """Images per microbatch, over which a step accumulates gradients; none: the whole batch."""
    norm_batch: Annotated[int | None, Count] = None
    """Images per statistics group of each batch norm that does not set it; none: the batch."""
    optimizer: Sgd | AdamW = Sgd()
    """The optimizer."""
    learning_rate: Annotated[float, Bounds(least=1.2e-38, most=3.4e38)]
    """Peak rate at `reference_batch` images a step."""
    rule: Literal["constant", "linear", "sqrt"] = "linear"
    """Growth of the peak rate with `batch_size / reference_batch` (arXiv:1706.02677)."""
    reference_batch: Annotated[int, Count] = 32
    """Batch size to which `learning_rate` refers."""
    schedule: Schedule = Cosine()
    """Share of the peak rate over the examples seen."""
    weight_decay: Annotated[float, NonNegative] = 1e-4
    """L2 decay of kernels; never of scales and biases."""
    clip_norm: Annotated[float | None, Positive] = 10.0
    """Largest norm of the whole gradient; none: no limit."""
    ema_examples: Annotated[int | None, Count] = None
    """Window, in examples, of the averaged weights that are evaluated; none: the last weights."""
    statistics: Literal["batch", "running"] = "batch"
    """Source of statistics in training: the batch, or the running ones (still updated by it)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and statistics stay float32."""

    def __post_init__(self) -> None:
        if (self.examples is None) == (self.updates is None):
            given = "neither is" if self.examples is None else "both are"
            raise ValueError(f"give examples or updates ({given} given); the other is none")
        if self.batch_size > self.total_examples:
            raise ValueError(f"batch_size is {self.batch_size}, more than examples={self.examples}")
        if self.total_examples >= 2**31:
            wrong = f"is {self.updates}, which is {self.total_examples} examples; below 2**31"
            raise SpecError("Train", [("updates", wrong)])
        self._check_divides("micro_batch", "batch_size", "microbatches")
        whole = "batch_size" if self.micro_batch is None else "micro_batch"
        self._check_divides("norm_batch", whole, "groups")

    def _check_divides(self, part: str, whole: str, parts: str) -> None:
        size, total = getattr(self, part), getattr(self, whole)
        if size is not None and total % size:
            low = [k for k in range(1, math.isqrt(total) + 1) if total % k == 0]
            fits = sorted({*low, *(total // k for k in low)})
            raise ValueError(
                f"{part} is {size}, and {whole}={total} does not split into such {parts}; these "
                f"do: {', '.join(map(str, fits))}"
            )

    @property
    def total_examples(self) -> int:
        """Training images seen in all, repeats included."""
        if self.updates is not None:
            return self.updates * self.batch_size
        return cast(int, self.examples)

    @property
    def steps(self) -> int:
        """Optimizer steps in all; examples that do not fill a last batch are not used."""
        return self.total_examples // self.batch_size

    @property
    def microbatches(self) -> int:
        """Microbatches in a step."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    @property
    def statistics_group(self) -> int:
        """Images per statistics group of a batch norm that does not set it."""
        return self.norm_batch or self.batch_size

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
    """State of training, carried from one step to the next and stored in checkpoints."""

    params: PyTree
    """Float32 parameters."""
    state: PyTree
    """Running statistics."""
    optimizer: PyTree
    """State of the optimizer."""
    average: PyTree
    """Averaged parameters if `Train.ema_examples` is set, else None."""
    step: Int[Array, ""]
    """Steps done."""
    seed: UInt32[Array, " 2"]
    """Raw data of the key that all random numbers of a step derive from."""
    skipped: Int[Array, ""]
    """Updates that were skipped: the first with a loss or gradient that is not finite, and all
    after it."""


def init_train(key: Key, task: Trainable, train: Train) -> TrainState:
    """Returns the initial training state.

    Warns:
      WrongResultWarning: the backend computes wrong numbers (`fpnlab.compiler`).
    """
    check_backend()
    params, state = task.init(key)
    return TrainState(
        params=params,
        state=state,
        optimizer=_optimizer(task, train).init(params),
        # A copy: donated buffers must not be shared between two leaves.
        average=jax.tree.map(jnp.copy, params) if train.ema_examples else None,
        step=jnp.zeros((), jnp.int32),
        seed=jax.random.key_data(named_key(key, "step")),
        skipped=jnp.zeros((), jnp.int32),
    )


def train_step(
    task: Trainable,
    train: Train,
    state: TrainState,
    batch: PyTree,
    *,
    peak_rate: Float[Array, ""] | None = None,
) -> tuple[TrainState, Logs]:
    """Returns the state after one optimizer step, and its logs.

    With ``micro_batch``, gradients accumulate over microbatches to that of the whole batch: the
    loss is a mean over the counted items of all microbatches, and each statistics group lies within
    one microbatch. The running statistics are updated by one microbatch after another.

    An update is skipped if the loss, the gradient or the gradient times the rate is not finite,
    and so is every later one: parameters, statistics and optimizer stay as they were before the
    first skipped update, and ``skipped`` counts.

    Args:
      task: Model and objective (``tasks.kinds.task_of``).
      train: The recipe.
      state: The state before.
      batch: Images with their annotations.
      peak_rate: Replaces the peak rate of ``train``, so that one program serves all rates.

    Returns:
      The state after, and the logs ``loss`` and its parts, ``gradient_norm`` (before clipping)
      and ``learning_rate``.
    """

    def loss_of(
        params: PyTree, statistics: PyTree, images: PyTree, number: Int[Array, ""] | None
    ) -> tuple[Float[Array, ""], tuple[Logs, PyTree]]:
        start = dataclasses.replace(state, state=statistics)
        loss, output = step_loss(task, train, start, images, number)(params)
        return loss, (output.logs, output.state)

    found, logs, statistics = gradient(
        loss_of, state.params, state.state, batch, train.microbatches
    )
    seen = state.step * train.batch_size
    peak = train.peak_rate if peak_rate is None else peak_rate
    rate = peak * scheduled(train.schedule, train.total_examples, seen, train.batch_size)
    updates, optimizer = _optimizer(task, train).update(found, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    average = None
    if train.ema_examples:
        keep = math.exp(-train.batch_size / train.ema_examples)
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state.average, params)
    norm = optax.tree.norm(found)
    # The norm is finite only if the whole gradient is, and so is its product with the rate. A check
    # of every parameter would double the compilation time.
    finite = jnp.isfinite(logs["loss"]) & jnp.isfinite(rate * norm) & (state.skipped == 0)
    after = TrainState(
        params=params,
        state=statistics,
        optimizer=optimizer,
        average=average,
        step=state.step + 1,
        seed=state.seed,
        skipped=state.skipped,
    )
    before = dataclasses.replace(state, step=state.step + 1, skipped=state.skipped + 1)
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, before)
    return kept, {**logs, "gradient_norm": norm, "learning_rate": rate}


def step_loss(
    task: Trainable,
    train: Train,
    state: TrainState,
    batch: PyTree,
    number: Int[Array, ""] | None = None,
) -> Callable[[PyTree], tuple[Float[Array, ""], LossOutput]]:
    """Returns the loss of a step as a function of the parameters.

    Args:
      task: Model and objective.
      train: The recipe.
      state: The state before.
      batch: The images of a step, or of one of its microbatches.
      number: Number of the microbatch; None if a step has only one.
    """
    mode = Mode(stats=train.statistics)
    drop = jax.random.fold_in(jax.random.wrap_key_data(state.seed), state.step)
    drop = drop if number is None else jax.random.fold_in(drop, number)
    return lambda params: task.loss(
        params, state.state, batch, mode, precision=train.precision, key=drop
    )


def _optimizer(task: Trainable, train: Train) -> optax.GradientTransformation:
    """Returns the transformation from gradients to updates at rate 1, which are subtracted."""
    kernels = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, learns: path[-1].name == "kernel" and learns, task.trained(params)
    )
    decay = optax.add_decayed_weights(train.weight_decay, mask=kernels)
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    match train.optimizer:
        case Sgd(momentum=momentum):
            return optax.chain(clip, decay, optax.trace(momentum, nesterov=True))
        case AdamW(b1=b1, b2=b2):
            return optax.chain(clip, optax.scale_by_adam(b1, b2), decay)
