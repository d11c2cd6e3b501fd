"""Compares the sizes of `codec.py`'s files with those of Pillow's JPEG and WebP at equal quality.

    python benchmarks/codec_sizes.py 'kodak/*.png'

For every image and PSNR (RGB) it finds the smallest file of each format that reaches that PSNR: among all
qualities of JPEG and WebP (with Pillow's defaults otherwise), and among all lambdas. It prints the mean sizes
over those images that reach the PSNR in all formats.
"""

import argparse
import contextlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir), HERE]

import numpy as np
from peer_codecs import Pillow
from PIL import Image, features

from tools.shipped import CHECKPOINTS, RUN
from vbq.command import UserError, progress, run_main
from vbq.files import find_images
from vbq.images import center_crop, read_image

QUALITIES = range(1, 101)
HEADING = (
    "| PSNR | images | VBQ, bpp | JPEG, bpp | WebP, bpp | VBQ against JPEG | VBQ against WebP |\n"
    "| - | - | - | - | - | - | - |"
)


def psnr(image, other):
    """PSNR in dB of images uint8 [H, W, 3]."""
    error = np.subtract(image, other, dtype=np.int16)
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.mean(np.square(error, dtype=np.int32)) / 255**2)


def classic(image, format_):
    """Sizes in bytes and PSNR in dB of a format at all qualities: two arrays."""
    codec = Pillow(format_)
    files = [codec.encode(image, quality) for quality in QUALITIES]
    decibels = [psnr(image, codec.decode(data)) for data in files]
    return np.array([len(data) for data in files]), np.array(decibels)


def compare(image, encoder, targets):
    """Finds the sizes in bytes at every target PSNR.

    Returns:
      float64 [targets, 3], a column for each of VBQ, JPEG and WebP; NaN where the target is out of reach.
    """
    sizes = np.full((len(targets), 3), np.nan)
    for column, format_ in enumerate(("JPEG", "WEBP"), 1):
        found, decibels = classic(image, format_)
        for row, target in enumerate(targets):
            sizes[row, column] = min(found[decibels >= target], default=np.nan)
    for row, target in enumerate(targets):
        with contextlib.suppress(UserError):  # the target is out of the model's range
            sizes[row, 0] = len(encoder.search_psnr(target).data)
    return sizes


def describe(runname, quantizer):
    """Says what is compared: a line of text."""
    jpeg, webp = features.version("libjpeg_turbo"), features.version("webp")
    return (
        f"{runname}, {quantizer.description}; Pillow {Image.__version__}, libjpeg-turbo {jpeg}, WebP {webp}"
    )


def table_line(target, bpp):
    """The line of a target PSNR, in Markdown; bpp: float [images, 3]."""
    bpp = bpp[np.isfinite(bpp).all(axis=1)]
    mean = bpp.mean(axis=0) if len(bpp) else [np.nan] * 3
    cells = [f"{x:.3f}" for x in mean] + [f"{100 * (mean[0] / x - 1):+.0f} %" for x in mean[1:]]
    return f"| {target:g} dB | {len(bpp)} | " + " | ".join(cells) + " |"


def main(argv=None):
    """Prints a table in Markdown; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="glob")
    parser.add_argument(
        "--checkpoint_dir", default=CHECKPOINTS, help="directory of runs (default: that of the project)"
    )
    parser.add_argument("--runname", default=RUN, help="name of a run (default: the better model that ships)")
    parser.add_argument(
        "--psnr", type=float, nargs="+", default=[28, 30, 32, 34, 36], help="dB, RGB (default: %(default)s)"
    )
    parser.add_argument(
        "--crop", type=int, default=8, help="pixels to cut off at each edge (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    from codec import Encoder, codec_of, load_run

    codec = codec_of(load_run(args.checkpoint_dir, args.runname))
    results, pixels = [], []
    for path in progress(find_images(args.images), unit="image"):
        image = read_image(path)
        sides = (side - 2 * args.crop for side in image.shape[:2])
        image = np.ascontiguousarray(center_crop(image, *sides))
        results.append(compare(image, Encoder(codec, image), args.psnr))
        pixels.append(image.shape[0] * image.shape[1])
    bpp = 8 * np.array(results) / np.array(pixels)[:, None, None]  # (images, targets, formats)
    print(describe(args.runname, codec.quantizer) + "\n\n" + HEADING)
    for target, rows in zip(args.psnr, bpp.swapaxes(0, 1)):
        print(table_line(target, rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
