"""What a training says while it runs, by absl.logging: lines of progress, and warnings.

The modules that log do not know whether anyone wants to read it: `--verbose` is a level. absl's own handler
is not used. It puts the date, the thread and the line of the source before every message, it prints into a
progress bar, and it expects that absl.flags has parsed the command line. (The flags of this program are
argparse's.) What a command
computes is no log: it is printed.
"""

import contextlib
import logging
import sys

from absl import logging as absl_logging
from tqdm import tqdm

from vbq.command import printable


class _Terminal(logging.Handler):
    """Prints plain messages, a line each, above a progress bar: progress to stdout, warnings to stderr."""

    def emit(self, record):
        is_warning = record.levelno >= logging.WARNING
        prefix = f"{record.levelname.lower()}: " if is_warning else ""
        file = sys.stderr if is_warning else sys.stdout
        with contextlib.suppress(OSError):  # nobody reads any more: no reason to end a training
            tqdm.write(prefix + printable(record.getMessage()), file=file)
            file.flush()


def log_to_terminal(verbose=False):
    """Sets up the logging of this process, for `main` to call before anything logs.

    Args:
      verbose: bool, whether lines of progress are printed. Warnings always are.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _Terminal) for handler in root.handlers):
        root.addHandler(_Terminal())
    absl_logging.set_verbosity(absl_logging.INFO if verbose else absl_logging.WARNING)
