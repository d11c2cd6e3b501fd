"""Measures how fast the programs are, against something that is measured in the same run; checks the results.

    python benchmarks/run.py                   all rows, in about a quarter of an hour on two cores
    python benchmarks/run.py --rows metrics    some of them; --list names them
    python benchmarks/run.py --quick           all with tiny sizes: tries the rows, the ratios mean nothing

The models are the paper's that ships (256 filters), and one of 64 filters that is trained for a moment. The
photographs are the Kodak images if --kodak or KODAK_DIR names their folder, else parts of the two that come
with scikit-learn.
"""

import argparse
import importlib
import os
import platform
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.join(HERE, os.pardir, "tests"), os.path.join(HERE, os.pardir)):
    sys.path.insert(0, os.path.abspath(folder))

from measure import ROWS

from vbq.command import progress, run_main

COLUMNS = ("row", "measured", "against", "ratio", "goal", "met", "equal", "took")
WIDTHS = (17, 15, 15, 7, 7, 3, 5, 5)


def load_rows():
    """Imports the modules that declare the rows, in the order of the table."""
    for name in ("rows_training", "rows_evaluation", "rows_scaling", "rows_parts"):
        importlib.import_module(name)


def machine():
    """Lines of text on the machine and on the versions of the packages that compute."""
    from importlib import metadata

    model, memory = platform.processor() or platform.machine(), "unknown"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (OSError, ValueError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("tensorflow", "tensorflow-compression", "numpy", "scipy", "scikit-learn", "pillow")
    )
    return [
        f"{model}, {cores} cores, {memory} of memory{load}; {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {packages}",
    ]


def table_line(cells):
    """A line of the table, in Markdown."""
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS)) + " |"


def result_line(row, outcome, took):
    """The line of a row that has been measured."""
    goal = f"{row.goal[0]} {row.goal[1]:g}" if row.goal else "-"
    met = ("yes" if row.met(outcome.ratio) else "no") if row.goal else "-"
    return table_line(
        (
            row.name,
            outcome.measured,
            outcome.against,
            f"{outcome.ratio:.3g}",
            goal,
            met,
            "yes" if outcome.equal else "NO",
            f"{took:.0f} s",
        )
    )


def describe(row):
    """Says what a row measures, against what, and how results are compared."""
    return f"{row.name}: {row.measured}\n    against: {row.against}\n    equal: {row.check}"


def main(argv=None):
    """Prints the table; returns 1 if a result was not equal, else 0. Missed goals do not change that."""
    args = parse_args(argv)
    if args.list:
        print("\n".join(describe(ROWS[name]) for name in ROWS))
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from inputs import Inputs

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        inputs = Inputs(folder, args.kodak, args.quick)
        print("\n".join(machine()))
        source = "Kodak" if inputs.kodak else "scikit-learn"
        print(f"photographs: {source}{'; quick: the ratios mean nothing' * args.quick}\n")
        unequal = measure_rows([name for name in ROWS if name in args.rows], inputs)
    print()
    print("\n".join(describe(ROWS[name]) for name in args.rows))
    failed = f" Results were NOT equal: {', '.join(unequal)}" * bool(unequal)
    print(f"\nThis took {time.monotonic() - start:.0f} s.{failed}")
    return int(bool(unequal))


def parse_args(argv=None):
    """Parses the command line."""
    load_rows()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=list(ROWS),
        metavar="NAME",
        help="only these; --list names them",
    )
    parser.add_argument("--list", action="store_true", help="say what the rows are, and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--kodak", default=os.environ.get("KODAK_DIR", ""), help="folder of the Kodak images")
    return parser.parse_args(argv)


def measure_rows(names, inputs):
    """Measures rows and prints the table; returns the names of those whose results were not equal."""
    unequal = []
    print(table_line(COLUMNS) + "\n" + table_line(["-" * width for width in WIDTHS]), flush=True)
    for name in progress(names, desc="rows", leave=False):
        start = time.monotonic()
        outcome = ROWS[name].function(inputs)
        print(result_line(ROWS[name], outcome, time.monotonic() - start), flush=True)
        unequal += [] if outcome.equal else [name]
    return unequal


if __name__ == "__main__":
    sys.exit(run_main(main))
