"""Files: written in one step, read without pickle, found by a pattern."""

import contextlib
import errno
import functools
import glob
import io
import os
import secrets
import stat
import tempfile
import zipfile

import numpy as np

from vbq.command import UserError, reason

MOST_STEM = 40  # characters of a file's name that the name of its temporary file begins with

# Formats that Pillow recognizes, but cannot decode without another program.
_FOREIGN_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path and renames it to `path` once the block has ended without an exception.

    The temporary file lies beside `path`. Its name is hidden, in case a killed process leaves it behind, and
    unique, so that two processes do not disturb each other. It keeps the suffix of `path`, because some
    writers choose their format by the suffix.

    A symbolic link is followed: the file that it names is replaced, and the link stays. A file that is not
    regular, such as a FIFO or `/dev/null`, is written directly: `path` itself is yielded.

    Args:
      path: str or path-like, the file to write.

    Yields:
      str, the path to write to.

    Raises:
      UserError: the folder or the file cannot be written. An older file at `path` then stays as it was.
    """
    path = os.fspath(path)
    temporary = None
    try:
        if _is_special(path):
            yield path
            return
        target = os.path.realpath(path)
        folder, name = os.path.split(target)
        stem, suffix = os.path.splitext(name)
        stem = stem[:MOST_STEM]  # what is added must not make a long name too long for the file system
        temporary = os.path.join(folder, f".{stem}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")
        yield temporary
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())  # without it, a power cut could leave an empty file under the new name
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.remove(temporary)


def _is_special(path):
    """Whether `path` exists and is not a regular file; raises an OSError if it is a directory."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return not stat.S_ISREG(mode)


def check_output(path, inputs=(), endings=None):
    """Checks, before any work, that a file can be written and replaces no input.

    Args:
      path: str or path-like, the file to write.
      inputs: iterable of paths that are read.
      endings: tuple of str such as `('.vbq',)`, in small letters: the name must end in one of them, in small
        letters or capitals. None for any name. A file that is not regular, such as a FIFO, may have any name.

    Raises:
      UserError: the path is a directory; its folder is missing or cannot be written to; it is one of the
        inputs, also through a link or in another spelling; or it has none of the endings.
    """
    path = os.fspath(path)
    try:
        special = _is_special(path)
    except IsADirectoryError as error:
        raise UserError(f"cannot write {path}: it is a directory, name a file in it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    for other in inputs:
        if _same_file(path, os.fspath(other)):
            raise UserError(f"cannot write {path}: it is an input (name another file to write)")
    if special:
        return
    if not path:
        raise UserError("cannot write a file without a name")
    # A link has two names: a photograph must not be replaced through a link that is named like a .vbq file.
    for name in dict.fromkeys([path, os.path.realpath(path)] if endings else []):
        if not name.lower().endswith(tuple(endings)):
            link = "" if name == path else f", and it is a link to {name}"
            raise UserError(f"cannot write {path}: its name should end in {' or '.join(endings)}{link}")
    if path.endswith(os.sep):
        raise UserError(f"cannot write {path}: it names a folder, which does not exist")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {path}: there is no folder {folder}")
    why = why_not_writable(folder)
    if why:
        raise UserError(f"cannot write {path}: {folder} is not writable: {reason(why)}") from why
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UserError(f"cannot write {path}: it is write-protected")


def make_folder(folder):
    """Makes a folder and those above it, unless they are there.

    Raises:
      UserError: the folder cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter if the name has a null character
        raise UserError(f"cannot make the folder {folder}: {reason(error)}") from error


def make_output_folder(folder):
    """Makes a folder, and checks, before any work, that files can be made in it.

    Raises:
      UserError: the folder cannot be made, or cannot be written to.
    """
    make_folder(folder)
    why = why_not_writable(folder)
    if why:
        raise UserError(f"cannot write to the folder {folder}: {reason(why)}") from why


def why_not_writable(folder):
    """Returns why no file can be made in a folder, an OSError; or None if files can be made there."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error
    return None


def _same_file(path, other):
    with contextlib.suppress(OSError):
        if os.path.samefile(path, other):
            return True
    return os.path.normcase(os.path.realpath(path)) == os.path.normcase(os.path.realpath(other))


def save_npz(path, arrays, compression=zipfile.ZIP_STORED):
    """Writes named arrays, in one step, to an `.npz` file that loads without pickle.

    Args:
      path: str or path-like.
      arrays: dict of names to array-likes. Names may hold spaces and parentheses.
      compression: `zipfile.ZIP_STORED`; `ZIP_DEFLATED`, which is smaller; or `ZIP_LZMA`, which is smaller
        still, but takes two to four times as long to read (measured on fits). `np.load` reads all three.

    Raises:
      UserError: the file cannot be written.
      TypeError: an array holds Python objects.
    """
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.hasobject:  # NumPy would pickle it without a warning
            raise TypeError(f"array {name!r} holds Python objects")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        if temporary == os.fspath(path):  # a FIFO or the like, in which the writer cannot go back
            buffer = io.BytesIO()
            _write_npz(buffer, arrays, compression)
            file.write(buffer.getvalue())
        else:
            _write_npz(file, arrays, compression)


def _write_npz(file, arrays, compression):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)


def load_npz(path, names=None):
    """Reads the arrays of an `.npz` file.

    Args:
      path: str or path-like.
      names: container of str, the arrays to read if the file has them; None for all.

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
            arrays = {name: archive[name] for name in archive.files if names is None or name in names}
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"{name} is not an array")
            return arrays
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except Exception as error:  # no list of what NumPy, zipfile and zlib raise on damaged data is complete
        raise UserError(f"{path} is damaged or not an .npz file: {reason(error)}") from error


def open_npy(path):
    """Opens the array of an `.npy` file without reading it.

    Args:
      path: str or path-like.

    Returns:
      Array, a read-only memory map if it has any elements.

    Raises:
      UserError: the file is missing, shorter than its header says, holds pickled objects, or is not an
        `.npy` file.
    """
    try:
        with np.errstate(over="ignore"):  # a header can claim more elements than there are integers
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an .npz file")
        return array
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except Exception as error:  # as above
        why = reason(error)
        if "mmap length" in why:
            why = "it is shorter than its header says"
        raise UserError(f"{path} is damaged or not an .npy file: {why}") from error


def is_npy(path):
    """Whether a path, str or path-like, ends in `.npy`, in small letters or capitals."""
    return os.fspath(path).lower().endswith(".npy")


@functools.lru_cache(maxsize=1)
def image_endings():
    """Returns the endings of the image files that can be read, a set of str such as '.png'; '.npy' is one."""
    from PIL import Image  # here, because `--help` should not wait for it

    Image.init()
    readable = Image.OPEN.keys() - _FOREIGN_FORMATS
    return {".npy"} | {ending for ending, kind in Image.EXTENSION.items() if kind in readable}


def find_images(pattern):
    """Finds the files that match a glob, or the images in a folder.

    Args:
      pattern: str, a glob in which `**` stands for any folders. The name of an existing file stands for that
        file, and the name of an existing folder for the image files in it (those with an ending of
        `image_endings`, not in folders below it), whatever characters the names have.

    Returns:
      Sorted list of paths.

    Raises:
      UserError: nothing matches.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        return _images_in(pattern)
    folder, name = os.path.split(pattern)
    if os.path.isdir(folder):
        pattern = os.path.join(glob.escape(folder), name)
    paths = sorted(filter(os.path.isfile, glob.iglob(pattern, recursive=True)))
    if not paths:
        raise UserError(f"no image files match {pattern}")
    return paths


def _images_in(folder):
    paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith("."))
    paths = [
        path
        for path in paths
        if os.path.splitext(path)[1].lower() in image_endings() and os.path.isfile(path)
    ]
    if not paths:
        raise UserError(f"no image files are in the folder {folder}")
    return paths
