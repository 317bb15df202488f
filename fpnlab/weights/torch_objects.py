"""Tensors and storages as a weight file of PyTorch describes them, without their values."""

import dataclasses
import math

import ml_dtypes
import numpy as np

from fpnlab.errors import WeightsError

MOST_DIMENSIONS = 64
"""Largest number of dimensions of an array in NumPy."""
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool "
        "complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
        "float8_e8m0fnu"
    ).split()
}
"""NumPy's dtypes by the names of PyTorch's."""
STORAGES = {
    f"torch.{kind}Storage": DTYPES[name]
    for kind, name in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
        "Untyped": "uint8",
    }.items()
} | {"torch.storage.UntypedStorage": DTYPES["uint8"]}
"""Dtypes of storages by their classes."""
TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
"""Functions that make a tensor."""
DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
"""Classes that are read as a dict."""
BUILTINS = "set frozenset complex bytearray dict list tuple int float str bool".split()
UNUSED = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in BUILTINS),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    *("_codecs.encode", "torch.device", "argparse.Namespace"),
}
"""Names of common objects beside the tensors, which are read over: none holds weights."""
NAMES = {
    *(f"torch.{name}" for name in DTYPES),
    *STORAGES,
    *TENSORS,
    *DICTS,
    *UNUSED,
    *("torch.Size", "torch._utils._rebuild_parameter"),
}
"""All names that a weight file may contain."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of Python in a weight file; it is never imported."""

    name: str
    """Module and name, joined by a dot."""


@dataclasses.dataclass(frozen=True)
class Unused:
    """An object that holds no weights."""

    name: str
    """Its class or function."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of values in a weight file, of which tensors are views."""

    key: str
    """Its name in the file."""
    dtype: np.dtype
    """Type of the values."""
    count: int
    """Number of all values under this key."""
    start: int
    """Number of the first value that belongs to this storage; above 0 only in old files."""
    stop: int
    """Number of the first value after it."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage."""

    storage: Storage
    """The values."""
    dtype: np.dtype
    """Type of the elements; differs from the storage's where that is of bytes."""
    offset: int
    """Number of the first element, from the start of the storage."""
    size: tuple[int, ...]
    """Elements along each axis."""
    stride: tuple[int, ...]
    """Elements from one to the next along each axis."""
    conjugate: bool = False
    """If true, the values are the complex conjugates of the stored ones."""
    negative: bool = False
    """If true, the values are the negatives of the stored ones."""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, those of shared memory counted each time; 1 or more elements."""
        return math.prod(max(size, 1) for size in self.size) * self.dtype.itemsize


def storage_of(identity: object) -> Storage:
    """Returns the storage to which a persistent id refers.

    Raises:
      WeightsError: It is no valid id of a storage.
    """
    match identity:
        case ("module", *_):
            raise WeightsError(f"it holds a whole model, not only its weights; {SAVE}")
        case ("storage", Name() as kind, str(key), _, int(count), *view) if kind.name in STORAGES:
            match view:
                case [] | [None]:
                    start, length = 0, count
                case [(_, int(start), int(length))]:
                    pass
                case _:
                    raise WeightsError(f"the view of storage {shown(key)} is invalid; {DAMAGED}")
            if not 0 <= start <= start + length <= count < 2**62:
                raise WeightsError(
                    f"storage {shown(key)} has {number(count)} values, of which {number(length)} "
                    f"from {number(start)} are used; {DAMAGED}"
                )
            return Storage(key, STORAGES[kind.name], count, start, start + length)
    raise WeightsError(f"a persistent id does not refer to a storage of PyTorch; {DAMAGED}")


def build(called: object, arguments: object) -> object:
    """Returns the object that a file describes by a name and arguments; nothing is called.

    Raises:
      WeightsError: The name is none that is called in a weight file, or the arguments are invalid.
    """
    name = called.name if isinstance(called, Name) else type(called).__name__
    match arguments:
        case () if name in DICTS:
            return {}
        case (Name() | None,) if name == "collections.defaultdict":
            return {}
        case (dict() as content,) if name in DICTS:
            return content
        case (list() as pairs,) if name in DICTS:  # Python 2
            content = {}
            for pair in pairs:
                match pair:
                    case [key, value]:
                        put(content, key, value)
                    case _:
                        raise WeightsError(f"{name} has entries that are no pairs; {DAMAGED}")
            return content
        case (Storage() as storage, int(offset), size, stride, *rest) if name in TENSORS:
            return _tensor(name, storage, offset, size, stride, [*rest])
        case (Tensor() as tensor, *_) if name == "torch._utils._rebuild_parameter":
            return tensor
        case (tuple() as size,) if name == "torch.Size":
            return size
        case tuple() if name in UNUSED:
            return Unused(name)
    raise WeightsError(f"{shown(name)} is called with arguments of another form; {DAMAGED}")


def put(content: object, key: object, value: object) -> None:
    """Puts an entry into a dict.

    Raises:
      WeightsError: ``content`` is no dict, or the key neither text nor a number.
    """
    # The hash of a tuple of tuples may take forever, and integers of any size may all have one.
    plain = type(key) in (str, float, bool, type(None)) or (
        type(key) is int and -(2**63) <= key < 2**64
    )
    if not isinstance(content, dict) or not plain:
        raise WeightsError(
            f"a key of type {type(key).__name__} is put into a {type(content).__name__}; expected "
            f"a dict with keys of text or numbers of 64 bits; {SAVE}"
        )
    content[key] = value


def _tensor(
    name: str, storage: Storage, offset: int, size: object, stride: object, rest: list[object]
) -> Tensor:
    """Returns a tensor after checking that all of its elements lie in its storage."""
    dtype, metadata = storage.dtype, rest[2:]
    if name.endswith("_v3"):
        match rest:
            case [_, _, Name(kind), *metadata] if kind.removeprefix("torch.") in DTYPES:
                dtype = DTYPES[kind.removeprefix("torch.")]
            case _:
                raise WeightsError(f"a tensor has no dtype; {DAMAGED}")
    flags = metadata[0] if metadata and isinstance(metadata[0], dict) else {}
    sizes, strides = _counts(size), _counts(stride)
    if sizes is None or strides is None or len(sizes) != len(strides) or offset < 0:
        raise WeightsError(
            f"a tensor of storage {shown(storage.key)} has a size, stride or offset that is "
            f"negative, no integer, or of more than {MOST_DIMENSIONS} axes; {DAMAGED}"
        )
    there = (storage.stop - storage.start) * storage.dtype.itemsize // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides) if n > 1)
    if 0 not in sizes and last >= there:
        raise WeightsError(
            f"a tensor of size {_listed(sizes)}, stride {_listed(strides)} and offset "
            f"{number(offset)} does not fit into the {there} values of storage "
            f"{shown(storage.key)}; {DAMAGED}"
        )
    return Tensor(
        storage=storage,
        dtype=dtype,
        offset=offset,
        size=sizes,
        stride=strides,
        conjugate=bool(flags.get("conj")),
        negative=bool(flags.get("neg")),
    )


def _counts(values: object) -> tuple[int, ...] | None:
    """Returns a tuple of integers from 0 to 2**63 - 1; None if it is not one."""
    if not isinstance(values, tuple) or len(values) > MOST_DIMENSIONS:
        return None
    valid = all(type(value) is int and 0 <= value < 2**63 for value in values)
    return values if valid else None


def shown(text: object) -> str:
    """Returns text from a file for a message: quoted, without control characters, and not long."""
    text = str(text) if isinstance(text, str) else type(text).__name__
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def number(value: int) -> str:
    """Returns an integer from a file for a message."""
    return str(value) if abs(value) < 10**20 else f"about 2**{value.bit_length()}"


def _listed(values: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(number, values[:8])) + (", ...)" if len(values) > 8 else ")")


SAVE = (
    "save the weights alone, in PyTorch: torch.save(model.state_dict(), path), or "
    "safetensors.torch.save_model(model, path)"
)
"""Remedy for files that hold more than weights."""
DAMAGED = "the file is damaged, or not written by torch.save; write or download it again"
"""Remedy for files that contradict themselves."""
