"""Directory of a zip file of stored entries, which are read in place.

``zipfile`` lists an archive without any limit, and unpacks entries that may overlap. In the
archives of PyTorch nothing is compressed, so that no entry can be larger than the file.
"""

import dataclasses
import io
import struct

from fpnlab.errors import WeightsError

END = b"PK\x05\x06"
END_SIZE = 22
LONGEST_COMMENT = 65_535
END64 = b"PK\x06\x06"
END64_SIZE = 56
LOCATOR64 = b"PK\x06\x07"
LOCATOR64_SIZE = 20
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
EXTRA64 = 1
"""Number of the field with sizes and offsets of 64 bits."""
UNKNOWN = 2**32 - 1
"""Size or offset that stands in that field."""
MOST_ENTRIES = 50_000
"""Largest number of entries; a file has one for each tensor, and a few more."""
MOST_DIRECTORY_BYTES = 2**23
"""Largest directory in bytes."""
REMEDY = "the file is truncated or damaged; write or download it again"


@dataclasses.dataclass(frozen=True)
class ZipEntry:
    """The place of a stored entry."""

    name: str
    """Path in the archive."""
    crc: int
    """CRC-32 of the content; 0 where it was not computed."""
    size: int
    """Bytes of the content."""
    header: int
    """Position of the header before the content."""
    stored: bool
    """If false, the content is compressed or encrypted."""


def read_directory(file: io.BufferedIOBase, size: int) -> dict[str, ZipEntry]:
    """Returns the entries of a zip file by name.

    Args:
      file: The file, which is read from any position.
      size: Its size in bytes.

    Raises:
      WeightsError: The directory is missing, damaged or too large, an entry is there twice, or the
        entries are together larger than the file.
    """
    start, length, count = _find_directory(file, size)
    if count > MOST_ENTRIES or length > MOST_DIRECTORY_BYTES:
        raise WeightsError(
            f"the zip directory has {count:,} entries in {length:,} bytes; at most "
            f"{MOST_ENTRIES:,} in {MOST_DIRECTORY_BYTES:,} are read; {REMEDY}"
        )
    directory = _read(file, start, length, "the zip directory")
    entries: dict[str, ZipEntry] = {}
    position = 0
    for number in range(count):
        entry, position = _entry(directory, position, number)
        if entry.name in entries:
            raise WeightsError(f"the zip directory has {entry.name!r} twice; {REMEDY}")
        entries[entry.name] = entry
    total = sum(entry.size for entry in entries.values() if entry.stored)
    if total > size:
        raise WeightsError(f"the zip entries have {total:,} bytes in a file of {size:,}; {REMEDY}")
    return entries


def content_start(file: io.BufferedIOBase, entry: ZipEntry, size: int) -> int:
    """Returns the position of the content of an entry in a file of ``size`` bytes.

    Raises:
      WeightsError: The entry is compressed or encrypted, its header differs from the directory, or
        its content is not in the file.
    """
    if not entry.stored:
        raise WeightsError(
            f"the zip entry {entry.name!r} is compressed or encrypted; expected an archive as "
            "torch.save writes it; pack it again without compression (zip -0)"
        )
    what = f"the zip header of {entry.name!r}"
    header = LOCAL.unpack(_read(file, entry.header, LOCAL.size, what))
    name, extra = header[9], header[10]
    start = entry.header + LOCAL.size + name + extra
    same = _read(file, entry.header + LOCAL.size, name, what) == entry.name.encode()
    if header[0] != b"PK\x03\x04" or not same or start + entry.size > size:
        raise WeightsError(f"{what} at byte {entry.header} is invalid; {REMEDY}")
    return start


def _find_directory(file: io.BufferedIOBase, size: int) -> tuple[int, int, int]:
    """Returns the position, the bytes and the entries of the directory."""
    tail_start = max(0, size - END_SIZE - LONGEST_COMMENT)
    tail = _read(file, tail_start, size - tail_start, "the end")
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        raise WeightsError(f"the zip file has no directory at its end; {REMEDY}")
    count, length, start = struct.unpack_from("<HLL", tail, at + 10)
    locator = tail_start + at - LOCATOR64_SIZE
    if locator >= 0:
        found = _read(file, locator, LOCATOR64_SIZE, "the zip directory")
        if found.startswith(LOCATOR64):
            (where,) = struct.unpack_from("<Q", found, 8)
            record = _read(file, where, END64_SIZE, "the zip directory")
            if not record.startswith(END64):
                raise WeightsError(f"the zip file has no directory at byte {where}; {REMEDY}")
            count, length, start = struct.unpack_from("<QQQ", record, 32)
    return start, length, count


def _entry(directory: bytes, position: int, number: int) -> tuple[ZipEntry, int]:
    """Returns the entry at a position of the directory, and the position of the next."""
    invalid = WeightsError(f"entry {number} of the zip directory is invalid; {REMEDY}")
    if len(directory) - position < ENTRY.size:
        raise invalid
    fields = ENTRY.unpack_from(directory, position)
    flags, method, crc, packed, size = fields[3], fields[4], *fields[7:10]
    name_size, extra_size, comment_size, header = *fields[10:13], fields[16]
    name_end = position + ENTRY.size + name_size
    end = name_end + extra_size + comment_size
    if fields[0] != b"PK\x01\x02" or len(directory) < end:
        raise invalid
    try:
        name = directory[position + ENTRY.size : name_end].decode()
        extra = directory[name_end : name_end + extra_size]
        size, packed, header = _sizes64(extra, [size, packed, header])
    except (UnicodeDecodeError, struct.error):
        raise invalid from None
    stored = not method and not flags & 1 and packed == size
    return ZipEntry(name, crc, size, header, stored), end


def _sizes64(extra: bytes, values: list[int]) -> list[int]:
    """Returns sizes and offset with those that do not fit 32 bits from the extra fields."""
    position, fields = 0, {}
    while len(extra) - position >= 4:
        kind, length = struct.unpack_from("<HH", extra, position)
        fields[kind] = extra[position + 4 : position + 4 + length]
        position += 4 + length
    wide = struct.iter_unpack("<Q", fields.get(EXTRA64, b"")[: 8 * values.count(UNKNOWN)])
    longer = [number for (number,) in wide]
    if len(longer) != values.count(UNKNOWN):
        raise struct.error("the field of 64 bits is too short")
    return [longer.pop(0) if value == UNKNOWN else value for value in values]


def _read(file: io.BufferedIOBase, start: int, length: int, what: str) -> bytes:
    """Returns bytes of the file; it is an error that there are fewer."""
    try:
        file.seek(start)
        found = file.read(length)
    except (OSError, OverflowError):
        found = b""
    if len(found) != length:
        raise WeightsError(f"{what} has {length} bytes from byte {start}, outside of it; {REMEDY}")
    return found
