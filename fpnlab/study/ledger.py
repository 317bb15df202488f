"""The ledger of a study: status, owner and outcome of each trial, in one SQLite file.

Guarantees, for any number of workers in threads, processes and machines that share the file:

**Ownership.** A running trial has at most one owner. `Ledger.claim` gives a free trial to exactly
one: every change is one SQLite transaction that takes the write lock first (``begin immediate``),
so that changes are serialized. `renew`, `release`, `set_aside`, `finish` and `fail` change a trial
only if the caller still owns it, and return whether it did. A worker that has lost its lease must
stop, and its outcome is not recorded.

**Leases.** The ledger holds no times, because the clocks of two machines differ, and any clock may
jump. A running trial has a `Heartbeat`: its owner, and a number that grows with each claim and each
`renew`, and never falls. Whoever has seen one heartbeat for the length of a lease on its own clock
may `expire` it, which ends the ownership only if the heartbeat is still that one in the
transaction. An observer that starts later expires it later, and none too early. The class
``lease.Heartbeats`` observes on behalf of a worker.

**Death of an owner.** A dying worker need not write anything: its heartbeat stands still. The
leases of a worker that is known to be dead can be expired at once. A trial whose lease has expired
is free. The ledger counts the attempts at a trial: its claims, without those that were released or
set aside. An attempt after ``MOST_ATTEMPTS`` must not run the trial, but records its outcome: the
result that its folder holds, or else that it failed.

**Locked folders.** A process that holds the lock on a trial's folder is alive, whatever its
heartbeat, and no other can run the trial. A worker that finds the folder of a claimed trial locked
leaves the trial to that process with `set_aside`: it then has an owner without a heartbeat.

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
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from fpnlab.errors import RunFolderError
from fpnlab.study.ledger_schema import MIGRATIONS, SCHEMA, VERSION

MOST_ATTEMPTS = 3
"""Number of claims whose owners died after which a trial fails."""
# Trials that wait, and trials whose lease has expired.
FREE = "status in ('waiting', 'running') and owner is null"
# A main trial waits until the tuning trials of its cell have ended.
CLAIMABLE = f"""
select name, attempts from trials as wanted
where {FREE}
  and (split = 'validation' or not exists (
    select * from trials as before
    where before.cell = wanted.cell and before.split = 'validation'
      and before.status in ('waiting', 'running')))
order by rowid limit 1
"""
TAKE = """
update trials set status = 'running', owner = :owner, beat = beat + 1, attempts = attempts + 1,
  error = null
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
    """Name of the worker that runs it; None while it waits, or once the lease has expired."""
    attempts: int = 0
    """Number of claims, without those that were released or set aside."""
    error: str | None = None
    """Why it diverged or failed."""
    score: float | None = None
    """The study's metric, from 0 to 1; None if it was not measured."""


FIXED = 5
"""Number of fields of a row that never change."""


OPEN = ("waiting", "running")
"""Statuses of a trial that has not ended."""


class Heartbeat(NamedTuple):
    """The sign of life of a running trial's owner."""

    name: str
    """Name of the trial."""
    owner: str
    """Name of the worker that owns it."""
    beat: int
    """Number of claims and renewals of the trial so far."""
    path: str
    """The run folder, relative to the study folder."""


class Ledger:
    """The trials of a study with their status; the module docstring states the guarantees."""

    def __init__(
        self, path: pathlib.Path, *, journal: Literal["wal", "delete"] | None = None
    ) -> None:
        """Opens a ledger, or creates one.

        Args:
          path: The file.
          journal: SQLite's journal mode: ``wal`` for workers on one machine, ``delete`` for workers
            on several (WAL needs shared memory); None keeps the mode of the file.

        Raises:
          RunFolderError: The file is not a ledger, or was written by an unknown version.
        """
        self.path = path
        with self._open() as database:
            version = database.execute("pragma user_version").fetchone()[0]
            old = database.execute("select * from sqlite_master where name = 'trials'").fetchone()
            if old and version not in (*MIGRATIONS, VERSION):
                raise RunFolderError(
                    f"{path}: written by another version of fpnlab (ledger version {version}; "
                    f"expected {VERSION}); choose another folder with --out, or remove this file: "
                    "finished trials are not run again"
                )
            if journal:
                database.execute(f"pragma journal_mode = {journal}")
            if not old:
                database.executescript(f"{SCHEMA}\npragma user_version = {VERSION};")
        if old and version != VERSION:
            self._migrate()

    def _migrate(self) -> None:
        """Turns a ledger of an older version into one of this version."""
        with self._transaction() as database:
            # Another process may have migrated it while this one waited for the lock.
            [version] = database.execute("pragma user_version").fetchone()
            for older in range(version, VERSION):
                for statement in MIGRATIONS[older]:
                    database.execute(statement)
            database.execute(f"pragma user_version = {VERSION}")

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
                "update trials set status = 'waiting', owner = null, attempts = 0, error = null, "
                "score = null where name = ?",
                [(name,) for name in names],
            )

    def claim(self, owner: str) -> str | None:
        """Returns a trial after leasing it to ``owner``; None if none is free.

        Claims the first trial that waits or whose lease has expired. Main trials wait for the
        tuning trials of their cell. The other trials of its pack are claimed with it, except on the
        last attempt, which is made alone.
        """
        with self._transaction() as database:
            row = database.execute(CLAIMABLE).fetchone()
            if row is None:
                return None
            name, attempts = row
            given, mates = {"owner": owner, "name": name}, f"pack = ({PACK})"
            # One trial may be what kills the workers: it must not fail its whole pack.
            if attempts >= MOST_ATTEMPTS - 1:
                query = f"update trials set pack = name where name = :name or {mates}"
                database.execute(query, given)
            database.execute(f"{TAKE} where name = :name or ({mates} and {FREE})", given)
            return name

    def claim_pack(self, name: str, owner: str, most: int) -> tuple[list[str], bool]:
        """Returns the trials that ``owner`` may train together, and whether they are a pack.

        The trials of an existing pack were claimed with ``name``. If there is none, waiting trials
        of the same cell that are in no pack are claimed too, up to ``most`` trials in all.
        """
        with self._transaction() as database:
            given = {"owner": owner, "name": name}
            if database.execute(PACK, given).fetchone()[0] is not None:
                query = (
                    "select name from trials where owner = :owner and status = 'running' "
                    f"and pack = ({PACK}) order by rowid"
                )
                return [mate for (mate,) in database.execute(query, given)], True
            query = (
                "select mate.name from trials as mate join trials as first using (cell, split) "
                "where first.name = :name and mate.status = 'waiting' and mate.pack is null "
                "order by mate.rowid limit :others"
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

    def renew(self, names: Iterable[str], owner: str) -> bool:
        """Returns whether ``owner`` still owns all the trials; renews its leases on those it owns.

        The trials of a pack are renewed at once, so that they also expire at once.
        """
        return self._write_all(names, owner, "beat = beat + 1")

    def release(self, names: Iterable[str], owner: str) -> bool:
        """Returns whether ``owner`` owned all the trials; releases those it owned.

        The claims do not count as attempts.
        """
        change = "status = 'waiting', owner = null, attempts = attempts - 1"
        return self._write_all(names, owner, change)

    def set_aside(self, names: Iterable[str], owner: str) -> bool:
        """Returns whether ``owner`` owned all the trials; leaves them to who locks a folder.

        The claims do not count as attempts. Once the lease of that process has expired, the trials
        can be claimed again.
        """
        change = "owner = ?, beat = beat + 1, attempts = attempts - 1"
        return self._write_all(names, owner, change, f"holder of a lock met by {owner}")

    def finish(
        self, name: str, owner: str, status: str, error: str | None, score: float | None
    ) -> bool:
        """Returns whether ``owner`` still owned the trial; if so, records its outcome."""
        change = "status = ?, error = ?, score = ?, owner = null"
        return self._write(name, owner, change, status, error, score)

    def fail(self, name: str, owner: str, error: str) -> bool:
        """Returns whether ``owner`` still owned the trial; if so, records that it failed."""
        return self._write(name, owner, "status = 'failed', error = ?, owner = null", error)

    def heartbeats(self, owner: str | None = None) -> list[Heartbeat]:
        """Returns the heartbeats of all running trials, or of those of one owner."""
        query = (
            "select name, owner, beat, path from trials where status = 'running' "
            "and owner is not null and (:owner is null or owner = :owner)"
        )
        with self._open() as database:
            return [Heartbeat(*row) for row in database.execute(query, {"owner": owner})]

    def expire(self, dead: Iterable[Heartbeat]) -> list[str]:
        """Returns the trials whose heartbeat was still one of ``dead``, after ending their leases.

        The claims count as attempts, and the trials can be claimed at once.
        """
        query = (
            "update trials set owner = null where name = :name and owner = :owner and beat = :beat "
            "and status = 'running'"
        )
        with self._transaction() as database:
            return [each.name for each in dead if database.execute(query, each._asdict()).rowcount]

    def attempts(self, name: str) -> int:
        """Returns the number of attempts at a trial."""
        query = "select attempts from trials where name = ?"
        with self._open() as database:
            return database.execute(query, (name,)).fetchone()[0]

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
        return self._write_all([name], owner, change, *values)

    def _write_all(self, names: Iterable[str], owner: str, change: str, *values: object) -> bool:
        """Returns whether ``owner`` owns all the trials; applies the change to those it owns."""
        query = f"update trials set {change} where name = ? and owner = ? and status = 'running'"
        with self._transaction() as database:
            changed = [database.execute(query, (*values, name, owner)).rowcount for name in names]
            return all(changed)

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
