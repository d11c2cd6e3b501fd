"""Contexts: classes against plain loops, distributions, their range, and what is saved."""

import math

import numpy as np
import pytest
from codec_runs import TEXTURED_CHANNELS as CHANNELS
from codec_runs import TEXTURED_POINTS as POINTS
from codec_runs import counts_of, textured

from quantizers import ChannelwisePriorCDFQuantizer
from vbq.bitstream import integer_frequencies
from vbq.code_points import look_up
from vbq.command import UserError
from vbq.context_fit import count_in_classes, fit_arrays
from vbq.contexts import (
    CLASSES,
    CLASSES_OF_PHASE,
    MOST_LATENTS,
    PRIOR_LATENTS,
    WEIGHT_UNIT,
    CodingOrder,
    ContextModel,
    Contexts,
    exact_float,
)
from vbq.files import load_npz, save_npz
from vbq.surroundings import group_bounds


@pytest.fixture(scope="module")
def fitted():
    """Counts, and the `ContextModel` that is fitted to `textured(0)`."""
    counts = counts_of(textured(0))
    return counts, ContextModel(counts, *fit_arrays(counts, textured(0)))


@pytest.fixture(scope="module")
def counted(fitted):
    """Counts, the model of `fitted`, and the same with class counts; one code point in five has no count."""
    counts = fitted[0] * (np.arange(POINTS) % 5 > 0)
    arrays = fit_arrays(counts, textured(0))
    plain = ContextModel(counts, *arrays)
    return counts, plain, ContextModel(counts, *arrays, count_in_classes(plain, textured(0)))


# Classes.


def plain_classes(model, counts, indices):
    """The classes by loops over everything, in Python's integers."""
    lengths = [[(sum(row) + len(row), n + 1) for n in row] for row in counts.tolist()]
    features = [
        [min(int(model.lengths[c, k]) // 32, 255) for k in range(len(lengths[c]))]
        for c in range(len(lengths))
    ]
    for c, row in enumerate(lengths):
        for k, (total, n) in enumerate(row):
            assert abs(model.lengths[c, k] / 256 - math.log2(total / n)) < 0.01
    images, height, width, channels = indices.shape
    classes = np.zeros(indices.shape, int)
    bounds = group_bounds(channels)
    cross, diagonal = ((-1, 0), (1, 0), (0, -1), (0, 1)), ((-1, -1), (1, 1), (1, -1), (-1, 1))

    def mirrored(i, side):
        return -i if i < 0 else 2 * (side - 1) - i if i >= side else i

    def around(c, position, places):
        n, i, j = position
        here = [(mirrored(i + di, height), mirrored(j + dj, width)) for di, dj in places]
        return sum(features[c][indices[n, row, column, c]] for row, column in here)

    for (group, phase), map_ in model._maps.items():
        before = model.order[: bounds[group]].tolist()
        own = model.order[bounds[group] : bounds[group + 1]].tolist()
        for position in np.ndindex(images, height, width):
            if sum(position[1:]) % 2 == phase:
                x = [around(c, position, places) for places in (((0, 0),), cross, diagonal) for c in before]
                x += [around(c, position, cross) for c in own] if phase else []
                for number, c in enumerate(own):
                    predicted = sum(a * int(w) for a, w in zip(x, map_[number], strict=True))
                    reached = sum(predicted >= t for t in model.thresholds[c, phase])
                    classes[(*position, c)] = reached + phase * CLASSES_OF_PHASE
    return classes


@pytest.mark.parametrize("dtype, factor, exact", [(np.int8, 1, np.float32), (np.int16, 257, np.float64)])
def test_classes_are_those_of_plain_loops(fitted, dtype, factor, exact):
    """Weights of 8 bits are multiplied in float32, those of 16 bits, as in old fits, in float64."""
    counts, _ = fitted
    order, weights, thresholds, exponents = fit_arrays(counts, textured(0))
    assert weights.dtype == np.int8
    weights, thresholds = weights.astype(dtype) * dtype(factor), thresholds * factor
    thresholds[order[1], :, -1] = 1 << 60  # no prediction reaches it
    thresholds[order[2], :, 0] = -1 << 60
    model = ContextModel(counts, order, weights, thresholds, exponents)
    assert exact in {map_.dtype.type for map_ in model._maps.values()}
    indices = textured(1, images=6)
    classes = model.classes(indices)
    np.testing.assert_array_equal(classes, plain_classes(model, counts, indices))
    assert classes.max() == CLASSES - 1 and (np.bincount(classes.ravel()) > 0).all()


def test_predictions_are_computed_in_floats_that_hold_them():
    """The largest sum of a map, of features up to 255 in fours, is below 2^24 in float32."""
    map_ = np.array([[-16000, 16000], [449, 448]])
    assert 4 * 255 * (16000 + 449) >= 1 << 24 > 4 * 255 * (16000 + 448)
    assert exact_float(map_, 255) is np.float64
    assert exact_float(map_[:, 1:], 255) is exact_float(map_, 254) is np.float32
    assert exact_float(np.zeros((0, 3), np.int8), 255) is np.float32


def test_a_walk_visits_every_latent_once_and_tells_its_class(fitted):
    _, model = fitted
    indices = textured(1, images=2)
    order = model.coding_order(indices.shape[:-1])
    classes, features = order.rows(model.classes(indices)), order.rows(look_up(model.features, indices))
    visits = np.zeros(features.shape, int)
    for step in model.walk(order):
        np.testing.assert_array_equal(step.classes, classes[step.here])
        np.testing.assert_array_equal(step.channels, model.order[step.here[0]])
        visits[step.here] += 1
        step.features = features[step.here]
    assert (visits == 1).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (1, 1, 5)])
def test_rows_are_latents_in_the_order_of_coding(shape):
    """Channels in their order; first the positions whose row and column have an even sum."""
    channels = np.array([3, 0, 4, 1, 2])
    order = CodingOrder(shape, channels)
    x = np.random.default_rng(0).integers(0, 100, (*shape, 5))
    rows = order.rows(x)
    places = sorted(np.ndindex(*shape), key=lambda place: sum(place[1:]) % 2)
    assert rows.tolist() == [[int(x[(*place, c)]) for place in places] for c in channels]
    np.testing.assert_array_equal(order.image(rows), x)


def test_a_walk_without_features_fails_at_once(fitted):
    model = fitted[1]
    steps = model.walk(model.coding_order((1, 4, 4)))
    next(steps).features = np.zeros((1, 8), np.uint8)
    next(steps)
    with pytest.raises(RuntimeError, match="features"):
        next(steps)


def test_predictions_do_not_depend_on_how_many_are_computed_at_a_time(fitted, monkeypatch):
    _, model = fitted
    indices = textured(1, images=6)
    classes = model.classes(indices)
    monkeypatch.setattr("vbq.contexts.BLOCK_POSITIONS", 5)
    np.testing.assert_array_equal(model.classes(indices), classes)


def test_a_single_channel_has_its_neighbours():
    counts = np.array([[5, 90, 5]])
    indices = np.random.default_rng(0).integers(0, 3, (2, 3, 4, 1))
    model = ContextModel(counts, *fit_arrays(counts, indices))
    classes = model.classes(indices)[..., 0]
    first = np.add.outer(np.arange(3), np.arange(4)) % 2 == 0
    assert (classes[:, first] == CLASSES_OF_PHASE - 1).all()  # nothing is known
    assert (classes[:, ~first] >= CLASSES_OF_PHASE).all() and len(np.unique(classes[:, ~first])) > 1


# Distributions.


def weights_of_points(model, channel):
    """Weights of all code points of a channel, int [Q, K]."""
    some = model.symbols.of_channel(channel)
    return model.weights[:, some].repeat(model.symbols.sizes[some], axis=1)


def test_distributions_are_powers_of_the_counts(fitted):
    counts, model = fitted
    for c in range(CHANNELS):
        p = (counts[c] + 1) / (counts[c] + 1).sum()
        expected = p ** (model.exponents[c, :, None] / 64)
        expected /= expected.sum(axis=1, keepdims=True)
        weights = weights_of_points(model, c)
        assert weights.min() >= 0 and weights.max() == 2**27 and weights.sum() < 2**38
        found = weights / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=0.08, atol=1e-7)
        lengths = np.stack(
            [
                model.bits(np.full((1, CHANNELS), k), np.full((1, CHANNELS), q))[0, c]
                for q in range(CLASSES)
                for k in range(POINTS)
            ]
        ).reshape(CLASSES, POINTS)
        np.testing.assert_allclose(2 ** -lengths.astype(float), found, rtol=1e-5, atol=2e-8)


def test_the_counts_of_a_class_are_mixed_with_the_power(counted):
    counts, plain, model = counted
    for c in range(CHANNELS):
        some = model.symbols.of_channel(c)
        counted_points = model._class_counts[:, some].repeat(model.symbols.sizes[some], axis=1)
        expected = weights_of_points(plain, c) / weights_of_points(plain, c).sum(axis=1, keepdims=True)
        expected = counted_points + PRIOR_LATENTS * expected
        weights = weights_of_points(model, c)
        assert weights.sum(axis=1).max() < 2**39
        np.testing.assert_allclose(weights / WEIGHT_UNIT, expected, atol=1e-4)


def test_each_class_counts_the_symbols_of_its_latents(counted):
    counts, plain, model = counted
    indices, symbols = textured(0), plain.symbols
    classes = plain.classes(indices)
    for c in range(CHANNELS):
        for number in range(*symbols.starts[c : c + 2]):
            took = indices[..., c] == symbols.points[number]  # -1 of shared symbols is no index
            expected = np.bincount(classes[..., c][took], minlength=CLASSES)
            np.testing.assert_array_equal(model._class_counts[:, number], expected)


def test_counts_of_too_many_latents_are_refused(counted):
    counts, plain, model = counted
    class_counts = model._class_counts * (MOST_LATENTS // 100)
    with pytest.raises(ValueError, match="latents"):
        ContextModel(counts, *fit_arrays(counts, textured(0)), class_counts)


def test_sums_of_many_code_points_stay_within_what_the_coder_takes():
    """The flattest distributions possible, of as many code points as --max_bits allows."""
    counts = np.ones((2, (2 << 14) - 1), int)
    indices = np.random.default_rng(0).integers(0, counts.shape[1], (2, 3, 4, 2))
    order, weights, thresholds, exponents = fit_arrays(counts, indices)
    model = ContextModel(counts, order, weights, thresholds, np.ones_like(exponents))
    assert integer_frequencies(weights_of_points(model, 0)).sum() == CLASSES * 2**24
    bits = model.bits(indices, model.classes(indices))
    np.testing.assert_allclose(bits, np.log2(counts.shape[1]), rtol=1e-3)


# Files.


def wrong_arrays(arrays):
    """Damaged arrays of contexts: pairs of a key and an array."""
    order, weights, thresholds, exponents = (arrays[f"contexts_{name}"] for name in Contexts.NAMES)
    yield "order", order.astype(float)
    yield "weights", weights.astype(str)
    yield "thresholds", thresholds.astype(float)
    yield "exponents", exponents.astype(np.int64)
    yield "exponents", exponents + np.uint16(600)
    yield "order", order * 0
    yield "weights", weights[:, :-1]
    yield "thresholds", thresholds[..., 1:]
    yield "exponents", exponents * 0
    starts, class_counts = (arrays[f"contexts_{name}"] for name in Contexts.COUNT_NAMES)
    yield "symbol_starts", starts[:-1]
    yield "symbol_starts", starts + np.array([0, 1, 0])
    yield "symbol_starts", starts.astype(np.int32)
    yield "class_counts", class_counts.astype(np.int64)
    yield "class_counts", class_counts[:-1]
    yield "class_counts", class_counts[:, :-1]
    yield "class_counts", class_counts.ravel()


def quantizer_with_contexts(counts, passes=3, shifts=True):
    fits, class_counts = [], []
    for seed in (0, 1):
        fits.append(fit_arrays(counts, textured(seed)))
        class_counts.append(count_in_classes(ContextModel(counts, *fits[-1]), textured(seed)))
    return ChannelwisePriorCDFQuantizer(
        np.tile(np.arange(POINTS), (CHANNELS, 1)),
        [1.0, 4.0],
        np.zeros((2, CHANNELS, 5), int),
        np.stack([counts, counts]),
        passes,
        np.zeros((2, CHANNELS, POINTS), np.float16) if shifts else None,
        {"seed": 0},
        Contexts.stack(fits, class_counts),
    )


def test_saved_contexts_come_back(tmp_path, fitted):
    quantizer = quantizer_with_contexts(fitted[0])
    path = str(tmp_path / "quantizer.npz")
    quantizer.save(path)
    loaded = ChannelwisePriorCDFQuantizer.load(path)
    indices = textured(3)
    for lamb in quantizer.lambs:
        bits = quantizer.bits(indices, lamb)
        np.testing.assert_array_equal(loaded.bits(indices, lamb), bits)
        np.testing.assert_array_equal(loaded.bits(indices[0], lamb), bits[0])
    assert "contexts_order" not in loaded.provenance and loaded.provenance == quantizer.provenance


def test_damaged_contexts_are_told(tmp_path, fitted):
    path = str(tmp_path / "quantizer.npz")
    quantizer_with_contexts(fitted[0]).save(path)
    arrays = load_npz(path)
    for name, wrong in wrong_arrays(arrays):
        save_npz(path, {**arrays, f"contexts_{name}": wrong})
        with pytest.raises(UserError, match="quantizer.npz"):
            ChannelwisePriorCDFQuantizer.load(path)
    for name in "order", "symbol_starts", "class_counts":
        save_npz(path, {key: x for key, x in arrays.items() if key != f"contexts_{name}"})
        with pytest.raises(UserError, match="quantizer.npz"):
            ChannelwisePriorCDFQuantizer.load(path)


def test_two_passes_have_no_contexts(fitted):
    with pytest.raises(ValueError, match="passes"):
        quantizer_with_contexts(fitted[0], passes=2, shifts=False)
