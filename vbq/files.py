"""Files: written in one step, read without pickle, found by a pattern."""

import contextlib
import glob
import os
import secrets
import struct
import zipfile
import zlib

import numpy as np

from vbq.command import UserError, reason


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path and renames it to `path` once the block has ended without an exception.

    The temporary file lies beside `path`, under a hidden and unique name: what a killed process leaves behind
      is
    in nobody's way, and two processes do not disturb each other. It keeps the suffix of `path`, because some
    writers choose their format by the suffix.

    Args:
      path: str or path-like, the file to write.

    Yields:
      str, the path to write to.

    Raises:
      UserError: the folder or the file cannot be written. An older file at `path` then stays as it was.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    temporary = os.path.join(folder, f".{stem}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # without it, a power cut could leave an empty file under the new name
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def save_npz(path, arrays, compressed=False):
    """Writes named arrays, in one step, to an `.npz` file that loads without pickle.

    Args:
      path: str or path-like.
      arrays: dict of names to array-likes. Names may hold spaces and parentheses.
      compressed: bool, whether to deflate the arrays.

    Raises:
      UserError: the file cannot be written.
      TypeError: an array holds Python objects.
    """
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.hasobject:  # NumPy would pickle it without a warning
            raise TypeError(f"array {name!r} holds Python objects")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)


def load_npz(path):
    """Reads every array of an `.npz` file.

    Args:
      path: str or path-like.

    Returns:
      dict of names to arrays.

    Raises:
      UserError: the file is missing or damaged, holds pickled objects, or is not an `.npz` file.
    """
    try:
        with open(path, "rb") as file:  # opened here, because NumPy leaves a bad file open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise UserError(f"{path} is damaged or not an .npz file: {reason(error)}") from error


def find_images(pattern):
    """Finds the files that match a glob.

    Args:
      pattern: str, a glob in which `**` stands for any folders. The name of an existing file stands for that
        file, whatever characters it has.

    Returns:
      Sorted list of paths.

    Raises:
      UserError: nothing matches.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    paths = sorted(filter(os.path.isfile, glob.iglob(pattern, recursive=True)))
    if not paths:
        raise UserError(f"no image files match {pattern}")
    return paths
