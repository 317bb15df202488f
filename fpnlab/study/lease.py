"""The lease of a worker on its running trials, and its judgment of those of other workers."""

import threading
import time
from collections.abc import Callable

from fpnlab.errors import RunFolderError
from fpnlab.run.folder import in_use
from fpnlab.run.interrupts import Stop
from fpnlab.study.ledger import Heartbeat, Ledger

LEASE_SECONDS = 60.0
"""Duration of a lease: a trial whose lease is not renewed for so long can be claimed again."""
TICK_SECONDS = 1.0
"""Interval at which a worker polls for a stop request, and an idle one for a free trial."""


def uptime() -> float:
    """Returns the seconds of a clock that never jumps; on Linux it runs on during a suspend."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Heartbeats:
    """The heartbeats of running trials, timed on the clock of one observer.

    This clock is compared to no other, so that it may be set to anything and need not agree with
    that of an owner. Only its rate matters, and only within a lease.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an observer that has seen nothing yet.

        Args:
          ledger: The ledger of the study, in the study folder.
          clock: Returns seconds since any moment.
        """
        self._ledger, self._clock = ledger, clock
        self._looked = clock()
        self._ages: dict[Heartbeat, float] = {}

    def look(self) -> None:
        """Reads the heartbeats, and expires those that have stood still for a lease.

        An owner that has locked a folder is alive, and keeps its trials.
        """
        now = self._clock()
        # While this process was stopped, or its machine suspended, the owners may have been too: a
        # long time between two looks counts as a short one.
        passed, self._looked = min(now - self._looked, LEASE_SECONDS / 6), now
        found = self._ledger.heartbeats()
        ages = self._ages
        self._ages = {each: ages[each] + passed if each in ages else 0.0 for each in found}
        silent = [each for each, age in self._ages.items() if age >= LEASE_SECONDS]
        folder = self._ledger.path.parent
        alive = {each.owner for each in silent if in_use(folder / each.path)}
        if dead := [each for each in silent if each.owner not in alive]:
            self._ledger.expire(dead)


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

    def release(self, *, keep: int = 0) -> None:
        """Releases all trials but the first ``keep``."""
        with self._lock:
            released, self._names = self._names[keep:], self._names[:keep]
            self._ledger.release(released, self.owner)

    def set_aside(self) -> None:
        """Leaves the trials to the process that has locked a folder of theirs."""
        with self._lock:
            names, self._names = self._names, []
            self._ledger.set_aside(names, self.owner)

    def _keep(self) -> None:
        """Renews the leases until the context ends or one of them is lost."""
        renewed = uptime()
        while not self._over.wait(TICK_SECONDS):
            try:
                self._listen()
                if uptime() - renewed < LEASE_SECONDS / 3:
                    continue
                with self._lock:
                    kept = self._ledger.renew(self._names, self.owner)
                if not kept:
                    self.stop.requested = True
                    return
                renewed = uptime()
            except RunFolderError:
                # The disk may be full or slow only briefly: try again as long as the lease lasts.
                continue
