"""The metrics against golden figures, a plain implementation and closed forms."""

import io
import json
import os
import warnings

import numpy as np
import plain_metrics
import pytest
from PIL import Image
from scipy import ndimage

from vbq.files import load_npz
from vbq.images import read_image
from vbq.metrics import C1, METRIC_KEYS, ImageMetrics
from vbq.window import FILTER_TILE, WINDOW, Workspace, local_means


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "name", [f"{image}_q{quality}" for image in ("china", "flower") for quality in (5, 25, 75)]
)
def test_metrics_equal_the_golden_figures(golden, name):
    with open(os.path.join(golden, "jpeg", "metrics.json"), encoding="utf-8") as file:
        expected = json.load(file)[name]
    expected.pop("bytes")
    reference = read_image(os.path.join(golden, "test", f"{name.split('_')[0]}.png"))
    result = ImageMetrics(reference).evaluate(read_image(os.path.join(golden, "jpeg", f"{name}.png")))
    assert len(expected) == 9
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_metrics_are_named_as_the_originals(golden, china):
    original = load_npz(os.path.join(golden, "UniformQuantizer-compression_results.npz"))
    assert tuple(key for key in original if key.startswith(("MSE", "PSNR", "SSIM", "MS-SSIM"))) == METRIC_KEYS
    assert tuple(ImageMetrics(china).evaluate(china)) == METRIC_KEYS


# The smallest size, odd sides, and sizes with enough positions for float32 and several tiles.
@pytest.mark.parametrize(
    "height, width, quality", [(161, 171, 10), (192, 256, 50), (163, 1100, 3), (350, 301, 20)]
)
def test_metrics_equal_a_plain_implementation(china, height, width, quality):
    image = np.tile(china, (2, 5, 1))[:height, :width]
    image = image // 2 + noise(height, width) // 8
    reconstruction = jpeg(image, quality)
    expected = plain_metrics.metrics(image, reconstruction)
    result = ImageMetrics(image).evaluate(reconstruction)
    assert result == pytest.approx(expected, abs=1e-6, rel=1e-12)


@pytest.mark.parametrize("level, step", [(0, 255), (100, 50), (3, 13), (250, 1), (241, 9), (40, 8), (60, 5)])
def test_ssim_of_flat_images_is_the_luminance_term(level, step):
    image = np.full((320, 330, 3), level, np.uint8)
    result = ImageMetrics(image).evaluate(image + np.uint8(step))
    other = level + step
    luminance = (2 * level * other + C1) / (level**2 + other**2 + C1)
    assert result["MSE (RGB)"] == step**2  # Pillow's luma of a grey pixel may be one off
    assert result["PSNR (RGB)"] == pytest.approx(20 * np.log10(255 / step))
    assert result["SSIM (RGB)"] == pytest.approx(luminance, abs=1e-6)
    assert result["MS-SSIM (RGB)"] == pytest.approx(luminance**0.1333, abs=1e-6)
    assert result["MS-SSIM (RGB) (dB)"] == pytest.approx(-10 * np.log10(1 - luminance**0.1333), abs=1e-3)


def test_equal_images():
    image = noise(300, 300)
    result = ImageMetrics(image).evaluate(image.copy())
    for key, value in result.items():
        assert value == (0 if "MSE" in key else np.inf if "PSNR" in key or "dB" in key else 1), key


def test_opposite_images_have_no_negative_term():
    image = noise(300, 300)
    result = ImageMetrics(image).evaluate(255 - image)
    assert result["SSIM (RGB)"] < 0  # a single scale is not clipped
    assert result["MS-SSIM (RGB)"] == 0 and result["MS-SSIM (RGB) (dB)"] == 0


def test_mse_is_exact_where_float32_would_round():
    black, white = np.zeros((600, 700, 3), np.uint8), np.full((600, 700, 3), 255, np.uint8)
    white[0, 0] = 254
    expected = 255**2 - (255**2 - 254**2) / (600 * 700)
    assert ImageMetrics(black).evaluate(white)["MSE (RGB)"] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "height, width, ssim", [(160, 400, True), (11, 11, True), (10, 300, False), (1, 1, False)]
)
def test_small_images_give_nan_and_one_warning(height, width, ssim):
    image = noise(height, width)
    with pytest.warns(UserWarning, match=f"{width} x {height} pixels") as record:
        metrics = ImageMetrics(image)
        results = [metrics.evaluate(noise(height, width, seed)) for seed in (1, 2, 3)]
    assert len(record) == 1
    for result in results:
        assert all(np.isnan(result[key]) == (not ssim) for key in result if key.startswith("SSIM"))
        assert all(np.isnan(result[key]) for key in result if key.startswith("MS-SSIM"))
        assert all(np.isfinite(result[key]) for key in result if "SSIM" not in key)


def test_the_least_size_of_ms_ssim():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(ImageMetrics(noise(161, 161)).evaluate(noise(161, 161, 1))["MS-SSIM (RGB)"])


def test_metrics_reject_other_arrays(china):
    with pytest.raises(ValueError, match="uint8"):
        ImageMetrics(china / 255)
    with pytest.raises(ValueError, match="shape"):
        ImageMetrics(china).evaluate(china[:-1])


@pytest.mark.parametrize("height, width", [(11, 11), (140, 60), (FILTER_TILE[0] + 11, FILTER_TILE[1] + 12)])
def test_local_means_equal_a_plain_filter(height, width):
    images = np.random.default_rng(0).normal(size=(2, height, width))

    def fill(stack, here):
        stack[:] = images[:, here[0], here[1]]

    found = np.full((2, height - 10, width - 10), np.nan)
    for here, means in local_means(fill, (height, width), 2, np.float64, Workspace()):
        found[:, here[0], here[1]] = means
    for image, means in zip(images, found):
        expected = ndimage.correlate(image, np.outer(WINDOW, WINDOW))[5:-5, 5:-5]
        np.testing.assert_allclose(means, expected, atol=1e-12)
    np.testing.assert_allclose(np.outer(WINDOW, WINDOW), plain_metrics.gaussian_window(), rtol=1e-12)
