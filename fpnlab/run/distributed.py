"""One run computed by several processes; process 0 writes the files."""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax

from fpnlab.errors import Interrupted, PeerLostError, ProcessesError
from fpnlab.train.parallel import of_first

START_SECONDS = 50
"""Longest time in which all processes must have started and connected to each other."""
HEARTBEAT_SECONDS = 30
"""Time without a sign of life after which a process counts as dead."""
LOST = ("Gloo", "Connection closed by peer", "coordination service", "heartbeat")
"""Words of JAX's errors after another process has ended."""
PATIENCE_SECONDS = 86400
"""Longest time for which finished processes wait for process 0, which evaluates the model."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[bool]:
    """Connects this process to the others of the run; yields True in process 0.

    Must be entered before JAX initializes its backend. If one process fails, the others end as
    well, with an error. Process 0 accepts connections at the address of ``coordinator`` alone, or
    at that in ``JAX_COORDINATOR_BIND_ADDRESS``; where it is detected, at all of its addresses.

    Args:
      coordinator: Host and port of process 0; None: detected from Slurm, Open MPI, Kubernetes or
        a TPU.
      processes: Number of processes; None: detected.
      process: Number of this process, from 0; None: detected.

    Raises:
      ProcessesError: The processes could not connect to each other.
      PeerLostError: Another process of the run ended before this one.
    """
    late = threading.Timer(START_SECONDS, _end_late)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator),
            # JAX aborts the process at its own timeout, with a trace of the stack.
            initialization_timeout=2 * START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=PATIENCE_SECONDS,
        )
        # CPU processes connect at their first collective operation and time out after 30 seconds.
        # Run one now, while they are in step: later, one may load or compile for much longer.
        of_first(True)
    except (ValueError, RuntimeError) as error:
        atexit.register(_leave, ProcessesError.exit_code)
        raise ProcessesError(_not_connected(str(error).splitlines()[0])) from error
    finally:
        late.cancel()
    try:
        yield jax.process_index() == 0
    except Interrupted:
        raise
    except BaseException as error:
        lost = isinstance(error, RuntimeError | ValueError) and any(
            word in str(error) for word in LOST
        )
        # A normal exit would deadlock: JAX waits at a shutdown barrier for the other processes, and
        # they wait in a collective operation for this one. `_leave` skips the barrier.
        atexit.register(_leave, PeerLostError.exit_code if lost else getattr(error, "exit_code", 1))
        if lost:
            raise PeerLostError(
                "another process of this run has ended; its own output says why; start all "
                "processes again: they go on from the last checkpoint"
            ) from error
        raise


def _not_connected(reason: str) -> str:
    return (
        f"the processes could not connect to each other ({reason}); start each with "
        "--coordinator, --processes and its own --process, and a port that is free on the "
        "coordinator"
    )


def _end_late() -> None:
    """Ends the process with a message: the thread that connects cannot be interrupted."""
    reason = f"not all of them were there after {START_SECONDS} seconds, or one has ended"
    print(f"fpnlab: {_not_connected(reason)}", file=sys.stderr)
    _leave(ProcessesError.exit_code)


def _leave(code: int) -> NoReturn:
    """Ends the process at once, without JAX's exit handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
