"""Files of safetensors: a length, a table in JSON, and the values of all arrays in a row."""

import io
import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import ArrayLike

from fpnlab.errors import WeightsError
from fpnlab.records.json_files import parse_json, replace_file
from fpnlab.weights.torch_objects import DTYPES, MOST_DIMENSIONS, shown

LENGTH_BYTES = 8
"""Bytes of the length of the table, and its alignment."""
MOST_TABLE_BYTES = 2**22
"""Largest table in bytes; an array takes about 100."""
METADATA = "__metadata__"
"""Entry of the table with remarks, which are not read."""
CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Names of the dtypes by their codes in the table."""
REMEDY = "the file is truncated or damaged, or no safetensors; write or download it again"


def read_safetensors(file: io.BufferedIOBase, size: int) -> dict[str, np.ndarray]:
    """Returns the arrays of an open file by name, as read-only views of one block of memory.

    Args:
      file: The file.
      size: Its size in bytes.

    Raises:
      WeightsError: The table is invalid, or does not describe all bytes of the file.
    """
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    start = LENGTH_BYTES + length
    if not 2 <= length <= MOST_TABLE_BYTES or start > size:
        raise WeightsError(
            f"the table has {length:,} bytes in a file of {size:,}; expected 2 to "
            f"{MOST_TABLE_BYTES:,}; {REMEDY}"
        )
    try:
        table = parse_json(file.read(length))
    except ValueError as error:  # Of the encoding, too.
        raise WeightsError(f"the table is not valid ({error}); {REMEDY}") from None
    if not isinstance(table, dict):
        raise WeightsError(f"the table is a {type(table).__name__}; {REMEDY}")
    table.pop(METADATA, None)
    rows = sorted((_row(name, entry) for name, entry in table.items()), key=lambda row: row[3])
    end = 0
    for name, _, _, (first, last) in rows:
        if first != end:
            raise WeightsError(f"{shown(name)} begins at byte {first} and not at {end}; {REMEDY}")
        end = last
    if start + end != size:
        raise WeightsError(f"the arrays end at byte {start + end} of {size}; {REMEDY}")
    content = np.empty(end, np.uint8)
    if file.readinto(content.data) != end:
        raise WeightsError("it ends early; the file was changed while it was read")
    content.flags.writeable = False
    return {
        name: np.ndarray(shape, dtype, content, offset=first)
        for name, dtype, shape, (first, _) in rows
    }


def _row(name: str, entry: object) -> tuple[str, np.dtype, tuple[int, ...], tuple[int, int]]:
    """Returns name, dtype, shape, and first and last byte of an array after checking them."""
    fields = entry if isinstance(entry, dict) else {}
    match [fields.get(field) for field in ("dtype", "shape", "data_offsets")]:
        case [str(code), list(shape), [int(first), int(last)]]:
            if code not in CODES:
                raise WeightsError(
                    f"{shown(name)} has the dtype {shown(code)}; expected {', '.join(CODES)}"
                )
            dtype = DTYPES[CODES[code]]
            sizes = [n for n in shape if type(n) is int and n >= 0]
            fits = len(sizes) == len(shape) <= MOST_DIMENSIONS
            if fits and 0 <= first <= last and math.prod(sizes) * dtype.itemsize == last - first:
                return name, dtype, tuple(sizes), (first, last)
    raise WeightsError(
        f"the entry of {shown(name)} is invalid; expected a dtype, a shape, and data_offsets that "
        f"are as far apart as its bytes; {REMEDY}"
    )


def write_safetensors(path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike]) -> None:
    """Writes arrays to a file of safetensors, atomically: readers see the old or the new file.

    Args:
      path: The file, which is replaced if it exists.
      arrays: Arrays by name, of NumPy or JAX; complex128 is no dtype of the format.

    Raises:
      RunFolderError: It cannot be written; an existing file stays as it was.
      TypeError: A name is no text, or an array of a dtype that the format does not have.
    """
    codes = {DTYPES[name]: code for code, name in CODES.items()}
    table: dict[str, object] = {}
    parts: list[bytes] = []
    end = 0
    found = {name: np.asarray(array) for name, array in arrays.items()}
    # The widest first, so that each array is aligned, as the library of safetensors orders them.
    for name in sorted(found, key=lambda name: (-found[name].dtype.itemsize, name)):
        array = found[name]
        code = codes.get(array.dtype.newbyteorder("="))
        if not isinstance(name, str) or name == METADATA or code is None:
            raise TypeError(
                f"write_safetensors: {name!r} of dtype {array.dtype}; expected names of text other "
                f"than {METADATA!r}, and one of these dtypes: {', '.join(CODES.values())}"
            )
        parts.append(np.asarray(array, array.dtype.newbyteorder("=")).tobytes())
        offsets = [end, end := end + len(parts[-1])]
        table[name] = {"dtype": code, "shape": [*array.shape], "data_offsets": offsets}
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % LENGTH_BYTES)
    replace_file(
        pathlib.Path(path), b"".join([len(head).to_bytes(LENGTH_BYTES, "little"), head, *parts])
    )
