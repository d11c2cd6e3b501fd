"""Small models, photographs and trainings, for the tests of the model's side."""

import csv
import os
import shlex

import numpy as np
import pytest
from PIL import Image

import bls2017_vae
from vbq.checkpoints import latest_state, named_weights
from vbq.command import run_main
from vbq.config import ModelConfig
from vbq.trainer import Trainer

TINY = ModelConfig(num_filters=(4, 3), filter_dims=(5, 3), sampling_rates=(2, 2))
FLAGS = shlex.split("""
    --num_filters 4 3 --filter_dims 5 3 --sampling_rates 2 2 --patchsize 16 --batchsize 4
    --preprocess_threads 2 --save_summary_secs 0
""")


def picture():
    """A picture, uint8 [60, 80, 3]."""
    y, x = np.mgrid[:60, :80]
    return np.stack([2 * x + y, 3 * y, 255 - x], axis=-1).astype(np.uint8)


def save_photographs(folder):
    """Writes three pictures to a folder; returns their glob."""
    os.makedirs(folder, exist_ok=True)
    for i in range(3):
        Image.fromarray(np.roll(picture(), 20 * i, axis=i % 2)).save(os.path.join(folder, f"{i}.png"))
    return os.path.join(folder, "*.png")


def flags_of(photographs, checkpoint_dir, *more):
    """The flags of a small training without TensorBoard: one row of `log.csv` a step."""
    return [
        *FLAGS,
        "--log_dir",
        "",
        "--train_glob",
        photographs,
        "--checkpoint_dir",
        str(checkpoint_dir),
        *more,
    ]


def run_dir_of(flags):
    """The run directory of a training with these flags."""
    args = bls2017_vae.parse_args(flags)
    return os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))


def log_of(run_dir):
    """The rows of `log.csv`."""
    with open(os.path.join(run_dir, "log.csv"), encoding="utf-8") as file:
        return list(csv.DictReader(file))


def end_after(monkeypatch, steps, end):
    """Makes a training call `end` after so many steps."""
    distribute = Trainer.distribute

    def counted(trainer, x):
        nonlocal steps
        if not steps:
            end()
        steps -= 1
        return distribute(trainer, x)

    monkeypatch.setattr(Trainer, "distribute", counted)


def interrupt_after(monkeypatch, steps):
    """Makes a training end as Ctrl-C would end it, after so many steps."""

    def interrupt():
        raise KeyboardInterrupt

    end_after(monkeypatch, steps, interrupt)


def train_interrupted(flags, steps):
    """Trains for so many steps, and ends as after Ctrl-C."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, steps)
        assert run_main(bls2017_vae.main, flags) == 130


def weights_of(flags):
    """The weights in the latest state of a run."""
    return named_weights(latest_state(run_dir_of(flags))[2])
