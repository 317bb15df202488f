"""Opening of regular files up to a size: not of pipes, devices, sockets or endless files."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""Files that are not regular, by the type in their mode."""


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], most: int) -> Iterator[io.BufferedReader]:
    """Yields a regular file of at most ``most`` bytes, open for reading.

    Args:
      path: The file, or a link to it.
      most: Largest size in bytes.

    Raises:
      OSError: The file is missing or cannot be opened.
      ValueError: It is not a regular file, or is larger.
    """
    # Opening a pipe waits for a writer, and opening a device may act on it. The file may be
    # replaced between the two checks: so do not wait for a writer then, either.
    _check(os.stat(path), most)
    nonblocking = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    with open(path, "rb", opener=nonblocking) as file:
        _check(os.fstat(file.fileno()), most)
        yield file


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Returns the content of a regular file of at most ``most`` bytes.

    What is appended while the file is read is left out.

    Args:
      path: The file, or a link to it.
      most: Largest size in bytes.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: It is not a regular file, or is larger.
    """
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def _check(found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown type")
        raise ValueError(f"is {kind}; expected a regular file")
    if found.st_size > most:
        raise ValueError(f"has {found.st_size:,} bytes; at most {most:,} are read")
