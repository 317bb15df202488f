"""Files that are whole or absent: JSON values, and logs of one JSON record a line."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any


class RunFolderError(Exception):
    """A folder that cannot be used for this run or study."""

    exit_code = 5


class FolderLocked(RunFolderError):
    """A folder that another process is working in."""


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Makes the system's refusal to write a `RunFolderError` that names ``folder``."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{folder}: cannot be written ({error}); free space, or choose another folder with "
            "--out, then run the same command again"
        ) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds ``folder`` against other processes; a dead process's lock is gone with it.

    Raises:
      FolderLocked: another process holds it.
    """
    with writing(folder):
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderLocked(
                f"{folder}: another process is running this; wait for it, or choose another "
                "folder with --out"
            ) from None
        yield


def in_use(folder: pathlib.Path) -> bool:
    """Returns whether a process holds ``folder``; nothing is written to find out."""
    try:
        file = (folder / ".lock").open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes ``value`` to ``path`` in one move: a reader sees the old file or the new one.

    NaN becomes null, because JSON has none.
    """
    _replace(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def write_lines(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """Writes a log anew, in one move."""
    _replace(path, "".join(map(_line, records)))


def append_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Appends one record to a log, and hands it to the system at once."""
    with writing(path.parent), path.open("a") as file:
        file.write(_line(record))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a log; none of a missing one, and not a torn last line."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _replace(path, text):
    scratch = path.with_name(f".{path.name}.tmp")
    with writing(path.parent):
        with scratch.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)


def _line(record):
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value):
    match value:
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value
