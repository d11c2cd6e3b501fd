"""The variational autoencoder."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from small_runs import TINY

from vbq.transforms import LOG_2PI, VAE


def test_loss_is_the_negative_evidence_lower_bound():
    model = VAE(dataclasses.replace(TINY, likelihood_variance=0.01))
    rng = np.random.default_rng(0)
    x = rng.random((2, 8, 12, 3), np.float32)
    noise = rng.standard_normal((2, 2, 3, 3), np.float32)
    outputs = {name: np.asarray(value, np.float64) for name, value in model.loss(x, noise).items()}
    mean, logvar = (np.asarray(a, np.float64) for a in model.analysis(x))
    std = np.exp(logvar / 2)
    z = mean + std * noise
    x_hat = model.synthesis(z.astype(np.float32)).numpy()
    likelihood = scipy.stats.norm.logpdf(x, x_hat, 0.1).sum() / 2
    kl = (scipy.stats.norm.logpdf(z, mean, std) - scipy.stats.norm.logpdf(z)).sum() / 2
    mse = np.mean((x - x_hat) ** 2)
    np.testing.assert_allclose(outputs["x_hat"], x_hat, atol=1e-6)
    for name, value in {
        "likelihood": likelihood,
        "kl": kl,
        "elbo": likelihood - kl,
        "loss": kl - likelihood,
        "mse": mse,
        "psnr": -10 * np.log10(mse),
    }.items():
        assert outputs[name] == pytest.approx(value, rel=1e-4), name


def test_likelihood_gradient_is_that_of_the_decoded_and_cropped_image():
    model = VAE(TINY)
    rng = np.random.default_rng(0)
    z, x = rng.standard_normal((1, 3, 2, 3), np.float32), rng.random((1, 10, 7, 3), np.float32)
    x_hat, gradient = model.likelihood_gradient(tf.constant(z), tf.constant(x))
    np.testing.assert_array_equal(x_hat, model.synthesis(z)[:, :10, :7])

    def distortion(z):
        decoded = np.asarray(model.synthesis(z)[:, :10, :7], np.float64)
        return np.sum((x - decoded) ** 2) / (2 * TINY.likelihood_variance)

    direction = rng.standard_normal(z.shape).astype(np.float32)
    difference = distortion(z + 1e-2 * direction) - distortion(z - 1e-2 * direction)
    assert difference / 2e-2 == pytest.approx(np.sum(gradient * direction), rel=1e-2)


def test_learned_prior_replaces_the_standard_normal():
    model = VAE(dataclasses.replace(TINY, learned_prior=True, prior_init_scale=5.0))
    x, noise = np.full((1, 8, 8, 3), 0.5, np.float32), np.zeros((1, 2, 2, 3), np.float32)
    z, logvar = model.analysis(x)
    log_q = np.sum(-0.5 * (logvar + LOG_2PI))
    assert model.loss(x, noise)["kl"].numpy() == pytest.approx(
        log_q - np.sum(model.prior.log_prob(z)), rel=1e-5
    )
    assert sum(name.startswith("prior/") for name in model.named_weights()) == 11
    assert len(model.trainable_variables) == len(model.named_variables)


def test_mixed_precision_computes_only_products_in_bfloat16():
    exact, mixed = VAE(TINY), VAE(TINY, mixed_precision=True)
    mixed.set_named_weights(exact.named_weights())
    conv, gdn = mixed.analysis_layers[0]
    x, noise = np.random.default_rng(0).random((2, 16, 16, 3), np.float32), np.zeros((2, 4, 4, 3), np.float32)
    assert conv(x).dtype == tf.bfloat16 and gdn(conv(x)).dtype == tf.float32
    assert gdn.product_dtype == "bfloat16" and exact.analysis_layers[0][1].product_dtype == "float32"
    assert all(v.dtype == tf.float32 for v in mixed.trainable_variables)
    found, expected = (model.loss(x, noise)["loss"] for model in (mixed, exact))
    assert found.dtype == tf.float32 and float(found) == pytest.approx(float(expected), rel=0.02)


def test_weights_round_trip_by_name_and_misfits_change_nothing():
    one, two = VAE(TINY), VAE(TINY)
    weights = one.named_weights()
    assert weights["sequential_1/layer_0/igdn_0/reparam_gamma"].shape == (4, 4)
    two.set_named_weights(weights)
    for name, value in two.named_weights().items():
        np.testing.assert_array_equal(value, weights[name])
    changed = {name: value + 1 for name, value in weights.items()}
    del changed["sequential_1/layer_1/bias"]
    with pytest.raises(ValueError, match=r"sequential_1/layer_1/bias: expected shape \(3,\), found nothing"):
        two.set_named_weights(changed)
    np.testing.assert_array_equal(
        two.named_weights()["sequential/layer_0/bias"], weights["sequential/layer_0/bias"]
    )


def test_learned_prior_is_the_density_of_the_empirical_prior():
    """Names, shapes and order of its variables are those of `vbq.priors`, and so is the log density."""
    from vbq.priors import DeepFactorizedPrior

    model = VAE(dataclasses.replace(TINY, learned_prior=True))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(value.shape) for name, value in model.named_weights().items()}
    model.set_named_weights(weights)
    arrays = {name.removeprefix("prior/"): v for name, v in weights.items() if name.startswith("prior/")}
    assert arrays["matrix_1"].shape == (3, 3, 3) and arrays["matrix_3"].shape == (3, 1, 3)
    assert arrays["bias_0"].shape == arrays["factor_2"].shape == (3, 3, 1) and len(arrays) == 11
    prior = DeepFactorizedPrior.from_arrays(arrays)
    z = 3 * rng.standard_normal((2, 4, 5, 3))
    expected = prior.log_prob(z.reshape(-1, 3).T).T.reshape(z.shape)
    np.testing.assert_allclose(model.prior.log_prob(z.astype(np.float32)), expected, rtol=1e-4, atol=1e-4)
