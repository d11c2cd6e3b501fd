"""Makes everything under results/ again: evaluates the shipped model on Kodak, then draws figures and compares curves.

    python tools/make_results.py --kodak /path/to/kodak                # kodim01.png .. kodim24.png
    python tools/make_results.py --kodak /path/to/kodak --reuse        # from the .npz files under results/, without evaluation
"""

import argparse
import csv
import io
import os
import shutil
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
import bls2017_vae  # pylint: disable=wrong-import-position
import joint  # pylint: disable=wrong-import-position
import pieces  # pylint: disable=wrong-import-position
import plots  # pylint: disable=wrong-import-position
import post_process  # pylint: disable=wrong-import-position
import utils  # pylint: disable=wrong-import-position

CHECKPOINTS, RESULTS = os.path.join(ROOT, "checkpoints"), os.path.join(ROOT, "results")
RUN = ("bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
       "-likelihood_variance=0.001-last_step=336000")
PUBLISHED = os.path.join(RESULTS, "published", "kodak_psnr_rgb_curves.csv")
VARIANTS = {"VBQ": [], "VBQ, refined": ["--passes", "20"], "VBQ, contexts": ["--passes", "20", "--contexts"],
            "VBQ, joint": ["--passes", "20", "--contexts", "--joint_steps", "20"]}  # arguments of post_process.py
BEST = "VBQ, joint"
PICTURE, WINDOW, PICTURE_LAMBS = "kodim23.png", (40, 190, 300, 240), (1.0, 4.0, 8.0)  # window: top, left, height, width


def evaluate(kodak):
    """Crops the images as the published JPEG figures have them and runs `post_process.py`, with the arguments of every variant.

    Raises:
      utils.UserError: there are no 24 Kodak images.
    """
    paths = utils.find_images(os.path.join(kodak, "*.png"))
    if len(paths) != 24:
        raise utils.UserError(f"{kodak}: expected the 24 Kodak images, found {len(paths)} PNG files")
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            Image.fromarray(crop(utils.read_image(path))).save(os.path.join(folder, os.path.basename(path)))
        for arguments in VARIANTS.values():
            post_process.main([CHECKPOINTS, RUN, "-", os.path.join(folder, "*.png"), *arguments])
    for path in dict.fromkeys(path for label in VARIANTS for path in result_paths(label, os.path.join(CHECKPOINTS, RUN))):
        shutil.copy(path, RESULTS)


def result_paths(label, folder):
    """The result files of a variant: of VBQ, k-means and uniform."""
    args = post_process.parse_args(["", "", "", "", *VARIANTS[label]])
    names = post_process.settings_of_arguments(args).result_names(args.joint_steps)
    return [post_process.results_path(folder, name) for name in names]


def crop(image):
    """The centre, 752 x 496 pixels or upright, 8 pixels less on each side."""
    return utils.center_crop(image, image.shape[0] - 16, image.shape[1] - 16)


def load_curves():
    """Curves of the result files and of those published: dict from labels to the dicts of `plots.curve`."""
    found = {label: plots.curve(label, utils.load_npz(result_paths(label, RESULTS)[0])) for label in VARIANTS}
    for label, path in zip(("k-means", "uniform"), result_paths("VBQ", RESULTS)[1:]):
        found[label] = plots.curve(label, utils.load_npz(path))
    return found | {one["label"]: one for one in plots.published_curves()}


def increasing(one, key):
    """The curve's bpp and quality where both increase: what else is spent brings nothing. The quality is that of `key`."""
    order = np.argsort(one["BPP"])
    rate, quality = one["BPP"][order], one[key][order]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], quality[:-1]]))
    return rate[quality > best], quality[quality > best]


def compare(anchor, test, key):
    """Bjontegaard deltas of a curve against an anchor, over the range of quality (rate) that both cover.

    Returns:
      BD-rate in percent, BD of the quality in dB, and that range of quality, (from, to) in dB.
    """
    import bjontegaard  # brings Matplotlib
    curves = [*increasing(anchor, key), *increasing(test, key)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "insufficient overlap": we print the overlap
        rate = bjontegaard.bd_rate(*curves, method="pchip", require_matching_points=False, min_overlap=0)
        quality = bjontegaard.bd_psnr(*curves, method="pchip", require_matching_points=False, min_overlap=0)
    return rate, quality, (max(curves[1][0], curves[3][0]), min(curves[1][-1], curves[3][-1]))


def comparison(curves):
    """Table, in Markdown, of the Bjontegaard deltas between the curves."""
    lines = ["| curve | against | quality | BD-rate | BD-quality | over |", "|---|---|---|---|---|---|"]
    for key, unit in (("PSNR (RGB)", "PSNR"), ("MS-SSIM (RGB) (dB)", "MS-SSIM")):
        for test in VARIANTS:
            for anchor in ("JPEG", "uniform", "k-means", "Ballé 2017", *(["VBQ"] if test != "VBQ" else [])):
                rate, quality, (low, high) = compare(curves[anchor], curves[test], key)
                lines.append(f"| {test} | {anchor} | {unit} | {rate:+.1f} % | {quality:+.2f} dB | {low:.1f} to {high:.1f} dB |")
    for anchor, (rate, psnr) in published_curves().items():
        rate, psnr, (low, high) = compare({"BPP": rate, "PSNR (RGB)": psnr}, curves[BEST], "PSNR (RGB)")
        lines.append(f"| {BEST} | {anchor}, 768 x 512 | PSNR | {rate:+.1f} % | {psnr:+.2f} dB | {low:.1f} to {high:.1f} dB |")
    return "\n".join(lines)


def published_curves():
    """The curves of `results/published`: dict from labels to bpp and PSNR, both [points]."""
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {}
    for row in rows:
        name = row["curve"].removeprefix("compressai-").removesuffix("_mse_cuda")
        curves.setdefault(f"{name} ({row['published by'].split('/')[-1]})", []).append(
            (float(row["bpp"]), float(row["psnr_rgb_db"])))
    return {label: np.array(points).T for label, points in curves.items()}


def draw_published(path, curves):
    """PSNR against bpp, beside the curves that others have published."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.subplots()
    for color, (label, (rate, psnr)) in zip(colormaps["tab20"].colors, published_curves().items()):
        axes.plot(rate, psnr, color=color, linewidth=1, label=label)
    for label, style in (("VBQ", "k.-"), (BEST, "r.-")):
        axes.plot(*increasing(curves[label], "PSNR (RGB)"), style, label=f"{label} (ours)")
    axes.set(xlabel="bits per pixel", ylabel="PSNR (RGB), dB", xlim=(0, 2), ylim=(22, 42),
             title="Kodak; published curves on 768 x 512, ours on 752 x 496")
    axes.grid(alpha=.3)
    axes.legend(fontsize=8)
    save(path, figure)


def draw_training(path):
    """The loss curve of the model that ships, smoothed over a thousand steps."""
    from matplotlib.figure import Figure
    table = np.loadtxt(os.path.join(CHECKPOINTS, RUN, "train_torch.csv"), delimiter=",")
    step, loss, kl, mse, _ = table[: len(table) // 10 * 10].reshape(-1, 10, 5).mean(axis=1).T
    pixels = 256**2  # of a patch
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    step /= 1000
    axes[0].plot(step, loss / pixels, linewidth=.8)
    axes[0].set(xlabel="thousand steps", ylabel="loss, nats per pixel", ylim=(np.min(loss) / pixels - .1, np.median(loss) / pixels + 1.5))
    axes[1].plot(step, -10 * np.log10(mse), linewidth=.8)
    rate = axes[1].twinx()
    rate.plot(step, kl / pixels / np.log(2), "C1", linewidth=.8)
    rate.set(ylabel="KL divergence, bits per pixel", ylim=(.8, 2.5))
    axes[1].set(xlabel="thousand steps", ylabel="PSNR of a posterior sample, dB", ylim=(28, 35))
    for one in axes:
        one.grid(alpha=.3)
    save(path, figure)


def draw_picture(path, kodak):
    """A part of one image at three rates, beside JPEG of about the same size."""
    from matplotlib.figure import Figure
    run = bls2017_vae.load_run(CHECKPOINTS, RUN)
    args = post_process.parse_args(["", "", "", "", *VARIANTS[BEST]])
    quantizers, found = post_process.load_fit(run, post_process.settings_of_arguments(args))
    if not quantizers:
        raise utils.UserError(f"{run.path}: expected a saved fit, found none: {found}")
    quantizer = next(iter(quantizers.values()))
    image = crop(utils.read_image(os.path.join(kodak, PICTURE)))
    mean, logvar = run.encode(image[None])
    likelihood = pieces.likelihood_of(run, image)
    top, left, height, width = WINDOW
    jpegs = utils.evaluate_compression_jpg(image, range(1, 96))
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    axes = figure.subplots(2, 4)
    def show(place, pixels, title):
        place.imshow(pixels[top:top + height, left:left + width], interpolation="nearest")
        place.set_title(title, fontsize=10)
        place.axis("off")
    show(axes[0, 0], image, f"{PICTURE}, original")
    axes[1, 0].axis("off")
    for column, lamb in enumerate(PICTURE_LAMBS, 1):
        table = quantizer.nearest_table(lamb)
        indices = joint.choose(quantizer, mean[0], np.exp(.5 * logvar[0]), lamb, table, likelihood, args.joint_steps)
        bpp = quantizer.bits(indices, table).sum() / image[..., 0].size
        ours = utils.to_uint8(run.decode(quantizer.dequantize(indices[None], table), *image.shape[:2])[0])
        quality = int(np.abs(jpegs["BPP"] - bpp).argmin()) + 1
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file))
        for row, (label, pixels, rate) in enumerate(((f"{BEST}, lamb {lamb:g}", ours, bpp),
                                                     (f"JPEG, quality {quality}", theirs, jpegs["BPP"][quality - 1]))):
            psnr = utils.ImageMetrics(image).evaluate(pixels)["PSNR (RGB)"]
            show(axes[row, column], pixels, f"{label}: {rate:.3f} bpp, {psnr:.2f} dB")
    save(path, figure)


def save(path, figure):
    """Writes a figure as PNG."""
    with utils.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def main(argv=None):
    """Makes the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kodak", required=True, help="directory of the 24 Kodak images")
    parser.add_argument("--reuse", action="store_true", help="do not evaluate again")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not args.reuse:
        evaluate(args.kodak)
    curves = load_curves()
    table, deltas = plots.table(list(curves.values())), comparison(curves)
    for name, text in (("table.txt", table), ("bd_rates.md", deltas)):
        with utils.atomic_write(os.path.join(RESULTS, name)) as path, open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    plots.rate_distortion(os.path.join(RESULTS, "rate_distortion.png"), list(curves.values()),
                          "Kodak, 752 x 496: one model at every rate, and baselines")
    draw_published(os.path.join(RESULTS, "published_curves.png"), curves)
    draw_training(os.path.join(RESULTS, "training.png"))
    draw_picture(os.path.join(RESULTS, "three_rates.png"), args.kodak)
    print(f"{table}\n\n{deltas}\n\nresults: {os.path.relpath(RESULTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
