"""The bits of a .vbq file: frequencies, range coder, header. `codec.py` makes the files and reads them.

A file is a header of 37 bytes (little-endian) and the latents, channel after channel, in one range-coded stream:

    bytes  type     field
        3           "VBQ"
        1  uint8    version of the format, 1
        8           fingerprint of the run: the model's weights, the code points, the counts
        4  uint32   width, pixels
        4  uint32   height, pixels
        1  uint8    table, from 0: whose counts and code points, of the quantizer's lambdas
        8  float64  lambda; for information, decoding needs only the table
        4  uint32   length of the stream in bytes, a multiple of 4
        4  uint32   CRC-32 of all the other bytes
           uint32   the stream: words of constriction's range coder, with frequencies out of 2^24

Up to the code points, decoding rounds nothing: the frequencies are integers, made of integers. A test pins the bytes; what
changes them needs another version number.
"""

import functools
import math
import struct
import zlib
from typing import NamedTuple

import constriction
import numpy as np

import utils

MAGIC, VERSION = b"VBQ", 1
HEADER = struct.Struct("<3sB8sIIBdI")
CRC = struct.Struct("<I")
OVERHEAD = HEADER.size + CRC.size  # bytes
PRECISION = 24  # bits of the range coder's frequencies
STREAM_SLACK = 64  # bits that a stream may be shorter than the information in it, at most
MAX_PIXELS = 2 * 89478485  # of an image; where Pillow, too, refuses one


# The tables and the stream.


def integer_table(counts):
    """Turns counts into frequencies for the range coder, by integer arithmetic: the same on every machine.

    Args:
      counts: int [C, K], how often each code point was chosen; 1 is added to each, as for the code lengths.

    Returns:
      int64 [C, K], at least 1 each, with the sum 2^24 in every channel.
    """
    sums = np.cumsum(counts, axis=1, dtype=np.int64) + np.arange(1, counts.shape[1] + 1)
    spare = (1 << PRECISION) - counts.shape[1]  # what there is beyond one each
    if sums.max() > (2**63 - 1) // spare:
        raise ValueError(f"counts up to {sums.max()} do not fit")
    return 1 + np.diff(sums * spare // sums[:, -1:], axis=1, prepend=0)


class TableCoder:
    """Codes indices of code points by the counts of one table.

    Attributes:
      least_bits: float, of any latent position in the stream.
    """

    def __init__(self, counts):
        """Args: counts: int [C, K], see `integer_table`."""
        frequencies = integer_table(counts)
        self.least_bits = float(np.sum(PRECISION - np.log2(frequencies.max(axis=1))))
        # With perfect=False, constriction scales the partial sums of the weights so that they end at 2^24 - K, rounds them down
        # and adds 1 a symbol. Here the scale is 1, and every sum an integer that float32 holds: it uses just these frequencies.
        self._models = [constriction.stream.model.Categorical(weights, lazy=False, perfect=False)
                        for weights in (frequencies - 1).astype(np.float32)]

    def encode(self, indices):
        """Returns the stream, bytes, of int indices [..., C]."""
        encoder = constriction.stream.queue.RangeEncoder()
        symbols = indices.reshape(-1, len(self._models)).T.astype(np.int32, order="C")
        for model, channel in zip(self._models, symbols):
            encoder.encode(channel, model)
        return encoder.get_compressed().astype("<u4").tobytes()

    def decode(self, stream, positions):
        """Inverts `encode`.

        Args:
          stream: bytes, a multiple of 4.
          positions: int, how many latent positions.

        Returns:
          int16 indices [positions, C].

        Raises:
          ValueError: it is no stream that `encode` writes.
        """
        if 8 * len(stream) < positions * self.least_bits - STREAM_SLACK:
            raise ValueError("it is too short for so many")
        indices = np.empty((positions, len(self._models)), np.int16)
        try:
            decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
            for model, channel in zip(self._models, indices.T):
                channel[:] = decoder.decode(model, positions)
        except AssertionError as error:  # a range coder makes sense of nearly everything, but not of all
            raise ValueError("it holds what no symbol stands for") from error
        if self.encode(indices) != stream:  # the only sure sign of missing and of needless words
            raise ValueError("it has too few words or too many")
        return indices


@functools.lru_cache(maxsize=32)
def coder_of(quantizer, table):
    """Returns the `TableCoder` of a quantizer's table, an int; the latest are kept."""
    return TableCoder(quantizer.index_counts[table])


def file_size(quantizer, indices, table):
    """Measures the file that an image would take, without a run: for `post_process.py --bitstream`.

    Args:
      quantizer: quantizers.ChannelwisePriorCDFQuantizer.
      indices: int [..., C], the image's latents as they were quantized for table.
      table: int.

    Returns:
      int, bytes.
    """
    return OVERHEAD + len(coder_of(quantizer, table).encode(indices))


# The file.


class Header(NamedTuple):
    """What a file says of itself, see the top of this module."""

    fingerprint: bytes
    width: int
    height: int
    table: int
    lamb: float


def pack(header, stream):
    """Returns the bytes of a file."""
    head = HEADER.pack(MAGIC, VERSION, *header, len(stream))
    return head + CRC.pack(zlib.crc32(stream, zlib.crc32(head))) + stream


def check_pixels(width, height):
    """UserError if an image is too large to be worked on."""
    if width * height > MAX_PIXELS:
        raise utils.UserError(f"expected an image of at most {MAX_PIXELS} pixels, found {width} x {height}")


def unpack(data):
    """Checks all that can be checked without a run.

    Args:
      data: bytes of a file.

    Returns:
      Header, and the stream, bytes.

    Raises:
      utils.UserError: it is no .vbq file, or a damaged one.
    """
    if data[:3] != MAGIC:
        raise utils.UserError(f"expected a .vbq file, found one that starts with {data[:3]!r}")
    if data[3:4] != bytes([VERSION]):
        raise utils.UserError(f"expected a .vbq file of version {VERSION}, found version {list(data[3:4])}")
    if len(data) < OVERHEAD:
        raise utils.UserError(f"expected a header of {OVERHEAD} bytes, found the file cut after {len(data)}")
    head, stream = data[:HEADER.size], data[OVERHEAD:]
    *fields, length = HEADER.unpack(head)[2:]
    if length != len(stream) or length % 4:
        raise utils.UserError(f"expected {length} bytes after the header, found {len(stream)}: the file is cut, grown or "
                              "damaged")
    if CRC.unpack_from(data, HEADER.size)[0] != zlib.crc32(stream, zlib.crc32(head)):
        raise utils.UserError("expected bytes that fit their CRC-32, found others: the file is damaged")
    header = Header(*fields)
    check_pixels(header.width, header.height)
    if not header.width or not header.height or not 0 < header.lamb < math.inf:
        raise utils.UserError(f"expected pixels and a lambda, found {header.width} x {header.height} and {header.lamb}")
    return header, stream
