"""The lease of a worker on its running trials, renewed by a background thread."""

import threading
import time
from collections.abc import Callable

from fpnlab.errors import RunFolderError
from fpnlab.run.interrupts import Stop
from fpnlab.study.ledger import Ledger

LEASE_SECONDS = 60.0
"""Duration of a lease: a trial whose lease is not renewed for so long can be claimed again."""
TICK_SECONDS = 1.0
"""Interval at which a worker polls for a stop request, and an idle one for a free trial."""


class Lease:
    """Leases on claimed trials, renewed by a thread while the context is entered.

    ``stop`` is requested when the worker's own ``stop`` is, or when a lease is lost to another
    worker.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: list[str],
        owner: str,
        stop: Stop,
        listen: Callable[[], object],
    ) -> None:
        """Creates the lease for trials that ``owner`` has claimed.

        Args:
          ledger: The ledger of the study.
          names: The names of the trials.
          owner: The owner name of the worker.
          stop: The stop flag of the worker.
          listen: Called about once per second; may request ``stop``.
        """
        self.owner, self.stop = owner, Stop(stop)
        self._ledger, self._listen = ledger, listen
        # Guards the names against a race: renewing a trial just after it was released fails, which
        # `_keep` would take for a lease lost to another worker.
        self._lock, self._names = threading.Lock(), list(names)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def names(self) -> list[str]:
        """The trials that are still leased."""
        with self._lock:
            return list(self._names)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def release(self, *, delay: float = 0.0, keep: int = 0) -> None:
        """Releases all trials but the first ``keep``; they cannot be claimed for ``delay`` s."""
        with self._lock:
            released, self._names = self._names[keep:], self._names[:keep]
            for name in released:
                self._ledger.release(name, self.owner, delay=delay)

    def _keep(self) -> None:
        """Renews the leases until the context ends or one of them is lost."""
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
                # The disk may be full or slow only briefly: try again as long as the lease lasts.
                continue
