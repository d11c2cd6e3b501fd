"""What every command line shares: errors for the user, notes, arguments, progress bars."""

import argparse
import errno
import math
import os
import re
import sys

BROKEN_PIPE_STATUS = 141  # what a shell reports of a Unix tool whose reader went away: 128 + SIGPIPE
MOST_CHARACTERS = 60  # characters of a wrong argument that a message quotes
MOST_ERROR_CHARACTERS = 400  # characters of a usage error
LARGEST_INTEGER = 2**63 - 1  # of NumPy's int64
_FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota


class UserError(Exception):
    """Bad input or an unusable place on disk. The message is one line: what is wrong, where, what to do."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose usage errors are one line on stderr, with exit status 2.

    Its subparsers are of the same class.
    """

    def error(self, message):
        """Prints `PROG: error: MESSAGE` on one line and exits with status 2."""
        message = printable(message)
        if len(message) > MOST_ERROR_CHARACTERS:
            message = f"{message[:MOST_ERROR_CHARACTERS]}..."
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None, namespace=None):
        """Parses as `ArgumentParser.parse_args` does, but names only the first unrecognized argument."""
        args, extra = self.parse_known_args(args, namespace)
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            hint = ""
            if not all(text.startswith("-") for text in extra):
                hint = "; put a pattern in quotes ('photos/*.png'), or the shell replaces it by many names"
            self.error(f"unrecognized arguments: {shorten(extra[0])}{more}{hint}")
        return args


def run_main(main, argv=None):
    """Runs a script's main function and prints a `UserError` as one line on stderr.

    Args:
      main: function of `argv` that returns the exit status (None counts as 0).
      argv: list of str, or None for the process's own arguments.

    Returns:
      int, the exit status: 1 after a `UserError`, 130 after Ctrl-C, 141 if the reader of stdout or stderr
        went away (`codec.py info x.vbq | true`). Any other exception is a bug and keeps its traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: a strange name must not end a script
    try:
        return _status(main, argv)
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE_STATUS


def _status(main, argv):
    """The exit status of `main`, once stdout is written."""
    try:
        status = main(argv) or 0
        _flush()
        return status
    except SystemExit:  # of a parser, perhaps after --help
        _flush()
        raise
    except UserError as error:
        note(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except OSError as error:
        if not disk_is_full(error):
            raise
        where = error.filename or "a file or the standard output"
        note(f"error: cannot write {where}: {reason(error)}")
        _discard_output()
        return 1


def disk_is_full(error):
    """Whether an OSError, or a UserError that was raised from one, says that the disk is full."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return isinstance(cause, OSError) and cause.errno in _FULL_DISK


def _flush():
    """Writes stdout now, because Python ignores an error if it writes stdout when it exits."""
    if sys.stdout:
        sys.stdout.flush()


def _discard_output():
    """Discards what is still buffered. Otherwise Python would try to write it when it exits, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, AttributeError):
            if stream in (sys.__stdout__, sys.__stderr__) and stream:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def printable(text):
    """Makes text fit for one line on a terminal.

    Args:
      text: str, in which file names may hold line breaks, control characters, or bytes that are not UTF-8
        (which Python keeps as surrogates).

    Returns:
      str, with a backslash escape for every such character: `\\n`, `\\x1b`, `\\xff`.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character):
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shorten(text, most=MOST_CHARACTERS):
    """Cuts text for a message.

    Args:
      text: str.
      most: int, number of characters.

    Returns:
      str: `text`, or its beginning and "..." if it is longer than `most`.
    """
    return text if len(text) <= most else f"{text[:most]}..."


def reason(error):
    """Describes an exception that a library raised.

    Args:
      error: Exception.

    Returns:
      str, one line.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def note(text):
    """Prints a remark for the user on stderr, on one line; stdout holds the results alone."""
    say(text, sys.stderr)


def say(text, stream=None):
    """Prints text on one line, above the progress bars if there are any.

    Args:
      text: str.
      stream: text stream; None for stdout.
    """
    stream = sys.stdout if stream is None else stream
    if "tqdm" not in sys.modules:
        print(printable(text), file=stream, flush=True)
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=stream):
        print(printable(text), file=stream, flush=True)


def number(kind, at_least=None, above=None, below=None, at_most=None):
    """Makes a parser, for argparse, of a finite number within bounds.

    Args:
      kind: int or float.
      at_least, above, below, at_most: number, or None for no such bound. Integers are at most 2^63 - 1 in
        any case.

    Returns:
      Function of a str that returns the number. It raises `argparse.ArgumentTypeError` for any other text.
    """
    bounds = [
        (f">= {at_least}", lambda v: v >= at_least, at_least),
        (f"> {above}", lambda v: v > above, above),
        (f"< {below}", lambda v: v < below, below),
        (f"<= {at_most}", lambda v: v <= at_most, at_most),
    ]
    bounds = [(text, test) for text, test, bound in bounds if bound is not None]
    wanted = "an integer" if kind is int else "a number"
    if bounds:
        wanted += " " + " and ".join(text for text, _ in bounds)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        found = repr(shorten(text))
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise argparse.ArgumentTypeError(f"must be {wanted}, and {found} has too many digits")
        if not math.isfinite(value) or not all(test(value) for _, test in bounds):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {found}")
        return value

    return parse


seed = number(int, at_least=0, below=2**32)  # NumPy and TensorFlow take no other seeds


def shard(text):
    """Parses I/N for argparse: every Nth file from the Ith on.

    Returns:
      (I, N), two int with 1 <= I <= N.
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    i, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= count:
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text!r}")
    return i, count


def progress(iterable, **options):
    """Wraps an iterable in a progress bar with the time left, which appears on a terminal only.

    Args:
      iterable: any iterable.
      **options: those of tqdm.

    Returns:
      Iterable over the same items.
    """
    from tqdm import tqdm  # here, because `--help` should not wait for it

    disable = sys.stderr is None or None  # None: off where there is no terminal
    return tqdm(iterable, **{"disable": disable, "dynamic_ncols": True, "file": sys.stderr, **options})
