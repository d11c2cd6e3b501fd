"""The record of a training: `args.json` has its flags, and `record.txt` has a paragraph for every start."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata

from vbq.command import UserError, reason
from vbq.files import atomic_write

PACKAGES = ("tensorflow", "tensorflow-compression", "numpy", "pillow")  # those that decide the results


def write_flags(run_dir, flags):
    """Makes the run directory, if need be, and its `args.json`.

    Args:
      run_dir: str.
      flags: dict of names to values that JSON can hold.

    Raises:
      UserError: the file cannot be written.
    """
    os.makedirs(run_dir, exist_ok=True)
    with atomic_write(os.path.join(run_dir, "args.json")) as path, open(path, "w", encoding="utf-8") as file:
        json.dump(flags, file, indent=4, sort_keys=True)


def read_flags(run_dir):
    """Reads the `args.json` of a run.

    Args:
      run_dir: str.

    Returns:
      dict of names to values, those of the flags of training.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with open(os.path.join(run_dir, "args.json"), encoding="utf-8") as file:
            flags = json.load(file)
        if not isinstance(flags, dict):
            raise ValueError(f"it holds a {type(flags).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir}/args.json: cannot read the flags of training: {reason(error)}") from error
    return flags


def write_record(run_dir, flags, first_step, num_photographs):
    """Writes `args.json`, and appends to `record.txt` how this start came to be.

    Args:
      run_dir: str; made if it is not there.
      flags: dict of names to values that JSON can hold.
      first_step: int, the step at which this start begins.
      num_photographs: int, how many photographs it trains on.

    Raises:
      UserError: `args.json` cannot be written.
      OSError: `record.txt` cannot.
    """
    write_flags(run_dir, flags)
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with open(os.path.join(run_dir, "record.txt"), "a", encoding="utf-8") as file:
        file.write(
            f"{now}: start at step {first_step}, {num_photographs} photographs\n"
            f"  command: {shlex.join([sys.executable, *sys.argv])}\n"
            f"  flags: {json.dumps(flags, sort_keys=True)}\n"
            f"  code: git commit {_git_commit()}\n"
            f"  versions: {_versions()}\n"
        )


def _git_commit():
    """The commit of this code, with "-dirty" if files were changed since, or "unknown"."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions():
    """One line on Python, the packages that decide the results, and the machine."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, {packages}; {platform.platform()}, {os.cpu_count()} cores"
