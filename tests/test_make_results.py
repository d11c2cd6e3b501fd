"""tools/make_results.py: the curves, their comparison and the figures."""

import os

import make_results
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from quantizers import QUANTIZERS
from vbq import plots
from vbq.command import UserError


def curve(rate, psnr):
    return {"BPP": np.array(rate), "PSNR (RGB)": np.array(psnr)}


def test_bjontegaard_deltas_of_known_curves():
    rate = np.array([0.25, 0.5, 1, 2])
    anchor = curve(rate, 26 + 5 * np.log2(rate / 0.25))
    half = curve(rate / 2, anchor["PSNR (RGB)"])
    bd_rate, bd_psnr, overlap = make_results.compare(anchor, half, "PSNR (RGB)")
    assert bd_rate == pytest.approx(-50) and bd_psnr == pytest.approx(5)
    assert overlap == (26, 41)
    # Points where more bits bring nothing do not count. The order of the points does not matter.
    padded = curve([*rate / 2, 3, 4], [*anchor["PSNR (RGB)"], 41, 40.9])
    padded = {key: value[::-1] for key, value in padded.items()}
    assert make_results.compare(anchor, padded, "PSNR (RGB)")[0] == pytest.approx(-50)


def test_committed_result_files_give_the_committed_tables():
    curves = make_results.load_curves()
    assert list(curves) == [
        *make_results.VARIANTS,
        *(kind.label for kind in QUANTIZERS[1:]),
        *plots.PUBLISHED,
    ]
    for name, text in (
        ("table.txt", plots.text_table(list(curves.values()))),
        ("bd_rates.md", make_results.comparison(curves)),
    ):
        with open(os.path.join(ROOT, "results", name), encoding="utf-8") as file:
            assert file.read() == text + "\n"


def test_published_curves_are_read_and_drawn(tmp_path):
    curves = make_results.published_curves()
    assert any("balle-2017" in label for label in curves)
    assert all(points.shape[0] == 2 for points in curves.values())
    ours = curve([0.2, 0.5, 1], [28.0, 31.0, 34.0])
    path = tmp_path / "figure.png"
    make_results.draw_published(str(path), {"VBQ": ours, make_results.BEST: ours})
    with Image.open(path) as image:
        assert image.size[0] > 500


def test_results_need_the_kodak_images(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="24 Kodak images, but has 1 PNG"):
        make_results.evaluate(str(tmp_path))
