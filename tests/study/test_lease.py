"""Owners are judged by their heartbeats, on the clock of the observer alone."""

import time

import pytest

from fpnlab.run.folder import locked
from fpnlab.run.interrupts import Stop
from fpnlab.study import lease
from fpnlab.study.lease import LEASE_SECONDS, TICK_SECONDS, Heartbeats, Lease
from fpnlab.study.ledger import Ledger, LedgerRow


class Clock:
    """A clock that is off by some seconds."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", journal="wal")
    ledger.expect(LedgerRow(name, "0", path=f"trials/{name}") for name in "ab")
    return ledger


@pytest.fixture
def clock():
    return Clock(1e6)


def owner_of(ledger, name):
    return ledger.rows()[name].owner


def observe(heartbeats, clock, seconds, each_second=lambda second: None):
    """Looks once a tick for some seconds."""
    for second in range(int(seconds)):
        clock.now += TICK_SECONDS
        each_second(second)
        heartbeats.look()


def until_expired(ledger, heartbeats, clock, name):
    """Returns the seconds after which an observer expires a trial."""
    before = clock.now
    while owner_of(ledger, name) is not None:
        observe(heartbeats, clock, 1)
    return clock.now - before


def renew_in_time(ledger, names, owner):
    """Renews as a `Lease` does: three times in the length of a lease."""
    return lambda second: second % (LEASE_SECONDS // 3) == 0 and ledger.renew(names, owner)


def test_observers_whose_clocks_differ_never_expire_a_living_owner(ledger):
    name = ledger.claim("x")
    clocks = [Clock(offset) for offset in (0.0, 1.5, -1.5, 3600.0, -3600.0)]
    observers = [Heartbeats(ledger, clock) for clock in clocks]
    renew = renew_in_time(ledger, [name], "x")
    for second in range(int(1.5 * LEASE_SECONDS)):
        renew(second)
        for observer, clock in zip(observers, clocks):
            observe(observer, clock, 1)
    assert owner_of(ledger, name) == "x"
    assert ledger.attempts(name) == 1


@pytest.mark.parametrize("offset", [0.0, 1.5, -1.5, 3600.0, -3600.0])
def test_a_dead_owner_is_expired_after_one_lease_on_any_clock(offset, ledger):
    clock = Clock(offset)
    name, heartbeats = ledger.claim("x"), Heartbeats(ledger, clock)
    observe(heartbeats, clock, 100, renew_in_time(ledger, [name], "x"))
    ledger.renew([name], "x")
    seconds = until_expired(ledger, heartbeats, clock, name)
    assert LEASE_SECONDS <= seconds <= LEASE_SECONDS + 2 * TICK_SECONDS
    assert ledger.claim("y") == name


def test_a_late_observer_sees_a_whole_lease_before_it_expires_an_owner(ledger, clock):
    name, early = ledger.claim("x"), Heartbeats(ledger, clock)
    observe(early, clock, LEASE_SECONDS / 2)
    late = Heartbeats(ledger, clock)
    assert until_expired(ledger, late, clock, name) >= LEASE_SECONDS


@pytest.mark.parametrize("jump", [1.5, 3600.0, 1e9])
def test_an_observer_that_was_stopped_for_long_does_not_count_that_time(jump, ledger, clock):
    name, heartbeats = ledger.claim("x"), Heartbeats(ledger, clock)
    observe(heartbeats, clock, LEASE_SECONDS / 2)
    clock.now += jump
    heartbeats.look()
    assert owner_of(ledger, name) == "x"
    # The owner was stopped as well, and renews its lease when it goes on.
    assert ledger.renew([name], "x")
    observe(heartbeats, clock, LEASE_SECONDS - TICK_SECONDS)
    assert owner_of(ledger, name) == "x"


def test_a_silent_owner_that_has_locked_a_folder_keeps_all_its_trials(ledger, clock):
    names, heartbeats = [ledger.claim("x"), ledger.claim("x")], Heartbeats(ledger, clock)
    folder = ledger.path.parent / "trials" / "b"
    folder.mkdir(parents=True)
    with locked(folder):
        observe(heartbeats, clock, 3 * LEASE_SECONDS)
        assert [owner_of(ledger, name) for name in names] == ["x", "x"]
    observe(heartbeats, clock, 1)
    assert [owner_of(ledger, name) for name in names] == [None, None]


def test_a_trial_that_was_set_aside_is_free_a_lease_later(ledger, clock):
    name, heartbeats = ledger.claim("x"), Heartbeats(ledger, clock)
    observe(heartbeats, clock, LEASE_SECONDS - TICK_SECONDS)
    ledger.set_aside([name], "x")
    assert until_expired(ledger, heartbeats, clock, name) >= LEASE_SECONDS
    assert ledger.claim("x") == name
    assert ledger.attempts(name) == 1


def test_an_owner_that_starts_again_under_its_name_expires_its_former_self(ledger, clock):
    """As a job that a cluster has put back into its queue."""
    name, heartbeats = ledger.claim("x"), Heartbeats(ledger, clock)
    assert until_expired(ledger, heartbeats, clock, name) >= LEASE_SECONDS
    assert ledger.claim("x") == name


def test_an_owner_that_was_suspended_finds_its_lease_lost_at_its_first_tick(ledger, monkeypatch):
    monkeypatch.setattr(lease, "TICK_SECONDS", 0.01)
    ledger.claim("x")
    slept = [0.0]
    monkeypatch.setattr(lease, "uptime", lambda: time.monotonic() + slept[0])
    with Lease(ledger, ["a"], "x", Stop(), lambda: None) as held:
        ledger.expire(ledger.heartbeats())
        time.sleep(0.1)
        assert not held.stop.requested
        slept[0] = LEASE_SECONDS
        end = time.monotonic() + 10
        while not held.stop.requested:
            assert time.monotonic() < end
            time.sleep(0.01)
