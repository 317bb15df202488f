"""The software and hardware environment of a run: versions, device, flags, commit."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from typing import TypedDict

import jax

from fpnlab import compiler

PACKAGES = ("fpnlab", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


class Environment(TypedDict):
    """Content of an ``env.json``."""

    versions: dict[str, str]
    """Version of each package in ``PACKAGES``."""
    python: str
    """Version of Python."""
    system: str
    """Operating system with its version."""
    device: str
    """Kind of the first device, such as "NVIDIA H100 80GB HBM3"."""
    platform: str
    """JAX's platform: ``cpu``, ``gpu`` or ``tpu``."""
    devices: int
    """Number of devices."""
    cores: int | None
    """Number of CPU cores available to the process."""
    flags: dict[str, str]
    """Environment variables that configure XLA and JAX, where they are set."""
    commit: str | None
    """Git commit of the package's checkout."""
    known_cases: str
    """Result of `fpnlab.compiler.summary`."""


def environment() -> Environment:
    """Returns versions, device, core count, flags, commit and compiler checks as JSON values."""
    device = jax.devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": _cores(),
        "flags": {
            name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ
        },
        "commit": code_commit(),
        "known_cases": compiler.summary(),
    }


def _cores() -> int | None:
    """Returns the number of CPU cores available to this process; None where it is unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def code_commit() -> str | None:
    """Returns the Git commit of the package's checkout; None outside a checkout."""
    root = pathlib.Path(__file__).parents[2]
    if (git := shutil.which("git")) is None:
        return None
    asked = subprocess.run(
        [git, "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    top, _, commit = asked.stdout.strip().partition("\n")
    return commit if top and pathlib.Path(top) == root else None
