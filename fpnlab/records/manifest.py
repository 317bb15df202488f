"""Manifests, which seal a finished run or study: the size and SHA-256 of every file that counts.

A run writes its ``manifest.json`` as the last file, and removes it before it continues. A study's
manifest has the checksums of its trials' manifests, so that it seals all their files.
"""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Iterable

from fpnlab.records.json_files import read_record, write_json, writing

MANIFEST = "manifest.json"
"""Name of the file."""
VERSION = 1
"""Version of the format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SealedFile:
    """A file as it was written."""

    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content, as hexadecimal digits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a ``manifest.json``."""

    version: int
    """Version of the format."""
    fpnlab: str
    """Version of the package that wrote it."""
    files: dict[str, SealedFile]
    """The files by their path relative to the folder, with ``/`` as separator."""


def seal(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Writes the manifest of files of a folder atomically, replacing an older one.

    Raises:
      RunFolderError: A file cannot be read, or the folder cannot be written.
    """
    with writing(folder):
        files = {name: _sealed(folder / name) for name in sorted(names)}
    package = importlib.metadata.version("fpnlab")
    manifest = Manifest(version=VERSION, fpnlab=package, files=files)
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def unseal(folder: pathlib.Path) -> None:
    """Removes the manifest of a folder whose files are about to change.

    Raises:
      RunFolderError: The folder cannot be written.
    """
    with writing(folder):
        (folder / MANIFEST).unlink(missing_ok=True)


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Returns the manifest of a folder.

    Raises:
      RunFolderError: It cannot be read, or lacks a field.
    """
    return read_record(folder / MANIFEST, Manifest, "a manifest of files")


def broken_seals(folder: pathlib.Path, manifest: Manifest) -> dict[str, str]:
    """Returns a phrase for each sealed file that is missing or has another content, by its name."""
    broken = {}
    for name, sealed in manifest.files.items():
        path = folder / name
        try:
            # Only regular files are opened: reading a pipe would never end.
            if not path.is_file():
                gone = "is not a regular file" if path.exists() else "is missing"
                broken[name] = f"{gone}, but {MANIFEST} has it"
            elif path.stat().st_size != sealed.size or _sealed(path) != sealed:
                broken[name] = f"is not what was written (by {MANIFEST})"
        except (OSError, ValueError) as error:
            broken[name] = f"cannot be read ({error})"
    return broken


def _sealed(path: pathlib.Path) -> SealedFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return SealedFile(size=file.tell(), sha256=digest)
