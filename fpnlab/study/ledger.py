"""The ledger of a study: status, owner and outcome of each trial, in one SQLite file.

Guarantees, for any number of workers in threads, processes and machines that share the file:

**Ownership.** A running trial has one owner, which holds a lease on it until ``lease_until``, or
longer if it renews the lease. `Ledger.claim` gives a free trial to exactly one owner: every change
is one SQLite transaction that takes the write lock first (``begin immediate``), so that changes are
serialized. `renew`, `release`, `finish` and `fail` change a trial only if the caller still owns it,
and return whether it did. A worker that has lost its lease must stop, and its outcome is not
recorded.

**Death of an owner.** A dying worker need not write anything: its lease expires, and the trial can
be claimed again. `expire` ends the leases of a worker that is known to be dead at once. A trial
fails once ``MOST_ATTEMPTS`` of its owners have died; a claim that was released does not count as an
attempt. A lease that ends later than this clock could have set it dates from before the clock was
set back, and counts as expired.

**Threads and processes.** A `Ledger` holds no connection: each call opens and closes its own, so
that threads can share one object. With the ``wal`` journal, readers do not wait for writers, but
all processes must run on one machine; several machines that share a file system need ``delete``. A
call waits up to a minute for the lock.

**Durability.** When a call returns, its change survives the death of the process; SQLite's
defaults decide whether it survives that of the machine. The result of a trial is stored in its
folder (``result.json``, written before `finish`), and that file is authoritative: the ledger only
holds status, score and path. A trial that has ended but whose result is missing is run again.
"""

import contextlib
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from fpnlab.errors import RunFolderError

VERSION = 4
MOST_ATTEMPTS = 3
"""Number of claims whose owners died after which a trial fails."""
SCHEMA = """
create table if not exists trials (
    name text primary key,
    hash text not null,
    cell text not null,
    split text not null,
    path text not null default '',
    status text not null default 'waiting',
    owner text,
    lease_until real not null default 0,
    attempts integer not null default 0,
    error text,
    score real,
    pack text
);
create index if not exists by_status on trials (status);
create index if not exists by_cell on trials (cell, split, status);
create index if not exists by_pack on trials (pack);
create table if not exists control (stopping integer not null);
insert into control select 0 where not exists (select * from control);
"""
MIGRATION = """
alter table trials add column path text not null default '';
alter table trials add column score real;
update trials set path = case split when 'validation' then 'tuning/' else 'trials/' end || name;
alter table trials drop column result;
"""
"""Migration from version 3, which stored results in the ledger."""
# The second condition on the lease catches a clock that was set back (see the module docstring).
FREE = """
status in ('waiting', 'running') and (lease_until <= :now or lease_until > :now + :seconds + 1)
"""
# A main trial waits until the tuning trials of its cell have ended.
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


class LedgerRow(NamedTuple):
    """A trial in the ledger: the first five fields never change, the others are its status."""

    name: str
    """Name of the trial."""
    hash: str
    """SHA-256 of its config."""
    cell: str = ""
    """Arm and axis value, as shared with the tuning trials that must end first."""
    split: Literal["test", "validation"] = "test"
    """``validation`` for a tuning trial."""
    path: str = ""
    """The run folder, relative to the study folder."""
    status: str = "waiting"
    """``waiting``, ``running``, ``done``, ``diverged`` or ``failed``."""
    owner: str | None = None
    """Name of the worker that runs it."""
    attempts: int = 0
    """Number of claims, without those that were released."""
    error: str | None = None
    """Why it diverged or failed."""
    score: float | None = None
    """The study's metric, from 0 to 1; None if it was not measured."""


FIXED = 5
"""Number of fields of a row that never change."""


OPEN = ("waiting", "running")
"""Statuses of a trial that has not ended."""


class Ledger:
    """The trials of a study with their status; the module docstring states the guarantees."""

    def __init__(
        self,
        path: pathlib.Path,
        *,
        journal: Literal["wal", "delete"] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens a ledger, or creates one.

        Args:
          path: The file.
          journal: SQLite's journal mode: ``wal`` for workers on one machine, ``delete`` for workers
            on several (WAL needs shared memory); None keeps the mode of the file.
          clock: Returns the seconds since the epoch.

        Raises:
          RunFolderError: The file is not a ledger, or was written by an unknown version.
        """
        self.path, self._clock = path, clock
        with self._open() as database:
            version = database.execute("pragma user_version").fetchone()[0]
            old = database.execute("select * from sqlite_master where name = 'trials'").fetchone()
            if old and version not in (3, VERSION):
                raise RunFolderError(
                    f"{path}: written by another version of fpnlab (ledger version {version}; "
                    f"expected {VERSION}); choose another folder with --out, or remove this file: "
                    "finished trials are not run again"
                )
            if journal:
                database.execute(f"pragma journal_mode = {journal}")
            if not old:
                database.executescript(f"{SCHEMA}\npragma user_version = {VERSION};")
            elif version == 3:
                script = f"begin immediate;{MIGRATION}pragma user_version = {VERSION};commit;"
                database.executescript(script)

    def expect(self, trials: Iterable[LedgerRow]) -> None:
        """Adds the trials of a study; known trials stay unchanged.

        Raises:
          RunFolderError: The ledger holds other trials, or a trial with another config.
        """
        wanted = {row.name: row for row in trials}
        with self._transaction() as database:
            known = _rows(database)
            differ = lambda name: name not in wanted or known[name][:4] != wanted[name][:4]
            if changed := sorted(filter(differ, known)):
                raise RunFolderError(
                    f"{self.path}: this ledger belongs to another study ({len(changed)} trials "
                    f"differ, e.g. {changed[0]}); choose another folder with --out, or remove "
                    "this one"
                )
            database.executemany(
                "insert or ignore into trials (name, hash, cell, split, path) "
                "values (?, ?, ?, ?, ?)",
                [row[:FIXED] for row in wanted.values()],
            )

    def set_hashes(self, trials: Iterable[LedgerRow]) -> None:
        """Replaces the config hashes of known trials, whose training is unchanged."""
        with self._transaction() as database:
            database.executemany(
                "update trials set hash = :hash where name = :name and hash != :hash",
                [{"name": row.name, "hash": row.hash} for row in trials],
            )

    def clear_scores(self) -> None:
        """Removes all scores, which are those of another metric."""
        with self._transaction() as database:
            database.execute("update trials set score = null")

    def check(self) -> None:
        """Reads the whole file.

        Raises:
          RunFolderError: The file is damaged.
        """
        with self._open() as database:
            found = database.execute("pragma integrity_check").fetchone()[0]
            if found != "ok":
                raise RunFolderError(f"{self.path}: the ledger is damaged ({found})")

    def reopen(self, names: Iterable[str]) -> None:
        """Resets trials to the status of trials that never ran."""
        with self._transaction() as database:
            database.executemany(
                "update trials set status = 'waiting', owner = null, lease_until = 0, "
                "attempts = 0, error = null, score = null where name = ?",
                [(name,) for name in names],
            )

    def claim(self, owner: str, seconds: float) -> str | None:
        """Returns a trial after leasing it to ``owner`` for ``seconds``; None if none is free.

        Claims the first trial that waits or whose lease has expired. Main trials wait for the
        tuning trials of their cell. The other trials of its pack are claimed with it, except on the
        last attempt, for which the pack is split up.
        """
        with self._transaction() as database:
            # Read the clock after waiting for the lock: compared to an earlier time, a lease that
            # was just given would look as if the clock had been set back.
            given = {"owner": owner, "now": self._clock(), "seconds": seconds}
            while True:
                row = database.execute(CLAIMABLE, given).fetchone()
                if row is None:
                    return None
                name, attempts, status = row
                if status == "waiting" or attempts < MOST_ATTEMPTS:
                    which, mates = {**given, "name": name}, f"pack = ({PACK})"
                    # One trial may be what kills the workers: it must not fail its whole pack.
                    if attempts == MOST_ATTEMPTS - 1:
                        database.execute(f"update trials set pack = name where {mates}", which)
                    database.execute(f"{TAKE} where name = :name or ({mates} and {FREE})", which)
                    return name
                error = f"{attempts} workers died while running it (killed, or out of memory)"
                database.execute(
                    "update trials set status = 'failed', owner = null, error = ? where name = ?",
                    (error, name),
                )

    def claim_pack(
        self, name: str, owner: str, seconds: float, most: int
    ) -> tuple[list[str], bool]:
        """Returns the trials that ``owner`` may train together, and whether they are a pack.

        The trials of an existing pack were claimed with ``name``. If there is none, waiting trials
        of the same cell that are in no pack are claimed too, up to ``most`` trials in all.
        """
        with self._transaction() as database:
            given = {"owner": owner, "now": self._clock(), "seconds": seconds, "name": name}
            if database.execute(PACK, given).fetchone()[0] is not None:
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

    def set_pack(self, names: Iterable[str], *, together: bool) -> None:
        """Records permanently whether trials are trained together.

        The rounding of sums depends on the program, and so on the other trials in it. For
        reproducible results, an interrupted pack is resumed with the same trials, and a trial that
        was trained alone is resumed alone, whichever worker claims them.
        """
        names = list(names)
        with self._transaction() as database:
            database.executemany(
                "update trials set pack = ? where name = ?",
                [(names[0] if together else name, name) for name in names],
            )

    def renew(self, name: str, owner: str, seconds: float) -> bool:
        """Returns whether ``owner`` still owns the trial; if so, extends its lease."""
        return self._write(name, owner, "lease_until = ?", self._clock() + seconds)

    def release(self, name: str, owner: str, delay: float = 0.0) -> bool:
        """Returns whether ``owner`` owned the trial; if so, releases it.

        The claim does not count as an attempt, and the trial cannot be claimed again for ``delay``
        seconds.
        """
        change = "status = 'waiting', owner = null, attempts = attempts - 1, lease_until = ?"
        return self._write(name, owner, change, self._clock() + delay if delay else 0.0)

    def finish(
        self, name: str, owner: str, status: str, error: str | None, score: float | None
    ) -> bool:
        """Returns whether ``owner`` still owned the trial; if so, records its outcome."""
        change = "status = ?, error = ?, score = ?, owner = null"
        return self._write(name, owner, change, status, error, score)

    def fail(self, name: str, owner: str, error: str) -> bool:
        """Returns whether ``owner`` still owned the trial; if so, records that it failed."""
        return self._write(name, owner, "status = 'failed', error = ?, owner = null", error)

    def expire(self, owner: str) -> list[str]:
        """Returns the trials of a dead worker, after ending its leases."""
        with self._transaction() as database:
            found = database.execute(
                "update trials set lease_until = 0 where owner = ? and status = 'running' "
                "returning name",
                (owner,),
            )
            return [name for (name,) in found]

    def rows(self) -> dict[str, LedgerRow]:
        """Returns the trials with their status, in the order of the study."""
        with self._open() as database:
            return _rows(database)

    def open(self) -> int:
        """Returns the number of trials that have not ended."""
        with self._open() as database:
            query = "select count(*) from trials where status in ('waiting', 'running')"
            return database.execute(query).fetchone()[0]

    def stop(self, stopping: bool) -> None:
        """Requests all workers to stop, or withdraws the request."""
        with self._transaction() as database:
            database.execute("update control set stopping = ?", (stopping,))

    def stopping(self) -> bool:
        """Returns whether all workers are requested to stop."""
        with self._open() as database:
            return bool(database.execute("select stopping from control").fetchone()[0])

    def _write(self, name: str, owner: str, change: str, *values: object) -> bool:
        """Returns whether ``owner`` owns the trial; if so, applies the change."""
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
                f"{self.path}: the ledger cannot be used ({error}); make sure that it is readable "
                "and that the disk has space, then run the same command again"
            ) from error


def copy_ledger(path: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies a ledger, including changes that are still in SQLite's write-ahead log.

    Raises:
      RunFolderError: The file cannot be read.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(path, timeout=60)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise RunFolderError(f"{path}: the ledger cannot be used ({error})") from error


def _rows(database: sqlite3.Connection) -> dict[str, LedgerRow]:
    columns = ", ".join(LedgerRow._fields)
    found = database.execute(f"select {columns} from trials order by rowid")
    return {row[0]: LedgerRow(*row) for row in found}
