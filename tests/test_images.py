"""Image files of every kind, and arrays of pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from vbq.command import UserError
from vbq.images import center_crop, read_image, to_uint8


def save(image, path, **options):
    image.save(path, **options)
    return read_image(path)


def test_read_png_and_jpeg(china, tmp_path):
    np.testing.assert_array_equal(save(Image.fromarray(china), tmp_path / "x.png"), china)
    file = io.BytesIO()
    Image.fromarray(china).save(file, "JPEG", quality=25)
    decoded = np.asarray(Image.open(file))
    np.testing.assert_array_equal(save(Image.fromarray(china), tmp_path / "x.jpg", quality=25), decoded)


def test_read_grey(china, tmp_path):
    grey = china[..., 0]
    np.testing.assert_array_equal(
        save(Image.fromarray(grey), tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1)
    )
    black_white = save(Image.fromarray(grey > 128), tmp_path / "bits.png")
    np.testing.assert_array_equal(black_white[..., 2], np.where(grey > 128, 255, 0))


def test_read_16_bit(tmp_path):
    values = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)  # 128 / 257 < 1/2 < 129 / 257
    expected = np.array([[0, 0, 1], [1, 128, 255]])
    for name in ("x.png", "x.tif"):
        np.testing.assert_array_equal(save(Image.fromarray(values), tmp_path / name)[..., 1], expected)


def test_read_float_tiff(tmp_path):
    values = np.array([[0, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(save(Image.fromarray(values), tmp_path / "x.tif")[..., 0], [[0, 128, 255]])
    with pytest.raises(UserError, match=r"floats in \[0, 1\]"):
        save(Image.fromarray(values * 300), tmp_path / "y.tif")


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]]
    np.testing.assert_array_equal(save(Image.fromarray(rgba), tmp_path / "rgba.png"), expected)
    grey_alpha = save(Image.fromarray(rgba[..., [0, 3]], "LA"), tmp_path / "la.png")
    np.testing.assert_array_equal(grey_alpha, [[[10] * 3, [255] * 3, [204] * 3]])


def test_read_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(save(image, tmp_path / "p.png"), [[[10, 20, 30], [40, 50, 60]]])
    for name in ("t.png", "t.gif"):
        np.testing.assert_array_equal(
            save(image, tmp_path / name, transparency=1), [[[10, 20, 30], [255, 255, 255]]]
        )


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(china, tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        save(Image.fromarray(china), tmp_path / "x.png", exif=exif), np.rot90(china, turns)
    )


def test_read_npy(china, tmp_path):
    for array in (china, (china / 255).astype(np.float32), china / 255):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(read_image(tmp_path / "x.npy"), china)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.zeros((4, 4)), "not H x W x 3"),
        (np.zeros((1, 4, 4, 3)), "not H x W x 3"),
        (np.zeros((0, 4, 3)), "not H x W x 3"),
        (np.zeros((4, 4, 3), np.int32), "not float or uint8"),
        (np.full((4, 4, 3), 1.5), r"floats in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"floats in \[0, 1\]"),
    ],
)
def test_bad_npy(tmp_path, array, expected):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=f"x.npy.*{expected}"):
        read_image(tmp_path / "x.npy")


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="x.npy"):
        read_image(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy"])
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.98])
def test_damaged_images_are_named_in_one_line(china, tmp_path, name, keep):
    path = tmp_path / name
    np.save(path, china) if name == "x.npy" else Image.fromarray(china).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, expected",
    [("text.png", "damaged or not an image"), (".", "damaged or not an image"), ("none.png", "no such file")],
)
def test_what_is_not_an_image(tmp_path, name, expected):
    (tmp_path / "text.png").write_text("not\nan image")
    with pytest.raises(UserError, match=expected) as error:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_center_crop():
    image = np.arange(5 * 6).reshape(5, 6)
    np.testing.assert_array_equal(center_crop(image, 2, 4), image[1:3, 1:5])
    with pytest.raises(UserError, match="has 6 x 5 pixels, and needs at least 7 x 5"):
        center_crop(image, 5, 7)


def test_to_uint8_rounds_half_to_even():
    x = np.array([-1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1, 7])
    assert to_uint8(x).tolist() == [0, 0, 2, 2, 255, 255]
    np.testing.assert_array_equal(to_uint8(np.arange(256, dtype=np.float32) / 255), np.arange(256))
