"""Environment of a result: versions, device, flags, commit."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

from fpnlab import compiler

PACKAGES = ("fpnlab", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def environment() -> dict[str, Any]:
    """Returns versions, device, core count, flags, commit and known cases, as JSON values."""
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
        "commit": _commit(),
        "known_cases": compiler.summary(),
    }


def _cores():
    """Returns how many cores this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _commit():
    """Returns the commit of the checkout that the package runs from; None outside of one."""
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
