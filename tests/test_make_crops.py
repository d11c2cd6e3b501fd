"""The tool that cuts validation images."""

import make_crops
import numpy as np
import pytest
from PIL import Image

from vbq.command import UserError


def test_crops_are_cut_from_the_photographs(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = str(tmp_path / "crops.npy")
    assert make_crops.main([str(tmp_path / "*.png"), out, "--count", "3", "--size", "32"]) == 0
    crops = np.load(out, allow_pickle=False)
    assert crops.shape == (3, 32, 32, 3) and crops.dtype == np.uint8
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[:, :, 0]
    for crop in crops:
        assert (windows == crop).all(axis=(2, 3, 4)).any()
    capsys.readouterr()
    with pytest.raises(UserError, match="at least 64 x 64"):
        make_crops.main([str(tmp_path / "*.png"), out, "--size", "64"])
    assert capsys.readouterr().err.startswith("warning: left out: ")
