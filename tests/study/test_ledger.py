"""The ledger: order, owner, lease and outcome of each trial of a study."""

import contextlib
import resource
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.study.ledger import MOST_ATTEMPTS, Ledger, LedgerRow

ENTRIES = [LedgerRow("b", "1"), LedgerRow("a", "2"), LedgerRow("c", "3")]
DONE = ("done", None, 0.5)


class Clock:
    """A clock with a settable time."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(tmp_path, clock):
    ledger = Ledger(tmp_path / "ledger.sqlite", journal="wal", clock=clock)
    ledger.expect(ENTRIES)
    return ledger


def statuses(ledger):
    return {name: row.status for name, row in ledger.rows().items()}


def test_trials_are_claimed_in_the_order_of_the_study_and_each_once(ledger):
    assert list(statuses(ledger).items()) == [("b", "waiting"), ("a", "waiting"), ("c", "waiting")]
    assert [ledger.claim(owner, 60.0) for owner in "xyzx"] == ["b", "a", "c", None]
    assert [row.owner for row in ledger.rows().values()] == ["x", "y", "z"]


def test_an_outcome_is_stored_with_its_score_and_error(ledger):
    for _ in range(3):
        ledger.claim("x", 60.0)
    assert ledger.finish("a", "x", "diverged", "not finite", None)
    assert ledger.finish("b", "x", *DONE)
    assert ledger.fail("c", "x", "OSError: no")
    assert statuses(ledger) == {"b": "done", "a": "diverged", "c": "failed"}
    assert ledger.rows()["c"].error == "OSError: no"
    assert [row.score for row in ledger.rows().values()] == [0.5, None, None]
    assert ledger.open() == 0
    assert ledger.claim("x", 60.0) is None


def test_only_the_owner_changes_a_trial_and_records_one_outcome(ledger):
    name = ledger.claim("x", 60.0)
    for change in (
        lambda: ledger.finish(name, "y", *DONE),
        lambda: ledger.fail(name, "y", "no"),
        lambda: ledger.release(name, "y"),
        lambda: ledger.renew(name, "y", 60.0),
    ):
        assert not change()
    assert ledger.rows()[name][5:] == ("running", "x", 1, None, None)
    assert ledger.finish(name, "x", *DONE)
    assert not ledger.finish(name, "x", "diverged", None, None)
    assert ledger.rows()[name].status == "done"


def test_an_expired_lease_can_be_claimed_and_its_first_owner_records_nothing(ledger, clock):
    name = ledger.claim("x", 60.0)
    clock.now += 59
    assert ledger.claim("y", 60.0) != name
    clock.now += 2
    assert ledger.claim("y", 60.0) == name
    assert not ledger.renew(name, "x", 60.0)
    assert not ledger.finish(name, "x", *DONE)
    assert ledger.finish(name, "y", "done", None, 0.7)
    assert ledger.rows()[name].score == 0.7


def test_a_renewed_lease_is_kept(ledger, clock):
    name = ledger.claim("x", 60.0)
    for _ in range(5):
        clock.now += 40
        assert ledger.renew(name, "x", 60.0)
        assert ledger.claim("y", 60.0) != name
        clock.now += 10


def test_an_owner_may_finish_after_its_lease_expired_if_nobody_claimed_the_trial(ledger, clock):
    name = ledger.claim("x", 60.0)
    clock.now += 1e6
    assert ledger.finish(name, "x", *DONE)


def test_a_clock_that_is_set_back_does_not_extend_a_lease(ledger, clock):
    name = ledger.claim("x", 60.0)
    clock.now -= 3600
    # A living owner keeps the trial: its next renewal sets a valid end of the lease.
    assert ledger.renew(name, "x", 60.0)
    assert ledger.claim("y", 60.0) != name
    # The lease of a dead owner would end in an hour, which is longer than any lease.
    clock.now -= 3600
    assert ledger.claim("y", 60.0) == name
    assert not ledger.renew(name, "x", 60.0)


def test_a_clock_that_jumps_ahead_loses_only_the_lease(ledger, clock):
    name = ledger.claim("x", 60.0)
    clock.now += 1e9
    assert ledger.claim("y", 60.0) == name
    assert not ledger.renew(name, "x", 60.0)
    # y finds the folder locked and releases the trial; x claims it again.
    assert ledger.release(name, "y", delay=30.0)
    assert ledger.claim("x", 60.0) != name
    clock.now += 31
    assert ledger.claim("x", 60.0) == name
    assert ledger.finish(name, "x", *DONE)


def test_a_claim_that_waited_for_the_lock_skips_a_trial_claimed_meanwhile(
    ledger, clock, tmp_path, monkeypatch
):
    rival, enter = Ledger(ledger.path, clock=clock), ledger._transaction

    @contextlib.contextmanager
    def late():
        clock.now += 5.0
        assert rival.claim("rival", 60.0) == "b"
        with enter() as database:
            yield database

    monkeypatch.setattr(ledger, "_transaction", late)
    assert ledger.claim("x", 60.0) == "a"


def test_a_released_claim_does_not_count_as_an_attempt(ledger):
    name = ledger.claim("x", 60.0)
    assert ledger.release(name, "x")
    assert ledger.rows()[name][5:] == ("waiting", None, 0, None, None)
    assert ledger.claim("y", 60.0) == name


def test_a_trial_that_kills_its_workers_fails_after_most_attempts(ledger):
    for i in range(MOST_ATTEMPTS):
        assert ledger.claim(f"x{i}", 60.0) == "b"
        assert ledger.expire(f"x{i}") == ["b"]
    assert ledger.claim("y", 60.0) == "a"
    row = ledger.rows()["b"]
    assert row.status == "failed"
    assert row.error == "3 workers died while running it (killed, or out of memory)"
    ledger.reopen(["b"])
    assert ledger.rows()["b"][5:] == ("waiting", None, 0, None, None)


def test_a_reopened_trial_has_no_score(ledger):
    name = ledger.claim("x", 60.0)
    ledger.finish(name, "x", *DONE)
    ledger.reopen([name])
    assert statuses(ledger)[name] == "waiting"
    assert ledger.rows()[name].score is None


def test_a_trial_waits_only_for_the_tuning_trials_of_its_cell(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.expect(
        [
            LedgerRow("tune-1", "0", "one", "validation"),
            LedgerRow("tune-2", "0", "one", "validation"),
            LedgerRow("tune-3", "0", "two", "validation"),
            LedgerRow("first", "0", "one"),
            LedgerRow("second", "0", "two"),
        ]
    )
    assert [ledger.claim("x", 60.0) for _ in range(4)] == ["tune-1", "tune-2", "tune-3", None]
    ledger.finish("tune-3", "x", *DONE)
    assert ledger.claim("x", 60.0) == "second"
    ledger.finish("tune-1", "x", *DONE)
    assert ledger.claim("x", 60.0) is None
    ledger.fail("tune-2", "x", "no")
    assert ledger.claim("x", 60.0) == "first"


@pytest.fixture
def cells(tmp_path, clock):
    """Four seeds of one cell and two of another."""
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    ledger.expect(
        LedgerRow(f"{cell}{i}", "0", cell) for i in range(4) for cell in "pq"[: 2 - i // 2]
    )
    return ledger


def running(ledger, owner):
    return [name for name, row in ledger.rows().items() if row.owner == owner]


def test_waiting_trials_of_one_cell_are_claimed_together_up_to_a_limit(cells):
    assert cells.claim("x", 60.0) == "p0"
    assert cells.claim_pack("p0", "x", 60.0, 1) == (["p0"], False)
    assert cells.claim_pack("p0", "x", 60.0, 3) == (["p0", "p1", "p2"], False)
    assert running(cells, "x") == ["p0", "p1", "p2"]
    assert cells.claim("y", 60.0) == "q0"
    assert cells.claim_pack("q0", "y", 60.0, 8) == (["q0", "q1"], False)
    assert cells.claim("z", 60.0) == "p3"
    assert cells.claim_pack("p3", "z", 60.0, 8) == (["p3"], False)


def test_a_recorded_pack_is_always_claimed_together(cells):
    cells.claim("x", 60.0)
    names, _ = cells.claim_pack("p0", "x", 60.0, 3)
    cells.set_pack(names, together=True)
    assert cells.expire("x") == names
    assert cells.claim("y", 60.0) == "p0"
    assert running(cells, "y") == names
    assert cells.claim_pack("p0", "y", 60.0, 1) == (names, True)
    # A trial of the pack that has ended is not run again.
    cells.finish("p0", "y", *DONE)
    for name in ("p1", "p2"):
        cells.release(name, "y")
    assert [cells.claim("z", 60.0) for _ in range(2)] == ["q0", "p1"]
    assert cells.claim_pack("p1", "z", 60.0, 8) == (["p1", "p2"], True)


def test_a_trial_recorded_as_alone_is_never_packed(cells):
    cells.claim("x", 60.0)
    names, _ = cells.claim_pack("p0", "x", 60.0, 3)
    cells.set_pack(names, together=False)
    for name in names:
        cells.release(name, "x")
    assert cells.claim("y", 60.0) == "p0"
    assert running(cells, "y") == ["p0"]
    assert cells.claim_pack("p0", "y", 60.0, 8) == (["p0"], True)


def test_the_last_attempt_at_each_trial_of_a_pack_is_alone(cells):
    cells.claim("x0", 60.0)
    names, _ = cells.claim_pack("p0", "x0", 60.0, 2)
    cells.set_pack(names, together=True)
    for i in range(1, MOST_ATTEMPTS - 1):
        cells.expire(f"x{i - 1}")
        assert cells.claim(f"x{i}", 60.0) == "p0"
        assert running(cells, f"x{i}") == names
    cells.expire(f"x{MOST_ATTEMPTS - 2}")
    assert [cells.claim(owner, 60.0) for owner in "wyz"] == ["p0", "q0", "p1"]
    assert [running(cells, owner) for owner in "wyz"] == [["p0"], ["q0"], ["p1"]]


def test_a_stop_request_lasts_until_it_is_withdrawn(ledger):
    assert not ledger.stopping()
    ledger.stop(True)
    assert Ledger(ledger.path).stopping()
    ledger.stop(False)
    assert not ledger.stopping()


def test_a_reopened_ledger_keeps_its_trials(ledger):
    ledger.claim("x", 60.0)
    ledger.finish("b", "x", *DONE)
    again = Ledger(ledger.path)
    again.expect(ENTRIES)
    assert statuses(again) == {"b": "done", "a": "waiting", "c": "waiting"}


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ([LedgerRow("b", "1"), LedgerRow("a", "9"), LedgerRow("c", "3")], "1 .* e.g. a"),
        ([LedgerRow("b", "1", "cell"), *ENTRIES[1:]], "1 .* e.g. b"),
        ([LedgerRow("b", "1")], "2 "),
    ],
)
def test_expect_rejects_the_trials_of_another_study(other, names, ledger):
    with pytest.raises(RunFolderError, match=f"another study \\({names}.*choose another folder"):
        ledger.expect(other)
    assert set(ledger.rows()) == {"a", "b", "c"}


def test_expect_adds_trials_after_those_that_the_ledger_holds(ledger):
    ledger.claim("x", 60.0)
    ledger.finish("b", "x", *DONE)
    ledger.expect([LedgerRow("d", "4"), *ENTRIES])
    assert statuses(ledger) == {"b": "done", "a": "waiting", "c": "waiting", "d": "waiting"}
    assert list(ledger.rows()) == ["b", "a", "c", "d"]


def test_ledger_rejects_an_unknown_version(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("create table trials (name text, hash text, status text)")
    database.close()
    with pytest.raises(
        RunFolderError,
        match=r"written by another version .*version 0; expected 4.*; choose",
    ):
        Ledger(tmp_path / "ledger.sqlite")


OLD = """
create table trials (
    name text primary key, hash text not null, cell text not null, split text not null,
    status text not null default 'waiting', owner text, lease_until real not null default 0,
    attempts integer not null default 0, error text, result text, pack text
);
create table control (stopping integer not null);
insert into control values (0);
insert into trials (name, hash, cell, split, status, result) values
    ('a', '1', 'c', 'validation', 'done', '{"status": "done"}'),
    ('b', '2', 'c', 'test', 'waiting', null);
pragma user_version = 3;
"""


def test_a_version_3_ledger_is_migrated(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.executescript(OLD)
    for ledger in (Ledger(tmp_path / "ledger.sqlite"), Ledger(tmp_path / "ledger.sqlite")):
        assert statuses(ledger) == {"a": "done", "b": "waiting"}
        assert [e.path for e in ledger.rows().values()] == ["tuning/a", "trials/b"]
    assert ledger.claim("x", 60.0) == "b"
    assert ledger.finish("b", "x", *DONE)


def test_ledger_rejects_a_file_that_is_not_a_database(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("x" * 5000)
    with pytest.raises(RunFolderError, match=r"ledger\.sqlite: the ledger cannot be used \(file"):
        Ledger(tmp_path / "ledger.sqlite")


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_concurrent_claims_never_return_the_same_trial(journal, tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path, journal=journal).expect(LedgerRow(f"t{i:03}", "0") for i in range(60))
    claimed = {owner: [] for owner in "abcd"}

    def take(owner):
        ledger = Ledger(path)
        while (name := ledger.claim(owner, 60.0)) is not None:
            claimed[owner].append(name)
            assert ledger.finish(name, owner, *DONE)

    threads = [threading.Thread(target=take, args=(owner,)) for owner in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for names in claimed.values() for name in names]
    assert sorted(names) == [f"t{i:03}" for i in range(60)]


CLAIM_AND_DIE = """
import os, pathlib, signal, sys
from fpnlab.study.ledger import Ledger

ledger = Ledger(pathlib.Path(sys.argv[1]))
with ledger._transaction() as database:
    database.execute("update trials set status = 'done'")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_transaction_of_a_killed_process_is_rolled_back(ledger):
    before = ledger.rows()
    done = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(ledger.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ledger.rows() == before
    assert ledger.claim("x", 60.0) == "b"


def test_a_full_disk_raises_an_error_with_a_remedy_and_keeps_the_ledger(ledger):
    before = ledger.rows()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunFolderError, match=r"cannot be used .*that the disk has space"):
            ledger.claim("x", 60.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.rows() == before
    assert ledger.claim("x", 60.0) == "b"
