"""What the rows of the benchmark share: how they are declared, timed, and run in processes of their own."""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: what is measured, against what, the goal of the ratio, and how the result is checked."""

    name: str
    measured: str
    against: str
    goal: tuple  # (">=" or "<=", float), or None
    check: str
    function: object

    def met(self, ratio):
        """Whether a ratio meets the goal."""
        sign, bound = self.goal
        return ratio >= bound if sign == ">=" else ratio <= bound


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row's function returns: the two quantities with their units, their ratio, and whether results were equal."""

    measured: str
    against: str
    ratio: float
    equal: bool


ROWS = {}


def row(name, measured, against, goal, check):
    """Declares the decorated function of `inputs.Inputs` to `Outcome` as a row; names are in the order of the table."""
    def declare(function):
        ROWS[name] = Row(name, measured, against, goal, check, function)
        return function
    return declare


# Time.


def seconds(function):
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(first, second, rounds, warm_up=True):
    """Median times of two functions that are called in turns, so that what else the machine does falls on both.

    Args:
      first, second: functions without arguments.
      rounds: int.
      warm_up: bool, whether both are first called once more.

    Returns:
      (float, float), seconds.
    """
    if warm_up:
        first(), second()
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return tuple(statistics.median(column) for column in zip(*times))


def duration(value):
    """Seconds as text."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


@contextlib.contextmanager
def quiet():
    """Swallows what the programs tell their users."""
    with open(os.devnull, "w", encoding="utf-8") as null:
        with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            yield


# Processes.


def run_child(code, *args):
    """Runs Python code in a process of its own, from the top of the project; see `run_children`."""
    return run_children(code, [args], [{}])[0]


def run_children(code, arguments, environments):
    """Runs Python code in several processes at once, from the top of the project.

    Args:
      code: str; it finds its arguments in `sys.argv[2:]` and calls `report` at its end.
      arguments: list of sequences, one a process.
      environments: list of dicts of str, environment variables of each.

    Returns:
      list of dicts: what each reported, and "peak", the most memory that it had at once, in bytes.
    """
    code = f"import os, sys; sys.path[:0] = [{ROOT!r}, {HERE!r}]; from measure import report\n" + code
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{i}.json") for i in range(len(arguments))]
        logs = [path + ".log" for path in paths]
        children = []
        for path, log, args, more in zip(paths, logs, arguments, environments):
            with open(log, "w", encoding="utf-8") as file:
                children.append(subprocess.Popen([sys.executable, "-c", code, path, *map(str, args)], cwd=ROOT, stdout=file,
                                                 stderr=file, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **more}))
        try:
            statuses = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()  # after an interruption; harmless to those that have ended
        if any(statuses):
            ends = []
            for status, log in zip(statuses, logs):
                with open(log, encoding="utf-8") as file:
                    ends.append(f"status {status}:\n{file.read()[-2000:]}")
            raise RuntimeError("a child process failed; " + "\n".join(ends))
        reports = []
        for path in paths:
            with open(path, encoding="utf-8") as file:
                reports.append(json.load(file))
        return reports


def report(**values):
    """Called by the code of `run_child`, at its end."""
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({**values, "peak": peak_memory()}, file)


def peak_memory():
    """The most memory that this process has had resident, in bytes.

    Linux' `VmHWM` is that of this program alone; `getrusage` also knows what the parent had when it forked.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
