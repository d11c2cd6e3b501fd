"""The bits of a .vbq file: frequencies, range coder, header. `codec.py` writes and reads the files.

A file is a header of 37 bytes (little-endian) and one range-coded stream of the latents. Without contexts the
stream goes channel by channel; with contexts it follows `ContextCoder`.

    bytes  type     field
        3           "VBQ"
        1  uint8    version of the format, 1
        8           fingerprint: start of the fit's identity (weights, code points, counts, contexts, gains)
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

import bisect
import math
import struct
import zlib
from typing import NamedTuple

import constriction
import numpy as np

from vbq.code_points import look_up
from vbq.command import UserError
from vbq.contexts import CLASSES

MAGIC, VERSION = b"VBQ", 1
HEADER = struct.Struct("<3sB8sIIBdI")
CRC = struct.Struct("<I")
OVERHEAD = HEADER.size + CRC.size  # bytes
PRECISION = 24  # bits of the range coder's frequencies
RUNS_AT_ONCE = 32  # that are decoded, at most, before it is known whether the first one is right
WRONG_END = "it has too few words or too many"
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


def symbol_frequencies(weights, symbols, points):
    """`integer_frequencies` of weights, summed over the code points of every symbol.

    Args:
      weights: int [Q, S], the weight of each code point of a symbol. The weights of a channel's K code points
        have a sum of at most 2^39 - K.
      symbols: symbols.Symbols.
      points: int K, number of code points of a channel.

    Returns:
      int64 [Q, S], at least 1 each; the sum of every channel is 2^24.
    """
    sums = np.cumsum((weights.astype(np.int64) + 1) * symbols.sizes, axis=1)
    ends = sums[:, symbols.starts[1:] - 1]
    before = np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
    spare = (1 << PRECISION) - points
    cuts = (sums - before[:, symbols.channels]) * spare // (ends - before)[:, symbols.channels]
    cuts += symbols.channels * spare  # so that they ascend through all channels
    return symbols.sizes + np.diff(cuts, axis=1, prepend=0)


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

    def encode(self, indices, classes=None):
        """Codes latents.

        Args:
          indices: int [..., C].
          classes: uint8 [..., C], their `ContextModel.classes`, if they are known; only with contexts.

        Returns:
          The stream, bytes.
        """
        encoder = constriction.stream.queue.RangeEncoder()
        self._encode(encoder, indices.astype(np.int32), classes)
        return encoder.get_compressed().astype("<u4").tobytes()

    def decode(self, stream, *shape):
        """Inverts `encode`.

        A range coder decodes nearly every stream to something, and does not tell where a stream ends. So an
        encoder follows the decoder: it codes again what was decoded. Its stream must be the one that was
        read. This is the only sure test for missing or extra words.

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
        words = np.frombuffer(stream, "<u4").astype(np.uint32)
        decoder = constriction.stream.queue.RangeDecoder(words)
        encoder = constriction.stream.queue.RangeEncoder()
        try:
            indices = self._decode(decoder, encoder, shape)
        except AssertionError as error:  # a range coder accepts nearly every stream, but not all
            raise ValueError("it has bits that stand for no code point") from error
        if not np.array_equal(encoder.get_compressed(), words):
            raise ValueError(WRONG_END)
        return indices


def _model(weights):
    """The range coder's model of symbols with given frequencies, see `integer_frequencies`.

    With perfect=False, constriction scales the partial sums of the weights so that they end at 2^24 - K,
    rounds them down and adds 1 to every symbol. Here the scale is 1, and every sum is an integer that float32
    represents exactly.

    Args:
      weights: float32 [K], the frequencies minus 1.
    """
    return constriction.stream.model.Categorical(weights, lazy=False, perfect=False)


def _models(counts):
    """A list of the models of counts, int [C, K]."""
    return [_model(row) for row in (integer_frequencies(counts) - 1).astype(np.float32)]


class TableCoder(_Coder):
    """Codes by the counts of one lambda, channel by channel."""

    def __init__(self, counts):
        """Takes int counts [C, K], see `integer_frequencies`."""
        frequencies = integer_frequencies(counts)
        self.least_bits = float(np.sum(PRECISION - np.log2(frequencies.max(axis=1))))
        self._models = _models(counts)

    def _encode(self, encoder, indices, _):
        for model, channel in zip(
            self._models, np.ascontiguousarray(indices.reshape(-1, len(self._models)).T)
        ):
            encoder.encode(channel, model)

    def _decode(self, decoder, encoder, shape):
        indices = np.empty((len(self._models), math.prod(shape)), np.int16)
        for model, channel in zip(self._models, indices):
            decoded = decoder.decode(model, len(channel))
            encoder.encode(decoded, model)
            channel[:] = decoded
        return np.ascontiguousarray(indices.T).reshape(*shape, len(self._models))


class ContextCoder(_Coder):
    """Codes by the contexts of one lambda.

    The order is group by group, phase by phase, channel by channel, class by class. Latents of equal channel
    and class follow each other: a run, which has one model. Models have the symbols of `symbols.Symbols`, and
    code a point that has a symbol of its own with the same bits as a model of all points. If a run has a
    point without, the run is coded with a model of all points.
    """

    def __init__(self, contexts):
        """Takes a contexts.ContextModel."""
        self._contexts, self._symbols = contexts, contexts.symbols
        frequencies = symbol_frequencies(contexts.weights, self._symbols, contexts.lengths.shape[1])
        # Of the points that share a symbol, none has a frequency more than 1 above their mean.
        most = np.where(self._symbols.sizes == 1, frequencies, frequencies // self._symbols.sizes + 2)
        most = np.maximum.reduceat(most.max(axis=0), self._symbols.starts[:-1])
        self.least_bits = float(np.sum(PRECISION - np.log2(most)))
        self._weights = (frequencies - 1).astype(np.float32)
        self._models = [None] * (len(most) * CLASSES)  # by channel * CLASSES + class, made when needed

    def _encode(self, encoder, indices, classes):
        images = indices[None]
        order = self._contexts.coding_order(images.shape[:-1])
        known = classes is not None
        classes = order.rows(classes[None]) if known else self._contexts.classes_in_rows(images, order)
        numbers = order.rows(look_up(self._symbols.numbers, images))
        points = order.rows(images) if numbers.min(initial=0) < 0 else numbers
        for here in order.parts():
            latents, runs = self._runs(order.channels[here[0]], classes[here])
            if not runs:
                continue
            of_part, points_of_part = (x[here].ravel()[latents] for x in (numbers, points))
            is_shared = np.minimum.reduceat(of_part, [start for _, _, start, _ in runs]) < 0
            for (model, number, start, end), shared in zip(runs, is_shared.tolist()):
                if shared:
                    encoder.encode(points_of_part[start:end], self._model_of_all_points(number))
                else:
                    encoder.encode(of_part[start:end], model)

    def _decode(self, decoder, encoder, shape):
        order = self._contexts.coding_order((1, *shape))
        rows = np.empty((len(order.channels), len(order.positions)), np.int16)
        for step in self._contexts.walk(order):
            latents, runs = self._runs(step.channels, step.classes)
            starts = self._symbols.starts[step.channels].repeat(step.classes.shape[1])
            points = np.empty(len(latents), np.int32)
            most = RUNS_AT_ONCE
            while runs:
                some = runs[:most]
                done = self._decode_runs(decoder, encoder, some, starts, points)
                runs = runs[done:]
                # Where many runs fail, few are decoded in vain.
                most = min(2 * most, RUNS_AT_ONCE) if done == len(some) else 1
            step_points = np.empty(step.classes.shape, np.int32)
            step_points.ravel()[latents] = points
            rows[step.here] = step_points
            step.features = look_up(self._contexts.features[step.channels], step_points.T).T
        return order.image(rows)[0]

    def _decode_runs(self, decoder, encoder, runs, starts, points):
        """Decodes runs of a part of the latents, see `_runs`.

        The first try takes the models of symbols. If a run has a symbol that several points share, what was
        decoded before that run is right. The run itself is decoded again, with the model of all points.

        Args:
          decoder, encoder: constriction's range coders, at the same place of the stream before and after.
          runs: list, not empty.
          starts: int [latents of the part], `Symbols.starts` of their channels.
          points: int32 [latents of the part], where the code points go.

        Returns:
          int, how many of the runs are decoded: at least 1.
        """
        numbers, first = [], runs[0][2]
        try:
            for model, _, start, end in runs:
                numbers.append(decoder.decode(model, end - start))
        except AssertionError:  # bits that stand for no symbol: in this run, or due to a shared one before
            pass
        found = np.concatenate([np.empty(0, np.int32), *numbers])
        found = self._symbols.points.take(found + starts[first : first + len(found)])
        points[first : first + len(found)] = found
        shared = np.flatnonzero(found < 0)
        good = bisect.bisect([end for *_, end in runs], first + shared[0]) if len(shared) else len(numbers)
        for (model, *_), symbols in zip(runs, numbers[:good]):
            encoder.encode(symbols, model)
        if good == len(runs):
            return good
        try:
            decoder.seek(*encoder.pos())
        except ValueError as error:  # it lies beyond the end
            raise ValueError(WRONG_END) from error
        _, number, start, end = runs[good]
        model = self._model_of_all_points(number)
        points[start:end] = decoder.decode(model, end - start)
        encoder.encode(points[start:end], model)
        return good + 1

    def _runs(self, channels, classes):
        """Sorts the latents of a part into runs. Classes of equal distributions make one run.

        Args:
          channels: int [n].
          classes: uint8 [n, p].

        Returns:
          Flat numbers of the latents in the order of coding, int [n p]; and a list of runs: model, its
          number, and where the run starts and ends in that order.
        """
        size = len(channels) * CLASSES
        keys = np.arange(0, size, CLASSES, dtype=np.min_scalar_type(size))
        keys = (classes + keys[:, None]).ravel()  # small integers are sorted in linear time
        ends = np.cumsum(np.bincount(keys, minlength=size))
        numbers = (channels[:, None].astype(np.int64) * CLASSES + np.arange(CLASSES)).ravel()
        some = np.flatnonzero(np.diff(ends, prepend=0))
        same = self._contexts.run_keys[channels].ravel()[some].astype(np.int64)
        is_first = (np.diff(some // CLASSES, prepend=-1) != 0) | (np.diff(same, prepend=-1) != 0)
        numbers, ends = numbers[some[is_first]].tolist(), ends[some[np.append(is_first, True)[1:]]].tolist()
        models = [self._models[number] or self._model(number) for number in numbers]
        return np.argsort(keys, kind="stable"), list(zip(models, numbers, [0, *ends], ends))

    def _model(self, number):
        """Makes the model of a channel and class."""
        channel, class_ = divmod(number, CLASSES)
        model = self._models[number] = _model(self._weights[class_, self._symbols.of_channel(channel)])
        return model

    def _model_of_all_points(self, number):
        """The model of a channel and class with a symbol for every code point."""
        channel, class_ = divmod(number, CLASSES)
        some = self._symbols.of_channel(channel)
        return _models(self._contexts.weights[class_, some].repeat(self._symbols.sizes[some])[None])[0]


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
