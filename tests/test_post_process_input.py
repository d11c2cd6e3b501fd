"""What the evaluation says of bad input, and what it understands."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import GOLDEN, GOLDEN_RUN, ROOT
from evaluation import (
    SMALL,
    SMALL_NAMES,
    TEST_IMAGES,
    contents,
    fails,
)

import post_process
from quantizers import FitOptions

pytestmark = pytest.mark.usefixtures("quick_priors")


def test_bad_places(fresh, validation, tmp_path, capsys):
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    shutil.copy(os.path.join(GOLDEN, "test", "china.png"), tmp_path / "good.png")
    before = contents(fresh[1])
    runs = fresh[0]
    assert "nothing.png" in fails(capsys, runs, GOLDEN_RUN, validation, tmp_path / "nothing.png")
    assert "none.npy" in fails(capsys, runs, GOLDEN_RUN, tmp_path / "none.npy", TEST_IMAGES)
    assert "none*.png" in fails(capsys, runs, GOLDEN_RUN, tmp_path / "none*.png", TEST_IMAGES)
    assert "text.png" in fails(capsys, runs, GOLDEN_RUN, tmp_path / "text.png", TEST_IMAGES)
    # zero.png or text.png, among a good one
    assert ".png" in fails(capsys, runs, GOLDEN_RUN, validation, tmp_path / "*.png")
    assert "no_such_run" in fails(capsys, runs, "no_such_run", validation, TEST_IMAGES)
    assert "saved fit" in fails(capsys, runs, GOLDEN_RUN, "-", TEST_IMAGES)
    assert "--rebuild" in fails(capsys, runs, GOLDEN_RUN, "-", TEST_IMAGES, "--rebuild")
    assert contents(fresh[1]) == before


def test_a_run_without_checkpoint_or_directory_to_write_to(tmp_path, validation, capsys, monkeypatch):
    os.makedirs(tmp_path / "runs" / "empty")
    assert "args.json" in fails(capsys, tmp_path / "runs", "empty", validation, TEST_IMAGES)

    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(post_process.tempfile, "TemporaryFile", refuse)
    line = fails(capsys, tmp_path / "runs", "empty", validation, TEST_IMAGES)
    assert (
        str(tmp_path / "runs" / "empty") in line and "no results can be written" in line and "--out" in line
    )


def test_damaged_fit_is_named(fresh, validation, capsys):
    checkpoints, run = fresh
    assert post_process.main([checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]) == 0
    path = os.path.join(run, SMALL_NAMES[0] + ".npz")
    with open(path, "r+b") as file:
        file.truncate(500)
    before = contents(run)
    assert path in fails(capsys, checkpoints, GOLDEN_RUN, "-", TEST_IMAGES, *SMALL)
    assert contents(run) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--lambs", "0"],
        ["--lambs", "nan"],
        ["--quantization_levels", "0"],
        ["--max_bits", "0"],
        ["--max_bits", "40"],
        ["--passes", "1"],
        ["--shard", "3/2"],
        ["--shard", "0/2"],
        ["--shard", "x"],
        ["--merge", "0"],
        ["--shard", "1/2", "--merge", "2"],
        ["--shard", "1/2", "--reconstructions"],
        ["--lambs"],
        ["--unknown"],
        ["--contexts"],
        ["--joint_steps", "-1"],
    ],
)
def test_usage_errors_exit_2(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        post_process.main(["checkpoints", "run", "-", "*.png", *flags])
    assert caught.value.code == 2


def test_flags_become_options():
    args = post_process.parse_args(["checkpoints", "run", "-", "*.png"])
    assert post_process.fit_options(args) == FitOptions()
    flags = [*SMALL, "--lambs", "8", ".5", "8", "--passes", "3", "--contexts", "--seed", "7"]
    args = post_process.parse_args(["checkpoints", "run", "-", "*.png", *flags])
    assert post_process.fit_options(args) == FitOptions(4, (0.5, 8.0), (2, 4), 3, True, 7)


def test_help_needs_neither_tensorflow_nor_matplotlib():
    code = (
        "import sys, post_process\n"
        "try: post_process.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "val_imgs" in found.stdout
