"""Fingerprints of the files of a data set, by which changed data is recognized."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable

from fpnlab.records.json_files import JsonObject, read_record, write_json
from fpnlab.records.regular_files import open_regular


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class DataFile:
    """A file that was read while loading a data set."""

    name: str
    """Path relative to the folder of the data set, with ``/`` as separator."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content, as hexadecimal digits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFingerprint:
    """The content of ``data.json``: the files from which a data set was loaded.

    It does not depend on the folder that holds them, so that moved data have the same fingerprint.
    """

    digest: str
    """SHA-256 over names, sizes and digests of all files, as hexadecimal digits."""
    count: int
    """Number of files."""
    size: int
    """Size of all files in bytes."""
    files: list[DataFile] = dataclasses.field(default_factory=list)
    """The files by name; empty where only the digest was kept, as in the trials of a study."""


def fingerprint(files: Iterable[DataFile]) -> DataFingerprint | None:
    """Returns the fingerprint of files; None without files, as for generated data."""
    ordered = sorted(files)
    if not ordered:
        return None
    listing = "".join(f"{file.sha256}  {file.size}  {file.name}\n" for file in ordered)
    return DataFingerprint(
        digest=hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(),
        count=len(ordered),
        size=sum(file.size for file in ordered),
        files=ordered,
    )


MOST_NAMED = 5
"""Largest number of changed files that a message names."""


def named(changes: list[str]) -> str:
    """Returns phrases on changed files as one: the first few, and the number of the others."""
    rest = len(changes) - MOST_NAMED
    return ", ".join(changes[:MOST_NAMED]) + (f", and {rest} more" if rest > 0 else "")


def data_root(config: JsonObject) -> pathlib.Path | None:
    """Returns the folder of the data in a resolved experiment; None for data without one."""
    data = config.get("data")
    root = data.get("root") if isinstance(data, dict) else None
    return pathlib.Path(root).expanduser() if isinstance(root, str) else None


def changed_files(old: DataFingerprint, new: DataFingerprint) -> list[str]:
    """Returns a phrase for each file that differs, such as "train/a.png (other content)"."""
    before, after = ({file.name: file for file in found.files} for found in (old, new))
    phrases = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            phrases.append(f"{name} (missing)")
        elif name not in before:
            phrases.append(f"{name} (added)")
        elif before[name] != after[name]:
            phrases.append(f"{name} (other content)")
    return phrases


def check_data_files(root: str | os.PathLike[str] | None, files: Iterable[DataFile]) -> list[str]:
    """Returns a phrase for each file that now differs, such as "train/a.png (other content)".

    Nothing is decoded, and a file is read only if its size is the same. A file that was added
    later is not found.

    Args:
      root: The folder of the data set; None for data without a folder, of which nothing differs.
      files: Files that were read while loading the data set.
    """
    if root is None:
        return []
    folder = pathlib.Path(root).expanduser()
    changes = ((file.name, _change(folder / file.name, file)) for file in sorted(files))
    return [f"{name} ({change})" for name, change in changes if change]


def _change(path: pathlib.Path, file: DataFile) -> str | None:
    """Returns the difference of the file at ``path`` from ``file``; None if they are equal."""
    try:
        if path.is_file() and path.stat().st_size != file.size:
            return "other size"
        with open_regular(path, file.size) as opened:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    return None if same else "other content"


def read_fingerprint(path: pathlib.Path) -> DataFingerprint:
    """Returns the content of a ``data.json``.

    Raises:
      RunFolderError: The file cannot be read, or lacks a field.
    """
    return read_record(path, DataFingerprint, "the fingerprint of a data set")


def write_fingerprint(path: pathlib.Path, found: DataFingerprint) -> None:
    """Writes a ``data.json`` atomically."""
    write_json(path, dataclasses.asdict(found))
