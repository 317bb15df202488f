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


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", journal="wal")
    ledger.expect(ENTRIES)
    return ledger


def expire(ledger, owner):
    """Expires the leases of an owner that is known to be dead."""
    return ledger.expire(ledger.heartbeats(owner))


def statuses(ledger):
    return {name: row.status for name, row in ledger.rows().items()}


def test_trials_are_claimed_in_the_order_of_the_study_and_each_once(ledger):
    assert list(statuses(ledger).items()) == [("b", "waiting"), ("a", "waiting"), ("c", "waiting")]
    assert [ledger.claim(owner) for owner in "xyzx"] == ["b", "a", "c", None]
    assert [row.owner for row in ledger.rows().values()] == ["x", "y", "z"]


def test_an_outcome_is_stored_with_its_score_and_error(ledger):
    for _ in range(3):
        ledger.claim("x")
    assert ledger.finish("a", "x", "diverged", "not finite", None)
    assert ledger.finish("b", "x", *DONE)
    assert ledger.fail("c", "x", "OSError: no")
    assert statuses(ledger) == {"b": "done", "a": "diverged", "c": "failed"}
    assert ledger.rows()["c"].error == "OSError: no"
    assert [row.score for row in ledger.rows().values()] == [0.5, None, None]
    assert ledger.open() == 0
    assert ledger.claim("x") is None


def test_only_the_owner_changes_a_trial_and_records_one_outcome(ledger):
    name = ledger.claim("x")
    for change in (
        lambda: ledger.finish(name, "y", *DONE),
        lambda: ledger.fail(name, "y", "no"),
        lambda: ledger.release([name], "y"),
        lambda: ledger.set_aside([name], "y"),
        lambda: ledger.renew([name], "y"),
    ):
        assert not change()
    assert ledger.rows()[name][5:] == ("running", "x", 1, None, None)
    assert ledger.finish(name, "x", *DONE)
    assert not ledger.finish(name, "x", "diverged", None, None)
    assert ledger.rows()[name].status == "done"


def test_an_expired_lease_can_be_claimed_and_its_first_owner_records_nothing(ledger):
    name = ledger.claim("x")
    assert ledger.claim("y") != name
    assert expire(ledger, "x") == [name]
    assert ledger.claim("z") == name
    assert not ledger.renew([name], "x")
    assert not ledger.finish(name, "x", *DONE)
    assert ledger.finish(name, "z", "done", None, 0.7)
    assert ledger.rows()[name].score == 0.7


def claimed_again(ledger, name):
    ledger.release([name], "x")
    assert ledger.claim("x") == name


def reopened(ledger, name):
    ledger.reopen([name])
    assert ledger.claim("x") == name


@pytest.mark.parametrize(
    "change", [lambda ledger, name: ledger.renew([name], "x"), claimed_again, reopened]
)
def test_a_heartbeat_that_has_changed_is_not_expired(change, ledger):
    name = ledger.claim("x")
    seen = ledger.heartbeats()
    change(ledger, name)
    assert ledger.expire(seen) == []
    assert ledger.finish(name, "x", *DONE)


def test_heartbeats_are_those_of_running_trials_that_have_an_owner(ledger):
    assert ledger.heartbeats() == []
    for owner in "xyz":
        ledger.claim(owner)
    ledger.renew(["a"], "y")
    ledger.finish("c", "z", *DONE)
    assert [beat[:3] for beat in ledger.heartbeats()] == [("b", "x", 1), ("a", "y", 2)]
    assert [beat.name for beat in ledger.heartbeats("y")] == ["a"]
    expire(ledger, "x")
    assert [beat.name for beat in ledger.heartbeats()] == ["a"]


def test_a_trial_that_was_set_aside_is_free_once_its_lock_holder_has_expired(ledger):
    name = ledger.claim("x")
    assert ledger.set_aside([name], "x")
    assert ledger.rows()[name].attempts == 0
    assert ledger.claim("x") != name
    assert not ledger.finish(name, "x", *DONE)
    [beat] = [beat for beat in ledger.heartbeats() if beat.name == name]
    assert ledger.expire([beat]) == [name]
    assert ledger.claim("x") == name
    assert ledger.rows()[name].attempts == 1


def test_a_change_applies_to_the_trials_of_a_list_that_are_still_owned(ledger):
    names = [ledger.claim("x"), ledger.claim("y"), ledger.claim("x")]
    assert not ledger.renew(names, "x")
    assert [beat.beat for beat in ledger.heartbeats()] == [2, 1, 2]
    assert not ledger.release(names, "x")
    assert statuses(ledger) == {"b": "waiting", "a": "running", "c": "waiting"}


def test_a_claim_that_waited_for_the_lock_skips_a_trial_claimed_meanwhile(
    ledger, tmp_path, monkeypatch
):
    rival, enter = Ledger(ledger.path), ledger._transaction

    @contextlib.contextmanager
    def late():
        assert rival.claim("rival") == "b"
        with enter() as database:
            yield database

    monkeypatch.setattr(ledger, "_transaction", late)
    assert ledger.claim("x") == "a"


def test_a_released_claim_does_not_count_as_an_attempt(ledger):
    name = ledger.claim("x")
    assert ledger.release([name], "x")
    assert ledger.rows()[name][5:] == ("waiting", None, 0, None, None)
    assert ledger.claim("y") == name


def test_the_attempts_at_a_trial_count_the_owners_that_died(ledger):
    for number in range(1, MOST_ATTEMPTS + 1):
        assert ledger.claim(f"x{number}") == "b"
        assert ledger.attempts("b") == number
        assert expire(ledger, f"x{number}") == ["b"]
    ledger.reopen(["b"])
    assert ledger.rows()["b"][5:] == ("waiting", None, 0, None, None)


def test_a_reopened_trial_has_no_score(ledger):
    name = ledger.claim("x")
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
    assert [ledger.claim("x") for _ in range(4)] == ["tune-1", "tune-2", "tune-3", None]
    ledger.finish("tune-3", "x", *DONE)
    assert ledger.claim("x") == "second"
    ledger.finish("tune-1", "x", *DONE)
    assert ledger.claim("x") is None
    ledger.fail("tune-2", "x", "no")
    assert ledger.claim("x") == "first"


@pytest.fixture
def cells(tmp_path):
    """Four seeds of one cell and two of another."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.expect(
        LedgerRow(f"{cell}{i}", "0", cell) for i in range(4) for cell in "pq"[: 2 - i // 2]
    )
    return ledger


def running(ledger, owner):
    return [name for name, row in ledger.rows().items() if row.owner == owner]


def test_waiting_trials_of_one_cell_are_claimed_together_up_to_a_limit(cells):
    assert cells.claim("x") == "p0"
    assert cells.claim_pack("p0", "x", 1) == (["p0"], False)
    assert cells.claim_pack("p0", "x", 3) == (["p0", "p1", "p2"], False)
    assert running(cells, "x") == ["p0", "p1", "p2"]
    assert cells.claim("y") == "q0"
    assert cells.claim_pack("q0", "y", 8) == (["q0", "q1"], False)
    assert cells.claim("z") == "p3"
    assert cells.claim_pack("p3", "z", 8) == (["p3"], False)


def test_a_recorded_pack_is_always_claimed_together(cells):
    cells.claim("x")
    names, _ = cells.claim_pack("p0", "x", 3)
    cells.set_pack(names, together=True)
    assert expire(cells, "x") == names
    assert cells.claim("y") == "p0"
    assert running(cells, "y") == names
    assert cells.claim_pack("p0", "y", 1) == (names, True)
    # A trial of the pack that has ended is not run again.
    cells.finish("p0", "y", *DONE)
    cells.release(["p1", "p2"], "y")
    assert [cells.claim("z") for _ in range(2)] == ["q0", "p1"]
    assert cells.claim_pack("p1", "z", 8) == (["p1", "p2"], True)


def test_a_trial_recorded_as_alone_is_never_packed(cells):
    cells.claim("x")
    names, _ = cells.claim_pack("p0", "x", 3)
    cells.set_pack(names, together=False)
    cells.release(names, "x")
    assert cells.claim("y") == "p0"
    assert running(cells, "y") == ["p0"]
    assert cells.claim_pack("p0", "y", 8) == (["p0"], True)


def test_the_last_attempt_at_each_trial_of_a_pack_is_alone(cells):
    cells.claim("x0")
    names, _ = cells.claim_pack("p0", "x0", 2)
    cells.set_pack(names, together=True)
    for i in range(1, MOST_ATTEMPTS - 1):
        expire(cells, f"x{i - 1}")
        assert cells.claim(f"x{i}") == "p0"
        assert running(cells, f"x{i}") == names
    expire(cells, f"x{MOST_ATTEMPTS - 2}")
    assert [cells.claim(owner) for owner in "wyz"] == ["p0", "q0", "p1"]
    assert [running(cells, owner) for owner in "wyz"] == [["p0"], ["q0"], ["p1"]]


def test_the_last_attempt_at_a_trial_takes_no_waiting_trials_with_it(cells):
    """Its workers died before they had recorded whether the trials make a pack."""
    for i in range(MOST_ATTEMPTS - 1):
        cells.claim(f"x{i}")
        expire(cells, f"x{i}")
    assert cells.claim("y") == "p0"
    assert cells.claim_pack("p0", "y", 8) == (["p0"], True)


def test_a_stop_request_lasts_until_it_is_withdrawn(ledger):
    assert not ledger.stopping()
    ledger.stop(True)
    assert Ledger(ledger.path).stopping()
    ledger.stop(False)
    assert not ledger.stopping()


def test_a_reopened_ledger_keeps_its_trials(ledger):
    ledger.claim("x")
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
    ledger.claim("x")
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
        match=r"written by another version .*version 0; expected 5.*; choose",
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


def old_ledger(path, script):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(script)


def test_a_version_3_ledger_is_migrated(tmp_path):
    old_ledger(tmp_path / "ledger.sqlite", OLD)
    for ledger in (Ledger(tmp_path / "ledger.sqlite"), Ledger(tmp_path / "ledger.sqlite")):
        assert statuses(ledger) == {"a": "done", "b": "waiting"}
        assert [e.path for e in ledger.rows().values()] == ["tuning/a", "trials/b"]
    assert ledger.claim("x") == "b"
    assert ledger.finish("b", "x", *DONE)


VERSION_4 = """
create table trials (
    name text primary key, hash text not null, cell text not null, split text not null,
    path text not null default '', status text not null default 'waiting', owner text,
    lease_until real not null default 0, attempts integer not null default 0, error text,
    score real, pack text
);
create index by_status on trials (status);
create index by_cell on trials (cell, split, status);
create index by_pack on trials (pack);
create table control (stopping integer not null);
insert into control values (0);
insert into trials (name, hash, cell, split, path, status, owner, lease_until, attempts, score)
values
    ('done', '1', 'c', 'test', 'trials/done', 'done', null, 1.7e9, 1, 0.5),
    ('owned', '2', 'c', 'test', 'trials/owned', 'running', 'x', 4e9, 1, null),
    ('expired', '3', 'c', 'test', 'trials/expired', 'running', 'y', 0, 2, null),
    ('delayed', '4', 'c', 'test', 'trials/delayed', 'waiting', null, 4e9, 0, null);
pragma user_version = 4;
"""


def test_a_version_4_ledger_keeps_its_owners_and_frees_its_expired_trials(tmp_path):
    old_ledger(tmp_path / "ledger.sqlite", VERSION_4)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.rows()["done"].score == 0.5
    assert ledger.heartbeats() == [("owned", "x", 0, "trials/owned")]
    assert [ledger.claim("z") for _ in range(3)] == ["expired", "delayed", None]
    assert [ledger.attempts(name) for name in ("expired", "delayed")] == [3, 1]
    assert ledger.expire(ledger.heartbeats("x")) == ["owned"]
    assert ledger.claim("z") == "owned"


def test_a_ledger_that_another_process_migrates_meanwhile_is_migrated_once(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    old_ledger(path, OLD)
    migrate = Ledger._migrate

    def late(ledger):
        monkeypatch.undo()
        Ledger(path)
        migrate(ledger)

    monkeypatch.setattr(Ledger, "_migrate", late)
    assert statuses(Ledger(path)) == {"a": "done", "b": "waiting"}


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
        while (name := ledger.claim(owner)) is not None:
            claimed[owner].append(name)
            assert ledger.finish(name, owner, *DONE)

    threads = [threading.Thread(target=take, args=(owner,)) for owner in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for names in claimed.values() for name in names]
    assert sorted(names) == [f"t{i:03}" for i in range(60)]


CLAIM_ALL = """
import pathlib, sys
from fpnlab.study.ledger import Ledger

ledger, owner = Ledger(pathlib.Path(sys.argv[1])), sys.argv[2]
while (name := ledger.claim(owner)) is not None:
    print(name, flush=True)
    assert ledger.renew([name], owner) and ledger.finish(name, owner, "done", None, 0.5)
"""


@pytest.mark.slow
def test_twenty_processes_claim_four_thousand_trials_each_once(tmp_path):
    path, trials = tmp_path / "ledger.sqlite", [f"t{i:04}" for i in range(4000)]
    Ledger(path, journal="wal").expect(LedgerRow(name, "0") for name in trials)
    command = [sys.executable, "-c", CLAIM_ALL, str(path)]
    processes = [
        subprocess.Popen([*command, str(owner)], stdout=subprocess.PIPE, text=True)
        for owner in range(20)
    ]
    printed = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 20
    assert sorted(name for names in printed for name in names) == trials
    rows = Ledger(path).rows().values()
    assert {(row.status, row.owner, row.attempts) for row in rows} == {("done", None, 1)}


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
    assert ledger.claim("x") == "b"


def test_a_full_disk_raises_an_error_with_a_remedy_and_keeps_the_ledger(ledger):
    before = ledger.rows()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunFolderError, match=r"cannot be used .*that the disk has space"):
            ledger.claim("x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.rows() == before
    assert ledger.claim("x") == "b"
