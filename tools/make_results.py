"""Makes everything under results/ again: evaluates the models that ship on Kodak, draws, compares curves.

python tools/make_results.py --kodak /path/to/kodak            # kodim01.png .. kodim24.png
python tools/make_results.py --kodak /path/to/kodak --reuse    # from the result files under results/
"""

import argparse
import csv
import functools
import glob
import io
import os
import shutil
import sys
import tempfile

import numpy as np
from PIL import Image

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
from shipped import CHECKPOINTS, PAPER_RUN, RUN

import post_process
from quantizers import QUANTIZERS, Posterior
from utils import evaluate_compression_jpg
from vbq import plots, tiling
from vbq.baselines import are_named_as_kodak
from vbq.bd_rates import QUALITIES, bd_quality, bd_rate, increasing
from vbq.command import Parser, UserError, run_main
from vbq.files import atomic_write, load_npz, make_folder
from vbq.fits import DEFAULT_LEVELS
from vbq.images import center_crop, read_image
from vbq.metrics import ImageMetrics
from vbq.results import results_path
from vbq.runs import load_run

RESULTS = os.path.join(ROOT, "results")
PUBLISHED = os.path.join(RESULTS, "published", "kodak_psnr_rgb_curves.csv")
FOLDERS = {PAPER_RUN: "standard_normal_prior", RUN: "learned_prior"}  # of the result files of each run
VARIANTS = {  # runs, and arguments of post_process.py
    "VBQ, as in the paper": (PAPER_RUN, []),
    "VBQ, as in the paper, with gains": (PAPER_RUN, ["--gains"]),
    "VBQ, learned prior": (RUN, []),
    "VBQ, learned prior, with gains": (RUN, ["--gains"]),
    "VBQ, refined": (RUN, ["--passes", "20"]),
    "VBQ, contexts": (RUN, ["--passes", "20", "--contexts"]),
    "VBQ, gains": (RUN, ["--passes", "20", "--contexts", "--gains"]),
    "VBQ, joint": (RUN, ["--passes", "20", "--contexts", "--gains", "--joint_steps", "8"]),
}
PAPER, BEST = "VBQ, as in the paper", "VBQ, joint"
# The figure has curves enough.
ONLY_IN_TABLES = "VBQ, as in the paper, with gains", "VBQ, learned prior, with gains"
# JPEG is compared twice: with all qualities, and from this one up. It is at its worst at 1, 2 and 4.
LEAST_QUALITY = 8
PICTURE, PICTURE_LAMBS = "kodim23.png", (1.0, 4.0, 8.0)
WINDOW = (40, 190, 300, 240)  # of the picture that is shown, in pixels: top, left, height, width


# The evaluation.


def kodak_images(folder):
    """Returns the paths of the 24 Kodak images in a folder.

    Raises:
      UserError: they are not there, or other PNG files are.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.png")))
    if not folder or not are_named_as_kodak(paths):
        raise UserError(
            f"--kodak {folder!r}: this folder should hold the 24 Kodak images, kodim01.png to kodim24.png, "
            "and no other PNG files (with make: KODAK_DIR=/path/to/kodak)"
        )
    return paths


def evaluate(paths):
    """Crops the Kodak images as for the published JPEG figures, and evaluates every variant.

    The result files are replaced once all variants are evaluated.

    Args:
      paths: list of str, the Kodak images.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            Image.fromarray(crop(read_image(path))).save(os.path.join(folder, os.path.basename(path)))
        images = os.path.join(folder, "*.png")
        for label, (run, arguments) in VARIANTS.items():
            out = os.path.join(folder, label)
            # Baselines are kept of the paper's variant only; with the others, one level is enough.
            levels = [] if label == PAPER else ["--quantization_levels", str(DEFAULT_LEVELS[0])]
            post_process.main([CHECKPOINTS, run, "-", images, "--out", out, *arguments, *levels])
        for label in VARIANTS:  # now that all are there
            make_folder(results_of(label))
            found = result_paths(label, os.path.join(folder, label))[: None if label == PAPER else 1]
            for path in found:
                with atomic_write(os.path.join(results_of(label), os.path.basename(path))) as kept:
                    shutil.copyfile(path, kept)


def options_of(label):
    """The `FitOptions` of a variant, and its number of joint steps."""
    args = post_process.parse_args(["", "", "", "", *VARIANTS[label][1]])
    return post_process.fit_options(args), args.joint_steps


def results_of(label):
    """The folder of the result files of a variant."""
    return os.path.join(RESULTS, FOLDERS[VARIANTS[label][0]])


def result_paths(label, folder):
    """The result files of a variant, in the order of `QUANTIZERS`."""
    return [results_path(folder, kind.result_name(*options_of(label))) for kind in QUANTIZERS]


def crop(image):
    """The middle of an image: 8 pixels less at each edge, 752 x 496 pixels of a Kodak image."""
    return center_crop(image, image.shape[0] - 16, image.shape[1] - 16)


# The curves.


def load_curves():
    """Curves of the result files, and the published ones: dict from labels to the dicts of `plots.curve`."""
    found = {
        label: plots.curve(label, load_npz(result_paths(label, results_of(label))[0])) for label in VARIANTS
    }
    for kind, path in list(zip(QUANTIZERS, result_paths(PAPER, results_of(PAPER))))[1:]:
        found[kind.label] = plots.curve(kind.label, load_npz(path))
    return found | {one["label"]: one for one in plots.published_curves()}


def comparison(curves):
    """Table, in Markdown, of the Bjontegaard deltas between the curves."""
    lines = ["| curve | against | quality | BD-rate | BD-quality | over |", "|---|---|---|---|---|---|"]

    def add(test, name, anchor, key):
        rate, (low, high) = bd_rate(anchor, curves[test], key)
        quality, unit = bd_quality(anchor, curves[test], key), QUALITIES[key]
        lines.append(
            f"| {test} | {name} | {unit} | {rate:+.1f} % | {quality:+.2f} dB | {low:.1f} to {high:.1f} dB |"
        )

    from_least = f"JPEG from quality {LEAST_QUALITY}"
    anchors = curves | {from_least: at_least(curves["JPEG"], LEAST_QUALITY)}
    baselines = [kind.label for kind in reversed(QUANTIZERS[1:])]
    for key in QUALITIES:
        for test in VARIANTS:
            others = "JPEG", from_least, *baselines, "Ballé 2017", *([PAPER] if test != PAPER else [])
            for anchor in others:
                add(test, anchor, anchors[anchor], key)
    for anchor, (rate, psnr) in published_curves().items():
        add(BEST, f"{anchor}, 768 x 512", {"BPP": rate, "PSNR (RGB)": psnr}, "PSNR (RGB)")
    return "\n".join(lines)


def at_least(curve, setting):
    """The points of a curve whose setting is at least so large."""
    kept = curve["settings"] >= setting
    return {key: values[kept] if isinstance(values, np.ndarray) else values for key, values in curve.items()}


def published_curves():
    """The curves of `results/published`: dict from labels to bpp and PSNR, both [points]."""
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {}
    for row in rows:
        name = row["curve"].removeprefix("compressai-").removesuffix("_mse_cuda")
        point = float(row["bpp"]), float(row["psnr_rgb_db"])
        curves.setdefault(f"{name} ({row['published by'].split('/')[-1]})", []).append(point)
    return {label: np.array(points).T for label, points in curves.items()}


# The figures.


def draw_published(path, curves):
    """Draws PSNR against bpp, beside the curves that others have published."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.subplots()
    for color, (label, (rate, psnr)) in zip(colormaps["tab20"].colors, published_curves().items()):
        axes.plot(rate, psnr, color=color, linewidth=1, label=label)
    for label, style in ((PAPER, "k.-"), (BEST, "r.-")):
        axes.plot(*increasing(curves[label], "PSNR (RGB)"), style, label=f"{label} (ours)")
    axes.set(
        xlabel="bits per pixel",
        ylabel="PSNR (RGB), dB",
        xlim=(0, 2),
        ylim=(22, 42),
        title="Kodak; published curves on 768 x 512, ours on 752 x 496",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(path, figure)


def draw_training(path):
    """Draws the loss curve of the paper's model, smoothed over a thousand steps."""
    from matplotlib.figure import Figure

    table = np.loadtxt(os.path.join(CHECKPOINTS, PAPER_RUN, "train_torch.csv"), delimiter=",")
    step, loss, kl, mse, _ = table[: len(table) // 10 * 10].reshape(-1, 10, 5).mean(axis=1).T
    pixels = 256**2  # of a patch
    step, loss = step / 1000, loss / pixels
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].plot(step, loss, linewidth=0.8)
    limits = np.min(loss) - 0.1, np.median(loss) + 1.5
    axes[0].set(xlabel="thousand steps", ylabel="loss, nats per pixel", ylim=limits)
    axes[1].plot(step, -10 * np.log10(mse), "C0", linewidth=0.8)
    rate = axes[1].twinx()
    rate.plot(step, kl / pixels / np.log(2), "C1", linewidth=0.8)
    rate.set(ylabel="KL divergence, bits per pixel", ylim=(0.8, 2.5))
    axes[1].set(xlabel="thousand steps", ylabel="PSNR of a posterior sample, dB", ylim=(28, 35))
    for one, color in ((axes[1], "C0"), (rate, "C1")):
        one.yaxis.label.set_color(color)
    for one in axes:
        one.grid(alpha=0.3)
    save(path, figure)


def draw_picture(path, kodak):
    """Draws a part of one image at three rates, beside JPEG of about the same size."""
    from matplotlib.figure import Figure

    image = crop(read_image(os.path.join(kodak, PICTURE)))
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    axes = figure.subplots(2, 4)
    top, left, height, width = WINDOW

    def show(place, pixels, title):
        place.imshow(pixels[top : top + height, left : left + width], interpolation="nearest")
        place.set_title(title, fontsize=10)
        place.axis("off")

    show(axes[0, 0], image, f"{PICTURE}, original")
    axes[1, 0].axis("off")
    metrics = ImageMetrics(image)
    for column, (lamb, ours, theirs) in enumerate(pictures(image), 1):
        for row, (label, pixels, rate) in enumerate(((f"{BEST}, lamb {lamb:g}", *ours), theirs)):
            psnr = metrics.evaluate(pixels)["PSNR (RGB)"]
            show(axes[row, column], pixels, f"{label}: {rate:.3f} bpp, {psnr:.2f} dB")
    save(path, figure)


def pictures(image):
    """Compresses an image, uint8 [H, W, 3], at `PICTURE_LAMBS` by the best variant, and as JPEG.

    Yields:
      Tuples: the lambda; the picture and its bits per pixel; the label, picture and bits per pixel of the
        JPEG file whose size is nearest.
    """
    run = load_run(CHECKPOINTS, RUN)
    options, joint_steps = options_of(BEST)
    quantizer = post_process.fit_or_load(run, None, options)[0].quantizer
    posterior = Posterior(*tiling.encode(run, image), tiling.likelihood(run, image))
    jpegs = evaluate_compression_jpg(image, range(1, 96))
    for lamb in PICTURE_LAMBS:
        indices = quantizer.encode(posterior, lamb, joint_steps)
        bpp = quantizer.bits(indices, lamb).sum() / image[..., 0].size
        decode = functools.partial(quantizer.decode, setting=lamb)
        x_hat = tiling.decode(run, decode, indices, *image.shape[:2], quantizer.decoder_gains(lamb))
        quality = int(np.abs(jpegs["BPP"] - bpp).argmin()) + 1
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        jpeg = f"JPEG, quality {quality}", np.asarray(Image.open(file)), jpegs["BPP"][quality - 1]
        yield lamb, (x_hat, bpp), jpeg


def save(path, figure):
    """Writes a figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


# The program.


def main(argv=None):
    """Makes the results; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kodak", required=True, metavar="DIR", help="directory of the 24 Kodak images (no default)"
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="do not evaluate again: draw and compare what is under results/ (default: off)",
    )
    args = parser.parse_args(argv)
    paths = kodak_images(args.kodak)
    if not args.reuse:
        evaluate(paths)
    curves = load_curves()
    table, deltas = plots.text_table(list(curves.values())), comparison(curves)
    for name, text in (("table.txt", table), ("bd_rates.md", deltas)):
        with atomic_write(os.path.join(RESULTS, name)) as path, open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    title = "Kodak, 752 x 496: each curve of VBQ is one model at every rate"
    ours = [one for label, one in curves.items() if label not in (*plots.PUBLISHED, *ONLY_IN_TABLES)]
    references = [curves[label] for label in plots.PUBLISHED]
    plots.rate_distortion(os.path.join(RESULTS, "rate_distortion.png"), ours, references, title)
    draw_published(os.path.join(RESULTS, "published_curves.png"), curves)
    draw_training(os.path.join(RESULTS, "training.png"))
    draw_picture(os.path.join(RESULTS, "three_rates.png"), args.kodak)
    print(f"{table}\n\n{deltas}\n\nresults: {os.path.relpath(RESULTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
