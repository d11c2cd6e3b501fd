"""Many files in one call: what names stand for, where results are written, and what to do about bad files."""

import collections
import contextlib
import glob
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vbq.command import UserError, disk_is_full, note, progress
from vbq.files import check_output, find_images, image_endings, make_output_folder

VBQ = ".vbq"
MOST_NAMES = 5  # that a note lists


class Job(NamedTuple):
    """A file to read, and the one to write, if any."""

    source: str
    target: str | None = None


def is_batch(patterns, out=None):
    """Whether a command line asks for a batch.

    Args:
      patterns: list of str, the names of what is to be read.
      out: str, the name of what is to be written, if anything is.

    Returns:
      bool: there are several names, one is a folder or a glob, or `out` is a folder or ends with a slash.
    """
    return len(patterns) > 1 or _is_pattern(patterns[0]) or (out is not None and _is_folder(out))


def _is_pattern(name):
    name = os.path.expanduser(name)
    return os.path.isdir(name) or (glob.has_magic(name) and not os.path.exists(name))


def _is_folder(name):
    return os.path.isdir(name) or name.endswith((os.sep, os.altsep or os.sep))


def find_inputs(patterns, compressed=False):
    """Finds the files that names on a command line stand for.

    Args:
      patterns: list of str. A folder stands for the images in it, a glob for the files that match; see
        `files.find_images`. Any other name stands for itself, whether there is such a file or not.
      compressed: bool. If it is true, folders and globs stand for their .vbq files; otherwise for their other
        files.

    Returns:
      Sorted list of different paths. A folder or glob that stands for no file is one of them if there are
      others: `process` then reports it as it reports a missing file, and works on the others.

    Raises:
      UserError: no folder or glob stands for a file, and there is no other name.
    """
    found, empty = {}, {}
    for pattern in map(os.path.expanduser, patterns):
        try:
            paths = _matches(pattern, compressed)
        except UserError as error:
            empty[os.path.abspath(pattern)] = pattern, error
            continue
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise next(iter(empty.values()))[1]
    return sorted([*found.values(), *(pattern for pattern, _ in empty.values())])


def _matches(pattern, compressed):
    """The paths that one pattern stands for, see `find_inputs`."""
    if not _is_pattern(pattern):
        return [pattern]
    if not compressed:
        paths = [path for path in find_images(pattern) if not path.lower().endswith(VBQ)]
    else:
        inside = os.path.join(glob.escape(pattern), "*") if os.path.isdir(pattern) else pattern
        paths = []
        with contextlib.suppress(UserError):  # nothing matches
            paths = [path for path in find_images(inside) if path.lower().endswith(VBQ)]
    if not paths:
        where = "are in the folder" if os.path.isdir(pattern) else "match"
        raise UserError(f"no {VBQ if compressed else 'image'} files {where} {pattern}")
    return paths


def output_names(paths):
    """Chooses the names of the files that are written for others.

    A name is the base name without its ending. Equal ones keep their ending (a.png and a.jpg); names that are
    still equal are preceded by as much of the path as tells them apart (x-a.png and y-a.png). Names that
    differ only in capitals, which some file systems take for equal, get a number.

    Args:
      paths: list of str, different from each other.

    Returns:
      List of different str without ending, in the same order.
    """
    parts = [os.path.abspath(path).split(os.sep)[1:] for path in paths]
    names = [os.path.splitext(path[-1])[0] for path in parts]
    for length in range(1, max(map(len, parts), default=0) + 1):
        counts = collections.Counter(names)
        names = ["-".join(path[-length:]) if counts[name] > 1 else name for path, name in zip(parts, names)]
    return _numbered(names)


def _numbered(names):
    """Adds -2, -3 and so on to names that a file system may take for those of earlier ones."""
    taken, distinct = set(), []
    for name in names:
        candidate, number = name, 1
        while _folded(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(_folded(candidate))
        distinct.append(candidate)
    return distinct


def _folded(name):
    """What a name becomes on a file system that distinguishes as few names as possible."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def plan(sources, out, ending, shard=None):
    """Decides what is written where, and checks that it can be. Makes the folder.

    Args:
      sources: sorted list of different paths.
      out: str, the folder to write to; made if missing.
      ending: str such as ".vbq", of the files to write.
      shard: (I, N), two int: only every Nth of the files, from the Ith on, is worked on. Names depend on the
        whole list, so that shards never write to the same file.

    Returns:
      List of Job. A note names the files that will be replaced.

    Raises:
      UserError: `out` is a file or named like one, cannot be made or written to; or a file to write is an
        input, a folder or write-protected.
    """
    if not _is_folder(out):
        if os.path.lexists(out):
            raise UserError(f"cannot write to {out}: several files need a folder, and it is a file")
        if os.path.splitext(out)[1].lower() in {VBQ, ending, *image_endings()}:
            raise UserError(
                f"cannot write to {out}: several files need a folder, and this is the name of a file; "
                "end it with a slash if you mean a folder"
            )
    names = [name + ending for name in output_names(sources)]
    jobs = [Job(source, os.path.join(out, name)) for source, name in zip(sources, names)]
    first, step = shard or (1, 1)
    jobs = jobs[first - 1 :: step]
    replaced = _check_targets(jobs, sources, ending)
    make_output_folder(out)
    if replaced:
        more = f" and {len(replaced) - MOST_NAMES} more" if len(replaced) > MOST_NAMES else ""
        note(f"note: replaces in {out}: {', '.join(replaced[:MOST_NAMES])}{more}")
    return jobs


def _check_targets(jobs, sources, ending):
    """Checks the files to write that exist already; returns their base names, or raises a UserError.

    The names of pictures are not typed but implied: a.vbq stands for a.png. So no picture beside the files
    that are decoded is replaced: it may be the original.
    """
    inputs, replaced, places = {_identity(source): source for source in sources}, [], {}
    folders = {os.path.dirname(os.path.realpath(source)) for source in sources}
    for job in jobs:
        place = os.path.realpath(job.target)
        if places.setdefault(place, job) is not job:
            raise UserError(f"cannot write {job.target}: it is a link to {place}, which is written as well")
        identity = _identity(job.target)
        if not identity:
            continue
        check_output(job.target, [inputs[identity]] if identity in inputs else [], (ending,))
        if ending != VBQ and os.path.dirname(place) in folders:
            raise UserError(
                f"cannot write {job.target}: it exists, beside the files to decode; name another folder"
            )
        replaced.append(os.path.basename(job.target))
    return replaced


def _identity(path):
    """What is the same for all names of a file: device and number, or None if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def process(jobs, prepare, finish, begin=lambda: None, alone=False):
    """Works on files one after the other. The next one is prepared in a second thread meanwhile.

    Args:
      jobs: list of Job.
      prepare: function of a Job; what it returns goes to `finish`.
      finish: function of a Job and what was prepared; returns the result, a dict.
      begin: function without arguments that is called once, before the first `finish`. Its errors end the
        batch.
      alone: bool, whether there is only one file and no batch: then errors are raised.

    Yields:
      dict, the result of `finish`. In a batch, the file that was read is added as "input" if another one is
      written. For a bad file: its name as "file", and the message as "error"; it is also printed on stderr.

    Raises:
      UserError: of `begin`; or the disk is full; or any error if there is no batch.
    """

    def prepared(job):
        try:
            if not alone and _is_pattern(job.source):  # see `find_inputs`
                where = "is in the folder" if os.path.isdir(job.source) else "matches"
                raise UserError(f"no file to work on {where} {job.source}")
            return job, prepare(job), None
        except UserError as error:
            return job, None, error

    begun = False
    with progress(None, total=len(jobs), unit="file", **({"disable": True} if alone else {})) as bar:
        for job, value, error in map(prepared, jobs) if alone else _ahead(prepared, jobs):
            if not error and not begun:
                begin()
                begun = True
            try:
                if error:
                    raise error
                result = finish(job, value)
            except UserError as error:
                if alone or disk_is_full(error):
                    raise
                note(f"error: {error}")
                result = {"file": job.source, "error": str(error)}
            yield result if alone or not job.target else {"input": job.source, **result}
            bar.update()


def _ahead(function, items):
    """Yields function(item) for all items; the next one is computed in a second thread meanwhile."""
    with ThreadPoolExecutor(1) as worker:
        pending = None
        for item in items:
            following = worker.submit(function, item)
            if pending:
                yield pending.result()
            pending = following
        if pending:
            yield pending.result()
