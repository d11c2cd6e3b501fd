"""Errors for the user, progress bars, and arguments."""

import argparse
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from vbq.command import (
    Parser,
    UserError,
    note,
    number,
    printable,
    progress,
    reason,
    run_main,
    seed,
    shard,
    shorten,
)


def test_run_main(capsys):
    def fail(error):
        raise error

    assert run_main(lambda argv: None) == 0
    assert run_main(lambda argv: int(argv[0]), ["3"]) == 3
    assert run_main(lambda argv: fail(UserError("expected a, found b"))) == 1
    assert capsys.readouterr().err == "error: expected a, found b\n"
    assert run_main(lambda argv: fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: fail(ZeroDivisionError()))


def test_progress_is_silent_when_piped(capsys):
    assert list(progress(range(3), desc="test")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_reason_is_one_line():
    assert reason(OSError(28, "No space left on device")) == "No space left on device"
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(EOFError()) == "EOFError"
    assert reason(MemoryError()) == "there is not enough memory"


def test_notes_go_to_stderr(capsys):
    note("a note")
    assert capsys.readouterr() == ("", "a note\n")


def test_numbers_within_bounds():
    fraction = number(float, above=0, at_most=1)
    assert fraction("1") == 1 and fraction("1e-3") == 0.001
    count = number(int, at_least=1, below=5)
    assert count("4") == 4 and isinstance(count("4"), int)
    assert number(float)("-2.5") == -2.5


@pytest.mark.parametrize("text", ["0", "1.1", "nan", "inf", "one", ""])
def test_other_numbers_are_usage_errors(text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        number(float, above=0, at_most=1)(text)
    assert str(error.value) == f"must be a number > 0 and <= 1, not {text!r}"
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be an integer, not '1\.5'"):
        number(int)("1.5")


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("text", ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "x" * 5000])
def test_absurd_numbers_are_quoted_in_short(kind, text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        number(kind, at_least=0)(text)
    assert len(str(error.value)) < 150 and str(error.value).startswith("must be a")


def test_integers_fit_into_64_bits():
    assert number(int)("9223372036854775807") == 2**63 - 1
    with pytest.raises(argparse.ArgumentTypeError, match="too many digits"):
        number(int)("9223372036854775808")


def test_seeds_are_those_of_numpy_and_tensorflow():
    assert seed("0") == 0 and seed("4294967295") == 2**32 - 1
    for text in ("5000000000", "4294967296", "-1", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match=">= 0 and < 4294967296"):
            seed(text)


def test_shards_count_from_1():
    assert shard("1/1") == (1, 1) and shard("2/3") == (2, 3) and shard("10/10") == (10, 10)
    for text in ("0/2", "3/2", "x", "", "1", "1/", "/2", "-1/2", "1/2/3", "1.5/2", " 1/2", "1/2\n"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected I/N with 1 <= I <= N, found "):
            shard(text)


def usage_error(parser, argv, capsys):
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(argv)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.endswith("\n")
    return err[:-1]


def test_usage_errors_are_one_line(capsys):
    parser = Parser(prog="test")
    parser.add_argument("--count", type=number(int, at_least=1))
    sub = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("info")
    sub.add_argument("input", choices=["a", "b"])
    assert usage_error(parser, ["--count", "0"], capsys).startswith(
        "test: error: argument --count: must be an"
    )
    assert "COMMAND" in usage_error(parser, [], capsys)
    assert usage_error(parser, ["info", "c"], capsys).startswith("test info: error: argument input")
    for argv in (
        ["info", "x" * 5000],
        ["info", "x\ny"],
        ["info", "\udcff"],
        ["info", "a", "--" + "x" * 5000],
    ):
        message = usage_error(parser, argv, capsys)
        assert "\n" not in message and len(message) < 500


def test_an_unquoted_pattern_is_told(capsys):
    parser = Parser(prog="test")
    parser.add_argument("pattern")
    names = [f"photographs/{i:04d}.jpg" for i in range(1000)]
    message = usage_error(parser, names, capsys)
    assert message.startswith(
        "test: error: unrecognized arguments: photographs/0001.jpg and 998 more; put a pat"
    )
    assert len(message) < 200
    assert usage_error(parser, ["a", "--fast"], capsys) == "test: error: unrecognized arguments: --fast"
    assert parser.parse_args(["a"]).pattern == "a"


def test_names_are_printed_on_one_line(capsys):
    assert printable("a\nb\x1b[2Jc\udcff\u2028\ud800") == "a\\nb\\x1b[2Jc\\xff\\u2028\\ud800"
    assert printable("photographs/\u00e4 b.png") == "photographs/\u00e4 b.png"
    assert shorten("a" * 61) == "a" * 60 + "..." and shorten("a" * 60) == "a" * 60

    def fail(argv):
        raise UserError("no such file: \udcff\n.png")

    assert run_main(fail) == 1
    assert capsys.readouterr().err == "error: no such file: \\xff\\n.png\n"


def script(body, stdout, stderr=subprocess.PIPE, **more_env):
    code = f"import sys\nfrom vbq.command import *\ndef main(argv):\n    {body}\nsys.exit(run_main(main))"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | more_env
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=stdout, stderr=stderr)


def broken_pipe():
    """The end to write to of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "wb")


@pytest.mark.parametrize(
    "body",
    ["print('text')", "print('text' * 10**6)", "Parser().parse_args(['--help'])", "print('x', flush=True)"],
)
def test_a_reader_that_goes_away_is_no_error(body):
    with broken_pipe() as pipe:
        done = script(body, pipe)
    assert (done.returncode, done.stderr) == (141, b"")


def test_nobody_reads_the_errors():
    with broken_pipe() as pipe:
        assert script("raise UserError('text')", subprocess.PIPE, pipe).returncode == 141


def test_bugs_keep_their_traceback_and_a_full_disk_is_told():
    assert b"ZeroDivisionError" in script("print('text'); 1 / 0", subprocess.PIPE).stderr
    for env in ({}, {"PYTHONUNBUFFERED": "1"}):
        with open("/dev/full", "wb") as full:
            done = script("print('text')", full, **env)
        assert done.returncode == 1
        assert done.stderr == (
            b"error: cannot write a file or the standard output: No space left on device\n"
        )


def test_names_that_are_not_utf8_can_be_printed():
    done = script("print('\\udcff.png')", subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"\\udcff.png\n")
