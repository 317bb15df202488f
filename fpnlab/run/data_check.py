"""Comparison of the data of a run or study with the fingerprint in its folder."""

import pathlib

from fpnlab.errors import RunFolderError
from fpnlab.records.data_files import (
    DataFingerprint,
    check_data_files,
    data_root,
    fingerprint,
    named,
    read_fingerprint,
)
from fpnlab.records.json_files import JsonObject
from fpnlab.run.integrity import Verification, reason

RESTORE = "restore the data, or run it in another folder"


def check_data(
    path: pathlib.Path,
    config: JsonObject,
    found: Verification,
    root: pathlib.Path | None,
    *,
    remedy: str,
) -> DataFingerprint | None:
    """Returns a sound fingerprint, after comparing it with the files; None without one.

    Args:
      path: The ``data.json``.
      config: The resolved experiment.
      found: Collects problems, and what cannot be checked.
      root: The folder of the data, if they were moved; None: as in the config.
      remedy: The remedy for a damaged fingerprint.
    """
    place = root or data_root(config)
    what = "whether the data are those that the training read"
    if not path.exists():
        if place is not None:
            found.unchecked.append(f"{what}: no {path.name} (an older version ran it)")
        return None
    try:
        kept = read_fingerprint(path)
    except RunFolderError as error:
        found.note(path, reason(error, path), remedy)
        return None
    if kept.files and fingerprint(kept.files) != kept:
        found.note(path, "its digest is not that of its files", remedy)
        return None
    if not kept.files or place is None:
        return kept
    if not place.is_dir():
        found.unchecked.append(f"{what}: {place} does not exist (moved? --data.root PATH)")
    elif changes := check_data_files(place, kept.files):
        found.note(place, f"the data have changed since training: {named(changes)}", RESTORE)
    else:
        found.unchecked.append(f"files that were added to {place}")
    return kept
