"""Fingerprints of the files of a data set, by which changed data is recognized."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable

from fpnlab.records.json_files import read_record, write_json


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


def read_fingerprint(path: pathlib.Path) -> DataFingerprint:
    """Returns the content of a ``data.json``.

    Raises:
      RunFolderError: The file cannot be read, or lacks a field.
    """
    return read_record(path, DataFingerprint, "the fingerprint of a data set")


def write_fingerprint(path: pathlib.Path, found: DataFingerprint) -> None:
    """Writes a ``data.json`` atomically."""
    write_json(path, dataclasses.asdict(found))
