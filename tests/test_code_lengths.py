"""Code lengths against the original's figures and brute force; what refinement gains."""

import os

import brute_force
import numpy as np
import pytest
from conftest import GOLDEN

from quantizers import ChannelwisePriorCDFQuantizer, Posterior
from vbq import code_lengths
from vbq.code_lengths import fit_counts, histogram, lengths_of_bit_lengths, lengths_of_counts
from vbq.code_points import code_point_bits, code_point_probabilities
from vbq.files import load_npz


def cost_by_lambda(quantizer, mean, std):
    """Distortion + lamb * bits of these latents, at every lambda: float64 [L]."""
    result = []
    for lamb in quantizer.lambs:
        indices = quantizer.encode(Posterior(mean, std), lamb)
        distortion = (quantizer.decode(indices, lamb) - mean) ** 2 / (2 * std**2)
        bits = quantizer.bits(indices, lamb).sum(dtype=np.float64)
        result.append(distortion.sum(dtype=np.float64) + lamb * bits)
    return np.array(result)


# The two passes of the paper.


def test_both_passes_give_the_originals_code_lengths():
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    mean, std = (x.reshape(-1, 8) for x in (expected["val_mean"], np.exp(0.5 * expected["val_logvar"])))
    bit_length_counts, index_counts, shifts = fit_counts(
        expected["code_points"], mean, std, expected["lambs"], passes=2
    )
    assert shifts is None
    np.testing.assert_allclose(
        lengths_of_counts(bit_length_counts), expected["bit_length_code_lengths"], atol=1e-5
    )
    np.testing.assert_allclose(lengths_of_counts(index_counts), expected["index_code_lengths"], atol=1e-5)


def brute_force_choice(points, mean, std, lamb, length_of_bits):
    """The paper's definition, latent by latent: the cheapest of the two n-bit points around the mean, for all
    n. Returns the bit lengths and the ranks of what is chosen, int [B] each.
    """
    max_bits = (len(points) + 1).bit_length() - 2
    best = []
    for mu, sigma in zip(mean.astype(np.float64), std.astype(np.float64)):
        candidates = []
        for n in range(max_bits + 1):
            xi = (np.arange(2**n) + 0.5) / 2**n
            ranks = np.round(xi * (2 << max_bits)).astype(int) - 1
            below, above = ranks[points[ranks] < mu], ranks[points[ranks] >= mu]
            for rank in [*below[-1:], *above[:1]]:
                cost = (points[rank] - mu) ** 2 / (2 * sigma**2) + lamb * length_of_bits[n]
                candidates.append((cost, n, rank))
        best.append(min(candidates))
    return np.array([n for _, n, _ in best]), np.array([rank for _, _, rank in best])


@pytest.mark.parametrize("seed", range(3))
def test_two_passes_equal_brute_force(seed):
    points, mean, std = brute_force.random_latents(seed)
    lambs = [0.02, 0.5, 3.0, 40.0]
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, lambs)
    for lamb_index, lamb in enumerate(lambs):
        indices = quantizer.encode(Posterior(mean, std), lamb)
        bit_length_bits = quantizer.bit_length_bits(indices, lamb)
        for c in range(3):
            n, _ = brute_force_choice(points[c], mean[:, c], std[:, c], lamb, np.arange(5))
            counts = np.bincount(n, minlength=5)
            np.testing.assert_array_equal(quantizer.bit_length_counts[lamb_index, c], counts)
            lengths = np.arange(5) - np.log2((counts + 1) / (counts.sum() + 5))
            np.testing.assert_allclose(quantizer.bit_length_lengths(lamb_index)[c], lengths, 1e-6)
            n, rank = brute_force_choice(points[c], mean[:, c], std[:, c], lamb, lengths)
            expected = np.bincount(rank, minlength=31)
            np.testing.assert_array_equal(quantizer.index_counts[lamb_index, c], expected)
            np.testing.assert_array_equal(indices[:, c], rank)
            np.testing.assert_allclose(bit_length_bits[:, c], lengths[n], 1e-5)


def test_counts_are_smoothed_by_one():
    lengths = lengths_of_counts([[0, 2, 1], [3, 0, 0]])
    assert lengths.dtype == np.float32
    np.testing.assert_allclose(lengths, -np.log2([[1 / 6, 3 / 6, 2 / 6], [4 / 6, 1 / 6, 1 / 6]]), 1e-6)
    of_bits = lengths_of_bit_lengths(np.array([[0, 2, 1]]))
    np.testing.assert_allclose(of_bits, [[0, 1, 2] - np.log2([1 / 6, 3 / 6, 2 / 6])], 1e-6)


def test_histogram_counts_by_channel():
    values, weights = np.array([[0, 2, 2], [1, 1, 1]]), np.array([[1.0, 2.0, 4.0], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(histogram(values, 4), [[1, 0, 2, 0], [0, 3, 0, 0]])
    np.testing.assert_array_equal(histogram(values, 4, weights), [[1, 0, 6, 0], [0, 1.5, 0, 0]])


@pytest.mark.parametrize("passes", [2, 4])
def test_blocks_change_nothing(passes, monkeypatch):
    points, mean, std = brute_force.random_latents(2)
    whole = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.3, 3.0], passes)
    indices = whole.encode(Posterior(mean, std), 1.0)
    for block in (64, 500):
        monkeypatch.setattr(code_lengths, "FIT_BLOCK_LATENTS", block)
        again = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.3, 3.0], passes)
        np.testing.assert_array_equal(again.index_counts, whole.index_counts)
        np.testing.assert_array_equal(again.encode(Posterior(mean, std), 1.0), indices)


# Refinement.


@pytest.mark.parametrize("seed", range(3))
def test_more_passes_never_raise_the_objective(seed):
    points, mean, std = brute_force.random_latents(seed, max_bits=6, positions=3000)
    lambs = 2.0 ** np.arange(-6, 8, 2)
    last = np.full(len(lambs), np.inf)
    for passes in (2, 3, 4, 6, 10, 20):
        quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, lambs, passes)
        value = cost_by_lambda(quantizer, mean, std)
        assert np.all(value <= last * (1 + 1e-9))
        last = value


def test_more_passes_gain_on_other_latents():
    points, mean, std = brute_force.random_latents(0, max_bits=8, channels=2, positions=20000)
    two, three, ten = (
        ChannelwisePriorCDFQuantizer.fit(points, mean[::2], std[::2], [1.0, 16.0], passes)
        for passes in (2, 3, 10)
    )
    two, three, ten = (cost_by_lambda(fit, mean[1::2], std[1::2]) for fit in (two, three, ten))
    assert np.all(ten < 0.97 * two)
    assert np.all(ten < 0.99 * three)


def refit(points, mean, std, chosen, lamb):
    """Refits a channel to what was chosen: counts [K], values of code points [K], lengths [K] and the
    objective.
    """
    counts = 64 * np.bincount(chosen, minlength=len(points))  # so that the 1 of smoothing weighs 1/64
    values = points.copy()
    for k in np.unique(chosen):
        weight = 1 / std[chosen == k].astype(np.float64) ** 2
        values[k] += np.float16(np.average(mean[chosen == k], weights=weight) - points[k])
    lengths = lengths_of_counts(counts)
    distortion = np.sum((values[chosen] - mean) ** 2 / (2 * std.astype(np.float64) ** 2))
    return counts, values, lengths, distortion + lamb * lengths[chosen].sum(dtype=np.float64)


@pytest.mark.parametrize(
    "lamb, seed, positions",
    [(0.05, 0, 200), (0.5, 0, 200), (4.0, 0, 200), (0.01, 3, 60)],  # the last one has an unused bit length
)
def test_a_third_pass_equals_brute_force(lamb, seed, positions):
    """It chooses by counts and code points that were refitted to the second pass, refits these once more, and
    keeps the better of both in every channel. A bit length that the second pass did not use stays unused.
    """
    points, mean, std = brute_force.random_latents(seed, positions=positions)
    two = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [lamb])
    second = two.encode(Posterior(mean, std), lamb)
    _, counts, shifts = fit_counts(points, mean, std, np.array([lamb]), passes=3)
    assert shifts.shape == (1, 3, 31) and shifts.dtype == np.float16
    depth = code_point_bits(4)
    for c in range(3):
        latents = mean[:, c], std[:, c]
        first_fit = refit(points[c], *latents, second[:, c], lamb)
        used = np.isin(depth, depth[second[:, c]])
        lengths = np.where(used, first_fit[2], np.float32(np.inf))
        arrays = (x[None] for x in (points[c], first_fit[1], lengths))
        third = brute_force.cheapest(*arrays, *(x[:, None] for x in latents), lamb)[:, 0]
        best = min(first_fit, refit(points[c], *latents, third, lamb), key=lambda fit: fit[3])
        np.testing.assert_array_equal(counts[0, c], best[0])
        np.testing.assert_allclose(points[c] + shifts[0, c], best[1], atol=2e-3)


def test_refinement_on_a_sample_costs_no_more(monkeypatch):
    random = np.random.default_rng(0)
    mean = random.laplace(size=(20000, 2)).astype(np.float32)
    std = random.uniform(0.1, 0.3, mean.shape).astype(np.float32)
    points = np.quantile(mean, code_point_probabilities(6), axis=0).T
    lambs = 2.0 ** np.arange(-6, 8, 2)

    def cost(passes):
        return cost_by_lambda(ChannelwisePriorCDFQuantizer.fit(points, mean, std, lambs, passes), mean, std)

    two, whole = cost(2), cost(20)
    monkeypatch.setattr(code_lengths, "SAMPLE_LATENTS", 5000)
    sampled = cost(20)
    assert not np.array_equal(sampled, whole)
    assert (sampled < two).all()
    np.testing.assert_allclose(sampled, whole, rtol=0.02)
