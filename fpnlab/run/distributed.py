"""One run computed by several processes; process 0 writes the files."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax

from fpnlab.errors import Interrupted, ProcessesError
from fpnlab.train.parallel import of_first

PATIENCE_SECONDS = 86400
"""Longest time for which finished processes wait for process 0, which evaluates the model."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[bool]:
    """Connects this process to the others of the run; yields True in process 0.

    Must be entered before JAX initializes its backend. If one process fails, the others end as
    well, with an error.

    Args:
      coordinator: Host and port of process 0; None: detected from Slurm, Open MPI, Kubernetes or
        a TPU.
      processes: Number of processes; None: detected.
      process: Number of this process, from 0; None: detected.

    Raises:
      ProcessesError: The processes could not connect to each other.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=PATIENCE_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ProcessesError(
            f"the processes could not connect to each other ({reason}); start each with "
            "--coordinator, --processes and its own --process, and a port that is free on the "
            "coordinator"
        ) from error
    # CPU processes connect at their first collective operation and time out after 30 seconds. Run
    # one now, while they are in step: later, one may load or compile for much longer than another.
    of_first(True)
    try:
        yield jax.process_index() == 0
    except Interrupted:
        raise
    except BaseException as error:
        # A normal exit would deadlock: JAX waits at a shutdown barrier for the other processes, and
        # they wait in a collective operation for this one. `_leave` skips the barrier.
        atexit.register(_leave, getattr(error, "exit_code", 1))
        raise


def _leave(code: int) -> NoReturn:
    """Ends the process at once, without JAX's exit handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
