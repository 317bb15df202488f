"""The two formats of ``torch.save``: a zip archive (since PyTorch 1.6), and pickles in a row."""

import dataclasses
import io
import zlib

import numpy as np
from jaxtyping import UInt8

from fpnlab.errors import WeightsError
from fpnlab.weights.restricted_pickle import MOST_PICKLE_BYTES, RestrictedUnpickler
from fpnlab.weights.torch_objects import DAMAGED, SAVE, Storage, Tensor, number, shown
from fpnlab.weights.zip_entries import ZipEntry, content_start, read_directory

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""First value of the old format."""
PROTOCOL_VERSION = 1001
"""Second value of the old format."""
COUNT_BYTES = 8
"""Bytes before each storage of the old format, its number of values."""


@dataclasses.dataclass(frozen=True)
class StorageBytes:
    """The place of a storage in a file."""

    start: int
    """Position of the first byte."""
    size: int
    """Number of bytes."""
    crc: int
    """CRC-32; 0 where it was not computed."""


class TorchFile:
    """An open file of ``torch.save``: its object, and the values of tensors on demand."""

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        """Reads the object of a file, but no values of tensors.

        Args:
          file: The file; it stays open while tensors are read.
          size: Its size in bytes.

        Raises:
          WeightsError: The file is damaged, or holds other than plain values, containers and
            tensors.
        """
        self._file = file
        self._big_endian = False
        self._storages: dict[str, UInt8[np.ndarray, " n"]] = {}
        file.seek(0)
        if file.read(2) == b"PK":
            self._places, self.value = self._open_zip(size)
        else:
            self._places, self.value = _open_old(file, size)

    def read(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a tensor, a view of those of its storage.

        Raises:
          WeightsError: The storage is missing, of another size or damaged.
        """
        storage, itemsize = tensor.storage, tensor.dtype.itemsize
        content = self._content(storage)
        array = np.ndarray(
            tensor.size,
            tensor.dtype,
            buffer=content,  # Whose bounds NumPy checks again.
            offset=storage.start * storage.dtype.itemsize
            + (tensor.offset * itemsize if 0 not in tensor.size else 0),
            strides=[step * itemsize if n > 1 else 0 for n, step in zip(tensor.size, tensor.stride)]
            if 0 not in tensor.size
            else None,
        )
        if self._big_endian:
            array = _swapped(array)
        if tensor.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise WeightsError(
                f"storage {shown(storage.key)} has bytes that are no bool; {DAMAGED}"
            )
        if tensor.conjugate:
            array = array.conj()
        return -array if tensor.negative else array

    def _open_zip(self, size: int) -> tuple[dict[str, StorageBytes], object]:
        entries = read_directory(self._file, size)
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(
                f"the zip archive has {len(pickles)} entries data.pkl; expected one, as torch.save "
                "writes it"
            )
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            raise WeightsError(
                "it is a TorchScript model; save its weights alone, in PyTorch: "
                "torch.save(torch.jit.load(path).state_dict(), other_path)"
            )
        inside = [entry for name, entry in entries.items() if name.startswith(root)]
        places = {entry.name.removeprefix(root): self._place(entry, size) for entry in inside}
        if "byteorder" in places:
            self._big_endian = self._small("byteorder", places["byteorder"], 8) == b"big"
        content = self._small("data.pkl", places["data.pkl"], MOST_PICKLE_BYTES)
        value = RestrictedUnpickler(content, "data.pkl").load()
        storages = ((n.partition("/"), place) for n, place in places.items())
        return {key: place for (folder, _, key), place in storages if folder == "data"}, value

    def _place(self, entry: ZipEntry, size: int) -> StorageBytes:
        return StorageBytes(content_start(self._file, entry, size), entry.size, entry.crc)

    def _small(self, name: str, place: StorageBytes, most: int) -> bytes:
        if place.size > most:
            raise WeightsError(
                f"{name} has {place.size:,} bytes; at most {most:,} are read; {SAVE}"
            )
        return self._bytes(name, place).tobytes()

    def _content(self, storage: Storage) -> UInt8[np.ndarray, " n"]:
        """Returns the bytes of a storage, which are read once, and read-only."""
        key, expected = storage.key, storage.count * storage.dtype.itemsize
        place = self._places.get(key) if expected else StorageBytes(0, 0, 0)
        if place is None or place.size != expected:
            there = "is missing" if place is None else f"has {place.size:,} bytes"
            raise WeightsError(
                f"storage {shown(key)} {there}; expected {number(expected)} bytes; {DAMAGED}"
            )
        if key not in self._storages:
            self._storages[key] = self._bytes(f"storage {shown(key)}", place)
        return self._storages[key]

    def _bytes(self, what: str, place: StorageBytes) -> UInt8[np.ndarray, " n"]:
        content = np.empty(place.size, np.uint8)
        self._file.seek(place.start)
        if self._file.readinto(content.data) != place.size:
            raise WeightsError(f"{what} ends early; the file was changed while it was read")
        if place.crc and zlib.crc32(content.data) != place.crc:
            raise WeightsError(f"{what} differs from its checksum; {DAMAGED}")
        content.flags.writeable = False
        return content


def _open_old(file: io.BufferedIOBase, size: int) -> tuple[dict[str, StorageBytes], object]:
    """Returns the places of the storages of an old file, and its object."""
    file.seek(0)
    pickles = RestrictedUnpickler(file.read(min(size, MOST_PICKLE_BYTES)), "pickle")
    if pickles.load() != MAGIC_NUMBER or pickles.load() != PROTOCOL_VERSION:
        raise WeightsError(f"it is a pickle, but no file of torch.save; {SAVE}")
    pickles.load()  # Sizes of types of the machine, which PyTorch ignores, too.
    value = pickles.load()
    keys = pickles.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise WeightsError(f"the list of storages is invalid; {DAMAGED}")
    return _old_places(file, size, pickles, keys), value


def _old_places(
    file: io.BufferedIOBase, size: int, pickles: RestrictedUnpickler, keys: list[str]
) -> dict[str, StorageBytes]:
    """Returns the places of storages, each after its number of values, in the order of ``keys``."""
    places: dict[str, StorageBytes] = {}
    position = pickles.stream.tell()
    for key in keys:
        storage = pickles.storages.get(key)
        if storage is None or key in places:
            what = "there twice" if key in places else "used by no tensor"
            raise WeightsError(f"storage {shown(key)} is {what}; {DAMAGED}")
        file.seek(position)
        count = int.from_bytes(file.read(COUNT_BYTES), "little", signed=True)
        start, bytes_there = position + COUNT_BYTES, count * storage.dtype.itemsize
        if count != storage.count or start + bytes_there > size:
            raise WeightsError(
                f"storage {shown(key)} at byte {position} has {count} values, of "
                f"{number(storage.count)} expected, in a file of {size:,} bytes; {DAMAGED}"
            )
        places[key] = StorageBytes(start, bytes_there, 0)
        position = start + bytes_there
    return places


def _swapped(array: np.ndarray) -> np.ndarray:
    """Returns an array with the bytes of each number in the opposite order."""
    part = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    numbers = np.ascontiguousarray(array).view(f"u{part}").byteswap()
    return numbers.view(array.dtype).reshape(array.shape)
