"""Signals that ask a process to end."""

import contextlib
import signal
import threading

_NAMES = ("SIGTERM", "SIGHUP")  # of a job's end, and of a closed terminal


@contextlib.contextmanager
def signals_as_exceptions():
    """Makes SIGTERM and SIGHUP end the block by a `SystemExit`, with the status that a shell expects.

    A second signal ends the process at once. A signal that is ignored (`nohup`) or handled stays so. In a
    thread other than the main one, nothing changes, because Python handles signals in that one only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _numbers() if signal.getsignal(number) is signal.SIG_DFL]

    def end(number, _):
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Deferred:
    """Notes SIGINT, SIGTERM and SIGHUP while a block runs, so that it can end between two steps of its work.

    A second signal acts at once, as it did before. Outside the main thread, signals act as ever.

    Attributes:
      received: int, the number of the signal, or None.
    """

    def __init__(self):
        self.received, self.former = None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_numbers()):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self.former[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number, _):
        self.received = number
        self._restore()

    def _restore(self):
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}

    def __exit__(self, *_):
        self._restore()

    def act(self):
        """Raises what the received signal would have raised; does nothing if there was none."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received:
            raise SystemExit(128 + self.received)


def _numbers():
    """The numbers of the signals that this system has."""
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
