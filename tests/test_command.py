"""Errors for the user, progress bars, and numbers as arguments."""

import argparse

import pytest

from vbq.command import UserError, note, number, progress, reason, run_main


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
