"""Writes images to files at any rate with one trained model, and reads them back: a library and a command.

Variational Bayesian quantization (Yang, Bamler, Mandt, ICML 2020) chooses the rate when an image is
compressed. Their evaluation, and `post_process.py`, report the ideal length of a file; this program writes
the file. It needs a fit that `post_process.py` left in the run's directory: its code points, counts and
contexts give the coder its tables. `vbq/bitstream.py` has the format.

The way of a latent: `Encoder` (`vbq/image_codec.py`) gets its posterior (`vbq/tiling.py`), the `Codebook` of
a lambda chooses its code point (`vbq/codebook.py`, `vbq/search.py`), and a coder writes it
(`vbq/bitstream.py`).

Axis letters: H, W pixels, h, w latent positions, C channels.
"""

import contextlib
import json
import math
import os
import sys

from quantizers import ChannelwisePriorCDFQuantizer
from vbq.bitstream import VERSION, unpack
from vbq.command import Parser, UserError, note, number, run_main
from vbq.files import atomic_write, check_output
from vbq.fits import FitStore
from vbq.image_codec import Codec, Encoder
from vbq.image_output import check_picture_output, write_image
from vbq.images import read_image_with_notes
from vbq.runs import load_run

DEFAULT_LAMB = 1.0


def codec_of(run, data=None):
    """Returns a codec with a fit from a run's directory. Skips fits that are damaged or of other weights.

    Args:
      run: runs.Run.
      data: bytes of a .vbq file, to get the codec that wrote it; or None, to get the preferred fit. Fits with
        contexts are preferred, then those of the most passes, then those with the most bits.

    Returns:
      Codec.

    Raises:
      UserError: no fit can be used, no fit wrote this file, or the file is damaged.
    """
    fingerprint = unpack(data)[0].fingerprint.hex() if data else ""
    reasons = []
    for fit, reason in FitStore(run.path, run.fingerprint).usable(ChannelwisePriorCDFQuantizer):
        if fit and not fit.quantizer.identity(run.fingerprint).startswith(fingerprint):
            reason = f"{fit.name}.npz is not the fit that wrote it"
        elif fit:
            try:
                return Codec(run, fit.quantizer)
            except UserError as error:
                reason = f"{fit.name}.npz: {error}"
        reasons.append(reason)
    found = "; ".join(reasons)
    if data:
        raise UserError(
            f"the file was written with another run or fit (fingerprint {fingerprint}) than {run.name} has: "
            + (found or "it has none")
        )
    raise UserError(
        f"{run.path}: no fit to compress with; make one with post_process.py: "
        + (found or "there is no ChannelwisePriorCDFQuantizer-*.npz")
    )


def compress(image, run, lamb=DEFAULT_LAMB, joint_steps=0):
    """Compresses an image.

    Args:
      image: uint8 [H, W, 3].
      run: runs.Run, in whose directory `post_process.py` left a fit.
      lamb: float > 0, the trade-off: nats of distortion that a bit is worth.
      joint_steps: int, number of refinement steps with the decoder in the loop.

    Returns:
      bytes of a file. `Encoder(codec_of(run), image, joint_steps).compress(lamb)` also gives the estimated
      bits and the code points.

    Raises:
      UserError: the run has no fit, the array is not an image, the image is too large, or lamb is not a
        positive finite number.
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
      UserError: the file is damaged, or was written with another run or fit.
    """
    codec = codec_of(run, data)
    header, indices = codec.read(data)
    return codec.reconstruct(indices, header.lamb_index, header.height, header.width)


# The program.


def read_file(path):
    """Returns the bytes of a file.

    Raises:
      UserError: the file cannot be read.
    """
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
    """Returns the size of a file and the fields of its header, a dict."""
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
    """Runs the command `compress`; returns its result, a dict."""
    check_output(args.output, inputs=[args.image], endings=(".vbq",))
    image, notes = read_image_with_notes(args.image)
    for text in notes:
        note(f"note: {args.image}: {text}")
    codec = codec_of(load_run(args.checkpoint_dir, args.runname))
    with naming(args.image):
        encoder = Encoder(codec, image, args.joint_steps)
        if args.bpp:
            compressed = encoder.search_bpp(args.bpp)
        elif args.psnr:
            compressed = encoder.search_psnr(args.psnr)
        else:
            compressed = encoder.compress(args.lamb, best=args.best_table)
    if compressed.is_end:
        end = "largest" if args.bpp else "smallest"
        note(f"note: {args.image}: the {end} file that this model makes of it already meets the target")
    psnr = encoder.psnr(compressed)
    with atomic_write(args.output) as path, open(path, "wb") as file:
        file.write(compressed.data)
    return {
        **describe(args.output, compressed.data),
        "psnr": psnr if psnr < math.inf else None,
        "estimated_bits": compressed.estimated_bits,
    }


def decompress_file(args):
    """Runs the command `decompress`; returns its result, a dict."""
    data = read_file(args.input)
    with naming(args.input):
        header, _ = unpack(data)  # before TensorFlow is imported, so that a damaged file fails at once
    check_picture_output(args.output, [args.input], header.width, header.height)
    run = load_run(args.checkpoint_dir, args.runname)
    with naming(args.input):
        codec = codec_of(run, data)
        header, indices = codec.read(data)
    image = codec.reconstruct(indices, header.lamb_index, header.height, header.width)
    for text in write_image(args.output, image):
        note(f"note: {args.output}: {text}")
    return {"file": args.output, "width": header.width, "height": header.height}


def info_file(args):
    """Runs the command `info`; returns its result, a dict."""
    data = read_file(args.input)
    with naming(args.input):
        return describe(args.input, data)


def tell(result):
    """Returns a result as one line of text."""
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
    parser = Parser(description=__doc__.partition("\n")[0])
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
            "--json", action="store_true", help="print the result as JSON; an infinite psnr is null"
        )
        return sub

    run = "checkpoint_dir", "runname"
    sub = command(compress_file, "write an image to a .vbq file", *run, "image", "output")
    add_compress_flags(sub)
    command(decompress_file, "write the image in a .vbq file to an image file", *run, "input", "output")
    command(info_file, "print the header of a .vbq file", "input")
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
    group.add_argument("--bpp", type=positive, help="the largest file of at most this many bits per pixel")
    group.add_argument("--psnr", type=positive, help="the smallest file of at least this PSNR in dB (RGB)")
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
        help="refine the quantized latents in K steps with the decoder in the loop: a better picture at "
        "the same size, but slower (at the same lamb the file is somewhat larger; default: %(default)s)",
    )


def main(argv=None):
    """Runs a command; returns the exit status."""
    args = parse_args(argv)
    # Hides TensorFlow's lines about missing GPUs. TensorFlow reads it when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    result = args.function(args)
    print(json.dumps(result) if args.json else tell(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
