"""Flags without which XLA computes wrong numbers, and whether the backend at hand is right.

Two kinds of reductions are silently wrong on CPU in some versions of jaxlib, where XLA hands them
to its YNNPACK runtime:

* jax-ml/jax#39103: a vmapped matrix-vector product that is squared and summed, over many rows;
* a batched matrix product with a broadcast operand, multiplied and reduced: NaN, or off by orders
  of magnitude. The derivative of a normalization has this shape.

Taking reductions away from YNNPACK makes both right. XLA aborts the process on a flag that it does
not know, so that a version gets only flags that were tried with it.
"""

import contextlib
import functools
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

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

Another version gets none, since it may not know them; `check_backend` computes the known cases.
"""
RIGHT_WITHOUT_FLAGS = {"0.10.1"}
"""Versions of jaxlib that were seen to compute the known cases right as they are."""


class WrongResultWarning(UserWarning):
    """The backend at hand computes wrong numbers."""


class Check(NamedTuple):
    """Result of the backend on one case with a known value."""

    name: str
    """Name of the case."""
    found: float
    """Result of the backend."""
    expected: float
    """The right value, from float64 NumPy."""

    @property
    def right(self) -> bool:
        """True if both agree to 1e-4 relative; the known faults are off by 0.008 and more."""
        return abs(self.found - self.expected) <= 1e-4 * abs(self.expected)


@functools.cache
def jaxlib_version() -> str:
    """Returns the version of the installed jaxlib; "" where there is none."""
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ""


def missing_flags(version: str, xla_flags: str) -> tuple[str, ...]:
    """Returns the flags that a jaxlib needs and ``XLA_FLAGS`` does not set, to whatever value.

    A value that the user set stays: the user decides.

    Args:
      version: of jaxlib.
      xla_flags: value of the environment variable ``XLA_FLAGS``.
    """
    return tuple(
        flag
        for flag in NEEDED_FLAGS.get(version, ())
        if _name(flag) not in map(_name, xla_flags.split())
    )


def known_to_be_right(version: str, xla_flags: str) -> bool:
    """Returns whether a jaxlib was seen to be right with these flags; arguments as above."""
    if version in RIGHT_WITHOUT_FLAGS:
        return True
    values = {_name(flag): flag for flag in xla_flags.split()}  # The last one counts.
    needed = NEEDED_FLAGS.get(version, ())
    return bool(needed) and all(values.get(_name(flag)) == flag for flag in needed)


def _name(flag):
    return flag.partition("=")[0]


def set_flags() -> None:
    """Appends the flags that the installed jaxlib needs to ``XLA_FLAGS``.

    It works until JAX starts its backend, which reads the variable once; processes started later
    inherit it. Where the backend already runs without them, it is checked: see `check_backend`.
    """
    present = os.environ.get("XLA_FLAGS", "")
    missing = missing_flags(jaxlib_version(), present)
    if missing and not backend_started():
        os.environ["XLA_FLAGS"] = " ".join([*present.split(), *missing])
    elif missing:
        check_backend()


def check_backend() -> None:
    """Warns, once in a process, where the backend computes one of the known cases wrong.

    They are computed unless the version of jaxlib and ``XLA_FLAGS`` say that it is right.

    Warns:
      WrongResultWarning: it is wrong; the message says what to do.
    """
    if not known_to_be_right(jaxlib_version(), os.environ.get("XLA_FLAGS", "")):
        _warn_if_wrong()


@functools.cache
def _warn_if_wrong():
    wrong = [check.name for check in checks() if not check.right]
    if wrong:
        warnings.warn(
            f"jaxlib {jaxlib_version()} computes wrong numbers on this backend "
            f"({'; '.join(wrong)}). {remedy()}",
            WrongResultWarning,
            stacklevel=4,
        )


def remedy() -> str:
    """Returns what to do about a backend that computes wrong numbers, in a sentence."""
    version = jaxlib_version()
    if needed := NEEDED_FLAGS.get(version):
        return (
            "Import fpnlab before the first JAX computation and leave these flags as it sets them, "
            f"or start Python with XLA_FLAGS='{' '.join(needed)}'"
        )
    tested = ", ".join(sorted({*RIGHT_WITHOUT_FLAGS, *NEEDED_FLAGS}))
    return f"Install one of the versions of jaxlib that fpnlab was tested with: {tested}"


def silence_false_alarms() -> None:
    """Keeps jaxlib 0.10.1 from printing an error for each program that it loads from its cache.

    It takes two preferences of its own code generator for features that the processor lacks, and
    warns of a crash that cannot come. Errors still raise exceptions. Call this before JAX is
    imported; a level that the user set stays.
    """
    # JAX itself sets 1 where nothing is set, also for the processes that a process starts.
    if jaxlib_version() == "0.10.1" and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def backend_started() -> bool:
    """Returns whether JAX has started a backend in this process, and so has read its flags."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    # A private function, the only one that does not start it; where it is missing, assume so.
    return bridge is not None and getattr(bridge, "backends_are_initialized", lambda: True)()


@functools.cache
def checks() -> tuple[Check, ...]:
    """Returns the known cases as computed by JAX's default backend; it starts the backend."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(32_769)
    matrix = np.eye(3, dtype=np.float32)  # A constant of the program, which the fault needs.
    squares = lambda x: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x)
    maps = np.random.default_rng(0).standard_normal((5, 60, 60)).astype(np.float32)
    products = lambda x: jnp.sum((x @ jnp.full_like(x, 0.5)) * x, axis=-1)
    exact = maps.astype(np.float64)
    with contextlib.ExitStack() as settings:
        # What a program that uses fpnlab may have set; a caller may be traced.
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
    """Returns in one line whether this backend computes the known cases right; starts it."""
    wrong = [check.name for check in checks() if not check.right]
    return f"wrong: {'; '.join(wrong)}" if wrong else f"right: {len(checks())} known cases"


def doubt(environment: Mapping[str, Any]) -> str | None:
    """Returns why numbers computed in an environment may be wrong; None where nothing says so.

    Args:
      environment: the contents of an ``env.json``; one written before the known cases were
        checked is judged by its jaxlib, its platform and its flags.
    """
    if line := environment.get("known_cases"):
        return f"its backend failed the known cases ({line})" if line.startswith("wrong") else None
    version = environment.get("versions", {}).get("jaxlib", "")
    flags = environment.get("flags", {}).get("XLA_FLAGS", "")
    if environment.get("platform") != "cpu" or version not in NEEDED_FLAGS:
        return None
    if known_to_be_right(version, flags):
        return None
    return (
        f"it was computed by jaxlib {version} on CPU, which is wrong for some reductions "
        f"without {' '.join(NEEDED_FLAGS[version])}"
    )
