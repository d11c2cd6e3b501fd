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
import functools
import json
import math
import numbers
import os
import sys

import numpy as np

from quantizers import ChannelwisePriorCDFQuantizer
from vbq import reports
from vbq.batch import VBQ, Job, find_inputs, is_batch, plan, process
from vbq.bitstream import unpack
from vbq.codec_flags import DEFAULT_LAMB, parse_args
from vbq.command import UserError, note, progress, reason, run_main, say, shorten
from vbq.files import atomic_write, check_output
from vbq.fits import FitStore
from vbq.gains import usable
from vbq.image_codec import Codec, Encoder
from vbq.image_output import check_picture_output, write_image
from vbq.images import pixels_of, read_image_with_notes, writable_endings
from vbq.runs import Run, load_run


def codec_of(run, data=None):
    """Returns a codec with a fit from a run's directory. Skips fits that are damaged or of other weights.

    Args:
      run: runs.Run.
      data: bytes of a .vbq file, to get the codec that wrote it; or None, to get the preferred fit. Fits with
        contexts are preferred, then those of the most passes, then those with the most bits; each with its
        gains, if there are any.

    Returns:
      Codec.

    Raises:
      UserError: no fit can be used, no fit wrote this file, or the file is damaged.
    """
    fingerprint = unpack(data)[0].fingerprint.hex() if data else ""
    others, reasons = [], []
    for fit, skipped in usable(FitStore(run.path, run.fingerprint), ChannelwisePriorCDFQuantizer):
        if fit and not fit.quantizer.identity(run.fingerprint).startswith(fingerprint):
            others.append(f"{fit.name}.npz")
        elif fit:
            try:
                return Codec(run, fit.quantizer)
            except UserError as error:
                reasons.append(f"{fit.name}.npz: {error}")
        else:
            reasons.append(skipped)
    if data:
        found = "; ".join([f"it has {', '.join(others) or 'no fit that can be used'}", *reasons])
        raise UserError(
            f"the file needs the fit {fingerprint}, which {run.name} does not have; {found}; try the other "
            f"runs of {os.path.dirname(run.path)}, or see 'The fits that ship' in docs/file_format.md"
        )
    raise UserError(
        f"{run.path}: no fit to compress with; make one with post_process.py: "
        + ("; ".join(reasons) or "there is no ChannelwisePriorCDFQuantizer-*.npz")
    )


def compress(image, run, lamb=None, bpp=None, psnr=None, joint_steps=0):
    """Compresses an image.

    Args:
      image: str or path-like, an image file; PIL.Image.Image of any mode, which is treated as a file with
        these pixels; or uint8 [H, W, 3].
      run: runs.Run, in whose directory `post_process.py` left a fit.
      lamb: float > 0, the trade-off: nats of distortion that a bit is worth; 1 if no target is given.
      bpp: float > 0, bits per pixel: the largest file of at most this size, see `Encoder.search_bpp`.
      psnr: float > 0, dB (RGB): the smallest file of at least this quality, see `Encoder.search_psnr`.
      joint_steps: int, number of refinement steps with the decoder in the loop.

    Returns:
      bytes of a file. `Encoder(codec_of(run), image, joint_steps).compress(lamb)` also gives the estimated
      bits and the code points.

    Raises:
      UserError: the run has no fit, the image cannot be read or is too large, the array is not an image, a
        number is not positive and finite, or the target cannot be reached.
      TypeError: an argument is of another type, or more than one of lamb, bpp and psnr are given.
    """
    _check_run(run)
    goals = {"lamb": lamb, "bpp": bpp, "psnr": psnr}
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) > 1:
        raise TypeError(f"at most one of lamb, bpp and psnr can be given, not {' and '.join(given)}")
    for name, value in given.items():
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} should be a number, but is of type {type(value).__name__}")
        if not 0 < value <= sys.float_info.max:
            raise UserError(f"{name} should be a number > 0, but is {shorten(str(value))}")
        given[name] = float(value)
    if isinstance(joint_steps, bool) or not isinstance(joint_steps, numbers.Integral):
        raise TypeError(f"joint_steps should be an integer, but is of type {type(joint_steps).__name__}")
    if joint_steps < 0:
        raise UserError(f"joint_steps should be an integer >= 0, but is {joint_steps}")
    pixels = pixels_of(image)
    with _naming(image):
        return _meet(Encoder(codec_of(run), pixels, joint_steps), **given).data


def decompress(data, run):
    """Decodes what `compress` wrote.

    Args:
      data: bytes of a file, or str or path-like, its name.
      run: runs.Run.

    Returns:
      uint8 image [H, W, 3].

    Raises:
      UserError: the file cannot be read, is damaged, or was written with another run or fit.
      TypeError: an argument is of another type.
    """
    _check_run(run)
    if not isinstance(data, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise TypeError(f"data should be bytes or a path, but is of type {type(data).__name__}")
    contents = read_file(data) if isinstance(data, (str, os.PathLike)) else bytes(data)
    with _naming(data):
        codec = codec_of(run, contents)
        header, indices = codec.read(contents)
    return codec.reconstruct(indices, header.lamb_index, header.height, header.width)


def _check_run(run):
    if not isinstance(run, Run):
        raise TypeError(f"run should be what load_run returns, but is of type {type(run).__name__}")


@contextlib.contextmanager
def _naming(path):
    """Puts the name of a file before the message of a UserError; does nothing if `path` is no path."""
    try:
        yield
    except UserError as error:
        if not isinstance(path, (str, os.PathLike)):
            raise
        raise UserError(f"{os.fspath(path)}: {error}") from error


def _meet(encoder, lamb=None, bpp=None, psnr=None, tried=lambda value: None):
    """Compresses at a lambda or to a target; at most one of lamb, bpp and psnr is given. See `Encoder`."""
    if bpp is not None:
        return encoder.search_bpp(bpp, tried)
    if psnr is not None:
        return encoder.search_psnr(psnr, tried)
    return encoder.compress(DEFAULT_LAMB if lamb is None else lamb)


# The program.


def read_file(path):
    """Returns the bytes of a file.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # the latter if the name has a null character
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def compress_files(args, alone):
    """Runs the command `compress`; yields its results, dicts."""
    if alone:
        check_output(args.output, inputs=args.files, endings=(VBQ,))
        jobs = [Job(args.files[0], args.output)]
    else:
        jobs = plan(find_inputs(args.files), args.output, VBQ, args.shard)
    codec = functools.cache(
        lambda: codec_of(load_run(args.checkpoint_dir, args.runname, args.mixed_precision))
    )

    def read(job):
        return read_image_with_notes(job.source)

    def write(job, image_and_notes):
        image, notes = image_and_notes
        for text in notes:
            note(f"note: {job.source}: {text}")
        with _naming(job.source):
            encoder = Encoder(codec(), image, args.joint_steps)
            compressed = compress_to_target(encoder, args)
        if compressed.is_end:
            end = "largest" if args.bpp else "smallest"
            note(f"note: {job.source}: the {end} file that this model makes of it already meets the target")
        psnr = encoder.psnr(compressed)
        with atomic_write(job.target) as path, open(path, "wb") as file:
            file.write(compressed.data)
        result = reports.describe(job.target, compressed.data) | {"psnr": psnr if psnr < math.inf else None}
        if args.json:
            result["estimated_bits"] = compressed.estimated_bits
        return result

    return process(jobs, read, write, codec, alone)


def compress_to_target(encoder, args):
    """Compresses an image as the flags say; shows the progress of a search on a terminal. See `Encoder`."""
    if not (args.bpp or args.psnr):
        return encoder.compress(args.lamb, best=args.best_table)
    unit = "bpp" if args.bpp else "dB"
    with progress(None, desc="search", unit="file", leave=False, mininterval=0, miniters=1) as bar:

        def tried(value):
            bar.set_postfix_str(f"{value:.4g} {unit}", refresh=False)
            bar.update()

        return _meet(encoder, bpp=args.bpp, psnr=args.psnr, tried=tried)


def decompress_files(args, alone):
    """Runs the command `decompress`; yields its results, dicts."""
    ending = f".{(args.format or 'png').lower().removeprefix('.')}"
    if ending not in writable_endings():
        raise UserError(
            f"--format {args.format}: Pillow cannot both write and read images that end in {ending}; use png"
        )
    if alone:
        if args.format and not args.output.lower().endswith(ending):
            raise UserError(f"cannot write {args.output}: its name should end in {ending}, see --format")
        jobs = [Job(args.files[0], args.output)]
    else:
        jobs = plan(find_inputs(args.files, compressed=True), args.output, ending, args.shard)

    @functools.cache
    def run():  # only once there is a file to decode, because it imports TensorFlow
        return load_run(args.checkpoint_dir, args.runname, args.mixed_precision)

    def read(job):
        data = read_file(job.source)
        with _naming(job.source):
            header, _ = unpack(data)
        check_picture_output(job.target, [job.source], header.width, header.height)
        return data

    def write(job, data):
        with _naming(job.source):
            image = decompress(data, run())
        for text in write_image(job.target, image):
            note(f"note: {job.target}: {text}")
        return {"file": job.target, "width": image.shape[1], "height": image.shape[0]}

    return process(jobs, read, write, run, alone)


def info_files(args, alone):
    """Runs the command `info`; yields its results, dicts."""

    def describe(job, data):
        with _naming(job.source):
            return reports.describe(job.source, data)

    jobs = [Job(path) for path in (args.files if alone else find_inputs(args.files, compressed=True))]
    return process(jobs, lambda job: read_file(job.source), describe, alone=alone)


# The functions of the commands, and what of their results is summed up.
COMMANDS = {
    "compress": (compress_files, ("bytes", "bpp", "psnr")),
    "decompress": (decompress_files, ()),
    "info": (info_files, ("bytes", "bpp")),
}


def main(argv=None):
    """Runs a command; returns the exit status."""
    args = parse_args(argv)
    function, keys = COMMANDS[args.command]
    alone = not is_batch(args.files, args.output)
    if alone and args.shard:
        raise UserError("--shard is for several files; name a folder as the output")
    summary = reports.Summary(keys)
    for result in function(args, alone):
        summary.add(result)
        if args.json:
            say(json.dumps(result))
        elif "error" not in result:
            say(reports.tell(result))
    if not alone:
        say(json.dumps(summary.as_dict()) if args.json else summary.tell())
    return int(summary.failed > 0)


if __name__ == "__main__":
    sys.exit(run_main(main))
