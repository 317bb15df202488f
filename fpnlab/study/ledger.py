"""The list of a study's trials and what became of each: one SQLite file."""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from fpnlab.study.files import RunFolderError

SCHEMA = """
create table if not exists trials (
    name text primary key,
    hash text not null,
    status text not null,
    result text,
    error text
)
"""


class Ledger:
    """Trials with status ``waiting``, ``running``, ``done``, ``diverged`` or ``failed``."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        with self._open() as database:
            database.execute("pragma journal_mode = wal")
            database.execute(SCHEMA)

    def expect(self, hashes: dict[str, str]) -> None:
        """Enters the trials by name with their configs' hashes; known ones stay as they are.

        Raises:
          RunFolderError: the ledger holds other trials, or one with another config.
        """
        with self._open() as database:
            known = dict(database.execute("select name, hash from trials"))
            if known and known != hashes:
                changed = sorted(n for n in known.keys() | hashes if known.get(n) != hashes.get(n))
                raise RunFolderError(
                    f"{self.path}: it belongs to another study ({len(changed)} of its trials "
                    f"differ, e.g. {changed[0]}); choose another folder with --out, or remove "
                    "this one"
                )
            database.executemany(
                "insert or ignore into trials values (?, ?, 'waiting', null, null)", hashes.items()
            )

    def begin(self, name: str) -> None:
        """Notes that a trial is running."""
        self._set(name, "running", None, None)

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Notes a trial's result."""
        self._set(name, result["status"], json.dumps(result), result.get("error"))

    def fail(self, name: str, error: str) -> None:
        """Notes that a trial raised."""
        self._set(name, "failed", None, error)

    def statuses(self) -> dict[str, str]:
        """Returns the status of every trial, in the study's order."""
        with self._open() as database:
            return dict(database.execute("select name, status from trials order by rowid"))

    def _set(self, name, status, result, error):
        with self._open() as database:
            database.execute(
                "update trials set status = ?, result = ?, error = ? where name = ?",
                (status, result, error, name),
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=30)
        try:
            with database:
                yield database
        finally:
            database.close()
