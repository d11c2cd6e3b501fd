"""The bits of a .vbq file: frequencies, range coder, header. `codec.py` makes the files and reads them.

A file is a header of 37 bytes (little-endian) and the latents in one range-coded stream, channel after channel; with contexts in
the order of `ContextCoder`:

    bytes  type     field
        3           "VBQ"
        1  uint8    version of the format, 1
        8           fingerprint of the run: the model's weights, the code points, the counts, the contexts
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
from contexts import CLASSES

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


class _Coder:
    """Codes indices of code points, int [.., C], as a stream of constriction's range coder.

    Attributes:
      least_bits: float, of any latent position in the stream.
    """

    def encode(self, indices):
        """Returns the stream, bytes, of int indices [.., C]."""
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
          ValueError: it is no stream that `encode` writes.
        """
        if 8 * len(stream) < math.prod(shape) * self.least_bits - STREAM_SLACK:
            raise ValueError("it is too short for so many")
        try:
            decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
            indices = self._decode(decoder, shape)
        except AssertionError as error:  # a range coder makes sense of nearly everything, but not of all
            raise ValueError("it holds what no symbol stands for") from error
        if self.encode(indices) != stream:  # the only sure sign of missing and of needless words
            raise ValueError("it has too few words or too many")
        return indices


def _model(frequencies):
    """The range coder's model with just these frequencies, int [K], see `integer_table`.

    With perfect=False, constriction scales the partial sums of the weights so that they end at 2^24 - K, rounds them down and
    adds 1 a symbol. Here the scale is 1, and every sum an integer that float32 holds.
    """
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float32), lazy=False, perfect=False)


class TableCoder(_Coder):
    """Codes by the counts of one table, channel after channel."""

    def __init__(self, counts):
        """Args: counts: int [C, K], see `integer_table`."""
        frequencies = integer_table(counts)
        self.least_bits = float(np.sum(PRECISION - np.log2(frequencies.max(axis=1))))
        self._models = [_model(row) for row in frequencies]

    def _encode(self, encoder, indices):
        for model, channel in zip(self._models, np.ascontiguousarray(indices.reshape(-1, len(self._models)).T)):
            encoder.encode(channel, model)

    def _decode(self, decoder, shape):
        positions = math.prod(shape)
        indices = np.empty((positions, len(self._models)), np.int16)
        for model, channel in zip(self._models, indices.T):
            channel[:] = decoder.decode(model, positions)
        return indices.reshape(*shape, len(self._models))


class ContextCoder(_Coder):
    """Codes by the contexts of one table: group after group, phase after phase, channel after channel, class after class."""

    def __init__(self, contexts):
        """Args: contexts: contexts.TableContexts."""
        self._contexts, self._models, self.least_bits = contexts, [], 0.
        for c in range(len(contexts.order)):
            frequencies = integer_table(contexts.symbol_weights(c))
            self.least_bits += float(PRECISION - np.log2(frequencies.max()))
            self._models.append([_model(row) for row in frequencies])

    def _encode(self, encoder, indices):
        flat = indices.reshape(-1, indices.shape[-1])

        def code(channels, where, classes):
            symbols = flat[np.ix_(where, channels)]
            for model, some, c in self._runs(channels, classes):
                encoder.encode(symbols[some, c], model)
            return symbols

        self._contexts.walk((1, *indices.shape[:-1]), code)

    def _decode(self, decoder, shape):
        indices = np.empty((math.prod(shape), len(self._models)), np.int16)

        def code(channels, where, classes):
            symbols = np.empty(classes.shape, np.int16)
            for model, some, c in self._runs(channels, classes):
                symbols[some, c] = decoder.decode(model, len(some))
            indices[np.ix_(where, channels)] = symbols
            return symbols

        self._contexts.walk((1, *shape), code)
        return indices.reshape(*shape, -1)

    def _runs(self, channels, classes):
        """Yields what is coded by one model, of classes uint8 [p, n]: the model, positions int [some] of p, and a number < n."""
        for c, row in enumerate(np.ascontiguousarray(classes.T)):
            ends = np.cumsum(np.bincount(row, minlength=CLASSES)).tolist()
            order = np.argsort(row, kind="stable")
            for model, start, end in zip(self._models[channels[c]], [0, *ends], ends):
                if end > start:
                    yield model, order[start:end], c


@functools.lru_cache(maxsize=4)  # with contexts, one takes 36 MB for 256 channels
def coder_of(quantizer, table):
    """Returns the coder of a quantizer's table, an int; the latest are kept."""
    return ContextCoder(quantizer.contexts_at(table)) if quantizer.contexts else TableCoder(quantizer.index_counts[table])


def file_size(quantizer, indices, table):
    """Measures the file that an image would take, without a run: for `post_process.py --bitstream`.

    Args:
      quantizer: quantizers.ChannelwisePriorCDFQuantizer.
      indices: int [h, w, C], the image's latents as they were quantized for table.
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
