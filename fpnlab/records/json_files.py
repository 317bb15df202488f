"""Atomic writing and validated reading of JSON files."""

import contextlib
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import TypeVar

import pydantic

from fpnlab.errors import RunFolderError

T = TypeVar("T")
JsonObject = dict[str, object]
"""A JSON object."""
AxisValue = str | int | float | bool | None
"""Value of a study's axis in JSON."""


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Converts an OSError in its body into a `RunFolderError` that names ``folder``."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{folder}: cannot be written ({error}); free space, allow writing, or use another "
            "folder, then run the same command again"
        ) from error


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes ``value`` to ``path`` atomically: a reader sees either the old or the new file.

    NaN and infinity are written as null, because JSON has neither.
    """
    replace_file(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: pathlib.Path) -> JsonObject:
    """Returns the object in a JSON file.

    Raises:
      RunFolderError: The file cannot be read, or does not hold an object.
    """
    try:
        value = json.loads(path.read_bytes(), parse_int=_integer)
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: expected a table; found {type(value).__name__}")
    return value


def read_record(path: pathlib.Path, kind: type[T], what: str) -> T:
    """Returns a JSON file as the dataclass ``kind``; unknown fields are ignored.

    Args:
      path: The file.
      kind: The dataclass.
      what: Description of the content for error messages.

    Raises:
      RunFolderError: The file cannot be read, or lacks a field.
    """
    try:
        return _adapter(kind).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RunFolderError(f"{path}: not {what} ({where}: {problem['msg']})") from error


@functools.cache
def _adapter(kind: type) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


def json_line(value: object) -> str:
    """Returns ``value`` as a line of JSON that ends with a newline."""
    return json.dumps(_finite(value), allow_nan=False) + "\n"


def replace_file(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file atomically, and never writes to what a link at its place points to.

    Args:
      path: The file.
      content: Its bytes, or text, which is encoded as UTF-8.

    Raises:
      RunFolderError: It cannot be written; the file stays as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path.parent), contextlib.ExitStack() as undo:
        scratch.unlink(missing_ok=True)
        with scratch.open("xb") as file:  # Exclusive: not through a link that another process made.
            undo.callback(scratch.unlink, missing_ok=True)
            file.write(data)
            file.flush()
            # Otherwise the rename may reach the disk before the content, and a power failure would
            # leave an empty file in place of the old one.
            os.fsync(file.fileno())
        scratch.replace(path)


def _integer(digits: str) -> int:
    """Returns an integer, which like all that is written has at most 64 bits."""
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"an integer of {len(digits)} digits")
    return value


def _finite(value: object) -> object:
    match value:
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value
