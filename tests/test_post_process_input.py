"""What the evaluation says of bad input, and what it understands."""

import errno
import importlib
import os
import re
import shlex
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
from PIL import Image

import post_process
from quantizers import QUANTIZERS, FitOptions
from vbq import files

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

    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(files, "why_not_writable", lambda folder: denied)
    line = fails(capsys, tmp_path / "runs", "empty", validation, TEST_IMAGES)
    folder = tmp_path / "runs" / "empty"
    assert f"cannot write to the folder {folder}: Permission denied; name another with --out" in line


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


@pytest.mark.parametrize("flag", ["--lambs", "--lamb", "--lambda", "--lambdas"])
def test_lambdas_are_understood_in_every_spelling(flag):
    args = post_process.parse_args(["checkpoints", "run", "-", "*.png", flag, "4", "1"])
    assert post_process.fit_options(args) == FitOptions(lambs=(1.0, 4.0))
    with pytest.raises(SystemExit):
        post_process.parse_args(["checkpoints", "run", "-", "*.png", flag, "0"])


@pytest.mark.parametrize(
    "flags, label",
    [
        ([], "VBQ"),
        (["--max_bits", "8", "--lambs", "1", "--seed", "3"], "VBQ"),
        (["--passes", "20"], "VBQ (20 passes)"),
        (["--joint_steps", "1"], "VBQ (1 joint step)"),
        (
            ["--passes", "20", "--contexts", "--joint_steps", "20"],
            "VBQ (20 passes, contexts, 20 joint steps)",
        ),
    ],
)
def test_labels_say_which_options_go_beyond_the_paper(flags, label):
    args = post_process.parse_args(["checkpoints", "run", "-", "*.png", *flags])
    options = post_process.fit_options(args)
    labels = [post_process.label_of(kind, options, args.joint_steps) for kind in QUANTIZERS]
    assert labels == [label, "k-means", "uniform"]


def test_images_that_are_changed_when_they_are_read_are_noted(tmp_path, china, capsys):
    frames = [Image.fromarray(china[:32, :32]), Image.fromarray(china[32:64, :32])]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    transparent = frames[0].convert("RGBA")
    transparent.putalpha(100)
    transparent.save(tmp_path / "c.png")
    assert len(post_process.find_test_images(str(tmp_path / "*"))) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        f"note: {tmp_path / 'a.gif'}: only the first of its frames is taken",
        f"note: {tmp_path / 'c.png'}: its transparency is laid on white",
    ]


@pytest.mark.parametrize(
    "script, argv, flags",
    [
        ("post_process", [], 15),
        ("make_results", [], 2),
        ("make_crops", [], 3),
        ("reference_stats", ["jpeg"], 1),
        ("reference_stats", ["balle2017"], 1),
    ],
)
def test_help_says_what_every_flag_does_and_its_default(script, argv, flags, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).main([*argv, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out.partition("--help")[2]
    found = [" ".join(part.split()) for part in re.split(r"\n  (?=--)", text)[1:]]
    assert len(found) == flags
    for one in found:
        assert re.match(r"--\w+ .+ \((default: .+|no default)\)", one), one


def test_help_has_examples_that_are_understood():
    lines = [line.strip() for line in post_process.EXAMPLES.splitlines() if "python" in line]
    assert len(lines) == 2
    args = [post_process.parse_args(shlex.split(line)[2:]) for line in lines]
    assert args[0].contexts and args[0].val_imgs == "val_imgs.npy"
    assert args[1].val_imgs == "-" and args[1].lambs == [1, 4]


def test_help_needs_neither_tensorflow_nor_matplotlib():
    code = (
        "import sys, post_process\n"
        "try: post_process.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "val_imgs" in found.stdout
