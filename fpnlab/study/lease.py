"""The lease of a worker on the trials that it runs, renewed in the background."""

import threading
import time
from collections.abc import Callable

from fpnlab.errors import RunFolderError
from fpnlab.run.interrupts import Stop
from fpnlab.study.ledger import Ledger

LEASE_SECONDS = 60.0
"""Time that a worker may be silent before its trial is another's."""
TICK_SECONDS = 1.0
"""Time between two looks whether a worker is to stop, and of an idle one for a trial."""


class Lease:
    """Claimed trials, renewed in a thread of their own from ``with`` to its end.

    ``stop`` is requested with that of the worker, and when another worker owns one of the trials.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: list[str],
        owner: str,
        stop: Stop,
        listen: Callable[[], object],
    ) -> None:
        """Takes over trials that ``owner`` has claimed.

        Args:
          ledger: Where they were claimed.
          names: Their names.
          owner: The worker.
          stop: That of the worker.
          listen: Called about once a second; may request ``stop``.
        """
        self.owner, self.stop = owner, Stop(stop)
        self._ledger, self._listen = ledger, listen
        # Guards the names: a trial that is released must not be renewed at the same time, which
        # would look as if another worker had it.
        self._lock, self._names = threading.Lock(), list(names)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def names(self) -> list[str]:
        """The trials that are still held."""
        with self._lock:
            return list(self._names)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def release(self, *, delay: float = 0.0, keep: int = 0) -> None:
        """Releases the trials but the first ``keep``; they wait for ``delay`` seconds at least."""
        with self._lock:
            released, self._names = self._names[keep:], self._names[:keep]
            for name in released:
                self._ledger.release(name, self.owner, delay=delay)

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            try:
                self._listen()
                if time.monotonic() - renewed < LEASE_SECONDS / 3:
                    continue
                with self._lock:
                    kept = [self._ledger.renew(n, self.owner, LEASE_SECONDS) for n in self._names]
                if not all(kept):
                    self.stop.requested = True
                    return
                renewed = time.monotonic()
            except RunFolderError:
                # A disk that is full or slow for a while: the lease may outlast it.
                continue
