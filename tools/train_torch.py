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
import contextlib
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
from vbq.command import Parser, UserError, note, number, reason, run_main
from vbq.config import LAYER_LISTS, ModelConfig, TrainingConfig
from vbq.files import find_images
from vbq.record import neighbours, read_flags, write_flags
from vbq.run_lock import run_lock
from vbq.signals import Deferred


def build_parser():
    """Returns the parser of the flags of `bls2017_vae.py` and of this tool's own."""
    parser = Parser(
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
        "--max_seconds",
        type=number(float, above=0),
        default=math.inf,
        help="stop this slice, state saved, after so long",
    )
    parser.add_argument(
        "--part_mb", type=number(float, above=0), default=15, help="largest file of the state, in 10^6 bytes"
    )
    parser.add_argument(
        "--dense_below",
        type=number(int, at_least=0),
        default=16,
        help="channels below which a convolution takes its dense form",
    )
    return parser


def load_state(run_dir, model_config, config):
    """Returns the state to start from.

    Args:
      run_dir: str.
      model_config: ModelConfig.
      config: TrainingConfig.

    Returns:
      dict, as `train_state` describes it, that of the run, or its shipped weights, or those of
      `config.init_run`, or new weights; and bool, whether it is that of the run.

    Raises:
      UserError: there is no run `config.init_run`, or its model has other layers.
    """
    state = train_state.load(run_dir) or _weights_alone(run_dir)
    if state:
        return state, True
    if not config.init_run:
        return train_state.initial(model_config, config.seed), False
    other = os.path.join(os.path.dirname(run_dir), config.init_run)
    if not os.path.isdir(other):
        raise UserError(f"--init_run: {other}: no such run")
    flags = read_flags(other)
    for name in LAYER_LISTS:
        ours = list(getattr(model_config, name))
        if flags.get(name) != ours:
            theirs, ours = (" ".join(map(str, sizes or ["unknown"])) for sizes in (flags.get(name), ours))
            raise UserError(f"--init_run: {other} has --{name} {theirs}, but this run has {ours}")
    state = train_state.load(other) or _weights_alone(other)
    if not state:
        raise UserError(
            f"--init_run: {other}: has no state of this tool; make one with tools/convert_checkpoint.py "
            "to-torch"
        )
    return train_state.from_weights(state["ema" if state["averaged"] else "weights"]), False


def _weights_alone(run_dir):
    path = os.path.join(run_dir, "weights.npz")
    return train_state.from_file(path) if os.path.exists(path) else None


class Log:
    """`train_torch.csv`. If it cannot be written, it is given up with one warning."""

    def __init__(self, run_dir, first_step):
        """Cuts off the rows of steps after the first one of this slice."""
        self.path = os.path.join(run_dir, "train_torch.csv")
        self.given_up = False
        with self._attempt():
            if os.path.isfile(self.path):  # and no FIFO, say
                train_state.cut_rows(self.path, first_step)

    def write(self, step, means):
        """Appends a row: step, loss, KL divergence, squared error, and norm of the gradient."""
        if not self.given_up:
            with self._attempt(), open(self.path, "a", encoding="utf-8") as file:
                file.write("{},{:.6g},{:.6g},{:.6g},{:.4g}\n".format(step, *means))

    @contextlib.contextmanager
    def _attempt(self):
        try:
            yield
        except (OSError, UserError) as error:
            self.given_up = True
            note(f"warning: {self.path} is given up, the training goes on: {reason(error)}")


def train(run_dir, trainer, config, max_seconds, part_bytes, verbose):
    """Trains one slice and saves its state, whatever ends it.

    Args:
      run_dir: str.
      trainer: torch_training.Trainer.
      config: TrainingConfig.
      max_seconds: float, after which the slice stops.
      part_bytes: float, largest file of the state.
      verbose: bool, whether means are printed every 1000 steps.

    Raises:
      UserError: a loss or gradient is no finite number, or the state cannot be written.
      KeyboardInterrupt, SystemExit: a signal came; the state is saved.
    """

    def save():
        train_state.save(run_dir, trainer.state(), part_bytes)
        trainer.saved = trainer.step

    try:
        with Deferred() as signals:
            _slice(trainer, config, max_seconds, signals, Log(run_dir, trainer.step), save, verbose)
    except Exception:
        if trainer.is_whole and trainer.step != trainer.saved:
            save()
            note(f"{run_dir}: step {trainer.saved} is saved")
        raise
    save()
    if signals.received:
        note(f"{run_dir}: step {trainer.saved} is saved, and the same command goes on from there")
    signals.act()


def _slice(trainer, config, max_seconds, signals, log, save, verbose):
    """Trains until the last step, the end of the slice, or a signal."""
    last_save = began = time.monotonic()
    first = trainer.step
    for step, means in trainer.train(config.last_step, max_seconds, stop=lambda: signals.received):
        log.write(step, means)
        rate = (step - first) / (time.monotonic() - began)
        if verbose and step % 1000 == 0:
            loss, kl, mse, norm = means
            print(
                f"step {step}  loss {loss:.1f}  psnr {-10 * math.log10(mse):.3f}  "
                f"kl {kl / config.patchsize**2:.4f} nat/pixel  gradient {norm:.3g}  {rate:.1f} steps/s",
                flush=True,
            )
        if time.monotonic() - last_save > config.save_checkpoint_secs:
            save()
            last_save = time.monotonic()


def begin(run_dir, args, first, resumes):
    """Writes `args.json`, and says from where the training starts."""
    parser = build_parser()
    others = [] if resumes or args.init_run else neighbours(run_dir)
    warning = write_flags(run_dir, vars(args), first if resumes else None, vars(parser.parse_args([])))
    if resumes:
        note(f"{run_dir}: resumes at step {first} of {args.last_step}")
    if warning:
        note(f"warning: {warning}")
    if others:
        note(
            f"{run_dir}: a new run, which starts at step 0, though {others[-1]} differs from it in "
            f"--last_step only; to start from its weights, add --init_run {others[-1]}"
        )


def main(argv=None):
    """Runs one slice; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.learned_prior:
        raise UserError("--learned_prior: only bls2017_vae.py trains a learned prior; this tool does not")
    find_images(args.train_glob)  # fails before the run's directory is made
    started, device = time.monotonic(), torch.device(args.device)
    run_dir = os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))
    model_config, config = ModelConfig.of(vars(args)), TrainingConfig.of(vars(args))
    with run_lock(run_dir):
        state, resumes = load_state(run_dir, model_config, config)
        photos = load_photos(
            config.train_glob,
            config.patchsize,
            config.min_scale,
            args.by_area,
            device,
            config.preprocess_threads,
        )
        model = Model(model_config, device, args.dense_below)
        begin(run_dir, args, int(state["global_step"]), resumes)
        trainer = Trainer(model, state, photos, config, device, args.precision, args.compile)
        print(
            f"{run_dir}: step {trainer.step}; {len(photos.first)} photographs and scales, "
            f"{photos.pixels.numel() / 1e9:.2f} GB; ready after {time.monotonic() - started:.0f} s",
            flush=True,
        )
        train(run_dir, trainer, config, args.max_seconds, args.part_mb * 1e6, args.verbose)
        print(
            f"step {trainer.step}: saved in {run_dir}, {time.monotonic() - started:.0f} s in all", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
