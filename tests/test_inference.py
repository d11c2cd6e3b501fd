"""Transforms for inference against those of the layers for training."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN, GOLDEN_RUN, ROOT

from vbq.config import ModelConfig
from vbq.convolutions import convolve_up, upsampling
from vbq.inference import Transforms, weight_shapes
from vbq.transforms import VAE

CONFIG = ModelConfig(num_filters=(20, 18, 5), filter_dims=(9, 5, 3), sampling_rates=(4, 2, 1))


@pytest.fixture(scope="module")
def model():
    """A VAE with random weights; some of beta and gamma are below their bounds."""
    model = VAE(CONFIG)
    random = np.random.default_rng(0)
    model.set_named_weights(
        {
            name: value + random.normal(0, 0.1, value.shape).astype(np.float32)
            for name, value in model.named_weights().items()
        }
    )
    return model


def test_they_compute_what_the_layers_compute(model):
    random = np.random.default_rng(1)
    transforms = Transforms(CONFIG, model.named_weights())
    x = tf.constant(random.random((2, 32, 40, 3), np.float32))
    z = tf.constant(random.normal(size=(2, 4, 5, 5)).astype(np.float32))
    for name, arguments in (
        ("analysis", [x]),
        ("synthesis", [z]),
        ("likelihood_gradient", [z, x[:, :29, :37]]),
    ):
        expected, found = (
            tf.function(getattr(which, name), autograph=False)(*arguments) for which in (model, transforms)
        )
        for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
            if name == "analysis":
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_mixed_precision_differs_by_the_rounding_of_bfloat16(model):
    random = np.random.default_rng(5)
    exact, mixed = (Transforms(CONFIG, model.named_weights(), mixed) for mixed in (False, True))
    x = tf.constant(random.random((2, 32, 40, 3), np.float32))
    z = tf.constant(random.normal(size=(2, 4, 5, 5)).astype(np.float32))
    gains = tuple(random.uniform(0.5, 1.5, (2, 43)).astype(np.float32))
    for name, arguments in (
        ("analysis", [x]),
        ("synthesis", [z]),
        ("synthesis", [z, gains]),
        ("likelihood_gradient", [z, x, gains]),
    ):
        expected, found = (tf.nest.flatten(getattr(which, name)(*arguments)) for which in (exact, mixed))
        for a, b in zip(expected, found, strict=True):
            assert b.dtype == tf.float32
            assert 1e-5 < np.linalg.norm(b - a) / np.linalg.norm(a) < 0.02, name


# Odd and even kernels, and strides that leave some pixels few taps or none.
@pytest.mark.parametrize("high", [3, 20])  # the dense form, and the others
@pytest.mark.parametrize(("size", "stride"), [(5, 2), (4, 2), (3, 1), (9, 4), (4, 3), (5, 4), (2, 3)])
def test_upsampling_is_convolve_up(size, stride, high):
    random = np.random.default_rng(4)
    y, dx, kernel = (
        tf.constant(random.normal(size=shape).astype(np.float32))
        for shape in ((2, 4, 7, 6), (2, 4 * stride, 7 * stride, high), (size, size, high, 6))
    )
    results = []
    for up in (lambda y: convolve_up(y, kernel, stride), upsampling(kernel, stride)):
        with tf.GradientTape() as tape:
            tape.watch(y)
            x = up(y)
        results.append((x, tape.gradient(x, y, dx)))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gains_are_an_affine_map_of_what_enters_a_layer(model):
    transforms, random = Transforms(CONFIG, model.named_weights()), np.random.default_rng(2)
    assert transforms.synthesis_widths == [5, 18, 20]
    z = tf.constant(random.normal(size=(2, 4, 5, 5)).astype(np.float32))
    neutral = np.ones(43, np.float32), np.zeros(43, np.float32)
    np.testing.assert_array_equal(transforms.synthesis(z, neutral), transforms.synthesis(z))
    scales, offsets = random.uniform(0.5, 2, 43).astype(np.float32), random.normal(size=43).astype(np.float32)

    def inputs_with(channels):
        """What enters each layer, with the gains of the first channels only."""
        inputs, first = [], np.arange(43) < channels
        transforms.synthesis(z, (np.where(first, scales, 1), np.where(first, offsets, 0)), inputs)
        return inputs

    for layer, (start, end) in enumerate([(0, 5), (5, 23), (23, 43)]):
        expected = inputs_with(start)[layer] * scales[start:end] + offsets[start:end]
        np.testing.assert_allclose(inputs_with(end)[layer], expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_with_gains_is_that_of_what_is_decoded(model):
    transforms, random = Transforms(CONFIG, model.named_weights()), np.random.default_rng(3)
    z = random.normal(size=(1, 4, 5, 5)).astype(np.float32)
    x = tf.constant(random.random((1, 32, 40, 3), np.float32))
    gains = tuple(random.uniform(0.5, 1.5, (2, 43)).astype(np.float32))
    x_hat, gradient = transforms.likelihood_gradient(tf.constant(z), x, gains)
    np.testing.assert_array_equal(x_hat, transforms.synthesis(tf.constant(z), gains))

    def distortion(z):
        return np.square(transforms.synthesis(tf.constant(z), gains) - x, dtype=np.float64).sum()

    direction = random.normal(size=z.shape).astype(np.float32)
    slope = (distortion(z + 1e-2 * direction) - distortion(z - 1e-2 * direction)) / 2e-2
    expected = np.sum(gradient * direction) * 2 * CONFIG.likelihood_variance
    np.testing.assert_allclose(slope, expected, rtol=2e-2)


def test_they_keep_their_weights(model):
    weights = model.named_weights()
    transforms = Transforms(CONFIG, {**weights, "other": np.zeros(3)})
    found = transforms.named_weights()
    assert found.keys() == weights.keys() and list(weight_shapes(CONFIG)) == list(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)
        assert weight_shapes(CONFIG)[name] == value.shape
        with pytest.raises(ValueError, match="read-only"):  # kernels are made of them later
            found[name][...] = 0


def test_weights_that_do_not_fit_are_told(model):
    weights = model.named_weights()
    del weights["sequential/layer_0/kernel_rdft"]
    weights["sequential_1/layer_2/bias"] = np.zeros(4)
    with pytest.raises(ValueError) as error:
        Transforms(CONFIG, weights)
    assert "layer_0/kernel_rdft: expected shape (81, 60), found nothing" in str(error.value)
    assert "sequential_1/layer_2/bias: expected shape (3,), found (4,)" in str(error.value)


@pytest.mark.slow
def test_a_run_without_a_learned_prior_needs_no_tensorflow_compression():
    """Its import takes a second."""
    code = (
        "import sys; sys.modules['tensorflow_compression'] = None\n"
        "from vbq.runs import load_run; import numpy as np\n"
        f"run = load_run({os.path.join(GOLDEN, 'checkpoints')!r}, {GOLDEN_RUN!r})\n"
        "print(run.decode(run.encode(np.zeros((1, 16, 16, 3), np.uint8))[0]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 16, 16, 3)"
