"""The choice of code points at one lambda, with contexts and without."""

import os

import numpy as np
import pytest
from codec_runs import copy_of, golden_fit
from conftest import GOLDEN

from vbq.codebook import CONTEXT_ROUNDS
from vbq.files import load_npz
from vbq.search import cheapest


@pytest.fixture(scope="module")
def quantizers():
    """Fits of four passes to the golden latents, without contexts and with them."""
    adaptive = golden_fit(passes=4, contexts=True)
    return copy_of(adaptive, contexts=None), adaptive


@pytest.fixture(scope="module")
def latents():
    """Posterior mean and standard deviation of an image, float32 [12, 16, 8]."""
    expected = load_npz(os.path.join(GOLDEN, "expected.npz"))
    return expected["mean"][0], np.exp(0.5 * expected["logvar"][0])


def cost(codebook, latents, indices, lamb):
    """What `choose` minimizes, summed over all latents."""
    mean, std = latents
    distortion = np.sum(np.square((codebook.dequantize(indices) - mean) / std, dtype=np.float64)) / 2
    return distortion + lamb * codebook.bits(indices).sum(dtype=np.float64)


def test_without_contexts_it_is_the_search(quantizers, latents):
    plain, _ = quantizers
    for lamb_index, lamb in enumerate(plain.lambs):
        codebook = plain.codebook(lamb_index)
        expected = cheapest(codebook.trees, *latents, lamb)
        np.testing.assert_array_equal(codebook.choose(*latents, lamb), expected)
        assert codebook.classes(expected) is None
        np.testing.assert_array_equal(codebook.choose_in_classes(*latents, lamb, None), expected)


def test_contexts_lower_bits_and_cost(quantizers, latents):
    for lamb_index in (6, 8, 10, 12):
        lamb = quantizers[0].lambs[lamb_index]
        plain, adaptive = (quantizer.codebook(lamb_index) for quantizer in quantizers)
        found = [codebook.choose(*latents, lamb) for codebook in (plain, adaptive)]
        assert cost(adaptive, latents, found[1], lamb) < cost(plain, latents, found[0], lamb)
        # Also of the same code points.
        assert adaptive.bits(found[0]).sum() < plain.bits(found[0]).sum(dtype=np.float64)


def test_a_second_round_lowers_the_cost(quantizers, latents):
    """Without it, `CONTEXT_ROUNDS` could be 1. Choices know the exponents of the classes, but not their
    counts, so that some rise a little.
    """
    mean, std = latents
    gains = []
    for lamb_index in range(4, 14):
        codebook, lamb = quantizers[1].codebook(lamb_index), quantizers[1].lambs[lamb_index]
        indices = cheapest(codebook.trees, mean, std, lamb)
        indices = codebook.choose_in_classes(mean, std, lamb, codebook.classes(indices))
        one_round = cost(codebook, latents, indices, lamb)
        gains.append(1 - cost(codebook, latents, codebook.choose(mean, std, lamb), lamb) / one_round)
    assert np.mean(gains) > 1e-4 and min(gains) > -5e-4


def test_a_choice_is_that_of_all_latents_in_the_classes_of_the_choice_before(quantizers, latents):
    for lamb_index, lamb in enumerate(quantizers[1].lambs):
        codebook = quantizers[1].codebook(lamb_index)
        indices = cheapest(codebook.trees, *latents, lamb)
        for _ in range(CONTEXT_ROUNDS):
            indices = codebook.choose_in_classes(*latents, lamb, codebook.classes(indices))
        np.testing.assert_array_equal(codebook.choose(*latents, lamb), indices)


def test_the_choice_in_given_classes_is_the_best_of_all(quantizers, latents):
    """Every code point is tried, for some latents."""
    mean, std = (x[3:5, 4:7] for x in latents)
    codebook, lamb = quantizers[1].codebook(9), quantizers[1].lambs[9]
    classes = codebook.classes(codebook.choose(mean, std, lamb))
    costs = []
    for k in range(codebook.points.shape[1]):
        indices = np.full(mean.shape, k)
        distortion = np.square((codebook.dequantize(indices) - mean) / std) / 2
        costs.append(distortion + lamb * codebook.bits(indices, classes))
    found = codebook.choose_in_classes(mean, std, lamb, classes)
    chosen = np.take_along_axis(np.stack(costs), found[None], axis=0)[0]
    # Lengths with contexts are rounded to 1/256 bit, twice.
    assert (chosen <= np.min(costs, axis=0) + 2 * lamb / 256).all()


def test_leading_axes_do_not_matter(quantizers, latents):
    mean, std = (np.stack([x, x[::-1]]) for x in latents)
    for quantizer in quantizers:
        codebook = quantizer.codebook(8)
        together = codebook.choose(mean, std, 1.0)
        np.testing.assert_array_equal(together[0], codebook.choose(mean[0], std[0], 1.0))
        np.testing.assert_array_equal(codebook.bits(together)[1], codebook.bits(together[1]))
