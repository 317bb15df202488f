"""Functions shared by the executors that run workers on other machines."""

import importlib
import os
import subprocess
import types

from fpnlab.errors import UnavailableError

TAIL_BYTES = 4000
"""Length of the worker's output that is sent back, counted from its end."""


def load_extra(extra: str, package: str) -> types.ModuleType:
    """Returns the module ``package``, which the optional dependencies ``extra`` install.

    Raises:
      UnavailableError: The package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(f"{package}: {error}; pip install fpnlab[{extra}]") from None


def run_worker(command: list[str], folder: str, threads: int) -> tuple[int, str]:
    """Runs a worker; returns its exit code and the end of its output.

    The worker stops when this process ends. Environment variables of this machine take precedence
    over ``threads``.

    Args:
      command: The command of the worker.
      folder: The working directory, to which paths in the config are relative.
      threads: Number of threads for computation.
    """
    done = subprocess.run(
        [*command, "--parent", str(os.getpid())],
        cwd=folder,
        env={"PJRT_NPROC": str(threads)} | os.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        check=False,
    )
    return done.returncode, done.stdout[-TAIL_BYTES:].decode(errors="replace")


def last_line(text: str) -> str:
    """Returns the last line of a text that is not blank, or "no output"."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
