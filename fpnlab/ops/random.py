"""Random keys derived from names, so that adding a layer does not change the others."""

import zlib

import jax

from fpnlab.types import Key


def named_key(key: Key, *names: str | int) -> Key:
    """Returns the key of the path ``names``, independent of the order of other draws.

    A BN and an LN model of one seed get bit-identical convolutions this way, so that a comparison
    of norms compares the norms only.
    """
    for name in names:
        number = name if isinstance(name, int) else zlib.crc32(name.encode())
        key = jax.random.fold_in(key, number)
    return key
