"""A lock on a run directory: one process at a time trains in it."""

import contextlib
import errno
import os
import socket

from vbq.command import UserError, note, reason
from vbq.files import make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".training.lock"
_HELD = (errno.EAGAIN, errno.EACCES)  # what flock reports of a lock that another process holds


@contextlib.contextmanager
def run_lock(run_dir):
    """Holds the lock of a run directory while the block runs.

    The operating system releases the lock however the process ends. After a block that has written nothing,
    a directory that was made for the lock is removed again.

    Args:
      run_dir: str; made if it is not there.

    Raises:
      UserError: another process holds the lock, or the directory cannot be made.
    """
    made = _make_folders(run_dir)
    try:
        with _locked(run_dir):
            yield
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # which fails unless the folder is empty


def _make_folders(path):
    """Makes a folder and those above it; returns the ones that were not there, the uppermost first."""
    missing, folder = [], path
    while folder and not os.path.lexists(folder):
        missing.insert(0, folder)
        folder = os.path.dirname(folder)
    make_folder(path)
    return missing


@contextlib.contextmanager
def _locked(run_dir):
    """Holds the lock, and removes its file at the end."""
    path = os.path.join(run_dir, LOCK_NAME)
    file = _open_locked(path, run_dir)
    if file is None:
        yield
        return
    with file:
        with contextlib.suppress(OSError):  # only the message of another process reads what is written here
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)  # before the lock is released, or it would be that of the next process


def _open_locked(path, run_dir):
    """Returns the open and locked file, or None where there can be no lock."""
    if fcntl is None:
        note(f"{run_dir}: not locked, which this system cannot do; let no other process train there")
        return None
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
        except OSError:
            return None  # nothing can be written here; who tries to will say so
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
            file.close()  # the process that held it has removed the file since it was opened here
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                holder = file.read(200) or "another process"
                file.close()
                raise UserError(
                    f"{run_dir}: {holder} trains there already; wait for its end, or stop it"
                ) from error
            file.close()
            note(f"{run_dir}: not locked: {reason(error)}; let no other process train there")
            return None
