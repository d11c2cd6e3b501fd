"""The search against brute force: the costs of all candidates of a latent."""

import os
import warnings

import brute_force
import numpy as np
import pytest
from conftest import GOLDEN

from quantizers import DEFAULT_LAMBS, ChannelwisePriorCDFQuantizer, Posterior
from vbq import search
from vbq.code_points import code_point_bits
from vbq.files import load_npz
from vbq.search import SearchTrees, cheapest, cheapest_of, descend


def latents_of_many_scales(seed, max_bits, channels=3, positions=300):
    return brute_force.random_latents(seed, max_bits, channels, positions, log_std=2.0)


def by_brute_force(quantizer, mean, std, lamb, lamb_index):
    """What the quantizer should choose with the lengths of a lambda of its fit, int [B, C]."""
    codebook, depth = quantizer.codebook(lamb_index), code_point_bits(quantizer.max_bits)
    of_bits = quantizer.bit_length_lengths(lamb_index)[:, depth]
    lengths = of_bits if quantizer.passes == 2 else codebook.lengths
    return brute_force.cheapest(quantizer.code_points, codebook.points, lengths, mean, std, lamb)


@pytest.mark.parametrize("passes", [2, 5])
@pytest.mark.parametrize("max_bits", [1, 4, 10])
def test_choices_are_those_of_brute_force(passes, max_bits):
    points, mean, std = latents_of_many_scales(max_bits, max_bits)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean[::2], std[::2], [0.01, 0.3, 1.0, 40.0], passes)
    for lamb in (1e-9, 0.002, 0.1, 0.7, 3.0, 1e4):
        lamb_index = quantizer.nearest_lamb_index(lamb)
        found = cheapest(quantizer.codebook(lamb_index).trees, mean, std, lamb)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, by_brute_force(quantizer, mean, std, lamb, lamb_index))
        np.testing.assert_array_equal(found, quantizer.encode(Posterior(mean, std), lamb))


@pytest.mark.parametrize("max_bits", [1, 4, 10])
def test_with_lengths_of_bit_lengths_no_other_code_point_is_cheaper(max_bits):
    """Among all code points, not only the neighbours: these have the same length, and are nearer."""
    points, mean, std = latents_of_many_scales(max_bits, max_bits)
    random = np.random.default_rng(max_bits)
    lengths = np.sort(random.gamma(4, 2, size=(3, max_bits + 1)), axis=1).astype(np.float32)
    lengths = lengths[:, code_point_bits(max_bits)]
    trees = SearchTrees.build(points, points, lengths)
    for lamb in (1e-9, 0.1, 3.0, 1e4):
        found = cheapest(trees, mean, std, lamb)
        for c in range(3):
            cost = brute_force.costs(points[c], lengths[c], mean[:, c], std[:, c], lamb)
            np.testing.assert_array_equal(cost[np.arange(len(mean)), found[:, c]], cost.min(axis=1))


@pytest.mark.parametrize("passes", [2, 5])
def test_choices_on_real_latents(passes):
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    quantizer = ChannelwisePriorCDFQuantizer.fit(
        expected["code_points"],
        expected["val_mean"],
        np.exp(0.5 * expected["val_logvar"]),
        expected["lambs"],
        passes,
    )
    mean, std = (x.reshape(-1, 8) for x in (expected["mean"], np.exp(0.5 * expected["logvar"])))
    for lamb_index, lamb in enumerate(DEFAULT_LAMBS):
        indices = cheapest(quantizer.codebook(lamb_index).trees, mean, std, lamb)
        np.testing.assert_array_equal(indices, by_brute_force(quantizer, mean, std, lamb, lamb_index))
        if passes == 2:
            error = quantizer.decode(indices, lamb) - expected["z_hat"][lamb_index].reshape(-1, 8)
            assert np.mean(np.abs(error) < 1e-5) >= 0.999


def test_lengths_of_any_lambda_and_blocks_of_any_size(monkeypatch):
    """With the lengths of another lambda than the nearest, as by a quantizer that has no other."""
    points, mean, std = latents_of_many_scales(0, 4, channels=5, positions=64)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.01, 1.0, 50.0])
    for block in (1 << 16, 100, 7):
        monkeypatch.setattr(search, "BLOCK_LATENTS", block)
        for i in range(3):
            alone = ChannelwisePriorCDFQuantizer(
                points, [1.0], quantizer.bit_length_counts[i : i + 1], quantizer.index_counts[i : i + 1]
            )
            maps = Posterior(mean.reshape(8, 8, 5), std.reshape(8, 8, 5))
            found = cheapest(quantizer.codebook(i).trees, maps.mean, maps.std, 0.4)
            np.testing.assert_array_equal(found, alone.encode(Posterior(mean, std), 0.4).reshape(8, 8, 5))
            np.testing.assert_array_equal(found, quantizer.codebook(i).quantize(maps, 0.4))
            expected = by_brute_force(quantizer, mean, std, 0.4, i)
            np.testing.assert_array_equal(found, expected.reshape(8, 8, 5))


def test_some_latents_choose_what_they_choose_among_all(monkeypatch):
    points, mean, std = latents_of_many_scales(3, 4, channels=5, positions=200)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [1.0], passes=4)
    trees = quantizer.codebook(0).trees
    random = np.random.default_rng(0)
    for lamb in (0.01, 0.7, 30.0):
        expected = cheapest(trees, mean, std, lamb)
        for size in (0, 1, 77, mean.size):
            some = random.permutation(mean.size)[:size]
            monkeypatch.setattr(search, "BLOCK_LATENTS", 50)
            found = cheapest_of(trees, some % 5, mean.take(some), std.take(some), lamb)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, expected.take(some))


def test_code_points_of_infinite_length_are_never_chosen():
    """The root among them; what is left is searched as before."""
    points, mean, std = latents_of_many_scales(2, 4)
    lengths = np.random.default_rng(0).gamma(4, 2, size=points.shape).astype(np.float32)
    lengths[:, code_point_bits(4) % 2 == 0] = np.inf
    found = cheapest(SearchTrees.build(points, points, lengths), mean, std, 0.3)
    assert np.isfinite(np.take_along_axis(lengths, found.T, axis=1)).all()
    expected = brute_force.cheapest(points, points, lengths, mean, std, 0.3)
    np.testing.assert_array_equal(found, expected)


def test_of_equally_cheap_code_points_the_shorter_one_is_taken():
    points = np.array([[-1, 0, 1], [0, 0, 0]], np.float32)
    trees = SearchTrees.build(points, points, np.zeros((2, 3), np.float32))
    mean = np.array([[-0.5, 0.5], [7, 0]], np.float32)  # channel 0: on -1/2 and 1/2; channel 1: all equal
    np.testing.assert_array_equal(descend(trees, mean, np.ones_like(mean), 1.0), [[1, 1], [1, 1]])


def test_extremes_end_in_valid_indices_without_a_warning():
    points, mean, std = latents_of_many_scales(1, 4)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.01, 1.0])
    trees = quantizer.codebook(1).trees
    mean[0], mean[1], std[2], std[3] = 1e9, -1e9, 0, 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lamb in (1e-300, 1.0, 1e300):
            indices = cheapest(trees, mean, std, lamb)
            assert indices.min() >= 0 and indices.max() < points.shape[1]
    assert (indices == indices[4]).all()  # the cheapest
    assert cheapest(trees, mean[:0], std[:0], 1.0).shape == (0, 3)
