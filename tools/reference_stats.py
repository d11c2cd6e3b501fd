"""Makes the two files of reference curves that the rate-distortion plot shows.

  python tools/reference_stats.py jpeg '/path/to/kodak/*.png'       -> JPEG_compression_stats_on_Kodak.npz
  python tools/reference_stats.py balle2017 balle2017_kodak.csv
      -> Balle2017_proposed_compression_stats_on_Kodak.npz

Both files hold float64 arrays [images, settings] under the names of `utils.evaluate_compression_jpg`. The
images are sorted by name. The settings stand under `settings`, as in the other result files, and under
their original name, `quality` or `setting`. The files that ship with the program are for Kodak's 24 images:
of other images, `--out` names the file to write.
"""

import argparse
import csv
import hashlib
import os
import sys

import numpy as np
import PIL
from PIL import features

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from vbq.baselines import JPEG_QUALITIES, KODAK, evaluate_compression_jpg
from vbq.command import Parser, UserError, progress, reason, run_main
from vbq.files import check_output, find_images, save_npz
from vbq.images import center_crop, read_image
from vbq.metrics import METRIC_KEYS, MODES

JPEG_FILE = "JPEG_compression_stats_on_Kodak.npz"
BALLE2017_FILE = "Balle2017_proposed_compression_stats_on_Kodak.npz"
KODAK_FILES = tuple(f"{name}.png" for name in KODAK)
KODAK_SHA256 = (
    "c2c749bf39d7af3358bd899102b179c2ac68dbfab84dd8bbd177f508735db8af"  # of the pixels, in this order
)
BALLE2017_SETTINGS = (128, 256, 512, 1024, 2048, 4096)
BALLE2017 = (
    "J. Balle, V. Laparra, E. P. Simoncelli, "
    "End-to-end optimized image compression, ICLR 2017 (results on Kodak)"
)


def libjpeg_version():
    """Returns name and version of the JPEG library inside Pillow; the decoded pixels depend on it."""
    turbo = features.version("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"


def shipped_file(path):
    """Returns which of the two files that ship a path names, also through a link: its name, or None."""
    for name in (JPEG_FILE, BALLE2017_FILE):
        if os.path.realpath(path) == os.path.realpath(os.path.join(ROOT, name)):
            return name
    return None


def check_out(path, command, is_kodak, inputs):
    """Checks, before any work, that a file can be written, and that no file that ships gets other figures.

    Args:
      path: str, the file to write.
      command: str, "jpeg" or "balle2017".
      is_kodak: function without arguments, whether the figures are those of Kodak's 24 images.
      inputs: list of paths that are read.

    Raises:
      UserError: it cannot be written, or ships and must not be.
    """
    check_output(path, inputs, (".npz",))
    shipped = shipped_file(path)
    if shipped and (shipped != {"jpeg": JPEG_FILE, "balle2017": BALLE2017_FILE}[command] or not is_kodak()):
        raise UserError(
            f"{shipped} ships with the program, for the {command} figures of Kodak's 24 images only; "
            "name another file to write with --out"
        )


def are_kodak(paths):
    """Returns whether image files have the names and the pixels of Kodak's 24 images, in order.

    Args:
      paths: list of str.

    Raises:
      UserError: a file is not an image.
    """
    if tuple(os.path.basename(path) for path in paths) != KODAK_FILES:
        return False
    digest = hashlib.sha256()
    for path in paths:
        digest.update(read_image(path))
    return digest.hexdigest() == KODAK_SHA256


def jpeg_stats(pattern, out):
    """Measures JPEG on images, after cutting off 8 pixels at every side as the published figures do.

    Args:
      pattern: str, a glob of images of at least 752 x 496 pixels, or 496 x 752 if upright.
      out: str, the file that will be written.

    Returns:
      dict of arrays: `quality` and `settings` [12], which are equal, `compressed_files` [images],
      `pillow_version`, `libjpeg_version`, and `BPP` and the metrics [images, 12].

    Raises:
      UserError: no file matches, or a file is not an image or too small, or `out` cannot be written.
    """
    paths = find_images(pattern)
    check_out(out, "jpeg", lambda: are_kodak(paths), paths)
    records = []
    for path in progress(paths, desc="JPEG", unit="image"):
        image = read_image(path)
        crop = (496, 752) if image.shape[0] <= image.shape[1] else (752, 496)
        try:
            image = center_crop(image, *crop)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        records.append(evaluate_compression_jpg(image, JPEG_QUALITIES))
    return {
        "quality": np.array(JPEG_QUALITIES),
        "settings": np.array(JPEG_QUALITIES),
        "compressed_files": np.array([os.path.basename(path) for path in paths]),
        "pillow_version": np.array(PIL.__version__),
        "libjpeg_version": np.array(libjpeg_version()),
        **{key: np.stack([record[key] for record in records]) for key in records[0]},
    }


def balle2017_stats(path, out):
    """Converts a table of published figures to the arrays of the other result files.

    Args:
      path: str, a table (CSV) with the columns image, setting, BPP and metrics, one line per image and
        setting.
      out: str, the file that will be written.

    Returns:
      dict of arrays: `setting` and `settings` [settings], which are equal, `compressed_files` [images],
      `source`, and `BPP` and the table's metrics [images, settings], with MS-SSIM in dB added. SSIM is
      missing, because it was not published.

    Raises:
      UserError: the file cannot be read, or is not such a table, or `out` cannot be written.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = {(row["image"], int(row["setting"])): row for row in rows}
        images, settings = (sorted(set(names)) for names in zip(*table))
        needed = {"BPP", "PSNR (RGB)", *(f"MS-SSIM ({mode})" for mode in MODES)}
        keys = [key for key in ("BPP", *METRIC_KEYS) if key in rows[0] or key in needed]
        stats = {key: np.array([[float(table[i, s][key]) for s in settings] for i in images]) for key in keys}
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except Exception as error:  # no list of what the csv module and a strange table raise is complete
        wanted = "needs the columns image, setting, BPP and metrics, and a line for every image and setting"
        raise UserError(f"the table {path} {wanted} ({error!r})") from error
    with np.errstate(divide="ignore", invalid="ignore"):  # 1 is infinitely many dB
        for mode in MODES:
            stats[f"MS-SSIM ({mode}) (dB)"] = -10 * np.log10(1 - stats[f"MS-SSIM ({mode})"])
    names = [f"{image}.png" for image in images]
    check_out(
        out, "balle2017", lambda: (tuple(names), tuple(settings)) == (KODAK_FILES, BALLE2017_SETTINGS), [path]
    )
    return {
        "setting": np.array(settings),
        "settings": np.array(settings),
        "compressed_files": np.array(names),
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
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{jpeg,balle2017}")
    for name, source, out in (
        ("jpeg", "glob of the Kodak images, in quotes, or a folder of them", JPEG_FILE),
        ("balle2017", "table of the published figures (CSV)", BALLE2017_FILE),
    ):
        command = commands.add_parser(name, help=f"make {out}", description=f"Makes {out}.")
        command.add_argument("source", help=source)
        command.add_argument(
            "--out", default=out, metavar="FILE", help="file to write (default: %(default)s)"
        )
    return parser.parse_args(argv)


def run(argv):
    """Makes one of the two files and prints its means over the images."""
    args = parse_args(argv)
    stats = (jpeg_stats if args.command == "jpeg" else balle2017_stats)(args.source, args.out)
    save_npz(args.out, stats)
    print(f"{args.out}: {len(stats['compressed_files'])} images; means over images:")
    print("setting     BPP  PSNR (RGB)  MS-SSIM (RGB)")
    for i, setting in enumerate(stats["settings"]):
        bpp, psnr, ms_ssim = (stats[key][:, i].mean() for key in ("BPP", "PSNR (RGB)", "MS-SSIM (RGB)"))
        print(f"{setting:7d} {bpp:7.4f}  {psnr:10.3f}  {ms_ssim:13.5f}")


def main(argv=None):
    """Runs the command and returns its exit status."""
    return run_main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
