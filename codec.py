"""Writes images to files at any rate with one trained model, and reads them back: a library and a command.

Variational Bayesian quantization (Yang, Bamler, Mandt, ICML 2020) chooses the rate when an image is
compressed. Their evaluation, and `post_process.py`, report the ideal length of a file; this program writes
the file. It needs a fit that `post_process.py` left in the run's directory: its code points, counts and
contexts give the coder its tables. `vbq/bitstream.py` has the format.

The way of a latent: `Encoder` (`vbq/image_codec.py`) gets the posterior (`vbq/tiling.py`),
`ChannelwisePriorCDFQuantizer.encode_with` chooses its code point (`vbq/codebook.py`, `vbq/search.py`), a
coder writes it (`vbq/bitstream.py`).

Axis letters: H, W pixels, h, w latent positions, C channels.
"""

import argparse
import contextlib
import json
import math
import os
import sys

from PIL import Image

from quantizers import ChannelwisePriorCDFQuantizer
from vbq.bitstream import VERSION, unpack
from vbq.command import UserError, note, number, run_main
from vbq.files import atomic_write
from vbq.fits import FitStore
from vbq.image_codec import Codec, Encoder
from vbq.images import read_image
from vbq.runs import load_run

DEFAULT_LAMB = 1.0


def codec_of(run, data=None):
    """Returns a codec with a fit from a run's directory. Fits that are damaged or of other weights are passed
    over.

    Args:
      run: runs.Run.
      data: bytes of a file, to get the codec that wrote it. Without it, the preferred fit is taken: one with
        contexts, of the most passes, with the most bits, in this order.

    Returns:
      Codec.

    Raises:
      UserError: no fit can be used, or none wrote this file, or the file is damaged.
    """
    fingerprint = unpack(data)[0].fingerprint.hex() if data else ""
    skipped, others = [], []
    for fit, reason in FitStore(run.path, run.fingerprint).usable(ChannelwisePriorCDFQuantizer):
        if not fit:
            skipped.append(reason)
        elif fit.quantizer.identity(run.fingerprint).startswith(fingerprint):
            return Codec(run, fit.quantizer)
        else:
            others.append(f"{fit.name}.npz is not the fit that wrote it")
    if data:
        raise UserError(
            f"the file was written with another run or fit (fingerprint {fingerprint}) than {run.name} has: "
            + ("; ".join(others + skipped) or "it has none")
        )
    raise UserError(
        f"{run.path}: no fit to compress with, make one with post_process.py: "
        + ("; ".join(skipped) or "there is no ChannelwisePriorCDFQuantizer-*.npz")
    )


def compress(image, run, lamb=DEFAULT_LAMB, joint_steps=0):
    """Compresses an image.

    Args:
      image: uint8 [H, W, 3].
      run: runs.Run, in whose directory `post_process.py` left a fit.
      lamb: float > 0, the trade-off: nats of distortion that a bit is worth.
      joint_steps: int, number of refinement steps with the decoder in the loop.

    Returns:
      bytes of a file. `Encoder(codec_of(run), image).compress(lamb)` tells more: the estimated bits, the code
      points.

    Raises:
      UserError: the run has no fit, or the image is none or too large.
    """
    return Encoder(codec_of(run), image, joint_steps).compress(lamb).data


def decompress(data, run):
    """Decodes what `compress` wrote.

    Args:
      data: bytes of a file.
      run: runs.Run.

    Returns:
      uint8 image [H, W, 3].

    Raises:
      UserError: the file is damaged, or of another run or fit.
    """
    codec = codec_of(run, data)
    header, indices = codec.read(data)
    return codec.reconstruct(indices, header.lamb_index, header.height, header.width)


# The program.


def read_file(path):
    """Reads a file to its end; a UserError if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def naming(path):
    """Puts the name of a file before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def describe(path, data):
    """Returns what a file says of itself, a dict."""
    header, _ = unpack(data)
    return {
        "file": path,
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height),
        "width": header.width,
        "height": header.height,
        "lamb": header.lamb,
        "lamb_index": header.lamb_index,
        "fingerprint": header.fingerprint.hex(),
        "version": VERSION,
    }


def compress_file(args):
    """Runs the command of this name, as those below; returns what it has to tell, a dict."""
    image = read_image(args.image)
    if not args.image.endswith(".npy"):
        with Image.open(args.image) as file:
            if file.has_transparency_data:
                note(f"note: {args.image} has transparency; it is laid on white")
    codec = codec_of(load_run(args.checkpoint_dir, args.runname))
    with naming(args.image):
        encoder = Encoder(codec, image, args.joint_steps)
        if args.bpp:
            compressed = encoder.search_bpp(args.bpp)
        elif args.psnr:
            compressed = encoder.search_psnr(args.psnr)
        else:
            compressed = encoder.compress(args.lamb, best=args.best_table)
    psnr = encoder.psnr(compressed)
    with atomic_write(args.output) as path, open(path, "wb") as file:
        file.write(compressed.data)
    return {
        **describe(args.output, compressed.data),
        "psnr": psnr if psnr < math.inf else None,
        "estimated_bits": compressed.estimated_bits,
    }


def decompress_file(args):
    data = read_file(args.input)
    with naming(args.input):
        unpack(data)  # a damaged file need not wait for TensorFlow
    run = load_run(args.checkpoint_dir, args.runname)
    with naming(args.input):
        codec = codec_of(run, data)
        header, indices = codec.read(data)
    image = codec.reconstruct(indices, header.lamb_index, header.height, header.width)
    with atomic_write(args.output) as path:
        try:
            Image.fromarray(image).save(path)
        except ValueError as error:
            raise UserError(f"{args.output}: not the name of an image file: {error}") from error
    return {"file": args.output, "width": header.width, "height": header.height}


def info_file(args):
    data = read_file(args.input)
    with naming(args.input):
        return describe(args.input, data)


def tell(result):
    """Returns one line of text for people."""
    formats = {
        "bytes": "{} bytes",
        "bpp": "{:.4f} bpp",
        "psnr": "PSNR {:.2f} dB",
        "lamb": "lambda {:.6g}",
        "lamb_index": "coded with lambda number {} of the fit",
        "version": "version {}",
        "fingerprint": "fit {}",
    }
    values = {key: math.inf if result[key] is None else result[key] for key in formats if key in result}
    return ", ".join(
        [
            f"{result['file']}: {result['width']} x {result['height']} pixels",
            *(formats[key].format(value) for key, value in values.items()),
        ]
    )


def parse_args(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, text, *names):
        sub = commands.add_parser(function.__name__.partition("_")[0], help=text)
        sub.set_defaults(function=function)
        helps = {
            "checkpoint_dir": "directory of runs",
            "runname": "name of the run: its directory in checkpoint_dir",
            "image": "image file",
            "input": "file that compress wrote",
            "output": "file to write",
        }
        for name in names:
            sub.add_argument(name, help=helps[name])
        sub.add_argument(
            "--json", action="store_true", help="tell the result as JSON; an infinite psnr is null"
        )
        return sub

    run = "checkpoint_dir", "runname"
    sub = command(compress_file, "write an image to a .vbq file", *run, "image", "output")
    add_compress_flags(sub)
    command(decompress_file, "write the image in a .vbq file to an image file", *run, "input", "output")
    command(info_file, "tell what a .vbq file says of itself", "input")
    return parser.parse_args(argv)


def add_compress_flags(parser):
    """Adds the flags of the command compress."""
    group = parser.add_mutually_exclusive_group()
    positive = number(float, above=0)
    group.add_argument(
        "--lamb",
        type=positive,
        default=DEFAULT_LAMB,
        help="trade-off, nats of distortion that a bit is worth: the larger, the smaller the file "
        "(default: %(default)s)",
    )
    group.add_argument("--bpp", type=positive, help="the largest file of at most so many bits per pixel")
    group.add_argument("--psnr", type=positive, help="the smallest file of at least so many dB (RGB)")
    parser.add_argument(
        "--best_table",
        action="store_true",
        help="with --lamb: use the table of code lengths that suits the image best, as --bpp and --psnr do, "
        "not that of the nearest lambda",
    )
    parser.add_argument(
        "--joint_steps",
        type=number(int, at_least=0),
        default=0,
        metavar="K",
        help="refine the quantized latents in K steps with the decoder in the loop: a better picture at the same "
        "size, but slower (at the same lamb the file is somewhat larger; default: %(default)s)",
    )


def main(argv=None):
    """Runs a command; returns the exit status."""
    args = parse_args(argv)
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # no lines about missing GPUs; TensorFlow reads it when imported
    result = args.function(args)
    print(json.dumps(result) if args.json else tell(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
