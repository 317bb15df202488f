"""Normalization, residual blocks and feature pyramids as pure functions in JAX.

A layer is a spec; parameters and running statistics go in and come out:

    norm = fpnlab.BatchNorm(norm_batch=8)
    params, state = fpnlab.init(key, norm, 64)
    y, state = fpnlab.apply(norm, params, state, x, fpnlab.Mode.TRAIN)

The functions that layers are made of are in the namespaces ``ops``, ``nn``, ``data``, ``train``,
``weights``, ``evaluate``, ``diagnostics``, ``stats`` and ``adapters``. Names are loaded when they
are first used: ``import fpnlab`` itself loads no JAX. It does set the flags without which the
installed XLA computes wrong numbers (``fpnlab.compiler``).
"""

import lazy_loader

from fpnlab.compiler import set_flags

set_flags()

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Returns a public name from the module that defines it (PEP 562)."""
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("fpnlab")
    if name in __all__:
        set_flags()  # Again: a program may have set XLA_FLAGS anew, or started JAX.
    return _load(name)
