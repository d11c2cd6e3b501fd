"""What the rows of the benchmark share: their declaration, clocks, and child processes."""

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
    """A row of the table.

    Attributes:
      name: str.
      measured, against: str, the two quantities.
      goal: (">=" or "<=", float), of the ratio; or None.
      check: str, how the result is compared with that of a plain implementation.
      function: function of `inputs.Inputs` that returns an `Outcome`.
    """

    name: str
    measured: str
    against: str
    goal: tuple
    check: str
    function: object

    def met(self, ratio):
        """Whether a ratio meets the goal."""
        sign, bound = self.goal
        return ratio >= bound if sign == ">=" else ratio <= bound


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row measured: the two quantities with units, their ratio, and whether results were equal."""

    measured: str
    against: str
    ratio: float
    equal: bool


ROWS = {}


def row(name, measured, against, goal, check):
    """Declares the decorated function as a row; see `Row`. The table has the order of the declarations."""

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
    """Median times of two functions that are called in turns, so that other work of the machine slows both.

    Args:
      first, second: functions without arguments.
      rounds: int.
      warm_up: bool, whether both are first called once without a clock.

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
    """Discards what the programs print."""
    with (
        open(os.devnull, "w", encoding="utf-8") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        yield


# Processes.


def run_child(code, *args):
    """Runs Python code in one child process; see `run_children`."""
    return run_children(code, [args], [{}])[0]


def run_children(code, arguments, environments):
    """Runs Python code in several child processes at once, in the top folder of the project.

    Args:
      code: str. It finds its arguments in `sys.argv[2:]` and calls `report` at its end.
      arguments: list of sequences, one per process.
      environments: list of dicts of str, the environment variables of each process.

    Returns:
      List of dicts: what each process reported, and "peak", its peak memory in bytes.

    Raises:
      RuntimeError: a process failed.
    """
    code = f"import os, sys; sys.path[:0] = [{ROOT!r}, {HERE!r}]; from measure import report\n" + code
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{i}.json") for i in range(len(arguments))]
        children = [
            _start(code, path, args, more) for path, args, more in zip(paths, arguments, environments)
        ]
        try:
            statuses = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()  # after an interruption; no effect on those that have ended
        if any(statuses):
            ends = []
            for status, path in zip(statuses, paths):
                with open(path + ".log", encoding="utf-8") as file:
                    ends.append(f"status {status}:\n{file.read()[-2000:]}")
            raise RuntimeError("a child process failed; " + "\n".join(ends))
        reports = []
        for path in paths:
            with open(path, encoding="utf-8") as file:
                reports.append(json.load(file))
        return reports


def _start(code, path, args, environment):
    """Starts a process that reports to `path` and prints to `path`.log."""
    with open(path + ".log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, path, *map(str, args)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )


def report(**values):
    """Writes what a child process found, and its peak memory; the code of `run_child` calls it at its end."""
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({**values, "peak": peak_memory()}, file)


def peak_memory():
    """The most memory that this process has had resident, in bytes.

    Linux' `VmHWM` counts this program alone; `getrusage` also counts what the parent had when it forked.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
