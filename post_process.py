"""Compresses test images with a trained model, by three quantizers at many settings, and measures rate and
distortion.

The evaluation of Yang, Bamler, Mandt, "Variational Bayesian Quantization" (ICML 2020): fits an empirical
prior and the quantizers to the latents of validation images, once; then reconstructs every test image at
every setting. The rates are ideal code lengths; `codec.py` writes real files.
"""

import argparse
import collections
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantizers import QUANTIZERS, Posterior
from vbq import tiling
from vbq.command import UserError, note, number, progress, run_main
from vbq.files import find_images, save_npz
from vbq.fits import DEFAULT_LAMBS, DEFAULT_LEVELS, DEFAULT_MAX_BITS, FitOptions, FitStore, ValidationLatents
from vbq.images import read_image
from vbq.metrics import ImageMetrics
from vbq.results import FILE_KEY, as_arrays, merge, results_path
from vbq.runs import load_run
from vbq.validation import read_validation

MOST_PENDING = 1  # reconstructions that wait to be measured while the next one is computed
PLOT_NAME = "rate_distortion.png"


# Fits.


def fit_or_load(run, validation, options, rebuild=False):
    """Returns the saved fits where they serve, and makes and saves new ones where they do not.

    Args:
      run: runs.Run.
      validation: validation.Validation, or None if only saved fits will do.
      options: FitOptions.
      rebuild: bool, whether to fit again in any case.

    Returns:
      List of fits.Fit, in the order of `QUANTIZERS`.

    Raises:
      UserError: there are no validation images, and a fit is missing; or the fits cannot be written.
    """
    store = FitStore(run.path, run.fingerprint)
    label = validation and validation.label
    latents = validation and ValidationLatents(run, validation, rebuild)
    fits, saved = [], []
    for kind in QUANTIZERS:
        found, reasons = (None, ["--rebuild is given"]) if rebuild else store.find(kind, options, label)
        if found:
            label = label or found.quantizer.provenance.get("validation")  # all fits are to the same images
            saved.append(found.name)
        elif validation:
            note(f"fits {kind.__name__} to {len(validation.images)} validation images: {'; '.join(reasons)}")
            found = store.save(kind.fit_to(latents, options), options, rebuild)
        else:
            raise UserError(
                f"{run.path}: no saved fit serves, and there are no validation images to make one: "
                + "; ".join(reasons)
            )
        fits.append(found)
    if saved:
        note(f"uses the saved fits {', '.join(saved)}, to {label}")
    return fits


# Evaluation.


def evaluate(run, fits, options, paths, keep_reconstructions=False, bitstream=False, joint_steps=0):
    """Compresses images at all settings.

    Args:
      run: runs.Run.
      fits: list of fits.Fit.
      options: FitOptions, whose settings are evaluated.
      paths: list of image files.
      keep_reconstructions: bool.
      bitstream: bool, whether to measure the files that `codec.py` writes, too.
      joint_steps: int, see `Quantizer.encode`.

    Returns:
      List by fits of the arrays of a result file, see `results.as_arrays`.
    """
    records = [[] for _ in fits]
    settings = [fit.quantizer.settings_of(options) for fit in fits]
    total = len(paths) * sum(map(len, settings))
    with progress(None, total=total, desc="evaluation", unit="image") as bar:
        for path in paths:
            evaluation = ImageEvaluation(run, read_image(path), keep_reconstructions, bitstream, joint_steps)
            for of_fit, fit, fit_settings in zip(records, fits, settings):
                of_fit.append(evaluation.measure(fit.quantizer, fit_settings, bar.update))
    files = [os.path.basename(path) for path in paths]
    return [
        as_arrays(fit, fit_settings, files, of_fit)
        for fit, fit_settings, of_fit in zip(fits, settings, records)
    ]


class ImageEvaluation:
    """An image, uint8 [H, W, 3], that is compressed by any quantizer at any setting."""

    def __init__(self, run, image, keep_reconstructions=False, bitstream=False, joint_steps=0):
        """Computes the image's posterior; the arguments are those of `evaluate`."""
        self.run, self.image = run, image
        self.keep_reconstructions, self.bitstream, self.joint_steps = (
            keep_reconstructions,
            bitstream,
            joint_steps,
        )
        self.metrics = ImageMetrics(image)
        self.posterior = Posterior(*tiling.encode(run, image), tiling.likelihood(run, image))

    def measure(self, quantizer, settings, advance=lambda: None):
        """Measures a quantizer.

        A reconstruction is measured in a second thread while the next one is computed.

        Args:
          quantizer: quantizers.Quantizer.
          settings: list.
          advance: function that is called after every setting.

        Returns:
          List by settings of dicts of measures.
        """
        records, pending = [], collections.deque()

        def collect(most_pending):
            while len(pending) > most_pending:
                records.append(pending.popleft().result())
                advance()

        with ThreadPoolExecutor(1) as worker:
            for setting in settings:
                rates, x_hat = self._compress(quantizer, setting)
                pending.append(worker.submit(self._record, rates, x_hat))
                collect(MOST_PENDING)
            collect(0)
        return records

    def _compress(self, quantizer, setting):
        """Quantizes at a setting: dict of rates, and the reconstruction, uint8 [H, W, 3]."""
        indices = quantizer.encode(self.posterior, setting, self.joint_steps)
        bits = quantizer.bits(indices, setting).sum(dtype=np.float64)
        pixels = self.image.shape[0] * self.image.shape[1]
        rates = {
            "B": bits,
            "BPP": bits / pixels,
            "BPPCL": quantizer.bit_length_bits(indices, setting).sum(dtype=np.float64) / pixels,
            "BPL": bits / indices.size,
        }
        file_bits = quantizer.file_bits(indices, setting) if self.bitstream else None
        if file_bits is not None:
            rates[FILE_KEY] = file_bits / pixels
        x_hat = tiling.decode(
            self.run, lambda some: quantizer.decode(some, setting), indices, *self.image.shape[:2]
        )
        return rates, x_hat

    def _record(self, rates, x_hat):
        record = {**rates, **self.metrics.evaluate(x_hat)}
        return {**record, "reconstruction": x_hat} if self.keep_reconstructions else record


# The program.


def parse_args(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint_dir", help="directory of runs")
    add("runname", help="name of the run: its directory in checkpoint_dir")
    add(
        "val_imgs",
        help="validation images: .npy file, N x H x W x 3, or glob of image files; - for saved fits",
    )
    add("test_glob", help="test images")
    add(
        "--max_bits",
        type=number(int, at_least=1, at_most=14),
        default=DEFAULT_MAX_BITS,
        help="length of the longest code points",
    )
    add(
        "--lambs",
        type=number(float, above=0),
        nargs="+",
        default=DEFAULT_LAMBS,
        metavar="LAMB",
        help="trade-offs of the channelwise quantizer: nats of distortion that a bit is worth",
    )
    add(
        "--quantization_levels",
        type=number(int, at_least=1, at_most=1024),
        nargs="+",
        default=DEFAULT_LEVELS,
        metavar="LEVELS",
        help="levels a channel of the uniform and k-means quantizers",
    )
    add(
        "--passes",
        type=number(int, at_least=2),
        default=2,
        help="passes over the validation latents; more than the paper's 2 refine code lengths and points",
    )
    add(
        "--contexts",
        action="store_true",
        help="fit code lengths that follow a latent's surroundings; needs more than two passes",
    )
    add(
        "--joint_steps",
        type=number(int, at_least=0),
        default=0,
        metavar="K",
        help="refine the quantized latents in K steps with the decoder in the loop",
    )
    add("--seed", type=number(int, at_least=0), default=0, help="of the prior's initial weights")
    add("--reconstructions", action="store_true", help="keep the reconstructed images in the result files")
    add("--rebuild", action="store_true", help="fit again, even if saved fits serve; these are kept")
    add("--bitstream", action="store_true", help=f"measure the files of codec.py, too: {FILE_KEY}")
    add(
        "--shard",
        type=shard,
        metavar="I/N",
        help="evaluate every Nth test image from the Ith on, for --merge",
    )
    add(
        "--merge", type=number(int, at_least=1), metavar="N", help="only put the results of N shards together"
    )
    args = parser.parse_args(argv)
    if args.shard and (args.reconstructions or args.merge):
        parser.error("--shard goes neither with --reconstructions nor with --merge")
    if args.contexts and args.passes == 2:
        parser.error("--contexts goes with --passes K of at least 3")
    return args


def fit_options(args):
    """The `FitOptions` that `parse_args` found."""
    lambs, levels = tuple(sorted(set(args.lambs))), tuple(sorted(set(args.quantization_levels)))
    return FitOptions(args.max_bits, lambs, levels, args.passes, args.contexts, args.seed)


def shard(text):
    """Parses I/N into (I, N)."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    i, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= count:
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text!r}")
    return i, count


def find_test_images(pattern):
    """Image files sorted by name; raises a UserError now, not after hours, if one cannot be read."""
    paths = sorted(find_images(pattern), key=lambda path: (os.path.basename(path), path))
    for path in progress(paths, desc="test images", unit="image"):
        read_image(path)
    return paths


def check_writable(folder):
    """Raises a UserError now, not after hours, if no file can be written to the folder."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: no results can be written there: {error.strerror}") from error


def main(argv=None):
    """Evaluates; returns the exit status."""
    args = parse_args(argv)
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # no lines about missing GPUs; TensorFlow reads it when imported
    options = fit_options(args)
    names = [kind.result_name(options, args.joint_steps) for kind in QUANTIZERS]
    run_dir = os.path.join(args.checkpoint_dir, args.runname)
    if not os.path.isdir(run_dir):
        raise UserError(
            f"{run_dir}: there is no such run; {args.checkpoint_dir} should be a directory of runs"
        )
    check_writable(run_dir)
    paths = find_test_images(args.test_glob)

    if args.merge:
        results = merge(run_dir, names, [os.path.basename(path) for path in paths], args.merge)
    else:
        validation = None if args.val_imgs == "-" else read_validation(args.val_imgs)
        run = load_run(args.checkpoint_dir, args.runname)
        fits = fit_or_load(run, validation, options, args.rebuild)
        if args.shard:
            paths = paths[args.shard[0] - 1 :: args.shard[1]]
        evaluated = evaluate(
            run, fits, options, paths, args.reconstructions, args.bitstream, args.joint_steps
        )
        results = dict(zip(names, evaluated))

    for name, arrays in results.items():
        save_npz(results_path(run_dir, name, args.shard), arrays)
    if args.shard:
        note(f"wrote shard {args.shard[0]} of {args.shard[1]} to {run_dir}")
    else:
        report(run_dir, results.values())
    return 0


def report(run_dir, results):
    """Prints the table and draws the plot of result arrays, in the order of `QUANTIZERS`."""
    from vbq import plots

    curves = [plots.curve(kind.label, arrays) for kind, arrays in zip(QUANTIZERS, results)]
    print(plots.table(curves))
    path = os.path.join(run_dir, PLOT_NAME)
    plots.rate_distortion(path, curves + plots.published_curves())
    print(f"results and plot: {path}")


if __name__ == "__main__":
    sys.exit(run_main(main))
