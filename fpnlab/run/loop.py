"""The training loop: one step per batch, then the hooks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

State = TypeVar("State")
Batch = TypeVar("Batch")
Logs = TypeVar("Logs")


class Hook(Generic[State, Logs]):
    """Callbacks around each training step; the base class does nothing."""

    def before_step(self, step: int, state: State) -> None:
        """Called with the state before step number ``step``, counted from 1.

        The state's buffers may be donated to the step: a hook that needs them later copies them.
        """

    def after_step(self, step: int, state: State, logs: Logs) -> bool:
        """Returns whether training ends; called with the state and logs after step ``step``."""
        return False


def train_loop(
    train_step: Callable[[State, Batch], tuple[State, Logs]],
    state: State,
    batches: Iterable[Batch],
    hooks: Sequence[Hook[State, Logs]] = (),
    *,
    start: int = 0,
) -> State:
    """Returns the state after all batches, or after the step at which a hook ends training.

    Args:
      train_step: Maps state and batch to the next state and the logs.
      state: The state before the first batch.
      batches: One batch per step.
      hooks: Called around each step, in order. An exception in a hook ends training.
      start: Number of steps already done.
    """
    for step, batch in enumerate(batches, start + 1):
        for hook in hooks:
            hook.before_step(step, state)
        state, logs = train_step(state, batch)
        # A list, not a generator: all hooks are called even if an earlier one ends training.
        if any([hook.after_step(step, state, logs) for hook in hooks]):
            break
    return state
