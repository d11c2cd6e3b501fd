"""The scripts under tools/ that have no test file of their own."""

import numpy as np
import pytest
from PIL import Image

import make_crops
import make_results
import utils


def test_crops_are_cut_from_the_photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = str(tmp_path / "crops.npy")
    assert make_crops.main([str(tmp_path / "*.png"), out, "--count", "3", "--size", "32"]) == 0
    crops = np.load(out, allow_pickle=False)
    assert crops.shape == (3, 32, 32, 3) and crops.dtype == np.uint8
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[:, :, 0]
    for crop in crops:
        assert (windows == crop).all(axis=(2, 3, 4)).any()
    with pytest.raises(utils.UserError, match="at least 64 x 64"):
        make_crops.main([str(tmp_path / "*.png"), out, "--size", "64"])


def curve(rate, psnr):
    return {"BPP": np.array(rate), "PSNR (RGB)": np.array(psnr)}


def test_bjontegaard_deltas_of_known_curves():
    rate = np.array([.25, .5, 1, 2])
    anchor = curve(rate, 26 + 5 * np.log2(rate / .25))
    half = curve(rate / 2, anchor["PSNR (RGB)"])
    bd_rate, bd_psnr, overlap = make_results.compare(anchor, half, "PSNR (RGB)")
    assert bd_rate == pytest.approx(-50) and bd_psnr == pytest.approx(5)
    assert overlap == (26, 41)
    # Where more bits bring nothing, the points do not count; nor does their order.
    padded = curve([*rate / 2, 3, 4], [*anchor["PSNR (RGB)"], 41, 40.9])
    padded = {key: value[::-1] for key, value in padded.items()}
    assert make_results.compare(anchor, padded, "PSNR (RGB)")[0] == pytest.approx(-50)


def test_published_curves_are_read_and_drawn(tmp_path):
    curves = make_results.published_curves()
    assert any("balle-2017" in label for label in curves) and all(points.shape[0] == 2 for points in curves.values())
    ours = curve([.2, .5, 1], [28., 31., 34.])
    path = tmp_path / "figure.png"
    make_results.draw_published(str(path), {"VBQ": ours, make_results.BEST: ours})
    assert Image.open(path).size[0] > 500


def test_results_need_the_kodak_images(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(utils.UserError, match="24 Kodak images, found 1"):
        make_results.evaluate(str(tmp_path))
