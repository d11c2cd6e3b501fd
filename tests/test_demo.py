"""tools/demo.py: its photographs, and how it runs commands. The whole takes minutes: `make demo`."""

import os
import subprocess
import sys

import demo
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import bls2017_vae
from vbq.command import UserError


def test_training_and_test_images_are_different_parts_of_the_photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.write_photographs()
    for name in ("china.png", "flower.png"):
        for part, width in (("train", 384), ("test", 256)):
            with Image.open(tmp_path / "demo" / part / name) as image:
                assert image.size == (width, 427)
    assert np.load(tmp_path / "demo" / "val_imgs.npy").shape == (2 * 12 * 11, 64, 64, 3)


def test_flags_and_run_are_there():
    args = bls2017_vae.parse_args(demo.TRAINING)
    assert args.train_glob == "demo/train/*.png" and args.num_filters == [32, 32, 32] and args.flip
    assert os.path.isdir(os.path.join(ROOT, "checkpoints", demo.RUN))


@pytest.mark.slow
def test_what_it_says_to_type_next_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.write_photographs()
    for name in ("bls2017_vae.py", "codec.py", "post_process.py", "checkpoints"):
        os.symlink(os.path.join(ROOT, name), tmp_path / name)
    _, source, commands = demo.NEXT.partition("source .venv/bin/activate\n")
    assert source and commands.count("\npython ") == 4
    commands = commands.replace("--last_step 10000", "--last_step 2 --log_dir ''")
    commands = commands.replace("--out", "--lambs 1 --quantization_levels 4 --out")
    folder = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", commands], check=True, env=environment)
    with Image.open("demo/flower.png") as image:
        assert image.size == (256, 427)
    assert os.path.getsize("demo/flower.vbq") <= 0.5 * 256 * 427 / 8
    assert "rate_distortion.png" in os.listdir("demo/results")
    assert len(os.listdir("demo/checkpoints")) == 1


def test_a_failed_command_ends_the_demonstration(capfd):
    demo.run("-c", "print('fine')")
    assert capfd.readouterr().out == "\n$ python -c 'print('\"'\"'fine'\"'\"')'\nfine\n"
    with pytest.raises(UserError, match="-c failed with exit status 3"):
        demo.run("-c", "raise SystemExit(3)")
