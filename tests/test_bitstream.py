"""The bits of a file: frequencies, streams that come back, pinned bytes, headers."""

import bisect
import math

import constriction
import numpy as np
import pytest
from codec_runs import TEXTURED_CHANNELS as CHANNELS
from codec_runs import TEXTURED_POINTS as POINTS
from codec_runs import counts_of, fails, golden_fit, textured, toy_quantizer
from PIL import Image

from quantizers import ChannelwisePriorCDFQuantizer
from vbq import bitstream
from vbq.bitstream import (
    MOST_TOTAL,
    ContextCoder,
    Header,
    TableCoder,
    integer_frequencies,
    symbol_frequencies,
)
from vbq.code_lengths import lengths_of_counts
from vbq.code_points import look_up
from vbq.context_fit import fit_arrays
from vbq.contexts import ContextModel
from vbq.surroundings import group_bounds, weight_count

# Frequencies.


def plain_frequencies(row):
    """`integer_frequencies` of one channel in Python's integers."""
    sums = [0]
    for count in row:
        sums.append(sums[-1] + count + 1)
    cuts = [s * (2**24 - len(row)) // sums[-1] + k for k, s in enumerate(sums)]
    return [b - a for a, b in zip(cuts, cuts[1:])]


def test_frequencies_are_exact_positive_and_complete():
    random = np.random.default_rng(0)
    for counts in (
        random.integers(0, 10**6, (4, 2047)),
        np.zeros((2, 2047), int),
        np.eye(3, 2047, dtype=int) * 10**9,
        random.integers(0, 3, (3, 1)),
        np.full((1, 7), 255, np.uint8),
    ):
        found = integer_frequencies(counts)
        assert found.min() >= 1 and (found.sum(axis=1) == 2**24).all()
        for row, frequencies in zip(counts.tolist(), found.tolist()):
            assert frequencies == plain_frequencies(row)
    with pytest.raises(ValueError):
        integer_frequencies(np.array([[2**40, 1]]))
    integer_frequencies(np.array([[2**38, 1]]))


@pytest.mark.parametrize("passes", [2, 10])
def test_frequencies_cost_at_most_a_few_thousandths_of_a_bit(passes):
    quantizer = golden_fit(passes)
    for lamb_index in range(16):
        lengths = quantizer.codebook(lamb_index).lengths.astype(np.float64)
        coded = 24 - np.log2(integer_frequencies(quantizer.index_counts[lamb_index]))
        mean = np.sum(2**-lengths * (coded - lengths), axis=1)  # over what was counted
        assert mean.max() < 0.0005
        assert (coded - lengths).max() < 0.002


# Streams without contexts.


def plain_decode(stream, frequencies, positions):
    """A range decoder with 64 bits of state and words of 32, channel after channel: int [positions, C]."""
    words = iter(np.frombuffer(stream, "<u4").tolist())
    everything = 2**64 - 1
    point = next(words, 0) << 32 | next(words, 0)
    lower, size = 0, everything
    channels = []
    for row in frequencies.tolist():
        edges = [sum(row[:k]) for k in range(len(row) + 1)]
        channels.append([])
        for _ in range(positions):
            unit = size >> 24
            symbol = bisect.bisect_right(edges, (point - lower & everything) // unit) - 1
            lower = lower + unit * edges[symbol] & everything
            size = unit * (edges[symbol + 1] - edges[symbol])
            if size < 2**32:
                lower, size = lower << 32 & everything, size << 32
                point = point << 32 & everything | next(words, 0)
            channels[-1].append(symbol)
    return np.array(channels).T


def test_a_plain_decoder_reads_the_stream_with_integer_frequencies():
    """So constriction's models have exactly the frequencies of `integer_frequencies`."""
    random = np.random.default_rng(0)
    for counts in toy_quantizer().index_counts:
        indices = random.integers(0, 31, (400, 3))
        stream = TableCoder(counts).encode(indices)
        np.testing.assert_array_equal(plain_decode(stream, integer_frequencies(counts), 400), indices)


@pytest.mark.parametrize("positions", [1, 3, 1000])
def test_extreme_symbols_survive(positions):
    random = np.random.default_rng(positions)
    sure = np.zeros((2, 31), int)
    sure[:, 7] = 10**9
    coder = TableCoder(sure)
    for indices in (
        np.full((positions, 2), 7),
        np.full((positions, 2), 30),
        random.integers(0, 31, (positions, 2)),
    ):
        stream = coder.encode(indices)
        np.testing.assert_array_equal(coder.decode(stream, positions), indices)
    assert len(coder.encode(np.full((positions, 2), 7))) <= 8


def test_streams_with_words_too_few_or_too_many_are_refused():
    coder = TableCoder(toy_quantizer().index_counts[1])
    indices = np.random.default_rng(0).integers(0, 31, (50, 3))
    stream = coder.encode(indices)
    assert np.array_equal(coder.decode(stream, 50), indices)
    for wrong in (
        b"",
        stream[:-4],
        stream[:4],
        stream + b"\0" * 4,
        stream + b"\xff" * 4,
        stream * 2,
        b"\xff" * len(stream),
    ):
        with pytest.raises(ValueError):
            coder.decode(wrong, 50)
    for positions in (1, 49, 51, 1000):
        with pytest.raises(ValueError):
            coder.decode(stream, positions)


# Streams with contexts.


@pytest.fixture(scope="module")
def model():
    """The `ContextModel` that is fitted to `textured(0)`."""
    counts = counts_of(textured(0))
    return ContextModel(counts, *fit_arrays(counts, textured(0)))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (6, 7), (20, 31)])
def test_streams_with_contexts_come_back_and_are_as_long_as_estimated(model, height, width):
    coder = ContextCoder(model)
    wild = np.random.default_rng(0).integers(0, POINTS, (height, width, CHANNELS)).astype(np.int16)
    real = textured(7, 1, height, width)[0]
    for indices in (real, wild, np.full_like(wild, 0), np.full_like(wild, POINTS - 1)):
        stream = coder.encode(indices)
        np.testing.assert_array_equal(coder.decode(stream, height, width), indices)
        estimated = model.bits(indices[None], model.classes(indices[None])).sum()
        assert -64 <= 8 * len(stream) - estimated <= 0.005 * estimated + 64
        assert 8 * len(stream) >= coder.least_bits * height * width - bitstream.STREAM_SLACK


def test_streams_with_contexts_with_words_too_few_or_too_many_are_refused(model):
    coder = ContextCoder(model)
    indices = textured(3, 1)[0]
    stream = coder.encode(indices)
    for wrong in (b"", stream[:-4], stream[:4], stream + b"\0" * 4, stream * 2, b"\xff" * len(stream)):
        with pytest.raises(ValueError):
            coder.decode(wrong, 6, 7)
    for shape in ((7, 6), (6, 6), (1, 1), (60, 70)):
        with pytest.raises(ValueError):
            coder.decode(stream, *shape)


def model_of_rare_points(with_class_counts=False, points=63):
    """A `ContextModel` of 5 channels, most of whose code points were never counted; one channel has none."""
    random = np.random.default_rng(0)
    counts = random.integers(1, 10**6, (5, points)) * (random.random((5, points)) < 0.1)
    counts[2] = 0
    weights = random.integers(-99, 99, weight_count(5)).astype(np.int16)
    thresholds = np.sort(random.integers(-9999, 9999, (5, 2, 7)), axis=2)
    exponents = random.integers(20, 90, (5, 16)).astype(np.uint16)
    exponents[3, 3:9] = 64  # these classes make one run
    arrays = counts, np.array([3, 0, 4, 1, 2]), weights, thresholds, exponents
    model = ContextModel(*arrays)
    if with_class_counts:
        class_counts = random.integers(0, 99, model.weights.shape) * (model.symbols.sizes == 1)
        model = ContextModel(*arrays, class_counts)
    return model


def weights_of_points(model, channel):
    """Weights of all code points of a channel, int [Q, K]."""
    some = model.symbols.of_channel(channel)
    return model.weights[:, some].repeat(model.symbols.sizes[some], axis=1)


def test_frequencies_of_symbols_are_sums_of_those_of_code_points(model):
    for contexts in (model, model_of_rare_points(), model_of_rare_points(with_class_counts=True)):
        symbols = contexts.symbols
        found = symbol_frequencies(contexts.weights, symbols, contexts.lengths.shape[1])
        for c in range(len(contexts.order)):
            some = symbols.of_channel(c)
            of_points = integer_frequencies(weights_of_points(contexts, c))
            starts = symbols.firsts[some] - symbols.firsts[some][0]
            np.testing.assert_array_equal(found[:, some], np.add.reduceat(of_points, starts, axis=1))


def plain_stream(model, indices):
    """A stream with contexts that is coded latent by latent, each with a model of all code points."""
    classes, encoder = model.classes(indices[None])[0], constriction.stream.queue.RangeEncoder()
    bounds = group_bounds(len(model.order))
    for start, end in zip(bounds, bounds[1:]):
        for phase in range(2):
            for c in model.order[start:end]:
                frequencies = integer_frequencies(weights_of_points(model, c))
                for q in range(16):
                    for place in np.argwhere(classes[..., c] == q).tolist():
                        if sum(place) % 2 == phase:
                            row = (frequencies[q] - 1).astype(np.float32)
                            coder = constriction.stream.model.Categorical(row, perfect=False)
                            encoder.encode(int(indices[(*place, c)]), coder)
    return encoder.get_compressed().astype("<u4").tobytes()


@pytest.mark.parametrize("with_class_counts", [False, True])
@pytest.mark.parametrize("rare", [0, 0.01, 0.3, 1])
def test_points_that_share_a_symbol_take_the_same_bits_as_by_a_model_of_all_points(rare, with_class_counts):
    """Of all latents, a share has points that were never counted."""
    contexts, random = model_of_rare_points(with_class_counts), np.random.default_rng(1)
    counted = [np.flatnonzero(row >= 0) for row in contexts.symbols.numbers]
    for height, width in ((1, 1), (2, 5), (7, 8)):
        usual = np.stack([random.choice(row, (height, width)) for row in counted], axis=-1)
        wild = random.integers(0, 63, usual.shape)
        indices = np.where(random.random(usual.shape) < rare, wild, usual).astype(np.int32)
        coder = ContextCoder(contexts)
        stream = coder.encode(indices)
        assert stream == coder.encode(indices, contexts.classes(indices[None])[0])
        assert stream == plain_stream(contexts, indices)
        np.testing.assert_array_equal(coder.decode(stream, height, width), indices)
        for wrong in (stream[:-4], stream[: len(stream) // 8 * 4], stream + b"\0" * 4, b"\xff" * len(stream)):
            with pytest.raises(ValueError):
                coder.decode(wrong, height, width)


def test_only_streams_that_encode_writes_are_decoded(model):
    """Other last words may decode to latents, even to the same ones; such a stream is refused."""
    indices = textured(3, 1)[0]
    for coder in (TableCoder(counts_of(textured(0))), ContextCoder(model)):
        stream = coder.encode(indices)
        last, others = int.from_bytes(stream[-4:], "little"), np.random.default_rng(0).integers(0, 2**32, 300)
        accepted = 0
        for word in [0, last, last + 1, last + 1000, *others.tolist()]:
            other = stream[:-4] + (word % 2**32).to_bytes(4, "little")
            try:
                found = coder.decode(other, 6, 7)
            except ValueError:
                continue
            accepted += 1
            assert coder.encode(found) == other
            assert other == stream or not np.array_equal(found, indices)
        assert 1 <= accepted < 200


PINNED = {
    False: "5ee38aaec9069fa63c3ba168ba5824705cd5c66a26182e22f06c82801eca97e00eaef2d2",
    True: "7fc996addd785014c2e7e8e4f39a1a538fd5692a6e54c229aec566ef32b63cb7",
}


@pytest.mark.parametrize("with_class_counts", PINNED)
def test_the_bytes_of_a_stream_with_contexts_are_pinned(with_class_counts):
    """If this fails, files that people have can no longer be read: the change takes another version
    number.
    """
    counts = np.arange(5 * 15).reshape(5, 15) ** 3 % 1009
    thresholds = np.tile(np.arange(7) * 200, (5, 2, 1))
    weights = (np.arange(weight_count(5)) % 7 - 2).astype(np.int16)
    exponents = (np.arange(5 * 16).reshape(5, 16) * 2 + 20).astype(np.uint16)
    arrays = counts, np.array([3, 0, 4, 1, 2]), weights, thresholds, exponents
    model = ContextModel(*arrays)
    if with_class_counts:
        model = ContextModel(*arrays, np.arange(model.weights.size).reshape(model.weights.shape) ** 2 % 97)
    indices = np.arange(3 * 4 * 5).reshape(3, 4, 5) ** 2 % 15
    assert group_bounds(5) == [0, 1, 2, 4, 5]
    assert len(np.unique(model.classes(indices[None]))) == 12
    assert ContextCoder(model).encode(indices).hex() == PINNED[with_class_counts]


# Headers.


HEADER = Header(b"12345678", 48, 32, 1, 0.5)


def test_headers_come_back():
    data = bitstream.pack(HEADER, b"abcd")
    assert len(data) == bitstream.OVERHEAD + 4 == 41
    assert bitstream.unpack(data) == (HEADER, b"abcd")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("width", 0, "0 x 32 pixels"),
        ("height", 0, "48 x 0 pixels"),
        ("lamb", math.nan, "nan"),
        ("lamb", math.inf, "inf"),
        ("lamb", -1.0, "-1.0"),
        ("width", 2**32 - 1, "178956970 pixels"),
    ],
)
def test_headers_that_cannot_be_are_refused(field, value, message):
    assert message in fails(bitstream.unpack, bitstream.pack(HEADER._replace(**{field: value}), b""))


def test_the_largest_image_is_that_of_pillow():
    assert bitstream.MAX_IMAGE_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_estimates_hold_where_latents_are_far_more_improbable_than_the_coder_can_say():
    """Exponents as large as they can be: by the code lengths alone, the latents take more bits."""
    counts = np.array([[1, 5, 60, 1000, 10**6, 1000, 60, 5, 1, 0, 0, 0, 0, 0, 0]] * 3)
    order, weights, thresholds, exponents = fit_arrays(counts, np.full((2, 3, 4, 3), 4))
    model = ContextModel(counts, order, weights, thresholds, np.full_like(exponents, 512))
    indices = np.random.default_rng(0).integers(0, 15, (40, 50, 3)).astype(np.int16)
    for coder, bits in (
        (ContextCoder(model), model.bits(indices[None], model.classes(indices[None]))),
        (TableCoder(counts * 2**16), look_up(lengths_of_counts(counts * 2**16), indices)),
    ):
        found, estimated = 8 * len(coder.encode(indices)), bitstream.coded_bits(bits, 15).sum()
        assert abs(found - estimated) <= 0.005 * estimated + 8 * 64
        assert bits.max() > 24 and bits.sum() > 1.1 * found


def test_one_bound_for_counts_in_fits_and_in_the_coder():
    points = np.arange(3.0)[None]
    for largest, good in ((MOST_TOTAL - 5, True), (MOST_TOTAL - 1, False), (2**45, False)):
        counts = np.array([[largest, 1, 1]])
        if good:
            assert integer_frequencies(counts).sum() == 2**24
            ChannelwisePriorCDFQuantizer(points, [1.0], np.ones((1, 1, 2), int), counts[None])
            continue
        with pytest.raises(ValueError):
            integer_frequencies(counts)
        with pytest.raises(ValueError):
            ChannelwisePriorCDFQuantizer(points, [1.0], np.ones((1, 1, 2), int), counts[None])
