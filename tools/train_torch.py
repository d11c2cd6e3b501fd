"""Trains the VAE of `bls2017_vae.py` on an accelerator that has PyTorch but no TensorFlow 2.14.

    python tools/train_torch.py --checkpoint_dir checkpoints --train_glob 'photos/*.jpg' \\
        --batchsize 32 --patchsize 256 --num_filters 256 256 256 --likelihood_variance 0.001 \\
        --last_step 200000 --precision bf16 --max_seconds 540

The transforms, the real-DFT domain of the kernels, GDN, the loss and Adam are those of `bls2017_vae.py`; so
are the names and shapes of the weights, the flags, and the run directory. `tests/test_train_torch.py`
compares the loss and every gradient with the TensorFlow model. A learned prior is trained by `bls2017_vae.py`
only.

The state is kept in `RUN/train_torch/`, in `.npz` parts of at most `--part_mb` each: weights, Adam's moments,
the moving average, and the state of the random numbers. The next slice of the run continues from it.
`RUN/weights.npz` holds the weights for use; `load_run` reads it. `tools/convert_checkpoint.py` turns the
state into a TensorFlow checkpoint, and such a checkpoint into this state.
"""

import argparse
import math
import os
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_state
from torch_model import Model
from torch_training import Trainer, load_photos

import bls2017_vae
from vbq.command import UserError, run_main
from vbq.config import ModelConfig, TrainingConfig
from vbq.record import write_flags


def build_parser():
    """Returns the parser of the flags of `bls2017_vae.py` and of this tool's own."""
    parser = argparse.ArgumentParser(
        parents=[bls2017_vae.build_parser(add_help=False)],
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--precision",
        choices=["bf16", "tf32", "float32"],
        default="float32",
        help="arithmetic of the convolutions (bf16, tf32); GDN, loss and densities stay float32",
    )
    parser.add_argument("--compile", action="store_true", help="fuse with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--by_area", action="store_true", help="draw photographs by their area instead of alike"
    )
    parser.add_argument(
        "--max_seconds", type=float, default=math.inf, help="stop this slice, state saved, after so long"
    )
    parser.add_argument("--part_mb", type=float, default=15, help="largest file of the state, in 10^6 bytes")
    parser.add_argument(
        "--dense_below", type=int, default=16, help="channels below which a convolution takes its dense form"
    )
    return parser


def load_state(run_dir, model_config, seed):
    """Returns the state to start from: that of the run, or its shipped weights, or new weights."""
    state = train_state.load(run_dir)
    if state:
        return state
    path = os.path.join(run_dir, "weights.npz")
    return train_state.from_file(path) if os.path.exists(path) else train_state.initial(model_config, seed)


def train(run_dir, trainer, config, max_seconds, part_bytes, verbose):
    """Trains one slice and saves its state.

    Args:
      run_dir: str.
      trainer: torch_training.Trainer.
      config: TrainingConfig.
      max_seconds: float, after which the slice stops.
      part_bytes: float, largest file of the state.
      verbose: bool, whether means are printed every 1000 steps.
    """
    saved = began = time.monotonic()
    first = trainer.step
    with open(os.path.join(run_dir, "train_torch.csv"), "a", encoding="utf-8") as log:
        for step, (loss, kl, mse, norm) in trainer.train(config.last_step, max_seconds):
            rate = (step - first) / (time.monotonic() - began)
            log.write(f"{step},{loss:.6g},{kl:.6g},{mse:.6g},{norm:.4g}\n")
            if verbose and step % 1000 == 0:
                print(
                    f"step {step}  loss {loss:.1f}  psnr {-10 * math.log10(mse):.3f}  "
                    f"kl {kl / config.patchsize**2:.4f} nat/pixel  gradient {norm:.3g}  {rate:.1f} steps/s",
                    flush=True,
                )
            if time.monotonic() - saved > config.save_checkpoint_secs:
                train_state.save(run_dir, trainer.state(), part_bytes)
                saved = time.monotonic()
    train_state.save(run_dir, trainer.state(), part_bytes)


def main(argv=None):
    """Runs one slice; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.learned_prior:
        raise UserError("--learned_prior: only bls2017_vae.py trains a learned prior; this tool does not")
    started, device = time.monotonic(), torch.device(args.device)
    run_dir = os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))
    model_config, config = ModelConfig.of(vars(args)), TrainingConfig.of(vars(args))
    state = load_state(run_dir, model_config, config.seed)
    photos = load_photos(
        config.train_glob, config.patchsize, config.min_scale, args.by_area, device, config.preprocess_threads
    )
    model = Model(model_config, device, args.dense_below)
    write_flags(run_dir, vars(args))
    trainer = Trainer(model, state, photos, config, device, args.precision, args.compile)
    print(
        f"{run_dir}: step {trainer.step}; {len(photos.first)} photographs and scales, "
        f"{photos.pixels.numel() / 1e9:.2f} GB; ready after {time.monotonic() - started:.0f} s",
        flush=True,
    )
    train(run_dir, trainer, config, args.max_seconds, args.part_mb * 1e6, args.verbose)
    print(f"step {trainer.step}: saved in {run_dir}, {time.monotonic() - started:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
