"""Notes of a page on the data: their fingerprint, and files that have changed since."""

import dataclasses
import pathlib

from fpnlab.records.data_files import check_data_files, data_root, named, read_fingerprint
from fpnlab.records.json_files import JsonObject

MOST_CHECKED = 10**9
"""Largest size of data in bytes that a report reads again."""


@dataclasses.dataclass(frozen=True)
class DataNote:
    """The data of a run or study, then and now."""

    origin: str = ""
    """The files from which they were loaded; empty for generated data and old folders."""
    changes: str = ""
    """The files that have changed since; empty where none has or they cannot be checked."""


def data_note(folder: pathlib.Path, config: JsonObject) -> DataNote:
    """Returns the note on the data of a run or study.

    Args:
      folder: The folder.
      config: The resolved experiment.

    Raises:
      RunFolderError: The fingerprint cannot be read.
    """
    path, root = folder / "data.json", data_root(config)
    if not path.is_file():
        return DataNote()
    found = read_fingerprint(path)
    files = f"{found.count:,} files" if found.count > 1 else "1 file"
    origin = f"Loaded from {files} of {found.size:,} bytes"
    sealed = f"SHA-256 over names, sizes and contents {found.digest[:12]}"
    if root is None or not found.files:
        return DataNote(f"{origin}; {sealed}.")
    if not root.is_dir():
        return DataNote(f"{origin}; {sealed}. They are no longer in {root}, and were not checked.")
    if found.size > MOST_CHECKED:
        return DataNote(f"{origin}; {sealed}. They were not read again; fpnlab verify checks them.")
    changes = check_data_files(root, found.files)
    if changes:
        return DataNote(f"{origin}; {sealed}.", named(changes))
    return DataNote(f"{origin}; {sealed}. They have not changed since.")
