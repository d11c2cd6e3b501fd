"""Compresses an image at any lambda, given a model and a fit, and decodes files.

Axis letters: H, W pixels, h, w latent positions, C channels.
"""

import copy
import math
import sys
from typing import NamedTuple

import numpy as np

from vbq import tiling
from vbq.bitstream import Header, check_pixels, coded_bits, pack, unpack
from vbq.code_points import LEAST_STD
from vbq.codebook import Codebook
from vbq.command import UserError
from vbq.images import check_rgb
from vbq.quantizer import Posterior
from vbq.rate_search import OutOfReach, Point, approach, bracket

BPP_TOLERANCE = 0.005  # of the target
PSNR_TOLERANCE = 0.01  # dB
# With joint steps, a file takes long: a search that is this close makes no further one.
JOINT_BPP_TOLERANCE = 0.01  # of the target
JOINT_PSNR_TOLERANCE = 0.1  # dB
ACCEPTED = 3  # of these tolerances; files that miss by more are compared with one without joint steps
MOST_LAMBDAS = 256  # of a fit: the header has a byte for the number


class Codec:
    """A trained model with a quantizer.

    Attributes:
      run: runs.Run.
      quantizer: ChannelwisePriorCDFQuantizer.
      fingerprint: bytes [8], the start of the fit's identity.
    """

    def __init__(self, run, quantizer):
        """Takes a run and a fit of its weights.

        Raises:
          UserError: the fit or its gains have other numbers of channels than the model, or too many lambdas.
        """
        self.run, self.quantizer = run, quantizer
        lambs, channels, _ = quantizer.index_counts.shape
        if channels != run.num_channels or lambs > MOST_LAMBDAS:
            raise UserError(
                f"the fit has {channels} channels and {lambs} lambdas, but the model has "
                f"{run.num_channels} channels, and a file can name at most {MOST_LAMBDAS} lambdas; "
                "fit again with post_process.py"
            )
        if quantizer.gains:
            found, width = quantizer.gains.width, sum(run.transforms.synthesis_widths)
            if found != width:
                raise UserError(f"its gains are of {found} channels, but the decoder has {width}")
        self.fingerprint = bytes.fromhex(quantizer.identity(run.fingerprint))[:8]

    def latent_shape(self, height, width):
        """Returns (h, w, C) of the latents of an image; a UserError if the image is too large."""
        height, width = -(-height // self.run.stride), -(-width // self.run.stride)
        check_pixels(width * self.run.stride, height * self.run.stride)
        return height, width, self.run.num_channels

    def reconstruct(self, indices, lamb_index, height, width):
        """Decodes code points.

        Args:
          indices: int [h, w, C].
          lamb_index: int, number of the lambda of the fit that they were coded with.
          height, width: int, pixels.

        Returns:
          uint8 image [height, width, 3].
        """
        codebook = self.quantizer.codebook(lamb_index)
        return tiling.decode(self.run, codebook.dequantize, indices, height, width, codebook.gains)

    def read(self, data):
        """Decodes a file up to the code points.

        Args:
          data: bytes.

        Returns:
          Header, and int16 indices [h, w, C].

        Raises:
          UserError: the file is damaged, or was written with another fit.
        """
        header, stream = unpack(data)
        if header.fingerprint != self.fingerprint:
            raise UserError(
                f"the file was written with another run or fit (fingerprint {header.fingerprint.hex()}) than "
                f"that of {self.run.name} (fingerprint {self.fingerprint.hex()})"
            )
        lambdas = len(self.quantizer.lambs)
        if header.lamb_index >= lambdas:
            raise UserError(f"the file is damaged: it names lambda {header.lamb_index} of a fit of {lambdas}")
        shape = self.latent_shape(header.height, header.width)
        try:
            indices = self.quantizer.coder(header.lamb_index).decode(stream, *shape[:2])
        except ValueError as error:
            raise UserError(
                f"the file is damaged: its stream does not hold {shape[0]} x {shape[1]} latents: {error}"
            ) from error
        return header, indices


class Compressed(NamedTuple):
    """A file, and what it was made from."""

    data: bytes
    header: Header
    indices: np.ndarray  # int32 [h, w, C]
    codebook: Codebook
    classes: np.ndarray  # uint8 [h, w, C]; None without contexts
    # Whether a search had a target beyond what this model can reach with this image: a larger file than its
    # largest, or a worse picture than its worst.
    is_end: bool = False

    @property
    def bpp(self):
        """Bits per pixel of the file."""
        return 8 * len(self.data) / (self.header.width * self.header.height)

    @property
    def estimated_bits(self):
        """Bits of the stream by the code lengths, float. They are summed up at every access."""
        bits = coded_bits(self.codebook.bits(self.indices, self.classes), self.codebook.points.shape[1])
        return float(bits.sum(dtype=np.float64))


class Encoder:
    """An image whose posterior is known, to be compressed at any lambda.

    Attributes:
      codec: Codec.
      image: uint8 [H, W, 3].
      joint_steps: int, number of refinement steps with the decoder in the loop.
      posterior: Posterior, float32 [h, w, C].
    """

    def __init__(self, codec, image, joint_steps=0):
        """Computes the image's posterior; the arguments are attributes of the class.

        Raises:
          UserError: the array is not an image, or the image is too large.
        """
        check_rgb(image)
        codec.latent_shape(*image.shape[:2])  # checks the size
        self.codec, self.image, self.joint_steps = codec, image, joint_steps
        self.posterior = Posterior(*tiling.encode(codec.run, image), tiling.likelihood(codec.run, image))

    def quantize(self, lamb, lamb_index, joint_steps=0):
        """Chooses code points for lamb > 0, with the lengths of a lambda of the fit: int32 [h, w, C]."""
        return self.codec.quantizer.codebook(lamb_index).quantize(self.posterior, lamb, joint_steps)

    def bits(self, indices, lamb_index):
        """The sum of the code lengths, float."""
        return float(self.codec.quantizer.codebook(lamb_index).bits(indices).sum(dtype=np.float64))

    def distortion(self, indices, lamb_index):
        """The distortion term, float: the sum of (z - mean)^2 / (2 std^2), in nats."""
        error = self.codec.quantizer.codebook(lamb_index).dequantize(indices)
        error -= self.posterior.mean
        error /= np.maximum(self.posterior.std, LEAST_STD)
        return float(np.square(error, out=error).sum(dtype=np.float64)) / 2

    def best_lamb_index(self, lamb):
        """Finds the lambda of the fit whose lengths lead to the least cost, distortion + lamb * bits.

        The counts are those of many images. The lengths of a larger lambda suit an image that is smoother
        than most; those of a smaller lambda suit an image with more texture. The search starts at the nearest
        lambda and ends where neither neighbour is better.

        Args:
          lamb: float > 0.

        Returns:
          int, the number of the lambda; and indices as `quantize` returns them.
        """

        def with_cost(lamb_index):
            indices = self.quantize(lamb, lamb_index)
            cost = self.distortion(indices, lamb_index) + lamb * self.bits(indices, lamb_index)
            return cost, lamb_index, indices

        start = self.codec.quantizer.nearest_lamb_index(lamb)
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

    def compress(self, lamb, lamb_index=None, best=False):
        """Writes the image at one lambda.

        Args:
          lamb: float > 0.
          lamb_index: int, the lambda of the fit whose lengths are used; by default the nearest.
          best: bool, whether to use the one that suits the image best, see `best_lamb_index`.

        Returns:
          Compressed.

        Raises:
          UserError: lamb is not a positive finite number.
        """
        if not 0 < lamb < math.inf:
            raise UserError(f"lambda should be a number > 0, but is {lamb}")
        quantizer, indices = self.codec.quantizer, None
        if best:
            lamb_index, indices = self.best_lamb_index(lamb)
        elif lamb_index is None:
            lamb_index = quantizer.nearest_lamb_index(lamb)
        if indices is None or self.joint_steps:
            indices = self.quantize(lamb, lamb_index, self.joint_steps)
        height, width, _ = self.image.shape
        header = Header(self.codec.fingerprint, width, height, lamb_index, float(lamb))
        codebook = quantizer.codebook(lamb_index)
        classes = codebook.classes(indices)
        data = pack(header, quantizer.coder(lamb_index).encode(indices, classes))
        return Compressed(data, header, indices, codebook, classes)

    def psnr(self, compressed):
        """Returns the PSNR (RGB), in dB, of what a file decodes to; infinite if that equals the image."""
        x_hat = self.codec.reconstruct(
            compressed.indices, compressed.header.lamb_index, *self.image.shape[:2]
        )
        error = np.subtract(x_hat, self.image, dtype=np.int16)
        mse = np.square(error, dtype=np.int32).sum(dtype=np.int64) / error.size
        return -10 * math.log10(mse / 255**2) if mse else math.inf

    def search_bpp(self, target, tried=lambda value: None):
        """Finds the largest file of at most `target` bits per pixel.

        With joint steps, at most `rate_search.MOST_COSTLY` files are made with them, at lambdas that come
        from a search without them. If none of them is within 3 % of the target, the best picture is returned,
        of them and of the file that a search without joint steps finds.

        Args:
          target: float > 0.
          tried: function that is called with the bits per pixel of every file that is tried.

        Returns:
          Compressed, at most 1 % below the target, or 3 % with joint steps. Three cases differ. Very short
          files come in few sizes, so the next longer one may exceed the target. Joint steps may miss it, see
          above. If the model's largest file is smaller than the target, that file is returned (`is_end`).

        Raises:
          UserError: the model's smallest file is larger.
        """

        def bpp(file):
            tried(file.bpp)
            return file.bpp

        def without_steps():
            tolerance = max(BPP_TOLERANCE * target, sys.float_info.min)  # 0 would lose its sign
            found = self._search(bpp, target, -tolerance, "bits per pixel")
            return max((p for p in found if p.value <= target), key=lambda p: p.value).result

        if not self.joint_steps:
            return without_steps()
        # Joint steps add nearly the same share to files of all sizes: a difference of logarithms.
        found, is_end = self._approach(
            lambda file: math.log(bpp(file)), math.log(target), -JOINT_BPP_TOLERANCE
        )
        files = [p.result for p in found if p.result.bpp <= target]
        best = max(files, key=lambda file: file.bpp, default=None)
        if best and (is_end or best.bpp >= (1 - ACCEPTED * JOINT_BPP_TOLERANCE) * target):
            return best._replace(is_end=is_end)
        values = [p.result.bpp for p in found]
        return max(_with_another(files, without_steps, target, "bits per pixel", values), key=self.psnr)

    def search_psnr(self, target, tried=lambda value: None):
        """Finds the smallest file whose PSNR (RGB) is at least `target` dB, and usually at most 0.01 dB more.

        With joint steps, at most `rate_search.MOST_COSTLY` files are made with them, at lambdas that come
        from a search without them. If none of them is within 0.3 dB above the target, the smallest file is
        returned, of them and of the one that a search without joint steps finds.

        Args:
          target: float > 0.
          tried: function that is called with the PSNR of every file that is tried.

        Returns:
          Compressed. If even the model's worst picture is better than the target, its file is returned
          (`is_end`).

        Raises:
          UserError: the model's best picture is worse.
        """

        def psnr(file):
            value = self.psnr(file)
            tried(value)
            return value

        def without_steps():
            found = self._search(psnr, target, PSNR_TOLERANCE, "dB")
            return min((p for p in found if p.value >= target), key=lambda p: p.value).result

        if not self.joint_steps:
            return without_steps()
        found, is_end = self._approach(psnr, target, JOINT_PSNR_TOLERANCE)
        good = [p for p in found if p.value >= target]
        best = min(good, key=lambda p: len(p.result.data), default=None)
        if best and (is_end or best.value <= target + ACCEPTED * JOINT_PSNR_TOLERANCE):
            return best.result._replace(is_end=is_end)
        files, values = [p.result for p in good], [p.value for p in found]
        return min(_with_another(files, without_steps, target, "dB", values), key=lambda file: len(file.data))

    def _search(self, measure, target, tolerance, unit):
        """The two points of `rate_search.bracket`, without joint steps; their results are `Compressed`."""
        found = bracket(self._at(measure), self.codec.quantizer.lambs, target, tolerance, unit)
        return [p._replace(result=p.result._replace(is_end=found.is_end)) for p in (found.above, found.below)]

    def _approach(self, measure, target, tolerance):
        """What `rate_search.approach` returns for files with joint steps; the results are `Compressed`."""
        costly, cheap = self._at(measure, self.joint_steps), self._at(measure)
        return approach(costly, cheap, self.codec.quantizer.lambs, target, tolerance)

    def _at(self, measure, joint_steps=0):
        """The function (lamb, lamb_index) that `rate_search` asks for, from a function of `Compressed`."""
        encoder = copy.copy(self)
        encoder.joint_steps = joint_steps

        def at(lamb, lamb_index):
            compressed = encoder.compress(lamb, lamb_index, best=lamb_index is None)
            return Point(measure(compressed), lamb, compressed.header.lamb_index, compressed)

        return at


def _with_another(files, search, target, unit, values):
    """Adds to a list of files the one that a search finds, if it finds any.

    Args:
      files: list of Compressed.
      search: function that returns a Compressed, or raises OutOfReach.
      target, unit: see `rate_search.bracket`.
      values: list of float that other files have reached, for the message.

    Returns:
      List of Compressed.

    Raises:
      OutOfReach: there are no files, and the search finds none.
    """
    try:
        return [*files, search()]
    except OutOfReach as error:
        if files:
            return files
        raise OutOfReach(target, unit, [*error.values, *values]) from error
