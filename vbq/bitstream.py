"""The bits of a .vbq file: frequencies, range coder, header. `codec.py` writes and reads the files.

A file is a header of 37 bytes (little-endian) and one range-coded stream of the latents. Without contexts the
stream goes channel by channel; with contexts it follows `ContextCoder`.

    bytes  type     field
        3           "VBQ"
        1  uint8    version of the format, 1
        8           fingerprint: start of the fit's identity (weights, code points, counts, contexts)
        4  uint32   width, pixels
        4  uint32   height, pixels
        1  uint8    which lambda of the fit, from 0: its counts and code points were used
        8  float64  lambda; for information only, decoding does not need it
        4  uint32   length of the stream in bytes, a multiple of 4
        4  uint32   CRC-32 of all other bytes
           uint32   the stream: words of constriction's range coder, with frequencies out of 2^24

Decoding is exact up to the code points: the frequencies are integers, computed from integers. Tests pin the
bytes. A change of them needs another version number.
"""

import math
import struct
import zlib
from typing import NamedTuple

import constriction
import numpy as np

from vbq.command import UserError
from vbq.contexts import CLASSES

MAGIC, VERSION = b"VBQ", 1
HEADER = struct.Struct("<3sB8sIIBdI")
CRC = struct.Struct("<I")
OVERHEAD = HEADER.size + CRC.size  # bytes
PRECISION = 24  # bits of the range coder's frequencies
STREAM_SLACK = 64  # bits by which a stream may be shorter than the information in it
MOST_TOTAL = 2**39 - 1  # of the counts of a channel: their products with 2^24 fit into 63 bits
MAX_IMAGE_PIXELS = 2 * 89478485  # Pillow refuses larger images, too


# The frequencies and the stream.


def integer_frequencies(counts):
    """Turns counts into frequencies for the range coder by integer arithmetic.

    Args:
      counts: int [C, K], how often each code point was chosen; 1 is added to each, as for the code lengths.

    Returns:
      int64 [C, K], at least 1 each; the sum of every channel is 2^24.

    Raises:
      ValueError: the counts are too large.
    """
    sums = np.cumsum(counts, axis=1, dtype=np.int64) + np.arange(1, counts.shape[1] + 1)
    spare = (1 << PRECISION) - counts.shape[1]  # what is left when every code point has 1
    if sums.max() > MOST_TOTAL:
        raise ValueError(f"counts with a sum of {sums.max()} are too large for the range coder")
    return 1 + np.diff(sums * spare // sums[:, -1:], axis=1, prepend=0)


def coded_bits(bits, points):
    """What the range coder spends on latents.

    Every code point has a frequency of at least 1 in 2^24, so no latent takes more than 24 bits.

    Args:
      bits: float [...], code lengths.
      points: int K, number of code points of a channel.

    Returns:
      float64 [...].
    """
    least = 2.0**-PRECISION
    return -np.log2((1 - points * least) * 2.0 ** -np.asarray(bits, np.float64) + least)


class _Coder:
    """Codes indices of code points, int [..., C], as a stream of constriction's range coder.

    Attributes:
      least_bits: float, the fewest bits that a latent position can take.
    """

    def encode(self, indices):
        """Returns the stream, bytes, of int indices [..., C]."""
        encoder = constriction.stream.queue.RangeEncoder()
        self._encode(encoder, indices.astype(np.int32))
        return encoder.get_compressed().astype("<u4").tobytes()

    def decode(self, stream, *shape):
        """Inverts `encode`.

        Args:
          stream: bytes, a multiple of 4.
          shape: ints, the axes of the indices without the channels.

        Returns:
          int16 indices [*shape, C].

        Raises:
          ValueError: the stream is not one that `encode` writes.
        """
        if 8 * len(stream) < math.prod(shape) * self.least_bits - STREAM_SLACK:
            raise ValueError("it is too short for so many latents")
        try:
            decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
            indices = self._decode(decoder, shape)
        except AssertionError as error:  # a range coder accepts nearly every stream, but not all
            raise ValueError("it has bits that stand for no code point") from error
        if self.encode(indices) != stream:  # the only sure test for missing or extra words
            raise ValueError("it has too few words or too many")
        return indices


def _model(frequencies):
    """The range coder's model with exactly these frequencies, int [K], see `integer_frequencies`.

    With perfect=False, constriction scales the partial sums of the weights so that they end at 2^24 - K,
    rounds them down and adds 1 to every symbol. Here the scale is 1, and every sum is an integer that float32
    represents exactly.
    """
    return constriction.stream.model.Categorical(
        (frequencies - 1).astype(np.float32), lazy=False, perfect=False
    )


class TableCoder(_Coder):
    """Codes by the counts of one lambda, channel by channel."""

    def __init__(self, counts):
        """Takes int counts [C, K], see `integer_frequencies`."""
        frequencies = integer_frequencies(counts)
        self.least_bits = float(np.sum(PRECISION - np.log2(frequencies.max(axis=1))))
        self._models = [_model(row) for row in frequencies]

    def _encode(self, encoder, indices):
        for model, channel in zip(
            self._models, np.ascontiguousarray(indices.reshape(-1, len(self._models)).T)
        ):
            encoder.encode(channel, model)

    def _decode(self, decoder, shape):
        positions = math.prod(shape)
        indices = np.empty((positions, len(self._models)), np.int16)
        for model, channel in zip(self._models, indices.T):
            channel[:] = decoder.decode(model, positions)
        return indices.reshape(*shape, len(self._models))


class ContextCoder(_Coder):
    """Codes by the contexts of one lambda.

    The order is group by group, phase by phase, channel by channel, class by class.
    """

    def __init__(self, contexts):
        """Takes a contexts.ContextModel."""
        self._contexts, self._models, self.least_bits = contexts, [], 0.0
        for c in range(len(contexts.order)):
            frequencies = integer_frequencies(contexts.symbol_weights(c))
            self.least_bits += float(PRECISION - np.log2(frequencies.max()))
            self._models.append([_model(row) for row in frequencies])

    def _encode(self, encoder, indices):
        flat = indices.reshape(-1, indices.shape[-1])
        for step in self._contexts.walk((1, *indices.shape[:-1])):
            step.indices = flat[np.ix_(step.positions, step.channels)]
            for model, some, c in self._runs(step):
                encoder.encode(step.indices[some, c], model)

    def _decode(self, decoder, shape):
        indices = np.empty((math.prod(shape), len(self._models)), np.int16)
        for step in self._contexts.walk((1, *shape)):
            step.indices = np.empty(step.classes.shape, np.int16)
            for model, some, c in self._runs(step):
                step.indices[some, c] = decoder.decode(model, len(some))
            indices[np.ix_(step.positions, step.channels)] = step.indices
        return indices.reshape(*shape, -1)

    def _runs(self, step):
        """Yields the latents of a `contexts.Step` that share a model.

        Yields:
          The model, the rows of the latents, int [some], and their column, int.
        """
        for c, row in enumerate(np.ascontiguousarray(step.classes.T)):
            ends = np.cumsum(np.bincount(row, minlength=CLASSES)).tolist()
            order = np.argsort(row, kind="stable")
            for model, start, end in zip(self._models[step.channels[c]], [0, *ends], ends):
                if end > start:
                    yield model, order[start:end], c


# The file.


class Header(NamedTuple):
    """The fields of a file's header, see the top of this module."""

    fingerprint: bytes
    width: int
    height: int
    lamb_index: int
    lamb: float


def pack(header, stream):
    """Returns the bytes of a file."""
    head = HEADER.pack(MAGIC, VERSION, *header, len(stream))
    return head + CRC.pack(zlib.crc32(stream, zlib.crc32(head))) + stream


def check_pixels(width, height):
    """Raises a UserError if an image is too large."""
    if width * height > MAX_IMAGE_PIXELS:
        raise UserError(
            f"the image is too large: {width} x {height}, but at most {MAX_IMAGE_PIXELS} pixels are allowed"
        )


def unpack(data):
    """Reads the header of a file, and checks all that can be checked without a run.

    Args:
      data: bytes of a file.

    Returns:
      Header, and the stream, bytes.

    Raises:
      UserError: it is not a .vbq file, or it is damaged.
    """
    if data[:3] != MAGIC:
        raise UserError(f"not a .vbq file: it starts with {data[:3]!r}")
    if data[3:4] not in (b"", bytes([VERSION])):
        raise UserError(f"a .vbq file of version {data[3]}, but this program reads version {VERSION}")
    if len(data) < OVERHEAD:
        raise UserError(f"the file is cut: it has {len(data)} bytes, but a header alone has {OVERHEAD}")
    head, stream = data[: HEADER.size], data[OVERHEAD:]
    *fields, length = HEADER.unpack(head)[2:]
    if length != len(stream) or length % 4:
        raise UserError(
            f"the file is cut, grown or damaged: {len(stream)} bytes follow its header, not {length}"
        )
    if CRC.unpack_from(data, HEADER.size)[0] != zlib.crc32(stream, zlib.crc32(head)):
        raise UserError("the file is damaged: its bytes do not match its CRC-32")
    header = Header(*fields)
    check_pixels(header.width, header.height)
    if not header.width or not header.height or not 0 < header.lamb < math.inf:
        size = f"{header.width} x {header.height} pixels"
        raise UserError(f"the file is damaged: its header says {size} and lambda {header.lamb}")
    return header, stream
