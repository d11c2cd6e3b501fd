"""Trains the variational autoencoder of images whose latents `post_process.py` quantizes.

Yang, Bamler and Mandt, "Variational Bayesian quantization" (ICML 2020), with the transforms of Ballé, Laparra and
Simoncelli, "End-to-end optimized image compression" (ICLR 2017). The model differs from theirs in what it is trained for:
a negative evidence lower bound with a fixed likelihood variance, without any quantization. TensorFlow is imported only
where it is needed; the model is in `transforms.py`, the training in `training.py`.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time

import numpy as np

import utils

MAX_PIXELS = 2**18  # of the images that are transformed at once; bounds the memory of the transforms' activations


# Flags, and what they mean for a run.


def number(kind, at_least=None, above=None, below=None, at_most=None):
    """Returns a parser, for argparse, of a finite number of the kind (int or float) within the bounds."""
    bounds = [(f">= {at_least}", lambda v: v >= at_least, at_least), (f"> {above}", lambda v: v > above, above),
              (f"< {below}", lambda v: v < below, below), (f"<= {at_most}", lambda v: v <= at_most, at_most)]
    bounds = [(text, test) for text, test, bound in bounds if bound is not None]

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not all(test(value) for _, test in bounds):
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(" ".join([f"expected {name}", " and ".join(t for t, _ in bounds)])
                                             + f", found {text!r}")
        return value
    return parse


def build_parser(add_help=True):
    """Returns the parser of the flags of training."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], add_help=add_help,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    count = number(int, at_least=1)
    positive = number(float, above=0)
    seconds = number(float, at_least=0)
    add = parser.add_argument
    add("--verbose", "-V", action="store_true", help="log step, loss, psnr and steps/s")
    add("--checkpoint_dir", default="checkpoints", help="directory of the run's directory")
    add("--seed", type=number(int, at_least=0), default=0)
    add("--num_filters", type=count, nargs="+", default=[32, 32, 32], help="channels of each layer; the last: latents")
    add("--filter_dims", type=count, nargs="+", default=[9, 5, 5], help="side of each layer's kernels")
    add("--sampling_rates", type=count, nargs="+", default=[4, 2, 2], help="stride of each layer")
    add("--learned_prior", action="store_true", help="train a deep factorized prior instead of a standard normal")
    add("--prior_init_scale", type=positive, default=10., help="initial scale of the learned prior")
    add("--prior_lr", type=positive, default=1e-3, help="learning rate of the learned prior")
    add("--train_glob", default="images/*.png", help="photographs: image files, or .npy arrays [H, W, 3]")
    add("--batchsize", type=count, default=100)
    add("--patchsize", type=count, default=32, help="side of the training crops; a multiple of the strides' product")
    add("--likelihood_variance", type=positive, default=.02, help="of pixels in [0, 1]")
    add("--last_step", type=count, default=100000)
    add("--preprocess_threads", type=count, default=8)
    add("--save_checkpoint_secs", type=seconds, default=300)
    add("--save_summary_secs", type=seconds, default=60)
    add("--log_dir", default="/tmp/tensorboard_logs", help="empty: no TensorBoard")
    group = parser.add_argument_group("beyond the original")
    add = group.add_argument
    add("--learning_rate", type=positive, default=1e-4, help="of the transforms")
    add("--lr_schedule", choices=["constant", "cosine"], default="constant", help="cosine: decays to zero at --last_step")
    add("--warmup_steps", type=number(int, at_least=0), default=0, help="steps in which the learning rate rises from zero")
    add("--clip_norm", type=seconds, default=0., help="bound of the gradient's norm; 0: none")
    add("--ema_decay", type=number(float, at_least=0, below=1), default=0.,
        help="decay per step of a moving average of the weights, which is then the result; 0: none")
    add("--flip", action="store_true", help="mirror half of the crops")
    add("--min_scale", type=number(float, above=0, at_most=1), default=1., help="scale photographs down to as little as this")
    add("--mixed_precision", action="store_true", help="convolutions in bfloat16")
    add("--strategy", choices=["none", "mirrored", "multiworker"], default="none",
        help="train on one device, on all of this machine, or on those of all workers in TF_CONFIG")
    return parser


def parse_args(argv=None):
    """Parses the flags; usage errors are told in one line and exit with status 2."""
    parser = build_parser()
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    args = parser.parse_args(argv)
    lists = ("num_filters", "filter_dims", "sampling_rates")
    lengths = [len(getattr(args, name)) for name in lists]
    if len(set(lengths)) > 1:
        parser.error("expected lists of one length, found "
                     + ", ".join(f"--{name} with {length}" for name, length in zip(lists, lengths)))
    stride = math.prod(args.sampling_rates)
    if args.patchsize % stride:
        parser.error(f"argument --patchsize: expected a multiple of {stride}, the product of --sampling_rates, "
                     f"found {args.patchsize}")
    return args


def runname(args):
    """Returns the name of the run with these flags, the original's to the letter."""
    joined = {name: "_".join(map(str, getattr(args, name))) for name in ("num_filters", "filter_dims", "sampling_rates")}
    prior = f"-prior_init_scale={args.prior_init_scale}-prior_lr={args.prior_lr}" if args.learned_prior else ""
    return (f"bls2017_vae-num_filters={joined['num_filters']}-filter_dims={joined['filter_dims']}"
            f"-sampling_rates={joined['sampling_rates']}-learned_prior={args.learned_prior}{prior}"
            f"-likelihood_variance={args.likelihood_variance}-last_step={args.last_step}")


def learning_rate(args, step):
    """Returns the learning rate of a step (from 0): a linear warm-up, then constant, or half a cosine down to zero."""
    rate = args.learning_rate
    if step < args.warmup_steps:
        return rate * (step + 1) / (args.warmup_steps + 1)
    if args.lr_schedule == "cosine":
        rate *= .5 + .5 * math.cos(math.pi * (step - args.warmup_steps) / max(args.last_step - args.warmup_steps, 1))
    return rate


# A trained run.


def load_run(checkpoint_dir, runname):
    """Loads a trained model: the latest of a run's checkpoints, TensorFlow 1.15's included, or its `weights.npz`.

    Args:
      checkpoint_dir: str, directory of runs.
      runname: str, name of the run.

    Returns:
      Run.

    Raises:
      utils.UserError: there is no such run, it has no checkpoint, or its checkpoint does not fit its `args.json`.
    """
    path = os.path.join(checkpoint_dir, runname)
    if not os.path.isdir(path):
        raise utils.UserError(f"{path}: expected the directory of a run, found none")
    try:
        with open(os.path.join(path, "args.json"), encoding="utf-8") as file:
            args = json.load(file)
        model_args = {name: args[name] for name in ("num_filters", "filter_dims", "sampling_rates", "learned_prior",
                                                    "prior_init_scale", "likelihood_variance")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise utils.UserError(f"{path}: expected args.json with the flags of training, found {error!r}") from error
    from training import latest_state, named_weights
    state = latest_state(path)
    if not state:
        raise utils.UserError(f"{path}: expected a checkpoint, model.ckpt-STEP.index or weights.npz, found none")
    step, state_path, arrays = state
    weights = named_weights(arrays, "average") or named_weights(arrays)
    # The prior of training plays no part in the transforms, and the original's names for it are not known here.
    model_args["learned_prior"] &= any(name.startswith("prior/") for name in weights)
    from transforms import VAE
    try:
        model = VAE(**model_args)
        model.set_named_weights(weights)
    except (ValueError, TypeError, IndexError) as error:
        raise utils.UserError(f"{state_path}: expected weights that fit args.json, found others: {error}") from error
    return Run(path, args, step, model)


class Run:
    """A trained model as a pair of functions on arrays.

    Attributes:
      path, name: str, the run's directory.
      args: dict, its `args.json`.
      step: int, how many steps it was trained.
      model: transforms.VAE, whose kernels are computed once and for all.
      num_channels, stride: int, latent channels, and pixels per latent in each direction.
      fingerprint: str, SHA-256 in hexadecimal of the transforms' weights: the sorted names, each followed by its float32
        little-endian bytes.
    """

    def __init__(self, path, args, step, model):
        import tensorflow as tf
        self.path, self.args, self.step, self.model = path, args, step, model
        self.name = os.path.basename(os.path.normpath(path))
        self.num_channels, self.stride = model.num_channels, model.stride
        digest = hashlib.sha256()
        for name, value in sorted(model.named_weights().items()):
            if not name.startswith("prior/"):
                digest.update(name.encode() + value.astype("<f4").tobytes())
        self.fingerprint = digest.hexdigest()
        model.freeze()
        any_size = [tf.TensorSpec([None, None, None, channels]) for channels in (3, self.num_channels)]
        self._analysis = tf.function(model.analysis, input_signature=any_size[:1])
        self._synthesis = tf.function(model.synthesis, input_signature=any_size[1:])
        self._likelihood_gradient = tf.function(model.likelihood_gradient, input_signature=any_size[::-1])

    def encode(self, images):
        """Maps images to the parameters of the posterior of their latents.

        Args:
          images: [B, H, W, 3], uint8, or float in [0, 1]; may be a memory map. Sides that are no multiple of `stride` are
            extended at the bottom and right by their last row and column.

        Returns:
          float32 posterior mean and log-variance, [B, ceil(H / stride), ceil(W / stride), C] each.
        """
        count, height, width, _ = images.shape
        pad = [(0, 0), (0, -height % self.stride), (0, -width % self.stride), (0, 0)]
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        parts = []
        for some in batches(count, height * width):
            x = np.asarray(images[some], np.float32) / scale
            parts.append(self._analysis(np.pad(x, pad, mode="edge")))
        return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))

    def decode(self, z, height=None, width=None):
        """Maps latents to images.

        Args:
          z: float [B, h, w, C].
          height, width: int, sides to crop the images to, pixels; None leaves all.

        Returns:
          float32 [B, height, width, 3], neither clipped nor rounded.
        """
        z = np.asarray(z, np.float32)
        pixels = z.shape[1] * z.shape[2] * self.stride**2
        return np.concatenate([self._synthesis(z[some]).numpy()[:, :height, :width] for some in batches(len(z), pixels)])

    def likelihood_gradient(self, z, images):
        """Decodes latents, and finds how to explain images better.

        Args:
          z: float [B, h, w, C].
          images: [B, H, W, 3], uint8, or float in [0, 1], that `encode` would map to latents of this shape.

        Returns:
          float32 [B, H, W, 3], what `decode` returns; and the gradient of -log p(x | z), in nats, by z: float32 [B, h, w, C].
        """
        z = np.asarray(z, np.float32)
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        parts = [self._likelihood_gradient(z[some], np.asarray(images[some], np.float32) / scale)
                 for some in batches(len(z), z.shape[1] * z.shape[2] * self.stride**2)]
        return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))


def batches(count, pixels):
    """Yields slices of `count` images of so many pixels, that have about `MAX_PIXELS` together."""
    size = max(1, MAX_PIXELS // pixels)
    for first in range(0, count, size):
        yield slice(first, first + size)


# The program.


def write_record(args, run_dir, first_step, num_photographs):
    """Makes the run directory, with `args.json`, and a paragraph in `record.txt` on how this start came to be."""
    os.makedirs(run_dir, exist_ok=True)
    with utils.atomic_write(os.path.join(run_dir, "args.json")) as path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(vars(args), file, indent=4, sort_keys=True)
    with open(os.path.join(run_dir, "record.txt"), "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}: start at step {first_step}, {num_photographs} photographs\n"
                   f"  command: {shlex.join([sys.executable, *sys.argv])}\n"
                   f"  flags: {json.dumps(vars(args), sort_keys=True)}\n"
                   f"  code: git commit {git_commit()}\n"
                   f"  versions: {versions()}\n")


def git_commit():
    """Returns the commit of this file, with "-dirty" if the code has been changed since, or "unknown"."""
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions():
    """Returns the versions of what computes, as text."""
    from importlib import metadata
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in (
        "tensorflow", "tensorflow-compression", "numpy", "pillow"))
    return f"Python {platform.python_version()}, {packages}; {platform.platform()}, {os.cpu_count()} cores"


def main(argv=None):
    """Trains; returns the exit status."""
    args = parse_args(argv)
    utils.find_images(args.train_glob)  # fails at once, where the import below takes seconds
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's own log; its exceptions are not concerned
    import tensorflow as tf
    import training
    tf.keras.utils.set_random_seed(args.seed)
    run_dir = os.path.join(args.checkpoint_dir, runname(args))
    try:
        training.train(args, run_dir, functools.partial(learning_rate, args), functools.partial(write_record, args, run_dir))
    except OSError as error:
        raise utils.UserError(f"{error.filename}: expected to write there, found: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
