"""`--help` of the scripts of training and of the demonstration explains every flag, and starts nothing."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

NO_TORCH = "import sys; sys.modules['torch'] = None\n"  # its import is then a ModuleNotFoundError
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, "tools")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(prelude, *argv):
    """Runs a script of the project in a new process, after a line of Python."""
    return subprocess.run(
        [sys.executable, "-c", prelude + RUN, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "script, least_flags",
    [
        ("bls2017_vae.py", 28),
        ("tools/train_torch.py", 35),
        ("tools/convert_checkpoint.py", 0),
        ("tools/demo.py", 0),
    ],
)
def test_every_flag_is_explained_with_its_default(script, least_flags):
    done = run(NO_TORCH, script, "--help")
    assert done.returncode == 0 and done.stderr == ""
    usage, _, rest = done.stdout.partition("options:\n")
    assert usage.startswith(f"usage: {os.path.basename(script)} ")
    flags = re.split(r"\n  (?=-)", "\n" + rest)[1:]
    (about_help, *flags) = [" ".join(flag.split()) for flag in flags]
    assert about_help.startswith("-h, --help show this help")
    assert len(flags) >= least_flags
    for flag in flags:
        assert re.match(r"--\w+.* \w+ .*\(default: .+\)", flag), flag


def test_a_demonstration_with_a_flag_it_lacks_does_not_start():
    done = run("", "tools/demo.py", "--quick")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "demo.py: error: unrecognized arguments: --quick\n"


def test_training_without_torch_says_how_to_install_it(tmp_path):
    flags = ["--train_glob", "tests/golden/test/*.png", "--checkpoint_dir", str(tmp_path / "runs")]
    done = run(NO_TORCH, "tools/train_torch.py", *flags)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: PyTorch is not installed; install it with `python -m pip install")
    assert not (tmp_path / "runs").exists()
