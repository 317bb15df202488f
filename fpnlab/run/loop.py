"""The training loop: one step a batch, then the hooks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

State = TypeVar("State")
Batch = TypeVar("Batch")
Logs = TypeVar("Logs")


class Hook(Generic[State, Logs]):
    """Something that happens between steps; the base class does nothing."""

    def before_step(self, step: int, state: State) -> None:
        """Sees the state before step number ``step``, counted from 1.

        The step may reuse the memory of the state: a hook that needs it later copies it.
        """

    def after_step(self, step: int, state: State, logs: Logs) -> bool:
        """Returns whether training ends here; sees the state and logs of step number ``step``."""
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
      train_step: State and batch to the state after, and logs.
      state: The state before the first batch.
      batches: One a step.
      hooks: Called around each step, in their order. An exception of one ends training.
      start: Steps done before.
    """
    for step, batch in enumerate(batches, start + 1):
        for hook in hooks:
            hook.before_step(step, state)
        state, logs = train_step(state, batch)
        # All hooks see the step, also after one has asked to end.
        if any([hook.after_step(step, state, logs) for hook in hooks]):
            break
    return state
