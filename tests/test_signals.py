"""Signals that ask a process to end."""

import os
import signal

import pytest

from vbq.signals import Deferred, signals_as_exceptions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_become_exceptions_while_the_block_runs(number):
    with pytest.raises(SystemExit) as error, signals_as_exceptions():
        os.kill(os.getpid(), number)
    assert error.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_signal_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_exceptions():
            os.kill(os.getpid(), signal.SIGHUP)
        with Deferred() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number, kind", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_deferred_signals_act_when_asked(number, kind):
    with Deferred() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
    with pytest.raises(kind):
        signals.act()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    Deferred().act()
