"""The first signal requests a stop, and the second one has its usual effect."""

import os
import signal

import pytest

from fpnlab.run.interrupts import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_restores_the_handlers(number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_handlers_are_restored_without_a_signal():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Stop():
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_ends_the_process():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_prints_the_notice(capfd):
    with Stop(notice="stopping after this step"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "\nstopping after this step\n"


def test_an_outer_stop_stops_the_inner_ones_but_not_the_reverse():
    outer = Stop()
    one, other = Stop(outer), Stop(outer)
    one.requested = True
    assert (outer.requested, one.requested, other.requested) == (False, True, False)
    outer.requested = True
    assert other.requested
