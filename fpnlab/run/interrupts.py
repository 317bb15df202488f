"""Graceful stopping: the first SIGINT or SIGTERM sets a flag, a second one ends the process."""

import os
import signal
import types


class Stop:
    """A flag that requests a stop; as a context manager, it is set by SIGINT and SIGTERM.

    Args:
      outer: Another flag that also stops this one.
      notice: Text that is printed to stderr when a signal requests a stop.
    """

    def __init__(self, outer: "Stop | None" = None, *, notice: str = "") -> None:
        self._outer, self._requested, self._notice = outer, False, notice

    @property
    def requested(self) -> bool:
        """True if a stop was requested by this flag or the outer one."""
        return self._requested or (self._outer is not None and self._outer.requested)

    @requested.setter
    def requested(self, value: bool) -> None:
        """Sets or clears this flag."""
        self._requested = value

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._set) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _set(self, *_: int | types.FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self._notice:
            # Unbuffered: the signal may have interrupted a write to the buffered stream.
            os.write(2, f"\n{self._notice}\n".encode())

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
