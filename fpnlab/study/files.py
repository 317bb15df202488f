"""Files that are whole or absent: JSON values, and logs of one JSON record a line."""

import json
import math
import os
import pathlib
from typing import Any


class RunFolderError(Exception):
    """A folder that cannot be used for this run or study."""

    exit_code = 5


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes ``value`` to ``path`` in one move: a reader sees the old file or the new one.

    NaN becomes null, because JSON has none.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w") as file:
        json.dump(_finite(value), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def append_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Appends one record to a log, and hands it to the system at once."""
    with path.open("a") as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


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


def _finite(value):
    match value:
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list() | tuple():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
    return value
