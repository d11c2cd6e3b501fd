"""The tool that cuts validation images."""

import os

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


@pytest.fixture
def photographs(tmp_path):
    """Folder of two photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_the_file_is_what_numpy_would_write(photographs, tmp_path):
    for source in (str(photographs), str(photographs / "*.png")):
        assert make_crops.main([source, str(tmp_path / "x.npy"), "--count", "5", "--size", "32"]) == 0
        np.save(tmp_path / "y.npy", np.load(tmp_path / "x.npy"))
        assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
    assert make_crops.main([str(photographs), os.devnull, "--count", "5", "--size", "32"]) == 0


@pytest.mark.parametrize(
    "out, expected",
    [
        ("photographs/1.png", "it is an input"),
        ("photographs/../photographs/1.png", "it is an input"),
        ("link.npy", "it is an input"),
        ("x.png", "should end in .npy"),
        ("photographs", "is a directory"),
        ("none/x.npy", "there is no folder"),
    ],
)
def test_no_input_is_overwritten(photographs, tmp_path, out, expected):
    (tmp_path / "link.npy").symlink_to(photographs / "0.png")
    before = {path: path.read_bytes() for path in photographs.iterdir()}
    with pytest.raises(UserError, match=expected):
        make_crops.main([str(photographs / "*.png"), str(tmp_path / out), "--count", "3", "--size", "32"])
    assert before == {path: path.read_bytes() for path in photographs.iterdir()}


def test_crops_that_do_not_fit_on_the_disk(photographs, tmp_path):
    with pytest.raises(UserError, match="it needs .* GB, and .* GB are free"):
        make_crops.main([str(photographs), str(tmp_path / "x.npy"), "--count", str(10**15)])
    assert os.listdir(tmp_path) == ["photographs"]
