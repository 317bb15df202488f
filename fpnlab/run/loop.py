"""The training loop, without disks, clocks or printing: its callers have these."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

State = TypeVar("State")
Batch = TypeVar("Batch")
Logs = TypeVar("Logs")


def fit(
    step: Callable[[State, Batch], tuple[State, Logs]], state: State, batches: Iterable[Batch]
) -> Iterator[tuple[State, Logs]]:
    """Yields the state and the logs after each batch.

    Stop it by leaving the loop that draws from it; go on from any state it has yielded (but
    only the last one where ``step`` donates its input).
    """
    for batch in batches:
        state, logs = step(state, batch)
        yield state, logs
