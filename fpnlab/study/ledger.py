"""The list of a study's trials, who runs them, and what became of each: one SQLite file.

Any number of workers share it. A trial is claimed on a lease, in one transaction, and only who
holds the lease may write what came of it. A lease that is not renewed runs out, and the trial is
there for the next worker.
"""

import contextlib
import json
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from fpnlab.run.folder import RunFolderError

VERSION = 3
MOST_ATTEMPTS = 3
"""Claims of a trial whose workers all vanished, after which it has failed."""
SCHEMA = """
create table if not exists trials (
    name text primary key,
    hash text not null,
    cell text not null,
    split text not null,
    status text not null default 'waiting',
    owner text,
    lease_until real not null default 0,
    attempts integer not null default 0,
    error text,
    result text,
    pack text
);
create index if not exists by_status on trials (status);
create index if not exists by_cell on trials (cell, split, status);
create index if not exists by_pack on trials (pack);
create table if not exists control (stopping integer not null);
insert into control select 0 where not exists (select * from control);
"""
FREE = """
status in ('waiting', 'running') and (lease_until <= :now or lease_until > :now + :seconds + 1)
"""
CLAIMABLE = f"""
select name, attempts, status from trials as wanted
where {FREE}
  and (split = 'validation' or not exists (
    select * from trials as before
    where before.cell = wanted.cell and before.split = 'validation'
      and before.status in ('waiting', 'running')))
order by rowid limit 1
"""
TAKE = """
update trials set status = 'running', owner = :owner, lease_until = :now + :seconds,
  attempts = attempts + 1, error = null
"""
PACK = "select pack from trials where name = :name"


class Entry(NamedTuple):
    """A trial as the ledger enters it."""

    name: str
    hash: str
    """Of its config."""
    cell: str = ""
    """What it shares with the tuning trials that must end before it."""
    split: Literal["test", "validation"] = "test"
    """``validation`` for a trial that tunes."""


class Row(NamedTuple):
    """What the ledger says of a trial."""

    status: str
    owner: str | None
    attempts: int
    error: str | None


class Ledger:
    """Trials with status ``waiting``, ``running``, ``done``, ``diverged`` or ``failed``."""

    def __init__(
        self,
        path: pathlib.Path,
        *,
        journal: Literal["wal", "delete"] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens a ledger, or makes one.

        Args:
          path: the file.
          journal: SQLite's journal: ``wal`` for workers of one machine, ``delete`` for those of
            several (WAL needs shared memory); None leaves it as it is.
          clock: seconds since the epoch.

        Raises:
          RunFolderError: the file is no ledger, or one that another version has written.
        """
        self.path, self._clock = path, clock
        with self._open() as database:
            version = database.execute("pragma user_version").fetchone()[0]
            old = database.execute("select * from sqlite_master where name = 'trials'").fetchone()
            if version != VERSION and old:
                raise RunFolderError(
                    f"{path}: another version of fpnlab has written it; choose another folder "
                    "with --out, or remove this one"
                )
            if journal:
                database.execute(f"pragma journal_mode = {journal}")
            if not old:
                database.executescript(f"{SCHEMA}\npragma user_version = {VERSION};")

    def expect(self, entries: Iterable[Entry]) -> None:
        """Enters the trials of a study; known ones stay as they are.

        Raises:
          RunFolderError: the ledger holds other trials, or one with another config.
        """
        wanted = {entry.name: entry for entry in entries}
        with self._transaction() as database:
            known = _entries(database)
            names = known.keys() | wanted.keys()
            changed = sorted(n for n in names if known.get(n) != wanted.get(n))
            if known and changed:
                raise RunFolderError(
                    f"{self.path}: it belongs to another study ({len(changed)} of its trials "
                    f"differ, e.g. {changed[0]}); choose another folder with --out, or remove "
                    "this one"
                )
            database.executemany(
                "insert or ignore into trials (name, hash, cell, split) values (?, ?, ?, ?)",
                wanted.values(),
            )

    def change_hashes(self, entries: Iterable[Entry]) -> None:
        """Gives known trials the hashes of other configs; those that had another are open again.

        For configs that differ in what is measured only: the workers find the weights trained.
        """
        with self._transaction() as database:
            database.executemany(
                "update trials set hash = :hash, status = 'waiting', owner = null, "
                "lease_until = 0, attempts = 0, error = null, result = null "
                "where name = :name and hash != :hash",
                [{"name": entry.name, "hash": entry.hash} for entry in entries],
            )

    def entries(self) -> dict[str, Entry]:
        """Returns the trials as they were entered, in the study's order.

        Raises:
          RunFolderError: the file is damaged.
        """
        with self._open() as database:
            found = database.execute("pragma integrity_check").fetchone()[0]
            if found != "ok":
                raise RunFolderError(f"{self.path}: the ledger is damaged ({found})")
            return _entries(database)

    def reopen(self, names: Iterable[str]) -> None:
        """Lets trials run again as if they never had."""
        with self._transaction() as database:
            database.executemany(
                "update trials set status = 'waiting', owner = null, lease_until = 0, "
                "attempts = 0, error = null, result = null where name = ?",
                [(name,) for name in names],
            )

    def claim(self, owner: str, seconds: float) -> str | None:
        """Returns the trial that ``owner`` is to run now, on a lease of so many seconds.

        It is the first that waits, or whose lease has run out; a trial that counts waits for
        those that tune for it. A lease that ends later than any could that was given by this
        clock was given before the clock was set back, and counts as run out. A trial of which
        three workers have vanished has failed. None: there is nothing to claim now.

        What is settled to be trained with it is claimed with it; but the last attempt at each of
        them is by itself.
        """
        with self._transaction() as database:
            # Read after waiting for the lock: to an older time, a fresh lease looks too long.
            given = {"owner": owner, "now": self._clock(), "seconds": seconds}
            while True:
                row = database.execute(CLAIMABLE, given).fetchone()
                if row is None:
                    return None
                name, attempts, status = row
                if status == "waiting" or attempts < MOST_ATTEMPTS:
                    which, mates = {**given, "name": name}, f"pack = ({PACK})"
                    if attempts == MOST_ATTEMPTS - 1:
                        database.execute(f"update trials set pack = name where {mates}", which)
                    database.execute(f"{TAKE} where name = :name or ({mates} and {FREE})", which)
                    return name
                error = f"{attempts} workers vanished while they ran it (killed, or out of memory)"
                database.execute(
                    "update trials set status = 'failed', owner = null, error = ? where name = ?",
                    (error, name),
                )

    def company(self, name: str, owner: str, seconds: float, most: int) -> tuple[list[str], bool]:
        """Returns the trials that ``owner`` may train together, and whether that is settled.

        Settled ones were claimed with ``name``. Otherwise they are ``name`` and those of its cell
        that wait and of which nothing is settled, which are claimed now, ``most`` in all.
        """
        with self._transaction() as database:
            given = {"owner": owner, "now": self._clock(), "seconds": seconds, "name": name}
            settled = database.execute(PACK, given)
            if settled.fetchone()[0] is not None:
                query = (
                    "select name from trials where owner = :owner and status = 'running' "
                    f"and pack = ({PACK}) order by rowid"
                )
                return [mate for (mate,) in database.execute(query, given)], True
            query = (
                "select mate.name from trials as mate join trials as first using (cell, split) "
                "where first.name = :name and mate.status = 'waiting' and mate.pack is null "
                "and mate.lease_until <= :now order by mate.rowid limit :others"
            )
            found = database.execute(query, {**given, "others": most - 1}).fetchall()
            for (mate,) in found:
                database.execute(f"{TAKE} where name = :name", {**given, "name": mate})
            return [name, *(mate for (mate,) in found)], False

    def settle(self, names: Iterable[str], *, together: bool) -> None:
        """Settles for good whether trials are trained together, whoever claims them later.

        How sums are rounded depends on what else is in a program. So a pack that is interrupted
        goes on with the same trials, and a trial by itself goes on by itself.
        """
        names = list(names)
        with self._transaction() as database:
            database.executemany(
                "update trials set pack = ? where name = ?",
                [(names[0] if together else name, name) for name in names],
            )

    def renew(self, name: str, owner: str, seconds: float) -> bool:
        """Returns whether ``owner`` still has the trial, now for so many seconds more."""
        return self._write(name, owner, "lease_until = ?", self._clock() + seconds)

    def release(self, name: str, owner: str, delay: float = 0.0) -> bool:
        """Returns whether ``owner`` had the trial; it waits again, for ``delay`` seconds at least.

        A trial that is given back was not an attempt.
        """
        change = "status = 'waiting', owner = null, attempts = attempts - 1, lease_until = ?"
        return self._write(name, owner, change, self._clock() + delay if delay else 0.0)

    def finish(self, name: str, owner: str, result: Mapping[str, Any]) -> bool:
        """Returns whether ``owner`` still had the trial; only then its result is written."""
        change = "status = ?, error = ?, result = ?, owner = null"
        values = (result["status"], result.get("error"), json.dumps(result))
        return self._write(name, owner, change, *values)

    def fail(self, name: str, owner: str, error: str) -> bool:
        """Returns whether ``owner`` still had the trial; only then it has failed."""
        return self._write(name, owner, "status = 'failed', error = ?, owner = null", error)

    def vanished(self, owner: str) -> list[str]:
        """Returns the trials of a worker that has ended without a word; they can be claimed."""
        with self._transaction() as database:
            found = database.execute(
                "update trials set lease_until = 0 where owner = ? and status = 'running' "
                "returning name",
                (owner,),
            )
            return [name for (name,) in found]

    def rows(self) -> dict[str, Row]:
        """Returns what is known of every trial but its result, in the study's order."""
        columns = "name, status, owner, attempts, error"
        with self._open() as database:
            found = database.execute(f"select {columns} from trials order by rowid")
            return {name: Row(*row) for name, *row in found}

    def open(self) -> int:
        """Returns how many trials have not ended."""
        with self._open() as database:
            query = "select count(*) from trials where status in ('waiting', 'running')"
            return database.execute(query).fetchone()[0]

    def results(self, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Returns the results of the trials that have one, in the study's order, or of these."""
        query = "select name, result from trials where result is not null"
        with self._open() as database:
            if names is None:
                found = list(database.execute(f"{query} order by rowid"))
            else:
                each = (database.execute(f"{query} and name = ?", (name,)) for name in names)
                found = [row for rows in each for row in rows]
        return {name: json.loads(result) for name, result in found}

    def stop(self, stopping: bool) -> None:
        """Asks all workers to stop, or no longer does."""
        with self._transaction() as database:
            database.execute("update control set stopping = ?", (stopping,))

    def stopping(self) -> bool:
        """Returns whether all workers are asked to stop."""
        with self._open() as database:
            return bool(database.execute("select stopping from control").fetchone()[0])

    def _write(self, name, owner, change, *values):
        """Returns whether the trial is ``owner``'s; only then it is changed."""
        query = f"update trials set {change} where name = ? and owner = ? and status = 'running'"
        with self._transaction() as database:
            return database.execute(query, (*values, name, owner)).rowcount == 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("begin immediate")
            try:
                yield database
            except BaseException:
                database.execute("rollback")
                raise
            database.execute("commit")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=60, isolation_level=None)
            ) as database:
                yield database
        except sqlite3.Error as error:
            raise RunFolderError(
                f"{self.path}: the ledger cannot be used ({error}); see that it is readable and "
                "that the disk has space, then run the same command again"
            ) from error


def _entries(database):
    found = database.execute("select name, hash, cell, split from trials order by rowid")
    return {row[0]: Entry(*row) for row in found}
