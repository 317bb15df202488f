"""Workers on other machines: their command, run there by a small function."""

import importlib
import os
import subprocess
from typing import Any

from fpnlab.errors import UnavailableError

TAIL_BYTES = 4000


def load_extra(extra: str, package: str) -> Any:
    """Returns a package that an extra of fpnlab brings.

    Raises:
      UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(f"{package}: {error}; pip install fpnlab[{extra}]") from None


def run_worker(command: list[str], folder: str, threads: int) -> tuple[int, str]:
    """Returns the exit code of a worker that ran in this process's machine, and what it said last.

    It stops when this process ends. A variable of the environment that is set there stays.

    Args:
      command: what to run.
      folder: the working directory, in which the config's paths hold.
      threads: those of its computations.
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
    """Returns the last line of a text that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
