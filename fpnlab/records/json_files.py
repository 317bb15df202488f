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
from fpnlab.records.regular_files import read_regular

LONGEST_INTEGER = 18
"""Largest number of characters of an integer, so that it fits 64 bits."""
T = TypeVar("T")
MOST_JSON_BYTES = 2**30
"""Largest JSON file or log in bytes."""
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
        value = parse_json(read_regular(path, MOST_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: expected a table; found {type(value).__name__}")
    return value


def parse_json(content: bytes) -> object:
    """Returns the value in JSON text; numbers are finite, and integers have at most 64 bits.

    Raises:
      ValueError: The text is not such JSON, or nested too deeply.
    """
    try:
        return json.loads(
            content, parse_constant=_not_json, parse_float=_finite_number, parse_int=_short_integer
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _not_json(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _short_integer(text: str) -> int:
    # Longer ones fit neither a float nor an array, and so would end in an error far from here.
    if len(text) > LONGEST_INTEGER:
        raise ValueError("an integer has too many digits")
    return int(text)


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


def _finite(value: object) -> object:
    match value:
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value
