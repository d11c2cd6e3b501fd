"""The baselines JPEG and WebP, and the names that a notebook uses."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import utils

BASELINES = {".jpg": utils.evaluate_compression_jpg, ".webp": utils.evaluate_compression_webp}


@pytest.mark.parametrize("ending", BASELINES)
def test_results_match_the_file_that_pillow_writes(ending, golden, china, tmp_path):
    path = os.path.join(golden, "test", "china.png")
    result = BASELINES[ending](path, [5, 75])
    assert tuple(result) == ("BPP", *utils.METRIC_KEYS)
    for i, quality in enumerate((5, 75)):
        with Image.open(path) as image:
            image.save(tmp_path / f"x{ending}", quality=quality)
        assert result["BPP"][i] == os.path.getsize(tmp_path / f"x{ending}") * 8 / (192 * 256)
        expected = utils.ImageMetrics(china).evaluate(utils.read_image(tmp_path / f"x{ending}"))
        assert {key: result[key][i] for key in expected} == expected
    assert result["BPP"][0] < result["BPP"][1] and result["PSNR (RGB)"][0] < result["PSNR (RGB)"][1]


def test_webp_takes_fewer_bits_than_jpeg_for_the_same_quality(china):
    """So it is another format, which is lossy."""
    jpeg, webp = (evaluate(china, [20, 50, 80]) for evaluate in BASELINES.values())
    at_equal_psnr = np.interp(webp["PSNR (RGB)"], jpeg["PSNR (RGB)"], jpeg["BPP"])
    assert (webp["BPP"] < 0.95 * at_equal_psnr).all() and np.isfinite(webp["PSNR (RGB)"]).all()


@pytest.mark.slow
def test_jpeg_qualities_do_not_disturb_each_other(china):
    qualities = list(range(1, 101, 3)) * 3
    result = utils.evaluate_compression_jpg(china, qualities)
    for i, quality in enumerate(qualities):
        file = io.BytesIO()
        Image.fromarray(china).save(file, "JPEG", quality=quality)
        assert result["BPP"][i] == file.tell() * 8 / (192 * 256)


def test_jpeg_of_one_quality_and_of_an_array(china):
    one = utils.evaluate_compression_jpg(china, 25)
    assert all(value.shape == (1,) and value.dtype == np.float64 for value in one.values())
    assert one["BPP"] == pytest.approx(
        5213 * 8 / (192 * 256), rel=0.02
    )  # the golden file's size, from another libjpeg


@pytest.mark.parametrize(
    "quality", [-1, 101, 12.5, [50, -1], "high", [], [[50]], [[50], [50, 60]], None, 1j, np.nan, [True]]
)
def test_quality_out_of_range(china, quality):
    with pytest.raises(utils.UserError, match="a JPEG quality must be an integer from 1 to 100"):
        utils.evaluate_compression_jpg(china, quality)
    with pytest.raises(utils.UserError, match="a WebP quality must be an integer from 0 to 100"):
        utils.evaluate_compression_webp(china, quality)


def test_quality_0_is_one_of_webp_only(china):
    with pytest.raises(utils.UserError, match="from 1 to 100, not 0"):
        utils.evaluate_compression_jpg(china, 0)
    assert utils.evaluate_compression_webp(china, [0, 100])["PSNR (RGB)"].shape == (2,)


@pytest.mark.parametrize(
    "image, expected",
    [
        (np.zeros((4, 4, 3)), "should be uint8 .* but is float64"),
        (np.zeros((4, 4), np.uint8), r"but is uint8 \[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"but is uint8 \[0, 4, 3\]"),
        (np.zeros((1, 65501, 3), np.uint8), "at most 65500 pixels a side, but the image has 65501 x 1"),
    ],
)
def test_images_that_cannot_be_jpeg(image, expected):
    with pytest.raises(utils.UserError, match=expected):
        utils.evaluate_compression_jpg(image, 50)


def test_images_that_cannot_be_webp():
    with pytest.raises(utils.UserError, match="a WebP file has at most 16383 pixels .* has 1 x 16384"):
        utils.evaluate_compression_webp(np.zeros((16384, 1, 3), np.uint8), 50)
    with pytest.raises(utils.UserError, match="should be uint8 .* but is float64"):
        utils.evaluate_compression_webp(np.zeros((4, 4, 3)), 50)


def test_importing_utils_loads_no_large_library():
    """Neither now nor for a JPEG curve."""
    code = (
        "import sys, numpy, utils\n"
        "utils.evaluate_compression_jpg(numpy.zeros((170, 170, 3), numpy.uint8), 50)\n"
        "large = {'tensorflow', 'scipy', 'sklearn', 'matplotlib'}\n"
        "print(sorted(large & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_names_of_a_notebook():
    assert all(hasattr(utils, name) for name in utils.__all__)
    originals = {"read_image", "evaluate_compression_jpg", "UserError", "run_main", "METRIC_KEYS", "MODES"}
    assert originals < set(utils.__all__)
