"""Contexts: exact arithmetic, classes against plain loops, streams that come back, and that they save bits."""
import math

import numpy as np
import pytest

import bitstream
import contexts
import utils
from contexts import CLASSES, OF_PHASE, Contexts, TableContexts
from quantizers import ChannelwisePriorCDFQuantizer

CHANNELS, POINTS = 9, 31


def textured(seed, images=40, height=6, width=7):
    """Indices of latents whose spread varies from place to place, for all channels alike: int [N, h, w, C]."""
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(0, 1, (images, height, width, 1)) / 2 + random.normal(0, 1, (images, 1, 1, 1)))
    latents = random.laplace(scale=spread * np.linspace(.3, 2, CHANNELS))
    return np.clip(np.round(latents) + POINTS // 2, 0, POINTS - 1).astype(np.int32)


def counts_of(indices):
    return np.stack([np.bincount(row, minlength=POINTS) for row in indices.reshape(-1, CHANNELS).T])


@pytest.fixture(scope="module")
def fitted():
    """Counts and `TableContexts` that are fitted to `textured(0)`."""
    counts = counts_of(textured(0))
    return counts, TableContexts(counts, *contexts.fit_table(counts, textured(0)))


# Arithmetic.


def test_logarithms_are_pinned_and_right_to_a_unit():
    """If the numbers change, files that people have can no longer be read."""
    assert contexts.fixed_log2(np.array([1, 2, 3, 1000, 2**40, 2**53 - 1])).tolist() == [0, 256, 405, 2551, 10240, 13567]
    x = np.concatenate([np.arange(1, 3000), np.random.default_rng(0).integers(1, 2**53, 3000)])
    errors = contexts.fixed_log2(x) - 256 * np.log2(x.astype(np.float64))
    assert -1.01 < errors.min() and errors.max() < 1e-9


def test_fractions_are_pinned():
    fractions = contexts._FRACTIONS
    assert fractions.shape == (256,) and fractions.dtype == np.int32
    assert fractions[[0, 1, 128, 255]].tolist() == [2**27, 133854811, 94906266, 67290815] and fractions.sum() == 24818881648
    from decimal import Decimal, getcontext
    getcontext().prec = 40
    assert all(abs(Decimal(int(x)) - Decimal(2)**27 * Decimal(2)**(Decimal(-i) / 256)) < Decimal("0.500001")
               for i, x in enumerate(fractions))


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 100, 192, 256])
def test_groups_double_and_cover_all_channels(channels):
    bounds = contexts.group_bounds(channels)
    assert bounds[0] == 0 and bounds[-1] == channels and all(a < b <= max(2 * a, 1) for a, b in zip(bounds, bounds[1:]))
    assert contexts.weight_count(channels) == sum((6 * a + b - a) * (b - a) for a, b in zip(bounds, bounds[1:]))


# Classes and lengths.


def plain_classes(table, counts, indices):
    """The classes by loops over everything, in Python's integers."""
    lengths = [[(sum(row) + len(row), n + 1) for n in row] for row in counts.tolist()]
    features = [[min(int(table.lengths[c, k]) // 32, 255) for k in range(len(lengths[c]))] for c in range(len(lengths))]
    for c, row in enumerate(lengths):
        for k, (total, n) in enumerate(row):
            assert abs(table.lengths[c, k] / 256 - math.log2(total / n)) < .01
    images, height, width, channels = indices.shape
    classes = np.zeros(indices.shape, int)
    bounds = contexts.group_bounds(channels)
    cross, diagonal = ((-1, 0), (1, 0), (0, -1), (0, 1)), ((-1, -1), (1, 1), (1, -1), (-1, 1))

    def mirrored(i, side):
        return -i if i < 0 else 2 * (side - 1) - i if i >= side else i

    for (group, phase), map_ in table._maps.items():
        before, own = table.order[:bounds[group]].tolist(), table.order[bounds[group]:bounds[group + 1]].tolist()
        for n, i, j in np.ndindex(images, height, width):
            if (i + j) % 2 == phase:
                def around(c, places):
                    return sum(features[c][indices[n, mirrored(i + di, height), mirrored(j + dj, width), c]] for di, dj in places)
                x = [around(c, places) for places in (((0, 0),), cross, diagonal) for c in before]
                x += [around(c, cross) for c in own] if phase else []
                for number, c in enumerate(own):
                    predicted = sum(a * int(w) for a, w in zip(x, map_[:, number], strict=True))
                    classes[n, i, j, c] = sum(predicted >= t for t in table.thresholds[c, phase]) + phase * OF_PHASE
    return classes


def test_classes_are_those_of_plain_loops(fitted):
    counts, table = fitted
    indices = textured(1, images=6)
    classes = table.classes(indices)
    np.testing.assert_array_equal(classes, plain_classes(table, counts, indices))
    assert classes.max() == CLASSES - 1 and (np.bincount(classes.ravel()) > 0).all()


def test_distributions_are_powers_of_the_counts(fitted):
    counts, table = fitted
    for c in range(CHANNELS):
        p = (counts[c] + 1) / (counts[c] + 1).sum()
        expected = p ** (table.exponents[c, :, None] / 64)
        expected /= expected.sum(axis=1, keepdims=True)
        weights = table.symbol_weights(c)
        assert weights.min() >= 0 and weights.max() == 2**27 and weights.sum() < 2**38
        np.testing.assert_allclose(weights / weights.sum(axis=1, keepdims=True), expected, rtol=.08, atol=1e-7)
        lengths = np.stack([table.bits(np.full((1, CHANNELS), k), np.full((1, CHANNELS), q))[0, c]
                            for q in range(CLASSES) for k in range(POINTS)]).reshape(CLASSES, POINTS)
        np.testing.assert_allclose(2**-lengths.astype(float), weights / weights.sum(axis=1, keepdims=True), rtol=1e-5, atol=2e-8)


def test_exponents_are_the_best_of_all():
    counts = counts_of(textured(2))
    order, weights, thresholds, exponents = contexts.fit_table(counts, textured(2))
    table = TableContexts(counts, order, weights, thresholds, exponents)
    classes = table.classes(textured(2))
    c = order[-1]
    lengths = table.lengths[c] / 256
    for q in range(CLASSES):
        used = lengths[textured(2)[..., c][classes[..., c] == q]]
        assert len(used) > 50
        prior = contexts.LEAST_COUNT * (2.**-lengths @ lengths) / (2.**-lengths).sum()
        b = np.arange(1, 513) / 64
        bits = b * (used.sum() + prior) + (len(used) + contexts.LEAST_COUNT) * np.log2((2.**(-b[:, None] * lengths)).sum(axis=1))
        assert abs(int(exponents[c, q]) - (np.argmin(bits) + 1)) <= 1


def test_unseen_latents_take_fewer_bits(fitted):
    counts, table = fitted
    indices = textured(5)
    by_counts = contexts.look_up(table.lengths / 256, indices).sum()
    by_context = table.bits(indices, table.classes(indices)).sum()
    assert by_context < .95 * by_counts
    flat = np.random.default_rng(0).permuted(indices.reshape(-1, CHANNELS), axis=0).reshape(indices.shape)  # no surroundings
    nothing = TableContexts(counts, *contexts.fit_table(counts, flat))
    assert abs(nothing.bits(flat, nothing.classes(flat)).sum() / contexts.look_up(table.lengths / 256, flat).sum() - 1) < .02


@pytest.mark.parametrize("images", [1, 3])
def test_latents_without_neighbours_can_be_fitted(images):
    indices = textured(0, images, 1, 1)
    table = TableContexts(counts_of(indices), *contexts.fit_table(counts_of(indices), indices))
    assert table.bits(indices, table.classes(indices)).shape == indices.shape


def test_sums_of_many_code_points_stay_within_what_the_coder_takes():
    """The flattest distributions there are, of as many code points as --max_bits allows."""
    counts = np.ones((2, (2 << 14) - 1), int)
    indices = np.random.default_rng(0).integers(0, counts.shape[1], (2, 3, 4, 2))
    order, weights, thresholds, exponents = contexts.fit_table(counts, indices)
    table = TableContexts(counts, order, weights, thresholds, np.ones_like(exponents))
    assert bitstream.integer_table(table.symbol_weights(0)).sum() == CLASSES * 2**24
    np.testing.assert_allclose(table.bits(indices, table.classes(indices)), np.log2(counts.shape[1]), rtol=1e-3)


def test_a_single_channel_has_its_neighbours():
    counts = np.array([[5, 90, 5]])
    indices = np.random.default_rng(0).integers(0, 3, (2, 3, 4, 1))
    table = TableContexts(counts, *contexts.fit_table(counts, indices))
    classes = table.classes(indices)[..., 0]
    first = np.add.outer(np.arange(3), np.arange(4)) % 2 == 0
    assert (classes[:, first] == OF_PHASE - 1).all()  # nothing is known
    assert (classes[:, ~first] >= OF_PHASE).all() and len(np.unique(classes[:, ~first])) > 1


# Streams.


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (6, 7), (20, 31)])
def test_streams_come_back_and_are_as_long_as_estimated(fitted, height, width):
    _, table = fitted
    coder = bitstream.ContextCoder(table)
    wild = np.random.default_rng(0).integers(0, POINTS, (height, width, CHANNELS)).astype(np.int16)
    for indices in (textured(7, 1, height, width)[0], wild, np.full_like(wild, 0), np.full_like(wild, POINTS - 1)):
        stream = coder.encode(indices)
        np.testing.assert_array_equal(coder.decode(stream, height, width), indices)
        estimated = table.bits(indices[None], table.classes(indices[None])).sum()
        assert -64 <= 8 * len(stream) - estimated <= .005 * estimated + 64
        assert 8 * len(stream) >= coder.least_bits * height * width - bitstream.STREAM_SLACK


def test_streams_with_words_too_few_or_too_many_are_refused(fitted):
    coder = bitstream.ContextCoder(fitted[1])
    indices = textured(3, 1)[0]
    stream = coder.encode(indices)
    for wrong in (b"", stream[:-4], stream[:4], stream + b"\0" * 4, stream * 2, b"\xff" * len(stream)):
        with pytest.raises(ValueError):
            coder.decode(wrong, 6, 7)
    for shape in ((7, 6), (6, 6), (1, 1), (60, 70)):
        with pytest.raises(ValueError):
            coder.decode(stream, *shape)


def test_the_bytes_of_a_stream_are_pinned():
    """If this fails, files that people have can no longer be read: the change takes another version number."""
    counts = np.arange(5 * 15).reshape(5, 15)**3 % 1009
    bounds = contexts.group_bounds(5)
    thresholds = np.tile(np.arange(7) * 200, (5, 2, 1))
    table = TableContexts(counts, np.array([3, 0, 4, 1, 2]), (np.arange(contexts.weight_count(5)) % 7 - 2).astype(np.int16),
                          thresholds, (np.arange(5 * 16).reshape(5, 16) * 2 + 20).astype(np.uint16))
    indices = np.arange(3 * 4 * 5).reshape(3, 4, 5)**2 % 15
    assert bounds == [0, 1, 2, 4, 5]
    assert len(np.unique(table.classes(indices[None]))) == 12
    assert bitstream.ContextCoder(table).encode(indices).hex() == PINNED


PINNED = "5ee38aaec9069fa63c3ba168ba5824705cd5c66a26182e22f06c82801eca97e00eaef2d2"


# Files.


def test_saved_contexts_come_back(tmp_path, fitted):
    counts, _ = fitted
    found = Contexts.of_tables([contexts.fit_table(counts, textured(0)), contexts.fit_table(counts, textured(1))])
    points = np.tile(np.arange(POINTS), (CHANNELS, 1))
    quantizer = ChannelwisePriorCDFQuantizer(points, [1., 4.], np.zeros((2, CHANNELS, 5), int), np.stack([counts, counts]), 3,
                                             np.zeros((2, CHANNELS, POINTS), np.float16), {"seed": 0}, found)
    path = str(tmp_path / "quantizer.npz")
    quantizer.save(path)
    loaded = ChannelwisePriorCDFQuantizer.load(path)
    indices = textured(3)
    for table in (0, 1):
        np.testing.assert_array_equal(loaded.bits(indices, table), quantizer.bits(indices, table))
        np.testing.assert_array_equal(loaded.bits(indices[0], table), quantizer.bits(indices, table)[0])
    assert "contexts_order" not in loaded.provenance

    arrays = utils.load_npz(path)
    wrong_types = [(name, arrays[f"contexts_{name}"].astype(kind)) for name, kind in (
        ("order", float), ("weights", str), ("thresholds", float), ("exponents", np.int64))]
    for name, wrong in (*wrong_types, ("exponents", arrays["contexts_exponents"] + np.uint16(600)), ("order", arrays["contexts_order"] * 0), ("weights", arrays["contexts_weights"][:, :-1]),
                        ("thresholds", arrays["contexts_thresholds"][..., 1:]), ("exponents", arrays["contexts_exponents"] * 0)):
        utils.save_npz(path, {**arrays, f"contexts_{name}": wrong})
        with pytest.raises(utils.UserError, match="quantizer.npz"):
            ChannelwisePriorCDFQuantizer.load(path)
    del arrays["contexts_order"]
    utils.save_npz(path, arrays)
    with pytest.raises(utils.UserError, match="quantizer.npz"):
        ChannelwisePriorCDFQuantizer.load(path)
    with pytest.raises(ValueError, match="passes"):
        ChannelwisePriorCDFQuantizer(points, [1., 4.], np.zeros((2, CHANNELS, 5), int), np.stack([counts, counts]), contexts=found)
