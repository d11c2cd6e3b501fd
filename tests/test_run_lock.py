"""The lock on a run directory."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from vbq import run_lock as module
from vbq.command import UserError
from vbq.run_lock import LOCK_NAME, run_lock

HOLDS = """
import sys, time
from vbq.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_only_one_holds_the_lock_and_nothing_is_left(tmp_path):
    run_dir = str(tmp_path / "runs" / "run")
    with run_lock(run_dir):
        message = rf"runs/run: process {os.getpid()} on .* trains there already; wait for its end, or stop it"
        with pytest.raises(UserError, match=message), run_lock(run_dir):
            pass
        with run_lock(str(tmp_path / "runs" / "other")):
            pass
        assert os.listdir(run_dir) == [LOCK_NAME]
    with run_lock(run_dir):
        pass
    assert os.listdir(tmp_path) == []  # folders made for the lock are gone, because they stayed empty
    with run_lock(run_dir):
        (tmp_path / "runs" / "run" / "args.json").write_text("{}")
    assert os.listdir(run_dir) == ["args.json"]


def test_lock_of_a_killed_process_is_released(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"), run_lock(str(tmp_path)):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == [LOCK_NAME]
    with run_lock(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == []


def test_without_locks_a_note_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "fcntl", None)
    with run_lock(str(tmp_path)), run_lock(str(tmp_path)):
        pass
    assert capsys.readouterr().err.count("not locked") == 2


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    message = "cannot make the folder .*file/run: Not a directory"
    with pytest.raises(UserError, match=message), run_lock(str(tmp_path / "file" / "run")):
        pass
