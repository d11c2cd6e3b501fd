"""The JPEG baseline, and the names that a notebook uses."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import utils


def test_jpeg_results_match_the_file_that_pillow_writes(golden, china, tmp_path):
    path = os.path.join(golden, "test", "china.png")
    result = utils.evaluate_compression_jpg(path, [5, 75])
    assert tuple(result) == ("BPP", *utils.METRIC_KEYS)
    for i, quality in enumerate((5, 75)):
        Image.open(path).save(tmp_path / "x.jpg", quality=quality)
        assert result["BPP"][i] == os.path.getsize(tmp_path / "x.jpg") * 8 / (192 * 256)
        expected = utils.ImageMetrics(china).evaluate(utils.read_image(tmp_path / "x.jpg"))
        assert {key: result[key][i] for key in expected} == expected


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
    "quality", [0, 101, 12.5, [50, -1], "high", [], [[50]], [[50], [50, 60]], None, 1j, np.nan, [True]]
)
def test_jpeg_quality_out_of_range(china, quality):
    with pytest.raises(utils.UserError, match="from 1 to 100"):
        utils.evaluate_compression_jpg(china, quality)


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
