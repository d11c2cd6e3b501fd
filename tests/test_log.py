"""Log lines on the terminal."""

import sys

from absl import logging
from tqdm import tqdm

from vbq.log import log_to_terminal


def test_progress_is_shown_if_asked_for_and_warnings_always(capsys):
    for verbose in (False, True, True, False):
        log_to_terminal(verbose)  # again and again, as several trainings in one process do
        logging.info("step %d", 3)
        logging.warning("left out: %s", "a.png")
        captured = capsys.readouterr()
        assert captured.out == ("step 3\n" if verbose else "")
        assert captured.err == "warning: left out: a.png\n"


def test_a_message_is_one_line_whatever_a_file_is_called(capsys):
    log_to_terminal()
    logging.warning("left out: %s", "a\nb\x1b.png")
    assert capsys.readouterr().err == "warning: left out: a\\nb\\x1b.png\n"


def test_lines_do_not_tear_a_progress_bar(capsys):
    log_to_terminal()
    with tqdm(total=10, desc="decoding", file=sys.stderr, disable=False) as bar:
        bar.update(5)
        logging.warning("left out: a.png")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "warning: left out: a.png" in [line.strip() for line in lines]


class Gone:
    """A stream whose reader went away."""

    def write(self, text):
        raise BrokenPipeError

    flush = isatty = lambda self: False


def test_a_terminal_that_is_gone_does_not_end_a_training(monkeypatch):
    log_to_terminal(True)
    monkeypatch.setattr(sys, "stdout", Gone())
    logging.info("step 3")
