"""The search at a single lambda against the quantizer's own choice."""
import os
import warnings

import numpy as np
import pytest

import tree_search
import utils
from quantizers import DEFAULT_LAMBS, ChannelwisePriorCDFQuantizer

GOLDEN = os.path.join(os.path.dirname(__file__), "golden")


def problem(seed, max_bits, channels=3, positions=300):
    """Code points, means (some on code points, some beyond all) and stds of many scales."""
    random = np.random.default_rng(seed)
    points = np.sort(random.normal(size=(channels, (2 << max_bits) - 1)), axis=1).astype(np.float32)
    mean = random.normal(scale=2., size=(positions, channels)).astype(np.float32)
    mean[::7] = points[:, points.shape[1] // 3]
    return points, mean, np.exp(random.normal(-2, 2, size=mean.shape)).astype(np.float32)


@pytest.mark.parametrize("passes", [2, 5])
@pytest.mark.parametrize("max_bits", [1, 4, 10])
def test_choices_are_those_of_the_quantizer(passes, max_bits):
    points, mean, std = problem(max_bits, max_bits)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean[::2], std[::2], [.01, .3, 1., 40.], passes)
    for lamb in (1e-9, .002, .1, .7, 3., 1e4):
        found = tree_search.quantize(quantizer, mean, std, lamb, quantizer.nearest_table(lamb))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, quantizer.quantize(mean, std, lamb))


@pytest.mark.parametrize("passes", [2, 5])
def test_choices_on_real_latents(passes):
    expected = utils.load_npz(os.path.join(GOLDEN, "expected.npz"))
    quantizer = ChannelwisePriorCDFQuantizer.fit(expected["code_points"], expected["val_mean"], np.exp(.5 * expected["val_logvar"]),
                                                 expected["lambs"], passes)
    mean, std = expected["mean"], np.exp(.5 * expected["logvar"])
    for table, lamb in enumerate(DEFAULT_LAMBS):
        indices = tree_search.quantize(quantizer, mean, std, lamb, table)
        np.testing.assert_array_equal(indices, quantizer.quantize(mean, std, lamb))
        if passes == 2:
            assert np.mean(np.abs(quantizer.dequantize(indices, table)[0] - expected["z_hat"][table]) < 1e-5) >= .999


def test_any_table_and_any_block(monkeypatch):
    """With another table than the nearest, the choice is that of a quantizer that has no other."""
    points, mean, std = problem(0, 4, channels=5, positions=64)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [.01, 1., 50.])
    for block in (1 << 16, 100, 7):
        monkeypatch.setattr(tree_search, "BLOCK", block)
        for table in range(3):
            alone = ChannelwisePriorCDFQuantizer(points, [1.], quantizer.bit_length_counts[table:table + 1],
                                                 quantizer.index_counts[table:table + 1])
            found = tree_search.quantize(quantizer, mean.reshape(8, 8, 5), std.reshape(8, 8, 5), .4, table)
            np.testing.assert_array_equal(found, alone.quantize(mean, std, .4).reshape(8, 8, 5))


def test_extremes_end_in_valid_indices_without_a_warning():
    points, mean, std = problem(1, 4)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [.01, 1.])
    mean[0], mean[1], std[2], std[3] = 1e9, -1e9, 0, 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lamb in (1e-300, 1., 1e300):
            indices = tree_search.quantize(quantizer, mean, std, lamb, 1)
            assert indices.min() >= 0 and indices.max() < points.shape[1]
    assert (indices == indices[4]).all()  # the cheapest
    assert tree_search.quantize(quantizer, mean[:0], std[:0], 1., 1).shape == (0, 3)
