"""Transforms tile by tile against those of the whole image, and the gradient of the likelihood."""

import numpy as np
import pytest
from codec_runs import CHECKPOINTS
from conftest import GOLDEN_RUN

from vbq import tiling
from vbq.config import ModelConfig
from vbq.images import to_uint8
from vbq.runs import Run, load_run


@pytest.fixture(scope="module")
def run():
    """The golden run."""
    return load_run(CHECKPOINTS, GOLDEN_RUN)


def new_run(filters, sizes, rates):
    """A run of a model with random weights, and a bias, so that zeros beyond the edges are not neutral."""
    import tensorflow as tf

    from vbq.transforms import VAE

    tf.keras.utils.set_random_seed(1)
    model = VAE(ModelConfig(tuple(filters), tuple(sizes), tuple(rates)))
    for layers in (model.analysis_layers, model.synthesis_layers):
        for conv, _ in layers:
            if conv.use_bias:
                conv.bias_parameter.assign(tf.fill(conv.bias_parameter.shape, 0.3))
    return Run("no/run", {}, 0, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "filters, sizes, rates",
    [
        ([8, 8, 8], [9, 5, 5], [4, 2, 2]),
        ([4, 4], [8, 6], [4, 4]),
        ([4, 4, 4, 4], [3, 4, 7, 5], [2, 2, 2, 2]),
        ([6], [21], [8]),
    ],
)
def test_results_are_those_of_one_tile(china, monkeypatch, filters, sizes, rates):
    run = new_run(filters, sizes, rates)
    image = china[:183, :250]
    mean, std = tiling.encode(run, image)
    z = np.round(mean * 8) / 8
    x_hat = run.decode(z[None], *image.shape[:2])[0]
    error, gradient = tiling.likelihood(run, image)(z)
    for side in (16, 48, 80):
        monkeypatch.setattr(tiling, "TILE_PIXELS", side)
        for found, whole in zip(tiling.encode(run, image), (mean, std)):
            np.testing.assert_allclose(found, whole, atol=1e-5, rtol=1e-5)
        decoded = tiling.decode(run, lambda some: some, z, *image.shape[:2])
        rounded = decoded - np.clip(x_hat, 0, 1) * 255
        assert np.abs(rounded).max() < 0.5 + 255e-5
        found = tiling.likelihood(run, image)(z)
        np.testing.assert_allclose(found[0], error, rtol=1e-5)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("height, width", [(1, 1), (250, 188), (64, 65), (1, 10000), (700, 1000)])
@pytest.mark.parametrize("margins", [1, 2])
def test_tiles_are_bounded_and_cover_everything_once(run, height, width, margins):
    seen = np.zeros((height, width), int)
    for tile, padded, inside in tiling.tiles(run, height, width, margins):
        seen[tile] += 1
        shape = np.empty((height, width))[padded].shape
        assert max(shape) <= 64 + 2 * 2 * margins
        assert np.empty(shape)[inside].shape == seen[tile].shape
        for part, outer, inner in zip(tile, padded, inside):
            assert outer.start + inner.start == part.start
    assert (seen == 1).all()


@pytest.mark.parametrize("height, width", [(64, 96), (50, 33)])
def test_the_likelihood_is_that_of_the_decoded_image_and_its_gradient_is_right(run, china, height, width):
    """The derivative along random directions, against differences; and steps down reduce the error."""
    image = china[:height, :width]
    likelihood = tiling.likelihood(run, image)
    z, _ = tiling.encode(run, image)
    z = np.round(z * 2) / 2
    error, gradient = likelihood(z)
    x_hat = run.decode(z[None], height, width)[0].astype(np.float64)
    expected = np.sum((image / 255 - x_hat) ** 2) / (2 * run.args["likelihood_variance"])
    np.testing.assert_allclose(error, expected, rtol=1e-5)
    random = np.random.default_rng(0)
    for _ in range(3):
        direction = random.normal(size=z.shape).astype(np.float32)
        step = np.float32(1e-2)
        ends = [likelihood(z + sign * step * direction)[0] for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        expected = np.sum(gradient * direction, dtype=np.float64)
        np.testing.assert_allclose(slope, expected, rtol=1e-2, atol=1e-3 * np.linalg.norm(gradient))
    assert likelihood(z - 1e-3 * gradient / np.abs(gradient).max())[0] < error


def test_float_images_are_taken_as_well(run, china):
    z = np.zeros((1, 4, 4, run.num_channels), np.float32)
    images = china, china / np.float32(255)
    found = [run.likelihood_gradient(z, image[None, :64, :64]) for image in images]
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert to_uint8(found[0][0]).shape == (1, 64, 64, 3)
