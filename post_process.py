"""Compresses test images by three quantizers at many settings, and measures rate and distortion.

The evaluation of Yang, Bamler, Mandt, "Variational Bayesian Quantization" (ICML 2020): fits an empirical
prior and the quantizers to the latents of validation images, once. Then it reconstructs every test image at
every setting. The rates are ideal code lengths; `codec.py` writes real files.
"""

import argparse
import dataclasses
import os
import sys

from quantizers import QUANTIZERS
from vbq import bd_rates, plots
from vbq.baselines import are_named_as_kodak, jpeg_results
from vbq.command import Parser, UserError, note, number, progress, run_main, seed, shard
from vbq.evaluation import evaluate
from vbq.files import atomic_write, find_images, make_output_folder, save_npz, why_not_writable
from vbq.fits import DEFAULT_LAMBS, DEFAULT_LEVELS, DEFAULT_MAX_BITS, Fit, FitOptions, FitStore
from vbq.gains import DecoderGains
from vbq.images import read_image_with_notes
from vbq.latents import ValidationLatents
from vbq.results import FILE_KEY, distinct_names, merge, results_path
from vbq.runs import load_run
from vbq.validation import read_validation

PLOT_NAME, TABLE_NAME = "rate_distortion.png", "bd_rates.md"
PUBLISHED_LABELS = "{}, published (24 Kodak images)"
EXAMPLES = """examples:
  python post_process.py checkpoints RUNNAME val_imgs.npy '/test_data/*.png' --passes 20 --contexts --gains
  python post_process.py checkpoints RUNNAME - 'photos/*.png' --lambs 1 4 --out /tmp/results --title Photos"""


# Fits.


def fit_or_load(run, validation, options, rebuild=False, new_path=None):
    """Returns the saved fits where they serve, and makes and saves new ones where they do not.

    Args:
      run: runs.Run.
      validation: validation.Validation, or None to use saved fits only.
      options: FitOptions.
      rebuild: bool, whether to fit again in any case.
      new_path: str, where new fits are saved; by default the run's directory.

    Returns:
      List of fits.Fit, in the order of `QUANTIZERS`.

    Raises:
      UserError: there are no validation images, and a fit is missing; or the fits cannot be written.
    """
    store = FitStore(run.path, run.fingerprint, new_path)
    label = validation and validation.label
    latents = validation and ValidationLatents(run, validation, store, rebuild)
    fits, saved = [], []

    def serve(kind, options, fit):
        nonlocal label
        found, reasons = (None, ["--rebuild is given"]) if rebuild else store.find(kind, options, label)
        if found:
            label = label or found.quantizer.provenance.get("validation")  # that of all fits
            saved.append(found.name)
            return found
        if not validation:
            raise UserError(
                f"{run.path}: no saved fit serves, and there are no validation images to make one: "
                f"{'; '.join(reasons)}; it has {', '.join(store.names(kind)) or 'no fit of this kind'}"
            )
        note(f"fits {kind.__name__} to {len(validation.images)} validation images: {'; '.join(reasons)}")
        return store.save(fit(), options, rebuild)

    for kind in QUANTIZERS:
        found = serve(kind, options, lambda kind=kind: kind.fit_to(latents, options))
        if options.gains and kind.takes_gains:
            gains, name = serve(
                DecoderGains,
                dataclasses.replace(options, base=found.quantizer.identity()),
                lambda quantizer=found.quantizer: DecoderGains.fit(
                    run, quantizer, validation.images, latents.mean, latents.std, latents.provenance
                ),
            )
            try:
                found = Fit(found.quantizer.with_gains(gains), name)
            except ValueError as error:
                raise UserError(f"{name}.npz: {error}; fit others with --rebuild") from error
        fits.append(found)
    if saved:
        note(f"uses the saved fits {', '.join(saved)}, to {label}")
    return fits


# The program.


def parse_args(argv=None):
    """Parses the command line."""
    parser = Parser(
        description=__doc__.partition("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint_dir", help="directory of runs")
    add("runname", help="name of the run: its directory in checkpoint_dir")
    add(
        "val_imgs",
        help="validation images: .npy file, N x H x W x 3, or glob of image files, or a folder of them; "
        "- uses saved fits",
    )
    add("test_glob", help="test images: glob of image files, in quotes, or a folder of them")
    add_fit_flags(parser.add_argument_group("fit").add_argument)
    add_evaluation_flags(parser.add_argument_group("evaluation").add_argument)
    args = parser.parse_args(argv)
    if args.shard and (args.reconstructions or args.merge):
        parser.error("--shard cannot be used with --reconstructions or --merge")
    if args.merge and args.reconstructions:
        parser.error("--merge cannot be used with --reconstructions, which shards do not keep")
    if args.contexts and args.passes == 2:
        parser.error("--contexts needs --passes of at least 3")
    return args


def add_fit_flags(add):
    """Adds the flags that a fit depends on; `add` is the method `add_argument` of a parser or a group."""
    add(
        "--max_bits",
        type=number(int, at_least=1, at_most=14),
        default=DEFAULT_MAX_BITS,
        metavar="N",
        help="length of the longest code points (default: %(default)s)",
    )
    lambs = {"type": number(float, above=0), "nargs": "+", "metavar": "LAMB"}
    add(
        "--lambs",
        **lambs,
        default=DEFAULT_LAMBS,
        help="trade-offs of the channelwise quantizer: nats of distortion that a bit is worth; also spelled "
        "--lamb, --lambda or --lambdas (default: 2^-8 2^-7 .. 2^7)",
    )
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    add("--lamb", "--lambda", "--lambdas", dest="lambs", **lambs, **hidden)
    add(
        "--quantization_levels",
        type=number(int, at_least=1, at_most=1024),
        nargs="+",
        default=DEFAULT_LEVELS,
        metavar="LEVELS",
        help="levels a channel of the uniform and k-means quantizers "
        f"(default: {' '.join(map(str, DEFAULT_LEVELS))})",
    )
    add(
        "--passes",
        type=number(int, at_least=2),
        default=2,
        metavar="K",
        help="passes over the validation latents; more than the paper's 2 refine code lengths and points "
        "(default: %(default)s)",
    )
    add(
        "--contexts",
        action="store_true",
        help="fit code lengths that follow a latent's surroundings; needs --passes above 2 (default: off)",
    )
    add(
        "--gains",
        action="store_true",
        help="fit gains of the decoder's channels to every lamb (default: off)",
    )
    add("--seed", type=seed, default=0, help="of the prior's initial weights (default: %(default)s)")
    add(
        "--rebuild",
        action="store_true",
        help="fit again, even if saved fits serve; these are kept (default: off)",
    )


def add_evaluation_flags(add):
    """Adds the flags that no fit depends on; `add` is as for `add_fit_flags`."""
    add(
        "--joint_steps",
        type=number(int, at_least=0),
        default=0,
        metavar="K",
        help="refine the quantized latents in K steps with the decoder in the loop (default: %(default)s)",
    )
    add("--out", metavar="DIR", help="directory of the results; made if missing (default: that of the run)")
    add("--title", metavar="TEXT", help="title of the plot (default: none)")
    add(
        "--reconstructions",
        action="store_true",
        help="keep the reconstructed images in the result files (default: off)",
    )
    add(
        "--bitstream",
        action="store_true",
        help=f"measure the files of codec.py, too, as {FILE_KEY!r} in the result files (default: off)",
    )
    add(
        "--shard",
        type=shard,
        metavar="I/N",
        help="evaluate every Nth test image from the Ith on, for --merge; no plot (default: all images)",
    )
    add(
        "--merge",
        type=number(int, at_least=1),
        metavar="N",
        help="only put the results of N shards together, and plot them (default: off)",
    )


def fit_options(args):
    """Returns the `FitOptions` of what `parse_args` found."""
    lambs, levels = tuple(sorted(set(args.lambs))), tuple(sorted(set(args.quantization_levels)))
    return FitOptions(args.max_bits, lambs, levels, args.passes, args.contexts, args.seed, args.gains)


def find_test_images(pattern):
    """Returns the test images' paths, sorted by name, after it has read each of them once.

    It prints a note of each image that is changed when it is read, as an animation is.

    Raises:
      UserError: nothing matches, or an image cannot be read. It is better to know now than after hours.
    """
    paths = sorted(find_images(pattern), key=lambda path: (os.path.basename(path), path))
    for path in progress(paths, desc="test images", unit="image"):
        for text in read_image_with_notes(path)[1]:
            note(f"note: {path}: {text}")
    return paths


def open_output(args, run_dir):
    """Finds out, before hours of work, where results and fits can be written.

    Args:
      args: what `parse_args` found.
      run_dir: str.

    Returns:
      Two str: the directories of the results, and of new fits.

    Raises:
      UserError: there is no such run, or no results can be written.
    """
    if not os.path.isdir(run_dir):
        raise UserError(f"{run_dir}: no such run; the first argument should be a directory of runs")
    out = args.out or run_dir
    try:
        make_output_folder(out)
    except UserError as error:
        raise UserError(f"{error}; name another with --out") from error
    return out, out if why_not_writable(run_dir) else run_dir


def main(argv=None):
    """Evaluates; returns the exit status."""
    args = parse_args(argv)
    options = fit_options(args)
    names = [kind.result_name(options, args.joint_steps) for kind in QUANTIZERS]
    out, new_fits = open_output(args, os.path.join(args.checkpoint_dir, args.runname))
    paths = find_test_images(args.test_glob)
    images = distinct_names(paths)

    if args.merge:
        results = merge(out, names, images, args.merge)
    else:
        validation = None if args.val_imgs == "-" else read_validation(args.val_imgs)
        run = load_run(args.checkpoint_dir, args.runname)
        fits = fit_or_load(run, validation, options, args.rebuild, new_fits)
        some = slice(args.shard[0] - 1, None, args.shard[1]) if args.shard else slice(None)
        what = args.reconstructions, args.bitstream, args.joint_steps
        results = dict(zip(names, evaluate(run, fits, options, paths[some], *what, images[some])))

    write(results, out, args.shard)
    if args.shard:
        note(f"wrote shard {args.shard[0]} of {args.shard[1]} to {out}")
    else:
        labels = [label_of(kind, options, args.joint_steps) for kind in QUANTIZERS]
        report(out, list(map(plots.curve, labels, results.values())), paths, args.title)
    return 0


# Results.


def write(results, out, part=None):
    """Writes result files, and prints a note of the files that this run replaces.

    Args:
      results: dict from names to dicts of arrays.
      out: str, a directory.
      part: pair of ints, the shard, or None.

    Raises:
      UserError: a file cannot be written.
    """
    files = {results_path(out, name, part): arrays for name, arrays in results.items()}
    names = [*map(os.path.basename, files), *(() if part else (PLOT_NAME, TABLE_NAME))]
    replaced = [name for name in names if os.path.exists(os.path.join(out, name))]
    if replaced:
        note(f"replaces in {out}: {', '.join(replaced)}")
    for path, arrays in files.items():
        save_npz(path, arrays)


def label_of(kind, options, joint_steps):
    """The label of a quantizer's curve.

    Args:
      kind: class, one of `QUANTIZERS`.
      options: FitOptions.
      joint_steps: int.

    Returns:
      str, such as "VBQ (20 passes, contexts)": those options beyond the paper that its results depend on.
    """
    plain = dataclasses.replace(options, passes=2, contexts=False, gains=False)
    if kind.result_name(options, joint_steps) == kind.result_name(plain, 0):
        return kind.label
    beyond = [f"{options.passes} passes"] * (options.passes > 2) + ["contexts"] * options.contexts
    beyond += ["gains"] * options.gains
    beyond += [f"{joint_steps} joint step" + "s" * (joint_steps > 1)] * (joint_steps > 0)
    return f"{kind.label} ({', '.join(beyond)})"


def report(out, curves, paths, title=None):
    """Measures JPEG on the test images, prints the tables, and writes the plot and the table of BD-rates.

    Args:
      out: str, a directory.
      curves: list of dicts, see `plots.curve`, one a quantizer.
      paths: list of str, the test images.
      title: str, of the plot; or None.

    Raises:
      UserError: a file cannot be written.
    """
    jpeg = jpeg_curve(paths)
    references = [jpeg] if jpeg else []
    print(plots.text_table([*curves, *references]), end="\n\n")
    if are_named_as_kodak(paths):
        references += plots.published_curves(PUBLISHED_LABELS)
    plots.rate_distortion(os.path.join(out, PLOT_NAME), curves, references, title)
    table = bd_rates.jpeg_table(jpeg, curves)
    with atomic_write(os.path.join(out, TABLE_NAME)) as path, open(path, "w", encoding="utf-8") as file:
        file.write(table + "\n")
    print(f"{table}\n\nresults, {PLOT_NAME} and {TABLE_NAME}: {out}")


def jpeg_curve(paths):
    """The curve of JPEG on images, see `plots.curve`; or None, with a note, if one of them is too large."""
    try:
        return plots.curve("JPEG", jpeg_results(paths))
    except UserError as error:
        note(f"note: JPEG is not measured: {error}")
        return None


if __name__ == "__main__":
    sys.exit(run_main(main))
