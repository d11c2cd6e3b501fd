"""Makes the two files of reference curves that the rate-distortion plot shows.

  python tools/reference_stats.py jpeg '/path/to/kodak/*.png'       -> JPEG_compression_stats_on_Kodak.npz
  python tools/reference_stats.py balle2017 balle2017_kodak.csv     ->
  Balle2017_proposed_compression_stats_on_Kodak.npz

Both files hold float64 arrays [images, settings] under the names of `utils.evaluate_compression_jpg`. The
images are sorted by name.
"""

import argparse
import csv
import os
import sys

import numpy as np
import PIL
from PIL import features

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
import utils
from vbq.command import UserError, progress, run_main
from vbq.files import find_images, save_npz
from vbq.images import center_crop, read_image
from vbq.metrics import METRIC_KEYS, MODES

QUALITIES = (1, 2, 4, 8, 12, 16, 32, 48, 64, 80, 90, 95)
JPEG_FILE = "JPEG_compression_stats_on_Kodak.npz"
BALLE2017_FILE = "Balle2017_proposed_compression_stats_on_Kodak.npz"
BALLE2017 = (
    "J. Balle, V. Laparra, E. P. Simoncelli, "
    "End-to-end optimized image compression, ICLR 2017 (results on Kodak)"
)


def libjpeg_version():
    """Returns name and version of the JPEG library inside Pillow; the decoded pixels depend on it."""
    turbo = features.version("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"


def jpeg_stats(pattern):
    """Measures JPEG on images, after cutting off 8 pixels at every side as the published figures do.

    Args:
      pattern: str, a glob of images of at least 752 x 496 pixels, or 496 x 752 if upright.

    Returns:
      dict of arrays: `quality` [12], `compressed_files` [images], `pillow_version`, `libjpeg_version`, and
        `BPP`
      and the metrics [images, 12].

    Raises:
      UserError: no file matches, or a file is not an image or too small.
    """
    paths = find_images(pattern)
    records = []
    for path in progress(paths, desc="JPEG", unit="image"):
        image = read_image(path)
        crop = (496, 752) if image.shape[0] <= image.shape[1] else (752, 496)
        try:
            image = center_crop(image, *crop)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        records.append(utils.evaluate_compression_jpg(image, QUALITIES))
    return {
        "quality": np.array(QUALITIES),
        "compressed_files": np.array([os.path.basename(path) for path in paths]),
        "pillow_version": np.array(PIL.__version__),
        "libjpeg_version": np.array(libjpeg_version()),
        **{key: np.stack([record[key] for record in records]) for key in records[0]},
    }


def balle2017_stats(path):
    """Converts a table of published figures to the arrays of the other result files.

    Args:
      path: str, a table (CSV) with the columns image, setting, BPP and metrics, one line per image and
        setting.

    Returns:
      dict of arrays: `setting` [settings], `compressed_files` [images], `source`, and `BPP` and the table's
      metrics [images, settings], with MS-SSIM in dB added. SSIM is missing, because it was not published.

    Raises:
      UserError: the file cannot be read, or is not such a table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = {(row["image"], int(row["setting"])): row for row in rows}
        images, settings = (sorted(set(names)) for names in zip(*table))
        keys = [key for key in ("BPP", *METRIC_KEYS) if key in rows[0]]
        stats = {key: np.array([[float(table[i, s][key]) for s in settings] for i in images]) for key in keys}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        needed = "needs the columns image, setting, BPP and metrics, and a line for every image and setting"
        raise UserError(f"the table {path} {needed} ({error!r})") from error
    for mode in MODES:
        stats[f"MS-SSIM ({mode}) (dB)"] = -10 * np.log10(1 - stats[f"MS-SSIM ({mode})"])
    names = np.array([f"{image}.png" for image in images])
    return {
        "setting": np.array(settings),
        "compressed_files": names,
        "source": np.array(BALLE2017),
        **stats,
    }


def parse_args(argv):
    """Parses the command line.

    Args:
      argv: list of str, or None for the process's own arguments.

    Returns:
      argparse.Namespace with command, source and out.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{jpeg,balle2017}")
    for name, source, out in (
        ("jpeg", "glob of the Kodak images, in quotes", JPEG_FILE),
        ("balle2017", "table of the published figures (CSV)", BALLE2017_FILE),
    ):
        command = commands.add_parser(
            name, help=f"make {out}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("source", help=source)
        command.add_argument("--out", default=out, help="file to write")
    return parser.parse_args(argv)


def run(argv):
    """Makes one of the two files and prints its means over the images."""
    args = parse_args(argv)
    stats = (jpeg_stats if args.command == "jpeg" else balle2017_stats)(args.source)
    save_npz(args.out, stats)
    settings = stats["quality" if args.command == "jpeg" else "setting"]
    print(f"{args.out}: {len(stats['compressed_files'])} images; means over images:")
    print("setting     BPP  PSNR (RGB)  MS-SSIM (RGB)")
    for i, setting in enumerate(settings):
        bpp, psnr, ms_ssim = (stats[key][:, i].mean() for key in ("BPP", "PSNR (RGB)", "MS-SSIM (RGB)"))
        print(f"{setting:7d} {bpp:7.4f}  {psnr:10.3f}  {ms_ssim:13.5f}")


def main(argv=None):
    """Runs the command and returns its exit status."""
    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
