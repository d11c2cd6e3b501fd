"""Compares the files of `codec.py` with Pillow's JPEG and WebP at equal quality, and with itself.

    python benchmarks/codec_sizes.py CHECKPOINT_DIR RUNNAME 'kodak/*.png' --crop 8

For every image and PSNR (RGB) the smallest file of each format that reaches it: of all qualities of JPEG and WebP (all else is
Pillow's default), and of all lambdas. Prints the mean sizes over the images that all formats bring to that PSNR.
"""

import argparse
import io
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir))

import numpy as np  # pylint: disable=wrong-import-position
from PIL import Image, features  # pylint: disable=wrong-import-position

import utils  # pylint: disable=wrong-import-position

QUALITIES = range(1, 101)


def psnr(image, other):
    """PSNR in dB of images uint8 [H, W, 3]."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.mean(np.square(np.subtract(image, other, dtype=np.int16), dtype=np.int32)) / 255**2)


def classic(image, format_):
    """Sizes in bytes and PSNR of a format at all qualities: two arrays."""
    sizes, decibels = [], []
    for quality in QUALITIES:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format_, quality=quality)
        sizes.append(file.tell())
        decibels.append(psnr(image, np.asarray(Image.open(file).convert("RGB"))))
    return np.array(sizes), np.array(decibels)


def compare(image, encoder, targets):
    """Sizes in bytes at every target, those of formats in columns: float64 [targets, 3], NaN where it is out of reach."""
    sizes = np.full((len(targets), 3), np.nan)
    for column, format_ in enumerate(("JPEG", "WEBP"), 1):
        found, decibels = classic(image, format_)
        for row, target in enumerate(targets):
            sizes[row, column] = min(found[decibels >= target], default=np.nan)
    for row, target in enumerate(targets):
        try:
            sizes[row, 0] = len(encoder.search_psnr(target).data)
        except utils.UserError:  # out of the model's range
            pass
    return sizes


def main(argv=None):
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint_dir")
    parser.add_argument("runname")
    parser.add_argument("images", help="glob")
    parser.add_argument("--psnr", type=float, nargs="+", default=[28, 30, 32, 34, 36], help="dB (RGB)")
    parser.add_argument("--crop", type=int, default=0, help="pixels to cut off at each edge")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from codec import Encoder, codec_of, load_run
    codec = codec_of(load_run(args.checkpoint_dir, args.runname))
    results, pixels = [], []
    for path in utils.progress(utils.find_images(args.images), unit="image"):
        image = utils.read_image(path)
        image = np.ascontiguousarray(utils.center_crop(image, *(side - 2 * args.crop for side in image.shape[:2])))
        results.append(compare(image, Encoder(codec, image), args.psnr))
        pixels.append(image.shape[0] * image.shape[1])
    bpp = 8 * np.array(results) / np.array(pixels)[:, None, None]
    fit = f"{codec.quantizer.passes} passes{', contexts' * bool(codec.quantizer.contexts)}"
    print(f"{args.runname}, {fit}; Pillow {Image.__version__}, libjpeg-turbo "
          f"{features.version('libjpeg_turbo')}, WebP {features.version('webp')}\n")
    print("| PSNR | images | VBQ, bpp | JPEG, bpp | WebP, bpp | VBQ against JPEG | VBQ against WebP |\n| - | - | - | - | - | - | - |")
    for target, rows in zip(args.psnr, bpp.swapaxes(0, 1)):
        rows = rows[np.isfinite(rows).all(axis=1)]
        mean = rows.mean(axis=0) if len(rows) else [np.nan] * 3
        cells = [f"{x:.3f}" for x in mean] + [f"{100 * (mean[0] / x - 1):+.0f} %" for x in mean[1:]]
        print(f"| {target:g} dB | {len(rows)} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
