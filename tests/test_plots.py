"""The table and the figure of rate-distortion curves."""

import os

import numpy as np
import pytest
from PIL import Image

from vbq.command import UserError
from vbq.plots import COLUMNS, curve, published_curves, rate_distortion, text_table


def results(settings=(0.5, 8.0), scale=1.0):
    """Measures of three images, float64 [3, 2]."""
    values = scale * np.array([[1.0, 0.5], [1.5, 0.25], [2.0, 0.75]])
    return {"settings": np.array(settings), **{key: values + k for k, key in enumerate(COLUMNS)}}


def test_a_curve_is_the_mean_over_the_images():
    found = curve("mine", results())
    assert found["label"] == "mine" and found["settings"].tolist() == [0.5, 8]
    assert list(found) == ["label", "settings", *COLUMNS, "images", "images_with_ms_ssim"]
    assert found["images"] == found["images_with_ms_ssim"] == 3
    for k, key in enumerate(COLUMNS):
        np.testing.assert_allclose(found[key], [1.5 + k, 0.5 + k])


def test_the_table_has_a_line_for_every_setting():
    lines = text_table([curve("mine", results()), curve("other", results((2, 4), 2.0))]).splitlines()
    assert lines[0].split() == ["quantizer", "setting", "bpp", "PSNR", "dB", "MS-SSIM", "in", "dB"]
    assert [line.split() for line in lines[1:]] == [
        ["mine", "0.5", "1.5000", "2.50", "3.50000", "4.50"],
        ["mine", "8", "0.5000", "1.50", "2.50000", "3.50"],
        ["other", "2", "3.0000", "4.00", "5.00000", "6.00"],
        ["other", "4", "1.0000", "2.00", "3.00000", "4.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_images_too_small_for_ms_ssim_are_left_out_of_its_mean():
    arrays = results()
    for key in ("MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"):
        arrays[key][1] = np.nan
    found = curve("mine", arrays)
    assert (found["images"], found["images_with_ms_ssim"]) == (3, 2)
    np.testing.assert_allclose(found["MS-SSIM (RGB)"], [1.5 + 2, 0.625 + 2])
    np.testing.assert_allclose(found["PSNR (RGB)"], [1.5 + 1, 0.5 + 1])
    assert text_table([found]).splitlines()[-1].startswith("MS-SSIM: means of 2 of 3 images")
    for key in ("MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"):
        arrays[key][:] = np.nan
    assert np.isnan(curve("mine", arrays)["MS-SSIM (RGB)"]).all()


def test_published_curves_rise():
    curves = published_curves()
    assert [one["label"] for one in curves] == ["JPEG", "Ballé 2017"]
    for one in curves:
        order = np.argsort(one["BPP"])
        assert len(order) == len(one["settings"]) > 5
        assert (np.diff(one["PSNR (RGB)"][order]) > 0).all()


def test_the_figure_is_a_picture(tmp_path):
    rate_distortion(tmp_path / "figure.png", [curve("mine", results())], title="a title")
    assert os.listdir(tmp_path) == ["figure.png"]
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG" and image.size == (1440, 600)


def test_every_curve_is_drawn(tmp_path):
    curves = [curve("mine", results()), curve("other", results(scale=0.5))]
    for i in range(3):
        rate_distortion(tmp_path / f"{i}.png", curves[:i] + [curve("mine", results(scale=0.0))])
    images = [np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(3)]
    assert all(image.std() > 10 for image in images)
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(UserError, match="none.*figure.png"):
        rate_distortion(tmp_path / "none" / "figure.png", [curve("mine", results())])
