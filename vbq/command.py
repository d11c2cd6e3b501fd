"""What every command line shares: errors for the user, notes, numbers as arguments, progress bars."""

import argparse
import math
import sys


class UserError(Exception):
    """Bad input or an unusable place on disk. The message is one line: what is wrong, where, what to do."""


def run_main(main, argv=None):
    """Runs a script's main function and prints a `UserError` as one line on stderr.

    Args:
      main: function of `argv` that returns the exit status (None counts as 0).
      argv: list of str, or None for the process's own arguments.

    Returns:
      int, the exit status: 1 after a `UserError`, 130 after Ctrl-C. Any other exception is a bug and keeps
        its
      traceback.
    """
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def reason(error):
    """Describes an exception that a library raised.

    Args:
      error: Exception.

    Returns:
      str, one line.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def note(text):
    """Prints a remark for the user on stderr; stdout holds the results alone."""
    print(text, file=sys.stderr)


def number(kind, at_least=None, above=None, below=None, at_most=None):
    """Makes a parser, for argparse, of a finite number within bounds.

    Args:
      kind: int or float.
      at_least, above, below, at_most: number, or None for no such bound.

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
        if not math.isfinite(value) or not all(test(value) for _, test in bounds):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value

    return parse


def progress(iterable, **options):
    """Wraps an iterable in a progress bar with the time left, which appears on a terminal only.

    Args:
      iterable: any iterable.
      **options: those of tqdm.

    Returns:
      Iterable over the same items.
    """
    from tqdm import tqdm  # here, because `--help` should not wait for it

    return tqdm(iterable, **{"disable": None, "dynamic_ncols": True, "file": sys.stderr, **options})
