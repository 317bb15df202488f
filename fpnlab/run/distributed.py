"""One run by several processes, which compute its steps together; process 0 keeps the files."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from fpnlab.errors import Interrupted, ProcessesError
from fpnlab.train.parallel import of_first

PATIENCE_SECONDS = 86400
"""Time that processes which are done wait for process 0, which measures, before they end."""


@contextlib.contextmanager
def joined(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Iterator[bool]:
    """Joins this process to the others, and yields whether it is process 0.

    Must come before JAX starts. What is None is found out from Slurm, Open MPI, Kubernetes or a
    TPU. Where one process fails, the others end as well, with an error.

    Args:
      coordinator: host and port of process 0.
      processes: how many there are.
      process: this one's number.

    Raises:
      ProcessesError: they did not find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process, shutdown_timeout_seconds=PATIENCE_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ProcessesError(
            f"the processes did not find each other ({reason}); give each --coordinator, "
            "--processes and its own --process, with a port that is free on the coordinator"
        ) from error
    # Processes connect at their first collective, where CPUs wait for each other only 30 seconds:
    # now they have just met, and later one may load or compile much longer than another.
    of_first(True)
    try:
        yield jax.process_index() == 0
    except Interrupted:
        raise
    except BaseException as error:
        # JAX would wait for the others before this process ends, and they wait for it.
        atexit.register(_leave, getattr(error, "exit_code", 1))
        raise


def _leave(code):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
