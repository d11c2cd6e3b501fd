"""The record of a training: `args.json` has its flags, and `record.txt` has a paragraph for every start.

Where a start went on with other flags than the one before, `args.json` has two more keys: `first_step`, the
step at which the flags in the file began, and `history`, the list of the earlier flags, oldest first, each
with its own `first_step`.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib import metadata

from vbq.command import UserError, reason
from vbq.config import LAYER_LISTS
from vbq.files import atomic_write, make_folder
from vbq.threads import cores

# Those that decide the results, of which PyTorch or TensorFlow may be missing.
PACKAGES = ("tensorflow", "tensorflow-compression", "torch", "numpy", "pillow")

# Flags that do not change the result, so that a run may go on with other ones. The last line has those of
# `tools/train_torch.py`.
FREE_FLAGS = {
    *("verbose", "checkpoint_dir", "log_dir", "preprocess_threads", "save_checkpoint_secs"),
    *("save_summary_secs", "strategy"),
    *("compile", "device", "max_seconds", "part_mb", "dense_below"),
}
_PRIOR_FLAGS = {"prior_lr", "prior_init_scale"}  # free without a learned prior


def changed_flags(earlier, flags):
    """Compares flags, and leaves out those that do not change the result.

    Args:
      earlier, flags: dicts of names to values. A name that one of them lacks is ignored.

    Returns:
      List of str, such as "--batchsize 4 -> 8".
    """
    free = FREE_FLAGS if flags.get("learned_prior") else FREE_FLAGS | _PRIOR_FLAGS
    return [
        f"--{name} {_shown(earlier[name])} -> {_shown(value)}"
        for name, value in flags.items()
        if name in earlier and name not in free and _plain(earlier[name]) != _plain(value)
    ]


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _shown(value):
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "(none)" if value in (None, "") else str(value)


def write_flags(run_dir, flags, first_step=None, defaults=None):
    """Makes the run directory, if need be, and its `args.json`. Earlier flags that changed are kept in it.

    Args:
      run_dir: str.
      flags: dict of names to values that JSON can hold.
      first_step: int, the step at which a run goes on that has a state; None for a new run.
      defaults: dict of names to values, of flags that an older `args.json` may lack.

    Returns:
      str, a warning on what changed since the last start, one line; empty if nothing did.

    Raises:
      UserError: the file cannot be written.
    """
    make_folder(run_dir)
    contents, warning = flags, ""
    if first_step is not None and os.path.lexists(os.path.join(run_dir, "args.json")):
        try:
            contents, changes = _with_history(read_flags(run_dir), flags, first_step, defaults or {})
            if changes:
                warning = f"{run_dir}: goes on with other flags than before: {', '.join(changes)}"
        except UserError as error:
            warning = f"{error}; the file is replaced, and whether flags changed is not known"
    with atomic_write(os.path.join(run_dir, "args.json")) as path, open(path, "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=4, sort_keys=True)
    return warning


def _with_history(earlier, flags, first_step, defaults):
    """Returns the new contents of `args.json`, and the changes (see `changed_flags`).

    Flags that began at `first_step` or later have not trained anything that is still there: they are dropped.
    """
    history = earlier.pop("history", [])
    began = {"first_step": 0, **earlier}
    try:
        history = [entry for entry in [*history, began] if entry["first_step"] < first_step]
    except (TypeError, KeyError):  # of a file that was edited by hand
        history = [{**began, "first_step": 0}]
    last = history[-1] if history else began
    changes = changed_flags({**defaults, **last}, flags)
    if history and not changes:
        first_step = history.pop()["first_step"]
    if not history:
        return flags, changes
    return {**flags, "first_step": first_step, "history": history}, changes


def neighbours(run_dir):
    """Finds the runs beside a run whose names differ from its own in `last_step` only.

    Args:
      run_dir: str.

    Returns:
      List of the names of those that have a state, by rising `last_step`.
    """
    folder, name = os.path.split(run_dir)
    stem, end = re.fullmatch(r"(.*?)(last_step=\d+)?", name, re.DOTALL).groups()
    if not end or not os.path.isdir(folder or "."):
        return []
    found = []
    for other in os.listdir(folder or "."):
        path = os.path.join(folder, other)
        if other != name and other.startswith(stem) and re.fullmatch(r"last_step=\d+", other[len(stem) :]):
            files = os.listdir(path) if os.path.isdir(path) else []
            if any(file == "weights.npz" or file.endswith(".index") for file in files):
                found.append(other)
    return sorted(found, key=lambda other: int(other.rpartition("=")[2]))


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


def check_init_run(run_dir, config):
    """Checks that a training can start from the weights of another run.

    Args:
      run_dir: str, of the other run.
      config: vbq.config.ModelConfig of the training.

    Raises:
      UserError: there is no such run, or its model has other layers.
    """
    if not os.path.isdir(run_dir):
        raise UserError(f"--init_run: {run_dir}: no such run")
    flags = read_flags(run_dir)
    for name in LAYER_LISTS:
        ours, theirs = list(getattr(config, name)), flags.get(name)
        if theirs != ours:
            theirs, ours = (" ".join(map(str, sizes or ["unknown"])) for sizes in (theirs, ours))
            raise UserError(f"--init_run: {run_dir} has --{name} {theirs}, but this run has {ours}")


def append_record(run_dir, flags, first_step, data):
    """Appends to `record.txt` how this start came to be.

    Args:
      run_dir: str.
      flags: dict of names to values that JSON can hold.
      first_step: int, the step at which this start begins.
      data: str, what it trains on, such as "680 photographs".

    Raises:
      UserError: the file cannot be written.
    """
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    path = os.path.join(run_dir, "record.txt")
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(
                f"{now}: start at step {first_step}, {data}\n"
                f"  command: {shlex.join([sys.executable, *sys.argv])}\n"
                f"  flags: {json.dumps(flags, sort_keys=True)}\n"
                f"  code: git commit {_git_commit()}\n"
                f"  versions: {_versions()}\n"
            )
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


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
    packages = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    return f"Python {platform.python_version()}, {packages}; {platform.platform()}, {cores()} cores"


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
