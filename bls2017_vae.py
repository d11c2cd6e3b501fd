"""Trains the variational autoencoder of images whose latents `post_process.py` quantizes.

Yang, Bamler and Mandt, "Variational Bayesian quantization" (ICML 2020), with the transforms of Ballé, Laparra
and Simoncelli, "End-to-end optimized image compression" (ICLR 2017). The transforms are theirs, the objective
is not: it is a negative evidence lower bound with a fixed likelihood variance, without any quantization.

The model is in `vbq/transforms.py`, the loop of training in `vbq/training.py`. TensorFlow is imported only
once the flags have proved good.
"""

import argparse
import math
import os
import sys

from vbq.command import Parser, UserError, number, reason, run_main, seed
from vbq.config import LAYER_LISTS, ModelConfig, TrainingConfig
from vbq.files import find_images
from vbq.runs import Run, load_run

__all__ = ["Run", "build_parser", "load_run", "main", "parse_args", "runname"]


def build_parser(add_help=True):
    """Returns the parser of the flags of training.

    Args:
      add_help: bool, whether it has --help; a parser that has this one as a parent brings its own.

    Returns:
      vbq.command.Parser.
    """
    parser = Parser(
        description=__doc__.partition("\n")[0],
        add_help=add_help,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_original_flags(parser.add_argument)
    _add_our_flags(parser.add_argument_group("beyond the original").add_argument)
    return parser


def _add_original_flags(add):
    """Adds the flags of the original program; `add` is the `add_argument` of a parser."""
    count = number(int, at_least=1)
    positive = number(float, above=0)
    seconds = number(float, at_least=0)
    add("--verbose", "-V", action="store_true", help="print lines of progress: step, loss, PSNR, steps/s")
    add("--checkpoint_dir", default="checkpoints", help="folder of the run's directory")
    add("--seed", type=seed, default=0, help="of the initial weights, the crops and the noise")
    add(
        "--num_filters",
        type=count,
        nargs="+",
        default=[32, 32, 32],
        help="channels of each analysis layer; the last has the latents",
    )
    add("--filter_dims", type=count, nargs="+", default=[9, 5, 5], help="side of each layer's kernels")
    add("--sampling_rates", type=count, nargs="+", default=[4, 2, 2], help="stride of each layer")
    add(
        "--learned_prior",
        action="store_true",
        help="train a deep factorized prior instead of a standard normal",
    )
    add(
        "--prior_init_scale",
        type=positive,
        default=ModelConfig.prior_init_scale,
        help="initial scale of the learned prior; of no effect with an --init_run",
    )
    add(
        "--prior_lr",
        type=positive,
        default=1e-3,
        help="learning rate of the learned prior, which rises and decays as that of the transforms does",
    )
    add(
        "--train_glob",
        default="images/*.png",
        help="photographs: a pattern of image files or of .npy arrays [H, W, 3], or a folder of them",
    )
    add("--batchsize", type=count, default=100, help="crops in a step, of all devices together")
    add(
        "--patchsize",
        type=count,
        default=32,
        help="side of the training crops in pixels; a multiple of the product of --sampling_rates",
    )
    add(
        "--likelihood_variance",
        type=positive,
        default=ModelConfig.likelihood_variance,
        help="variance of the Gaussian likelihood of pixels in [0, 1]; the smaller, the higher the rate",
    )
    add("--last_step", type=count, default=100000, help="steps of the whole training, part of the run's name")
    add("--preprocess_threads", type=count, default=8, help="threads that decode photographs and cut crops")
    add("--save_checkpoint_secs", type=seconds, default=300, help="seconds between two checkpoints")
    add(
        "--save_summary_secs",
        type=seconds,
        default=60,
        help="seconds between two summaries of TensorBoard; below 10, also between two lines of progress",
    )
    add(
        "--log_dir",
        default="/tmp/tensorboard_logs",
        help="folder in which TensorBoard's files get a folder of the run's name; empty: no TensorBoard",
    )


def _add_our_flags(add):
    """Adds the flags that the original program did not have; `add` is the `add_argument` of a group."""
    positive = number(float, above=0)
    add("--learning_rate", type=positive, default=1e-4, help="learning rate of the transforms")
    add(
        "--lr_schedule",
        choices=["constant", "cosine"],
        default="constant",
        help="how the learning rates go on after --warmup_steps; cosine: they decay to zero at --last_step",
    )
    add(
        "--warmup_steps",
        type=number(int, at_least=0),
        default=0,
        help="steps in which the learning rates rise from zero",
    )
    add(
        "--clip_norm",
        type=number(float, at_least=0),
        default=0.0,
        help="bound of the gradient's norm over all weights; 0: none",
    )
    add(
        "--ema_decay",
        type=number(float, at_least=0, below=1),
        default=0.0,
        help="decay per step of a moving average of the weights, which is then the result; 0: none",
    )
    add("--flip", action="store_true", help="mirror half of the crops")
    add(
        "--min_scale",
        type=number(float, above=0, at_most=1),
        default=1.0,
        help="scale photographs at random, by a factor between this and 1",
    )
    add(
        "--init_run",
        metavar="NAME",
        help="a new run starts from the weights of this run in --checkpoint_dir, which has the same layers; "
        "a --learned_prior that this run lacks is fitted, before the first step, to its latents of 256 crops",
    )
    add(
        "--mixed_precision",
        action="store_true",
        help="compute convolutions and the matrix products of GDN in bfloat16",
    )
    add(
        "--strategy",
        choices=["none", "mirrored", "multiworker"],
        default="none",
        help="train on one device, on all of this machine, or on those of all workers in TF_CONFIG",
    )


def parse_args(argv=None):
    """Parses the flags.

    Args:
      argv: list of str, or None for those of this process.

    Returns:
      argparse.Namespace.

    Raises:
      SystemExit: with status 2 and one line on stderr, if the flags are wrong; with status 0 after --help.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    lengths = [len(getattr(args, name)) for name in LAYER_LISTS]
    if len(set(lengths)) > 1:
        found = ", ".join(f"--{name} has {length}" for name, length in zip(LAYER_LISTS, lengths))
        parser.error(f"the layers need lists of one length, but {found}")
    stride = math.prod(args.sampling_rates)
    if args.patchsize % stride:
        parser.error(
            f"argument --patchsize: must be a multiple of {stride}, the product of --sampling_rates, "
            f"not {args.patchsize}"
        )
    return args


def runname(args):
    """Returns the name of the run with these flags, which is the original's to the letter.

    Args:
      args: argparse.Namespace, of `build_parser`.

    Returns:
      str.
    """
    joined = {name: "_".join(map(str, getattr(args, name))) for name in LAYER_LISTS}
    prior = (
        f"-prior_init_scale={args.prior_init_scale}-prior_lr={args.prior_lr}" if args.learned_prior else ""
    )
    return (
        f"bls2017_vae-num_filters={joined['num_filters']}-filter_dims={joined['filter_dims']}"
        f"-sampling_rates={joined['sampling_rates']}-learned_prior={args.learned_prior}{prior}"
        f"-likelihood_variance={args.likelihood_variance}-last_step={args.last_step}"
    )


def main(argv=None):
    """Trains; returns the exit status."""
    args = parse_args(argv)
    find_images(args.train_glob)  # fails at once, while the imports below take seconds
    from vbq.log import log_to_terminal

    log_to_terminal(args.verbose)
    import tensorflow as tf

    from vbq.training import train

    tf.keras.utils.set_random_seed(args.seed)
    flags, defaults = vars(args), vars(build_parser().parse_args([]))
    run_dir = os.path.join(args.checkpoint_dir, runname(args))
    try:
        train(run_dir, ModelConfig.of(flags), TrainingConfig.of(flags), flags, defaults)
    except BrokenPipeError:  # nobody reads stdout any more, which `run_main` handles
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"training in {run_dir} failed: {where}{reason(error)}") from error
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
