"""Trains the VAE of `bls2017_vae.py` on an accelerator that has PyTorch but no TensorFlow 2.14.

    python tools/train_torch.py --checkpoint_dir checkpoints --train_glob 'photos/*.jpg' \\
        --batchsize 32 --patchsize 256 --num_filters 256 256 256 --likelihood_variance 0.001 \\
        --last_step 200000 --precision bf16 --max_seconds 540

The transforms, the real-DFT domain of the kernels, GDN, the loss and Adam are those of `bls2017_vae.py`; so
are the names and shapes of the weights, the flags, and the run directory. `tests/test_train_torch.py`
compares the loss and every gradient with the TensorFlow model.

The state is kept in `RUN/train_torch/`, in `.npz` parts of at most `--part_mb` each: weights, Adam's moments,
the moving average, and the state of the random numbers. The next slice of the run continues from it.
`RUN/weights.npz` holds the weights for use; `load_run` reads it. `tools/convert_checkpoint.py` turns the
state into a TensorFlow checkpoint, and such a checkpoint into this state.

Of the flags of `bls2017_vae.py`, this tool ignores `--save_summary_secs`, `--log_dir`, `--strategy` and
`--mixed_precision`.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import train_state

import bls2017_vae
from vbq.command import Parser, UserError, note, number, reason, run_main
from vbq.config import ModelConfig, TrainingConfig
from vbq.files import find_images
from vbq.record import append_record, check_init_run, neighbours, write_flags
from vbq.run_lock import run_lock
from vbq.signals import Deferred


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows the default of every flag."""


def build_parser():
    """Returns the parser of the flags of `bls2017_vae.py` and of this tool's own."""
    parser = Parser(
        parents=[bls2017_vae.build_parser(add_help=False)],
        description=__doc__,
        formatter_class=_HelpFormatter,
    )
    add = parser.add_argument_group("of this trainer").add_argument
    add(
        "--precision",
        choices=["bf16", "tf32", "float32"],
        default="float32",
        help="arithmetic of the convolutions and of GDN's product; a learned prior's products are TF32 with "
        "bf16 and tf32 on an accelerator; everything else is float32",
    )
    add("--compile", action="store_true", help="fuse the loss with torch.compile")
    add(
        "--device",
        default="auto",
        help="PyTorch's name of the device to train on; auto: cuda where there is one, else cpu",
    )
    add(
        "--by_area",
        action="store_true",
        help="draw photographs with probabilities in proportion to their areas instead of equal ones",
    )
    add(
        "--max_seconds",
        type=number(float, above=0),
        help="stop this slice after so many seconds of training and save the state; without it, go on until "
        "--last_step",
    )
    add("--part_mb", type=number(float, above=0), default=15, help="largest file of the state, in 10^6 bytes")
    add(
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
      `config.init_run` (without a learned prior if that run has none), or new weights; and bool, whether it
      is that of the run.

    Raises:
      UserError: the weights are those of another model; or there is no run `config.init_run`, or its model
        has other layers; or the latest state of a run is one of TensorFlow.
    """
    state = _latest(run_dir)
    if state:
        slots = {name: train_state.fitting(state[name], model_config, run_dir) for name in train_state.SLOTS}
        return state | slots, True
    if config.init_run:
        other = os.path.join(os.path.dirname(run_dir), config.init_run)
        return train_state.from_weights(_weights_of(other, model_config)), False
    return train_state.initial(model_config, config.seed), False


def _weights_of(run_dir, model_config):
    """Returns the result of another run, dict of float32 arrays by name. It may lack a learned prior."""
    check_init_run(run_dir, model_config)
    state = _latest(run_dir)
    if not state:
        raise UserError(f"--init_run: {run_dir}: has no state")
    weights = train_state.result(state)
    learned_prior = model_config.learned_prior and train_state.has_prior(weights)
    model_config = dataclasses.replace(model_config, learned_prior=learned_prior)
    return train_state.fitting(weights, model_config, f"--init_run: {run_dir}")


def _latest(run_dir):
    """Returns the state of a run, or that of its `weights.npz`, or None."""
    state, path = train_state.load(run_dir), os.path.join(run_dir, "weights.npz")
    later = state["global_step"] + 1 if state else 0
    if not state and os.path.exists(path):
        state = train_state.from_file(path)
        later = state["global_step"]  # a checkpoint of the same step has Adam's moments, too
    step = train_state.tensorflow_step(run_dir)
    if step >= later:
        raise UserError(
            f"{run_dir}: its latest state is the TensorFlow checkpoint of step {step}; hand it to this tool "
            f"with `python tools/convert_checkpoint.py to-torch {shlex.quote(run_dir)}`"
        )
    return state


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
      max_seconds: float, after which the slice stops; None for no limit.
      part_bytes: float, largest file of the state.
      verbose: bool, whether means are printed: the first ones, every 1000 steps, and the last ones.

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
    seconds = math.inf if max_seconds is None else max_seconds
    intervals = trainer.train(config.last_step, seconds, stop=lambda: signals.received)
    for i, (step, means) in enumerate(intervals):
        log.write(step, means)
        if verbose and (i == 0 or step % 1000 == 0 or step == config.last_step):
            _print_line(step, means, config.patchsize**2, (step - first) / (time.monotonic() - began))
        if time.monotonic() - last_save > config.save_checkpoint_secs:
            save()
            last_save = time.monotonic()


def _print_line(step, means, pixels, rate):
    """Prints means in nats per crop and per pixel, of crops with so many pixels, and steps per second."""
    loss, kl, mse, norm = means
    print(
        f"step {step}  loss {loss:.1f} nats per crop, {loss / pixels:.4f} per pixel  "
        f"psnr {-10 * math.log10(mse):.2f} dB  kl {kl / pixels:.4f} nats per pixel  gradient {norm:.3g}  "
        f"{rate:.1f} steps/s",
        flush=True,
    )


def begin(run_dir, args, first, resumes, data):
    """Writes `args.json` and `record.txt`, and says from where the training starts."""
    parser = build_parser()
    others = [] if resumes or args.init_run else neighbours(run_dir)
    warning = write_flags(run_dir, vars(args), first if resumes else None, vars(parser.parse_args([])))
    append_record(run_dir, vars(args), first, data)
    if resumes:
        note(f"{run_dir}: resumes at step {first} of {args.last_step}")
    if warning:
        note(f"warning: {warning}")
    if others:
        note(
            f"{run_dir}: a new run, which starts at step 0, though {others[-1]} differs from it in "
            f"--last_step only; to start from its weights, add --init_run {others[-1]}"
        )


def find_device(name):
    """Returns the torch.device of a name, that of an accelerator for "auto" if there is one.

    Args:
      name: str, the value of --device.

    Raises:
      UserError: PyTorch is not installed, or has no such device.
    """
    try:
        import torch  # here, because `--help` should work without it
    except ModuleNotFoundError as error:
        raise UserError(
            "PyTorch is not installed; install it with `python -m pip install torch` (in an environment of "
            "uv: `uv pip install torch`)"
        ) from error
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter if PyTorch is built without it
        raise UserError(f"--device: PyTorch has no device {name!r} here; cpu is always there") from error


def main(argv=None):
    """Runs one slice; returns the exit status."""
    args = build_parser().parse_args(argv)
    find_images(args.train_glob)  # fails before the run's directory is made
    started, device = time.monotonic(), find_device(args.device)
    from torch_model import Model  # PyTorch is there now
    from torch_training import Trainer, fit_prior, load_photos

    run_dir = os.path.join(args.checkpoint_dir, bls2017_vae.runname(args))
    model_config, config = ModelConfig.of(vars(args)), TrainingConfig.of(vars(args))
    with run_lock(run_dir):
        state, resumes = load_state(run_dir, model_config, config)
        if resumes and state["global_step"] >= config.last_step:
            print(f"{run_dir}: already at step {state['global_step']}")
            return 0
        photos = load_photos(
            config.train_glob,
            config.patchsize,
            config.min_scale,
            args.by_area,
            device,
            config.preprocess_threads,
        )
        model = Model(model_config, device, args.dense_below)
        if model_config.learned_prior and not train_state.has_prior(state["weights"]):
            note(f"{run_dir}: {config.init_run} has no learned prior; it is fitted to that run's latents")
            weights = state["weights"]
            state = train_state.from_weights(weights | fit_prior(model, weights, photos, config, device))
        data = f"{len(photos.first)} photographs and scales"
        begin(run_dir, args, int(state["global_step"]), resumes, data)
        trainer = Trainer(model, state, photos, config, device, args.precision, args.compile)
        print(
            f"{run_dir}: step {trainer.step}; {data}, "
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
