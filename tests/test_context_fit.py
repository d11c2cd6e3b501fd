"""The fit of contexts: exponents against all others, bits of unseen latents, and what its constants gain."""

import numpy as np
import pytest
from codec_runs import TEXTURED_CHANNELS as CHANNELS
from codec_runs import copy_of, counts_of, golden_fit, textured, validation_latents

from vbq import context_fit
from vbq.code_points import look_up
from vbq.context_fit import count_in_classes, fit_arrays, fit_contexts, regression
from vbq.contexts import CLASSES, ContextModel


def bits_of_counts(counts, indices):
    """Bits that latents take without contexts."""
    return look_up(ContextModel(counts, *fit_arrays(counts, indices[:1])).lengths / 256, indices).sum()


def bits_of(model, indices):
    """Bits that latents take with contexts."""
    return model.bits(indices, model.classes(indices)).sum()


def test_exponents_are_the_best_of_all():
    indices = textured(2)
    counts = counts_of(indices)
    order, weights, thresholds, exponents = fit_arrays(counts, indices)
    model = ContextModel(counts, order, weights, thresholds, exponents)
    classes = model.classes(indices)
    c = order[-1]
    lengths = model.lengths[c] / 256
    for q in range(CLASSES):
        used = lengths[indices[..., c][classes[..., c] == q]]
        assert len(used) > 50
        prior = context_fit.PSEUDO_COUNT * (2.0**-lengths @ lengths) / (2.0**-lengths).sum()
        b = np.arange(1, 513) / 64
        log_sums = np.log2((2.0 ** (-b[:, None] * lengths)).sum(axis=1))
        bits = b * (used.sum() + prior) + (len(used) + context_fit.PSEUDO_COUNT) * log_sums
        assert abs(int(exponents[c, q]) - (np.argmin(bits) + 1)) <= 1


def test_unseen_latents_take_fewer_bits():
    counts, indices = counts_of(textured(0)), textured(5)
    model = ContextModel(counts, *fit_arrays(counts, textured(0)))
    assert bits_of(model, indices) < 0.95 * bits_of_counts(counts, indices)


def test_latents_whose_surroundings_tell_nothing_take_as_many_bits_as_by_counts():
    counts, indices = counts_of(textured(0)), textured(5)
    shuffled = np.random.default_rng(0).permuted(indices.reshape(-1, CHANNELS), axis=0).reshape(indices.shape)
    model = ContextModel(counts, *fit_arrays(counts, shuffled))
    assert abs(bits_of(model, shuffled) / bits_of_counts(counts, shuffled) - 1) < 0.02


def test_the_counts_of_classes_save_bits_of_unseen_latents():
    few, many = textured(0), textured(0, images=400)
    for indices, most in ((few, 1), (many, 0.99)):
        counts = counts_of(indices)
        arrays = fit_arrays(counts, indices)
        plain = ContextModel(counts, *arrays)
        counted = ContextModel(counts, *arrays, count_in_classes(plain, indices))
        assert bits_of(counted, textured(5)) < most * bits_of(plain, textured(5))


def test_a_fit_takes_an_even_sample_of_many_images(monkeypatch):
    plain, (mean, std) = golden_fit(passes=4), validation_latents()
    step = -(-mean[..., 0].size // 70)
    assert step > 1

    def fit(mean, std):
        return fit_contexts(plain.codebook, plain.index_counts, plain.lambs, mean, std).arrays()

    expected = fit(mean[::step], std[::step])
    monkeypatch.setattr(context_fit, "MOST_POSITIONS", 70)
    for name, x in fit(mean, std).items():
        np.testing.assert_array_equal(x, expected[name])


@pytest.mark.parametrize("images", [1, 3])
def test_latents_without_neighbours_can_be_fitted(images):
    indices = textured(0, images, 1, 1)
    model = ContextModel(counts_of(indices), *fit_arrays(counts_of(indices), indices))
    assert model.bits(indices, model.classes(indices)).shape == indices.shape


def test_real_latents_take_fewer_bits_than_by_counts():
    quantizer = golden_fit(passes=4, contexts=True)
    plain, (mean, std) = copy_of(quantizer, contexts=None), validation_latents()
    for lamb_index in (4, 8, 12):
        lamb = plain.lambs[lamb_index]
        indices = plain.codebook(lamb_index).choose(mean, std, lamb)
        model = quantizer.codebook(lamb_index).contexts
        assert isinstance(model, ContextModel)
        assert bits_of(model, indices) < plain.bits(indices, lamb).sum(dtype=np.float64)


# What the constants gain, on latents that the fit has not seen.


def unseen_bits(channels, images):
    """Bits of latents under contexts that are fitted to a few images of others."""
    counts = counts_of(textured(99, 100, channels=channels))
    model = ContextModel(counts, *fit_arrays(counts, textured(0, images, channels=channels)))
    return bits_of(model, textured(55, 20, channels=channels))


def test_the_pseudo_count_saves_bits_where_classes_have_few_latents(monkeypatch):
    smoothed = unseen_bits(32, 3)
    monkeypatch.setattr(context_fit, "PSEUDO_COUNT", 0.001)
    assert unseen_bits(32, 3) > 1.3 * smoothed


def test_the_ridge_saves_bits_where_features_are_many(monkeypatch):
    with_ridge = unseen_bits(128, 12)
    monkeypatch.setattr(context_fit, "RIDGE", 0)
    assert unseen_bits(128, 12) > 1.015 * with_ridge


@pytest.mark.parametrize("seed", range(3))
def test_regression_predicts_from_as_many_features_as_latents(seed):
    """The least-squares map alone fits the noise: its correlation is below 0.9."""
    random = np.random.default_rng(seed)

    def draw(latents):
        x = random.integers(20, 80, (latents, 1)) + random.integers(0, 20, (latents, 100))
        y = 8 * x[:, :4].sum(axis=1, keepdims=True) + random.integers(0, 200, (latents, 1))
        return x.astype(np.uint16), y.astype(np.int32)

    map_ = regression(*draw(100))
    assert np.abs(map_).max() == 127 and (map_ == np.round(map_)).all()
    x, y = draw(2000)
    assert np.corrcoef((x @ map_)[:, 0], y[:, 0])[0, 1] > 0.94


def test_regression_finds_a_linear_map_up_to_its_scale():
    x = np.random.default_rng(0).integers(0, 255, (4000, 6)).astype(np.uint16)
    true = np.array([[4, 0], [-2, 1], [0, 1], [1, 0], [0, -3], [3, 2]])
    map_ = regression(x, (x.astype(np.int64) @ true).astype(np.int32))
    np.testing.assert_allclose(map_ / 127, true / np.abs(true).max(axis=0), atol=5e-3)
