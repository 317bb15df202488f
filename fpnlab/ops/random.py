"""Random keys by name, so that adding a layer never reshuffles the others."""

import zlib

import jax

from fpnlab.types import Key


def named_key(key: Key, *names: str | int) -> Key:
    """Returns the key that belongs to the path ``names``, whatever else draws numbers.

    A BN and an LN model of one seed get bit-identical convolutions this way: a comparison
    of norms then compares norms only.
    """
    for name in names:
        number = name if isinstance(name, int) else zlib.crc32(name.encode())
        key = jax.random.fold_in(key, number)
    return key
