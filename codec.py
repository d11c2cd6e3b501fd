"""Writes images to files at any rate with one trained model, and reads them back.

Variational Bayesian quantization (Yang, Bamler, Mandt, ICML 2020) chooses the rate when an image is compressed. What their
evaluation, and `post_process.py`, reports is the ideal length of a file; this program writes the file. It needs the quantizer
that `post_process.py` left in the run's directory: its code points, counts and contexts, from which the coder's
tables follow.
`bitstream.py` has the format.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image

import joint
import pieces
import utils
from bitstream import VERSION, Header, check_pixels, pack, coder_of, unpack
from bls2017_vae import load_run, number
from quantizers import LEAST_STD, ChannelwisePriorCDFQuantizer

DEFAULT_LAMB = 1.
BPP_TOLERANCE = .005  # of the target
PSNR_TOLERANCE = .01  # dB
LEAST_STEP = 1e-3  # of lambda, relative, where a search gives up
MOST_STRETCH = 2.**10  # how far below the smallest lambda a search goes


# The run.


@functools.lru_cache(maxsize=4)
def _fingerprint(model, quantizer):
    digest = hashlib.sha256(f"{model} {quantizer.index_counts.shape}".encode())
    digest.update(quantizer.code_points.astype("<f4").tobytes())
    digest.update(b"" if quantizer.shifts is None else quantizer.shifts.astype("<f2").tobytes())
    digest.update(quantizer.index_counts.astype("<u4").tobytes())
    for name, x in quantizer.contexts.arrays().items() if quantizer.contexts else ():
        digest.update(f"{name} {x.shape}".encode() + x.astype("<i8").tobytes())
    return digest.digest()[:8]


class Codec:
    """A trained model with a quantizer.

    Attributes:
      run: bls2017_vae.Run.
      quantizer: ChannelwisePriorCDFQuantizer.
      fingerprint: bytes [8], of all that decoding depends on: the start of a SHA-256.
    """

    def __init__(self, run, quantizer):
        self.run, self.quantizer = run, quantizer
        lambs, channels, _ = quantizer.index_counts.shape
        if channels != run.num_channels or lambs > 256:
            raise utils.UserError(f"{run.path}: expected a quantizer of {run.num_channels} channels and up to 256 lambdas, "
                                  f"found one of {channels} and {lambs}")
        self.fingerprint = _fingerprint(run.fingerprint, quantizer)

    def latent_shape(self, height, width):
        """Returns (h, w, C) of an image's latents; UserError if it is too large, filled up to whole latent positions."""
        height, width = -(-height // self.run.stride), -(-width // self.run.stride)
        check_pixels(width * self.run.stride, height * self.run.stride)
        return height, width, self.run.num_channels

    def posterior(self, image):
        """Returns mean and standard deviation of the latents' posterior, float32 [h, w, C] each, of a uint8 image [H, W, 3]."""
        self.latent_shape(*image.shape[:2])  # a UserError, if it is too large
        return pieces.posterior(self.run, image)

    def reconstruct(self, indices, table, height, width):
        """Returns the uint8 image [height, width, 3] of int indices [h, w, C] that were coded with table, an int."""
        return pieces.reconstruct(self.run, lambda some: self.quantizer.dequantize(some, table), indices, height, width)

    def read(self, data):
        """Decodes a file up to the indices.

        Args:
          data: bytes.

        Returns:
          Header, and int16 indices [h, w, C].

        Raises:
          utils.UserError: the file is damaged, or of another run.
        """
        header, stream = unpack(data)
        if header.fingerprint != self.fingerprint:
            raise utils.UserError(f"expected a file of run {self.run.name} (fingerprint {self.fingerprint.hex()}), found one "
                                  f"of another run (fingerprint {header.fingerprint.hex()})")
        if header.table >= len(self.quantizer.lambs):
            raise utils.UserError(f"expected a table below {len(self.quantizer.lambs)}, found {header.table}")
        shape, coder = self.latent_shape(header.height, header.width), coder_of(self.quantizer, header.table)
        try:
            indices = coder.decode(stream, *shape[:2])
        except ValueError as error:
            raise utils.UserError(f"expected a stream of {shape[0]} x {shape[1]} latents, found another: {error}") from error
        return header, indices


def codec_of(run, data=None):
    """Returns a codec of the quantizers in a run's directory.

    Args:
      run: bls2017_vae.Run.
      data: bytes of a file, to get the codec that wrote it, if there is one. Else it is the one with contexts, with the most passes,
        with the most bits, in this order.

    Returns:
      Codec.

    Raises:
      utils.UserError: there is no quantizer, or it is of other weights, or the file is damaged.
    """
    pattern = re.compile(r"ChannelwisePriorCDFQuantizer-max_bits=(\d+)(?:-passes=(\d+))?(-contexts)?\.npz")
    matches = filter(None, map(pattern.fullmatch, os.listdir(run.path)))
    found = [(bool(match[3]), int(match[2] or 2), int(match[1]), match[0]) for match in matches]
    if not found:
        raise utils.UserError(f"{run.path}: expected the code points and lengths that post_process.py leaves there, "
                              "ChannelwisePriorCDFQuantizer-*.npz, found none")
    names = [name for *_, name in sorted(found, reverse=True)]
    fingerprint = data and unpack(data)[0].fingerprint
    wrote = (codec for codec in (_load_codec(run, name) for name in names) if data and codec.fingerprint == fingerprint)
    return next(wrote, None) or _load_codec(run, names[0])


def _load_codec(run, name):
    path = os.path.join(run.path, name)
    quantizer = _load_quantizer(path, os.stat(path).st_mtime_ns)
    if quantizer.provenance.get("model_fingerprint") != run.fingerprint:
        raise utils.UserError(f"{path}: expected a quantizer of this run's weights, found one of others; post_process.py "
                              "--rebuild makes another")
    return Codec(run, quantizer)


@functools.lru_cache(maxsize=4)
def _load_quantizer(path, _):  # in a notebook it is needed again and again; the time is that of its last change
    return ChannelwisePriorCDFQuantizer.load(path)


# Compression.


class Compressed(NamedTuple):
    """A file, and how it came to be."""

    data: bytes
    header: Header
    indices: np.ndarray  # int32 [h, w, C]
    estimated_bits: float  # by the code lengths, for the stream alone

    @property
    def bpp(self):
        """Bits per pixel of the file."""
        return 8 * len(self.data) / (self.header.width * self.header.height)


class Encoder:
    """An image whose posterior is known, to be compressed at any lambda.

    Attributes:
      codec: Codec.
      image: uint8 [H, W, 3].
      joint_steps: int, how often the decoder is asked what latents make up for others, see `joint.choose`.
      mean, std: float32 [h, w, C], posterior of the latents.
    """

    def __init__(self, codec, image, joint_steps=0):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            raise utils.UserError(f"expected an image, uint8 [H, W, 3], found {image.dtype} {list(image.shape)}")
        self.codec, self.image, self.joint_steps = codec, image, joint_steps
        self.mean, self.std = codec.posterior(image)

    def choose(self, lamb, table, steps=0):
        """Returns the latents quantized for lamb > 0 by the lengths of a table: int32 indices of code points, [h, w, C].

        For steps, see `joint.choose`.
        """
        likelihood = pieces.likelihood_of(self.codec.run, self.image) if steps else None
        return joint.choose(self.codec.quantizer, self.mean, self.std, lamb, table, likelihood, steps)

    def choose_best(self, lamb, start):
        """Quantizes with the table that suits the image best: that of the least distortion + lamb * bits.

        Counts are those of many images. To one that is smoother than most the table of a larger lambda fits better, to one
        with more texture that of a smaller.

        Args:
          lamb: float > 0.
          start: int, the table to start from; the search ends where neither neighbour is better.

        Returns:
          int table, and indices as `choose` does.
        """
        def with_cost(table):
            indices = self.choose(lamb, table)
            return self.distortion(indices, table) + lamb * self.bits(indices, table), table, indices

        best = with_cost(start)
        for step in (1, -1):
            while 0 <= best[1] + step < len(self.codec.quantizer.lambs):
                neighbour = with_cost(best[1] + step)
                if neighbour[0] >= best[0]:
                    break
                best = neighbour
            if best[1] != start:
                break
        return best[1:]

    def bits(self, indices, table):
        """Returns the estimated length of the stream, float: the sum of the code lengths."""
        return float(self.codec.quantizer.bits(indices, table).sum(dtype=np.float64))

    def distortion(self, indices, table):
        """Returns what the quantizer holds against the bits: the sum of (z - mean)^2 / (2 std^2), float, in nats."""
        error = self.codec.quantizer.dequantize(indices, table)
        error -= self.mean
        error /= np.maximum(self.std, LEAST_STD)
        return float(np.square(error, out=error).sum(dtype=np.float64)) / 2

    def compress(self, lamb, table=None):
        """Writes the image at one lambda.

        Args:
          lamb: float > 0.
          table: int, or "best", see `choose_best`; or None for that of the nearest lambda.

        Returns:
          Compressed.
        """
        if not 0 < lamb < math.inf:
            raise utils.UserError(f"expected a lambda > 0, found {lamb}")
        nearest = self.codec.quantizer.nearest_table(lamb)
        if table == "best":
            table, indices = self.choose_best(lamb, nearest)
        else:
            table, indices = nearest if table is None else table, None
        if indices is None or self.joint_steps:
            indices = self.choose(lamb, table, self.joint_steps)
        height, width, _ = self.image.shape
        header = Header(self.codec.fingerprint, width, height, table, float(lamb))
        data = pack(header, coder_of(self.codec.quantizer, table).encode(indices))
        return Compressed(data, header, indices, self.bits(indices, table))

    def psnr(self, compressed):
        """Returns the PSNR (RGB) of what a file decodes to, in dB; infinite if that is the image."""
        x_hat = self.codec.reconstruct(compressed.indices, compressed.header.table, *self.image.shape[:2])
        error = np.subtract(x_hat, self.image, dtype=np.int16)
        mse = np.square(error, dtype=np.int32).sum(dtype=np.int64) / error.size
        return -10 * math.log10(mse / 255**2) if mse else math.inf

    def search_bpp(self, target):
        """Finds the largest file of at most `target` bits per pixel.

        Returns:
          Compressed; within 1 % of the target, unless the file is so short that the next one is that much longer.

        Raises:
          utils.UserError: the quantizer's range of lambdas does not reach the target.
        """
        found = self._search(lambda compressed: compressed.bpp, target, -BPP_TOLERANCE * target, "bits per pixel")
        return max((point for point in found if point.value <= target), key=lambda point: point.value).compressed

    def search_psnr(self, target):
        """Finds the smallest file whose PSNR (RGB) is at least `target` dB, and as a rule at most 0.01 dB more.

        Returns, Raises: as `search_bpp`.
        """
        found = self._search(self.psnr, target, PSNR_TOLERANCE, "dB")
        return min((point for point in found if point.value >= target), key=lambda point: point.value).compressed

    def _search(self, measure, target, tolerance, unit):
        """Finds files whose value, a function `measure` that falls with lambda, lies between target and target + tolerance.

        Returns: two `_Point`s, one of which is there, or as near as can be above and below.
        """
        lambs = self.codec.quantizer.lambs
        aim, (low, high) = target + tolerance / 2, sorted((target, target + tolerance))

        def at(lamb, table="best"):
            compressed = self.compress(lamb, table)
            return _Point(measure(compressed), compressed)

        def narrow(above, below, ratio, *table):
            """Moves the points together, until one is good or their lambdas are as near as the ratio."""
            halved = True
            while not any(low <= point.value <= high for point in (above, below)) and below.lamb > ratio * above.lamb:
                width = math.log(below.lamb / above.lamb)
                share = (above.value - aim) / (above.value - below.value) if halved and above.value < math.inf else .5
                point = at(above.lamb * math.exp(min(max(share, .05), .95) * width), *table)
                above, below = (point, below) if point.value > aim else (above, point)
                halved = math.log(below.lamb / above.lamb) <= width / 2
            return above, below

        above, below = at(lambs[0], 0), at(lambs[-1], len(lambs) - 1)
        if above.value < min(aim, low) or below.value > max(aim, high):
            raise utils.UserError("expected a target that the model has for this image, "
                                  f"from {_round(below.value, math.ceil)} to {_round(above.value, math.floor)} {unit}, found {target:g}")
        above, below = narrow(above, below, math.sqrt(2))
        # Where one table takes over from another, the value falls by some percent. What lies between is reached with the latter
        # table at smaller lambdas.
        table, lamb = below.table, above.lamb
        while above.value > high and above.table != table and lamb > lambs[0] / MOST_STRETCH:
            point = at(lamb, table)
            above, below = (point, below) if point.value > aim else (above, point)
            lamb /= 2
        return narrow(above, below, 1 + LEAST_STEP, table) if above.table == table else (above, below)


class _Point(NamedTuple):
    value: float
    compressed: Compressed

    @property
    def lamb(self):
        return self.compressed.header.lamb

    @property
    def table(self):
        return self.compressed.header.table


def _round(value, rounded):
    """Rounds a bound to four decimals, inwards, so that it is a good target as it is printed."""
    return rounded(value * 1e4) / 1e4 if math.isfinite(value) else value


def compress(image, run, lamb=DEFAULT_LAMB, joint_steps=0):
    """Compresses an image.

    Args:
      image: uint8 [H, W, 3].
      run: bls2017_vae.Run, in whose directory `post_process.py` left a quantizer.
      lamb: float > 0, the trade-off: nats of distortion that a bit is worth.
      joint_steps: int, see `joint.choose`.

    Returns:
      bytes of a file. `Encoder(codec_of(run), image).compress(lamb)` tells more: the estimated bits, the latents.

    Raises:
      utils.UserError: the run has no quantizer, or this is no image or too large a one.
    """
    return Encoder(codec_of(run), image, joint_steps).compress(lamb).data


def decompress(data, run):
    """Inverts `compress`, but for what was lost.

    Args:
      data: bytes of a file.
      run: bls2017_vae.Run.

    Returns:
      uint8 image [H, W, 3].

    Raises:
      utils.UserError: the file is damaged, or of another run.
    """
    codec = codec_of(run, data)
    header, indices = codec.read(data)
    return codec.reconstruct(indices, header.table, header.height, header.width)


# The program.


def read_file(path):
    """Reads a file to its end; UserError if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def naming(path):
    """Puts the name of a file before the message of a UserError."""
    try:
        yield
    except utils.UserError as error:
        raise utils.UserError(f"{path}: {error}") from error


def describe(path, data):
    """Returns what a file says of itself, a dict."""
    header, _ = unpack(data)
    return {"file": path, "bytes": len(data), "bpp": 8 * len(data) / (header.width * header.height), "width": header.width,
            "height": header.height, "lamb": header.lamb, "table": header.table, "fingerprint": header.fingerprint.hex(),
            "version": VERSION}


def compress_file(args):
    """Runs the command of this name, as those below; returns what it has to tell, a dict."""
    image = utils.read_image(args.image)
    if not args.image.endswith(".npy"):
        with Image.open(args.image) as file:
            if file.has_transparency_data:
                print(f"note: {args.image} has transparency; it is laid on white", file=sys.stderr)
    codec = codec_of(load_run(args.checkpoint_dir, args.runname))
    with naming(args.image):
        encoder = Encoder(codec, image, args.joint_steps)
        if args.bpp:
            compressed = encoder.search_bpp(args.bpp)
        elif args.psnr:
            compressed = encoder.search_psnr(args.psnr)
        else:
            compressed = encoder.compress(args.lamb, "best" if args.best_table else None)
    psnr = encoder.psnr(compressed)
    with utils.atomic_write(args.output) as path, open(path, "wb") as file:
        file.write(compressed.data)
    return {**describe(args.output, compressed.data), "psnr": psnr if psnr < math.inf else None,
            "estimated_bits": compressed.estimated_bits}


def decompress_file(args):
    data = read_file(args.input)
    with naming(args.input):
        unpack(data)  # a damaged file need not wait for TensorFlow
    codec = codec_of(load_run(args.checkpoint_dir, args.runname), data)
    with naming(args.input):
        header, indices = codec.read(data)
    image = codec.reconstruct(indices, header.table, header.height, header.width)
    with utils.atomic_write(args.output) as path:
        try:
            Image.fromarray(image).save(path)
        except ValueError as error:
            raise utils.UserError(f"{args.output}: expected the name of an image file, found: {error}") from error
    return {"file": args.output, "width": header.width, "height": header.height}


def info_file(args):
    data = read_file(args.input)
    with naming(args.input):
        return describe(args.input, data)


def tell(result):
    """Returns one line of text for people."""
    formats = {"bytes": "{} bytes", "bpp": "{:.4f} bpp", "psnr": "PSNR {:.2f} dB", "lamb": "lambda {:.6g}", "table": "table {}",
               "version": "version {}", "fingerprint": "run {}"}
    values = {key: math.inf if result[key] is None else result[key] for key in formats if key in result}
    return ", ".join([f"{result['file']}: {result['width']} x {result['height']} pixels",
                      *(formats[key].format(value) for key, value in values.items())])


def parse_args(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, text, *names):
        sub = commands.add_parser(function.__name__.partition("_")[0], help=text)
        sub.set_defaults(function=function)
        helps = {"checkpoint_dir": "directory of runs", "runname": "name of the run: its directory in checkpoint_dir",
                 "image": "image file", "input": "file that compress wrote", "output": "file to write"}
        for name in names:
            sub.add_argument(name, help=helps[name])
        sub.add_argument("--json", action="store_true", help="tell the result as JSON; an infinite psnr is null")
        return sub

    sub = command(compress_file, "writes an image to a .vbq file", "checkpoint_dir", "runname", "image", "output")
    group = sub.add_mutually_exclusive_group()
    positive = number(float, above=0)
    group.add_argument("--lamb", type=positive, default=DEFAULT_LAMB,
                       help="trade-off, nats of distortion that a bit is worth: the larger, the smaller the file "
                            "(default: %(default)s)")
    group.add_argument("--bpp", type=positive, help="the largest file of at most so many bits per pixel")
    group.add_argument("--psnr", type=positive, help="the smallest file of at least so many dB (RGB)")
    sub.add_argument("--best_table", action="store_true",
                     help="with --lamb: code with the table that suits the image best, as --bpp and --psnr do, instead of that "
                          "of the nearest lambda")
    sub.add_argument("--joint_steps", type=number(int, at_least=0), default=0, metavar="K",
                     help="a better picture at the same size (at the same lamb a somewhat larger file), but slower: quantize K "
                          "times more, with the decoder in the loop (default: %(default)s)")
    command(decompress_file, "writes the image in a .vbq file to an image file", "checkpoint_dir", "runname", "input", "output")
    command(info_file, "tells what a .vbq file says of itself", "input")
    return parser.parse_args(argv)


def main(argv=None):
    """Runs a command; returns the exit status."""
    args = parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # nothing about missing GPUs; read when TensorFlow is imported
    result = args.function(args)
    print(json.dumps(result) if args.json else tell(result))
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
