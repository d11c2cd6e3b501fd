"""Pictures come back as they were written, or the loss is told; sizes that a format lacks are refused."""

import numpy as np
import pytest
from PIL import Image

from vbq.command import UserError
from vbq.image_output import check_picture_output, write_image


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("ending", ["png", "PNG", "webp", "tif", "bmp", "ppm", "jp2"])
def test_formats_without_loss(tmp_path, china, ending):
    path = str(tmp_path / f"x.{ending}")
    assert write_image(path, china[:50, :61]) == []
    np.testing.assert_array_equal(read(path), china[:50, :61])


@pytest.mark.parametrize("ending", ["jpg", "gif"])
def test_loss_is_told(tmp_path, china, ending):
    path = str(tmp_path / f"x.{ending}")
    (note,) = write_image(path, china[:50, :61])
    assert "lost quality" in note and read(path).shape == (50, 61, 3)


@pytest.mark.parametrize(
    "name, width, height, words",
    [
        ("x.ico", 300, 20, "ICO has at most 256 pixels"),
        ("x.jpg", 65501, 1, "JPEG has at most 65500 pixels"),
        ("x.webp", 1, 16384, "WEBP has at most 16383 pixels"),
        ("x.fits", 20, 20, "Pillow cannot both write and read"),
        ("x.mpg", 20, 20, "Pillow cannot both write and read"),
        ("x.pdf", 20, 20, "Pillow cannot both write and read"),
        ("none/x.png", 20, 20, "none"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(tmp_path, name, width, height, words):
    with pytest.raises(UserError, match=words):
        check_picture_output(str(tmp_path / name), [], width, height)


def test_a_picture_of_another_size_is_an_error_and_leaves_nothing(tmp_path, china):
    """Pillow makes an icon's picture smaller where its sides are no standard sizes."""
    (tmp_path / "x.ico").write_bytes(b"old")
    with pytest.raises(UserError, match="the format makes .* of 112 x 96"):
        write_image(str(tmp_path / "x.ico"), china[:96, :112])
    assert [path.name for path in tmp_path.iterdir()] == ["x.ico"] and (
        tmp_path / "x.ico"
    ).read_bytes() == b"old"


def test_an_output_is_no_input(tmp_path, china):
    Image.fromarray(china).save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(UserError, match="input"):
        check_picture_output(str(tmp_path / "link.png"), [str(tmp_path / "x.png")], 10, 10)
