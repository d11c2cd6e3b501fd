"""`make venv` where Python 3.10 and 3.11 are missing, with and without uv."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT

PYTHON_3_13 = """#!/bin/sh
[ "$1" = --version ] && echo Python 3.13.1 && exit
exit 1
"""
UV = """#!/bin/sh
echo "$@" >> calls
[ "$1" = venv ] || exit 0
mkdir -p .venv/bin
touch .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
    """A folder with the Makefile, and `bin`, in which python3 is Python 3.13."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("chmod", "mkdir", "touch"):
        os.symlink(shutil.which(name), tmp_path / "bin" / name)
    write_script(tmp_path / "bin" / "python3", PYTHON_3_13)
    return tmp_path


def write_script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def make_venv(folder):
    return subprocess.run(
        [shutil.which("make"), "venv"],
        cwd=folder,
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_uv_brings_a_python_that_is_missing(folder):
    write_script(folder / "bin" / "uv", UV)
    done = make_venv(folder)
    assert done.returncode == 0, done.stderr
    install = "pip install --quiet --python .venv/bin/python --requirement requirements.txt"
    calls = folder / "calls"
    assert calls.read_text().splitlines() == ["venv --quiet --python 3.11 .venv", install]
    assert make_venv(folder).returncode == 0
    assert len(calls.read_text().splitlines()) == 2  # nothing to do
    os.utime(folder / "requirements.txt", (2**31, 2**31))  # later than all that is there
    assert make_venv(folder).returncode == 0
    assert calls.read_text().splitlines()[2:] == [install]  # into the .venv that is there


def test_without_both_one_line_names_both_ways(folder):
    done = make_venv(folder)
    assert done.returncode == 2
    error = done.stderr.splitlines()[0]
    assert error == (
        "error: TensorFlow 2.14 needs Python 3.10 or 3.11, and this is Python 3.13.1; install one of them, "
        "or install uv, which then brings one"
    )
    assert not (folder / ".venv").exists()
