"""XLA flags that avoid known wrong results on CPU, and a check of the current backend.

Two kinds of reductions are silently wrong on CPU in some versions of jaxlib, which compile them
with the YNNPACK runtime:

* jax-ml/jax#39103: a vmapped matrix-vector product that is squared and summed, over many rows;
* a batched matrix product with a broadcast operand, multiplied and reduced: NaN, or off by orders
  of magnitude. The derivative of a normalization has this shape.

Without YNNPACK both are right. XLA aborts the process on an unknown flag, so each version gets only
flags that were tested with it.
"""

import contextlib
import functools
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Mapping
from typing import NamedTuple

NO_YNN_REDUCTIONS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
NEEDED_FLAGS = {
    "0.10.2": (NO_YNN_REDUCTIONS,),
    "0.11.0": (NO_YNN_REDUCTIONS,),
    "0.11.1": (NO_YNN_REDUCTIONS,),
    "0.11.2": (NO_YNN_REDUCTIONS,),
    "0.12.0": (NO_YNN_REDUCTIONS,),
    "0.12.0.1": (NO_YNN_REDUCTIONS,),
}
"""The XLA flags that a version of jaxlib needs.

Other versions get none, since an unknown flag aborts; `check_backend` computes the known cases.
"""
RIGHT_WITHOUT_FLAGS = {"0.10.1"}
"""Versions of jaxlib that compute the known cases correctly without flags."""


class WrongResultWarning(UserWarning):
    """The current backend computes wrong numbers."""


class Check(NamedTuple):
    """Result of the backend on one case with a known value."""

    name: str
    """Name of the case."""
    found: float
    """Result of the backend."""
    expected: float
    """Reference value, from float64 NumPy."""

    @property
    def right(self) -> bool:
        """True if both agree to 1e-4 relative; the known errors are 0.008 or larger."""
        return abs(self.found - self.expected) <= 1e-4 * abs(self.expected)


@functools.cache
def jaxlib_version() -> str:
    """Returns the version of the installed jaxlib, or "" if it is not installed."""
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ""


def missing_flags(version: str, xla_flags: str) -> tuple[str, ...]:
    """Returns the flags that a jaxlib needs and ``XLA_FLAGS`` does not set to any value.

    A value that the user set is kept.

    Args:
      version: Version of jaxlib.
      xla_flags: Value of the environment variable ``XLA_FLAGS``.
    """
    return tuple(
        flag
        for flag in NEEDED_FLAGS.get(version, ())
        if _name(flag) not in map(_name, xla_flags.split())
    )


def known_to_be_right(version: str, xla_flags: str) -> bool:
    """Returns whether a jaxlib is known to compute correctly with these flags.

    Args:
      version: Version of jaxlib.
      xla_flags: Value of the environment variable ``XLA_FLAGS``.
    """
    if version in RIGHT_WITHOUT_FLAGS:
        return True
    values = {_name(flag): flag for flag in xla_flags.split()}  # The last one wins.
    needed = NEEDED_FLAGS.get(version, ())
    return bool(needed) and all(values.get(_name(flag)) == flag for flag in needed)


def _name(flag: str) -> str:
    return flag.partition("=")[0]


def set_flags() -> None:
    """Appends the flags that the installed jaxlib needs to ``XLA_FLAGS``.

    This has an effect only before JAX starts its backend, which reads the variable once; child
    processes inherit it. If the backend already runs without the flags, `check_backend` checks it.
    """
    present = os.environ.get("XLA_FLAGS", "")
    missing = missing_flags(jaxlib_version(), present)
    if missing and not backend_started():
        os.environ["XLA_FLAGS"] = " ".join([*present.split(), *missing])
    elif missing:
        check_backend()


def check_backend() -> None:
    """Warns, once per process, if the backend computes one of the known cases wrong.

    The cases are computed unless the version of jaxlib with ``XLA_FLAGS`` is known to be right.

    Warns:
      WrongResultWarning: A result is wrong; the message names the remedy.
    """
    if not known_to_be_right(jaxlib_version(), os.environ.get("XLA_FLAGS", "")):
        _warn_if_wrong()


@functools.cache
def _warn_if_wrong() -> None:
    wrong = [check.name for check in checks() if not check.right]
    if wrong:
        warnings.warn(
            f"jaxlib {jaxlib_version()} computes wrong numbers on this backend "
            f"({'; '.join(wrong)}). {remedy()}",
            WrongResultWarning,
            stacklevel=4,
        )


def remedy() -> str:
    """Returns the remedy for a backend that computes wrong numbers, as one sentence."""
    version = jaxlib_version()
    if needed := NEEDED_FLAGS.get(version):
        return (
            "Import fpnlab before the first JAX computation and leave these flags as it sets them, "
            f"or start Python with XLA_FLAGS='{' '.join(needed)}'"
        )
    tested = ", ".join(sorted({*RIGHT_WITHOUT_FLAGS, *NEEDED_FLAGS}))
    return f"Install one of the versions of jaxlib that fpnlab was tested with: {tested}"


def silence_false_alarms() -> None:
    """Silences the error that jaxlib 0.10.1 prints for each program loaded from its cache.

    It mistakes two preferences of its own code generator for features that the processor lacks,
    and warns of a crash that cannot happen. Errors still raise exceptions. Call this before JAX is
    imported; a log level set by the user is kept.
    """
    # 1 is the value that JAX itself sets by default, and child processes inherit it.
    if jaxlib_version() == "0.10.1" and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def backend_started() -> bool:
    """Returns whether JAX has started a backend in this process, and so has read ``XLA_FLAGS``."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    # A private function, but every public one starts the backend. If it is missing, assume that
    # the backend has started.
    return bridge is not None and getattr(bridge, "backends_are_initialized", lambda: True)()


@functools.cache
def checks() -> tuple[Check, ...]:
    """Returns the known cases as computed by JAX's default backend, which this call starts."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(32_769)
    matrix = np.eye(3, dtype=np.float32)  # The bug appears only with a constant matrix.
    squares = lambda x: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x)
    maps = np.random.default_rng(0).standard_normal((5, 60, 60)).astype(np.float32)
    products = lambda x: jnp.sum((x @ jnp.full_like(x, 0.5)) * x, axis=-1)
    exact = maps.astype(np.float64)
    with contextlib.ExitStack() as settings:
        # Undo settings that the caller may have changed; the caller may also be inside a trace.
        settings.enter_context(jax.ensure_compile_time_eval())
        settings.enter_context(jax.disable_jit(False))
        settings.enter_context(jax.debug_nans(False))
        settings.enter_context(jax.debug_infs(False))
        settings.enter_context(jax.transfer_guard("allow"))
        settings.enter_context(jax.default_matmul_precision("highest"))
        last = float(jax.jit(squares)(rows)[-1])
        summed = np.asarray(jax.jit(products)(maps), np.float64)
    reference = ((exact @ np.full_like(exact, 0.5)) * exact).sum(-1)
    norm = float(np.linalg.norm(reference))
    return (
        Check("vmapped matrix-vector products, squared and summed", last, 2.0**30),
        Check(
            "batched matrix product with a broadcast operand, multiplied and summed",
            norm + float(np.linalg.norm(summed - reference)),
            norm,
        ),
    )


def summary() -> str:
    """Returns one line on the known cases: "wrong: ..." or "right: ..."; starts the backend."""
    wrong = [check.name for check in checks() if not check.right]
    return f"wrong: {'; '.join(wrong)}" if wrong else f"right: {len(checks())} known cases"


def doubt(environment: Mapping[str, object]) -> str | None:
    """Returns the reason why numbers from an environment may be wrong; None if there is none.

    Args:
      environment: Contents of an ``env.json``. If it was written before the known cases were
        checked, its jaxlib version, platform and flags decide.
    """
    if line := environment.get("known_cases"):
        wrong = str(line).startswith("wrong")
        return f"its backend failed the known cases ({line})" if wrong else None
    version = _entry(environment, "versions", "jaxlib")
    flags = _entry(environment, "flags", "XLA_FLAGS")
    if environment.get("platform") != "cpu" or version not in NEEDED_FLAGS:
        return None
    if known_to_be_right(version, flags):
        return None
    return (
        f"it was computed by jaxlib {version} on CPU, which is wrong for some reductions "
        f"without {' '.join(NEEDED_FLAGS[version])}"
    )


def _entry(environment: Mapping[str, object], table: str, name: str) -> str:
    entries = environment.get(table)
    return str(entries.get(name, "")) if isinstance(entries, Mapping) else ""
