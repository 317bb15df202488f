"""Weights from the files of PyTorch and of safetensors, without PyTorch."""

import io
import os

import numpy as np

from fpnlab.errors import WeightsError
from fpnlab.records.regular_files import open_regular
from fpnlab.weights.safetensors_format import read_safetensors
from fpnlab.weights.torch_file import TorchFile
from fpnlab.weights.torch_objects import SAVE, Tensor, shown

MOST_BYTES = 2**36
"""Largest file in bytes."""
MOST_SHARING = 16
"""Largest number of times that all arrays together may be larger than the file."""
FREE_BYTES = 2**26
"""Bytes that all arrays together may have in any case."""
NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys of the weights in a dict of weights and other things."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of all names that DataParallel and torch.compile add."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays in a file of weights by name.

    The file is one of safetensors or of ``torch.save`` (in either of its formats), which is
    recognized by its content. Nothing in it is run, whoever wrote it: a pickle that holds more than
    plain values, containers and tensors is an error. Weights are found in a dict under
    ``state_dict``, ``model_state_dict``, ``model`` or ``net``, too, and the prefixes of
    DataParallel and ``torch.compile`` are left out.

    The arrays have the shapes of PyTorch, and bfloat16 is that of ``ml_dtypes``. They are
    read-only, and share memory where the tensors of the file do.

    Args:
      path: The file.

    Raises:
      WeightsError: The file is missing, of another format, damaged or too large, or holds other
        things than weights.
    """
    try:
        with open_regular(path, MOST_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            arrays = _read(file, size)
    except (WeightsError, ValueError) as error:
        raise WeightsError(f"{os.fspath(path)}: {error}") from None
    except OSError as error:
        raise WeightsError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}); give a readable file"
        ) from error
    while names := _without_wrapper(arrays):
        arrays = dict(zip(names, arrays.values()))
    return arrays


def _read(file: io.BufferedIOBase, size: int) -> dict[str, np.ndarray]:
    """Returns the arrays in an open file of ``size`` bytes by name, as it writes them."""
    head = file.read(9)
    if head[8:9] == b"{":
        return read_safetensors(file, size)
    if not head.startswith((b"PK", b"\x80")):
        raise WeightsError(
            f"it begins with {head.hex(' ') or 'nothing'}; expected a file of safetensors or of "
            "torch.save"
        )
    saved = TorchFile(file, size)
    tensors = _state_dict(saved.value)
    together = sum(tensor.nbytes for tensor in tensors.values())
    if together > MOST_SHARING * size + FREE_BYTES:
        raise WeightsError(
            f"its tensors have {together:.3g} bytes, and the file {size:.3g}: too many share the "
            f"same memory; {SAVE}"
        )
    return {name: saved.read(tensor) for name, tensor in tensors.items()}


def _state_dict(value: object) -> dict[str, Tensor]:
    """Returns the tensors in the object of a file by name."""
    for _ in range(len(NESTED)):
        if isinstance(value, dict):
            inner = next((value[key] for key in NESTED if isinstance(value.get(key), dict)), None)
            value = value if inner is None else inner
    if not isinstance(value, dict) or not value:
        what = "an empty" if isinstance(value, dict) else "one value of type"
        raise WeightsError(
            f"it holds {what} {type(value).__name__}; expected a dict from names to tensors; {SAVE}"
        )
    others = [
        f"{shown(name)} ({type(entry).__name__})"
        for name, entry in value.items()
        if not (isinstance(name, str) and isinstance(entry, Tensor))
    ]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise WeightsError(
            f"not all entries are tensors with a name: {', '.join(others[:5])}{more}; expected "
            f"tensors alone, or a dict of them under {', '.join(map(repr, NESTED))}; {SAVE}"
        )
    return value


def _without_wrapper(arrays: dict[str, np.ndarray]) -> list[str] | None:
    """Returns the names without the prefix of a wrapper; None if they do not all have one."""
    for prefix in WRAPPERS:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return [name.removeprefix(prefix) for name in arrays]
    return None
