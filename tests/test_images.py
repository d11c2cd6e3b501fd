"""Image files of every kind, and arrays of pixels."""

import io
import os
import zlib

import numpy as np
import pytest
from hostile_images import exif, icc_profile, in_mode, pixels, png16, png_chunk, saved, tiff, well_formed
from PIL import Image, ImageCms

from vbq.command import UserError
from vbq.images import (
    center_crop,
    check_image_output,
    pixels_of,
    read_image,
    read_image_with_notes,
    to_uint8,
    writable_endings,
)


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
        (np.full((4, 4, 3), np.nan), r"the value nan, .* floats in \[0, 1\]"),
        (np.nextafter(np.full((4, 4, 3), 1, np.float32), 2), r"the value 1\.0000001, "),
        (np.nextafter(np.full((4, 4, 3), 1.0), 2), r"the value 1\.0000000000000002, "),
        (np.full((4, 4, 3), -1e-9), "the value -1e-09, "),
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
    [
        ("text.png", "not an image: its format is unknown"),
        (".", "damaged or not an image"),
        ("none.png", "no such file"),
    ],
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
    with pytest.raises(UserError, match="would leave none"):
        center_crop(image, 0, 3)


def test_to_uint8_rounds_half_to_even():
    x = np.array([-1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1, 7])
    assert to_uint8(x).tolist() == [0, 0, 2, 2, 255, 255]
    np.testing.assert_array_equal(to_uint8(np.arange(256, dtype=np.float32) / 255), np.arange(256))


def read_bytes(data, path):
    path.write_bytes(data)
    return read_image_with_notes(path)


# 16 bits.


def on_white(values):
    """What 16-bit values [H, W, C], the last of which is alpha, are as 8-bit RGB."""
    alpha = values[..., -1:] / 65535
    return np.rint((values[..., :-1] / 65535 * alpha + 1 - alpha) * 255) * np.ones(3)


ROUNDED, ON_WHITE = "its 16-bit values are rounded to 8 bits", "its transparency is laid on white"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_rounded(tmp_path, channels):
    values = pixels(channels, np.uint16)
    result, notes = read_bytes(png16(values), tmp_path / "x.png")
    if channels in (1, 3):
        np.testing.assert_array_equal(result, np.rint(values / 257) * np.ones(3))
        assert notes == [ROUNDED]
    else:
        np.testing.assert_array_equal(result, on_white(values))
        assert notes == [ROUNDED, ON_WHITE]


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_a_16_bit_png(tmp_path, channels):
    values = pixels(channels, np.uint16)
    values[2, 3], values[4, 5] = values[0, 0], values[0, 0] ^ 1  # the latter differs in its low bytes only
    key = png_chunk(b"tRNS", values[0, 0].astype(">u2").tobytes())
    result, notes = read_bytes(png16(values, key), tmp_path / "x.png")
    expected = np.rint(values / 257) * np.ones(3)
    expected[0, 0] = expected[2, 3] = 255
    np.testing.assert_array_equal(result, expected)
    assert notes == [ROUNDED, ON_WHITE]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [False, True])
def test_16_bit_tiff_is_rounded(tmp_path, order, planar):
    values = pixels(3, np.uint16)
    result, notes = read_bytes(tiff(values, order, planar), tmp_path / "x.tif")
    np.testing.assert_array_equal(result, np.rint(values / 257))
    assert notes == [ROUNDED]


@pytest.mark.parametrize("extra", [0, 1, 2])  # unused, premultiplied, or not
def test_fourth_channel_of_a_16_bit_tiff(tmp_path, extra):
    values = pixels(4, np.uint16)
    stored = values.copy()
    if extra == 1:
        stored[..., :3] = np.rint(values[..., :3] * (values[..., 3:] / 65535))
    result, _ = read_bytes(tiff(stored, extra=[extra]), tmp_path / "x.tif")
    expected = np.rint(values[..., :3] / 257) if extra == 0 else on_white(values)
    np.testing.assert_allclose(result, expected, atol=extra == 1)


def test_12_bit_and_inverted_tiff(tmp_path):
    values = pixels(1, np.uint16)[:, :16]
    result, _ = read_bytes(tiff(values & 4095, bits=12), tmp_path / "x.tif")
    np.testing.assert_array_equal(result[..., :1], np.rint((values & 4095) / 4095 * 255))
    result, _ = read_bytes(tiff(values, photometric=0), tmp_path / "x.tif")
    np.testing.assert_array_equal(result[..., :1], np.rint((65535 - values.astype(int)) / 257))


# Colour profiles.


def test_adobe_rgb_becomes_srgb(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 50, 50))
    adobe = icc_profile(name=b"Adobe RGB (1998)")
    for name in ("x.png", "x.tif", "x.webp"):
        image.save(tmp_path / name, icc_profile=adobe, lossless=True)
        result, notes = read_image_with_notes(tmp_path / name)
        assert (result == (232, 46, 46)).all()
        assert notes == ["its colours are converted to sRGB from the profile 'Adobe RGB (1998)'"]
    deep = np.broadcast_to(np.array([200, 50, 50], np.uint16) * 257, (8, 8, 3))
    chunk = png_chunk(b"iCCP", b"name\0\0" + zlib.compress(adobe))
    result, notes = read_bytes(png16(deep, chunk), tmp_path / "x.png")
    assert (result == (232, 46, 46)).all() and len(notes) == 2


def test_profile_and_transparency(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (200, 50, 50, 255))
    rgba.putpixel((1, 0), (200, 50, 50, 0))
    rgba.save(tmp_path / "x.png", icc_profile=icc_profile())
    assert read_image(tmp_path / "x.png").tolist() == [[[232, 46, 46], [255, 255, 255]]]
    rgba.quantize(2).save(tmp_path / "x.png", icc_profile=icc_profile())
    assert read_image(tmp_path / "x.png").tolist() == [[[232, 46, 46], [255, 255, 255]]]


def test_srgb_profiles_change_no_pixel(tmp_path):
    x = np.arange(1024) / 1023
    curve = (
        np.rint(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) * 65535).astype(int).tolist()
    )
    primaries = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)
    built_in = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (icc_profile(primaries=primaries, curve=curve), built_in):
        result, notes = read_bytes(saved(in_mode("RGB"), "PNG", icc_profile=profile), tmp_path / "x.png")
        np.testing.assert_array_equal(result, pixels())
        assert notes == []


def test_grey_profiles(tmp_path):
    grey = pixels(1)
    profile = icc_profile(b"GRAY", gamma=1.8)
    result, notes = read_bytes(
        saved(Image.fromarray(grey[..., 0]), "PNG", icc_profile=profile), tmp_path / "x.png"
    )
    linear = (grey / 255) ** 1.8
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(result, expected * np.ones(3), atol=2)
    assert len(notes) == 1


def test_cmyk_goes_through_its_profile(tmp_path):
    """Pillow makes no CMYK profile; the small one here knows only greys."""
    cmyk = in_mode("CMYK")
    plain, notes = read_bytes(saved(cmyk, "TIFF"), tmp_path / "x.tif")
    np.testing.assert_array_equal(plain, np.asarray(cmyk.convert("RGB")))
    assert notes == []
    result, notes = read_bytes(saved(cmyk, "TIFF", icc_profile=cmyk_profile()), tmp_path / "x.tif")
    assert notes == ["its colours are converted to sRGB from the profile 'cmyk'"]
    assert result.std(axis=-1).max() == 0  # the table has greys only
    _, notes = read_bytes(saved(cmyk, "TIFF", icc_profile=icc_profile()), tmp_path / "x.tif")
    assert notes == ["its colour profile is ignored: it is for RGB, and the image is CMYK"]


def cmyk_profile():
    """Bytes of a CMYK profile with a table of two points a channel, which maps all inks to greys in Lab."""
    ramp = np.array([0, 65535], ">u2").tobytes()
    table = b"".join(
        np.array([65280 * (4 - bin(inks).count("1")) // 4, 32768, 32768], ">u2").tobytes()
        for inks in range(16)
    )
    identity = np.round(np.eye(3).ravel() * 65536).astype(">i4").tobytes()
    lut = b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + identity + np.array([2, 2], ">u2").tobytes()
    lut += ramp * 4 + table + ramp * 3
    plain = icc_profile(b"CMYK", name=b"cmyk")
    count = int.from_bytes(plain[128:132], "big")
    start = 132 + 12 * count
    tags = [(plain[i : i + 4], *np.frombuffer(plain, ">u4", 2, i + 4)) for i in range(132, start, 12)]
    data = plain[start:] + lut + bytes(-len(lut) % 4)
    head = b"".join(tag + np.array([at + 12, size], ">u4").tobytes() for tag, at, size in tags)
    head += b"A2B0" + np.array([len(plain) + 12, len(lut)], ">u4").tobytes()
    body = (count + 1).to_bytes(4, "big") + head + data
    return (128 + len(body)).to_bytes(4, "big") + plain[4:20] + b"Lab " + plain[24:128] + body


@pytest.mark.parametrize("profile", [b"x", icc_profile()[:300], icc_profile()[:128], b"\0" * 500])
def test_a_damaged_profile_is_a_note(tmp_path, profile):
    for name in ("x.png", "x.tif"):
        in_mode("RGB").save(tmp_path / name, icc_profile=profile)
        result, notes = read_image_with_notes(tmp_path / name)
        np.testing.assert_array_equal(result, pixels())
        assert len(notes) == 1 and notes[0].startswith("its damaged colour profile is ignored: ")


def test_lab(tmp_path):
    spaces = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    rgb = Image.new("RGB", (4, 4), (120, 90, 60))
    ImageCms.applyTransform(rgb, ImageCms.buildTransform(*spaces, "RGB", "LAB")).save(tmp_path / "x.tif")
    np.testing.assert_allclose(read_image(tmp_path / "x.tif"), np.asarray(rgb), atol=3)


# Metadata.


def test_only_the_orientation_of_exif_is_needed(tmp_path):
    jpeg = saved(in_mode("RGB"), "JPEG", exif=exif(3, text_resolution=True))
    result, notes = read_bytes(jpeg, tmp_path / "x.jpg")
    np.testing.assert_array_equal(result, np.asarray(Image.open(io.BytesIO(jpeg)))[::-1, ::-1])
    assert notes == []


def segment(kind, body):
    return bytes([255, kind]) + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize(
    "data",
    [
        segment(0xE0, b"JFIF"),
        segment(0xE1, b"Exif\0\0MM"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\3abc"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
        segment(0xED, b"Photoshop 3.0\08BIM\3\xed"),
        segment(0xEE, b"Adobe"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, which a run of the program does not show
def test_damaged_metadata_of_a_jpeg(tmp_path, data):
    jpeg = saved(in_mode("RGB"), "JPEG")
    result, _ = read_bytes(jpeg[:2] + data + jpeg[2:], tmp_path / "x.jpg")
    np.testing.assert_array_equal(result, np.asarray(Image.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize(
    "kind, body",
    [
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))),
        (b"iCCP", b"k\0\0" + zlib.compress(bytes(2**21))),
        (b"iCCP", b"k"),
        (b"pHYs", b"\0"),
        (b"gAMA", b"\0"),
        (b"cHRM", b"\0"),
        (b"sRGB", b""),
        (b"acTL", b"\0"),
        (b"tEXt", b"\xff" * 9),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_metadata_of_a_png(tmp_path, kind, body):
    png = saved(in_mode("RGB"), "PNG", exif=exif(3))
    start = png.index(b"eXIf") - 4 if kind != b"eXIf" else 33
    result, _ = read_bytes(png[:start] + png_chunk(kind, body) + png[start:], tmp_path / "x.png")
    expected = pixels()[::-1, ::-1] if kind != b"eXIf" else result
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(np.sort(result.ravel()), np.sort(pixels().ravel()))


@pytest.mark.parametrize(
    "tags",
    [
        [(0x8825, 4, [2**30])],
        [(0x11A, 2, [0])],
        [(0x2BC, 3, [65, 66])],
        [(0x8773, 3, [1, 2])],
        [(0x83BB, 4, [1])],
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_metadata_of_a_tiff(tmp_path, tags):
    values = pixels(3, np.uint16)
    result, _ = read_bytes(tiff(values, more=[(0x112, 3, [6]), *tags]), tmp_path / "x.tif")
    np.testing.assert_array_equal(result, np.rot90(np.rint(values / 257), 3))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    result, notes = read_bytes(data, tmp_path / "x")
    assert (result == (255, 0, 0)).all() and notes == ["only the first of its frames is taken"]
    _, notes = read_bytes(saved(frames[0], kind), tmp_path / "x")
    assert notes == []


def test_notes_tell_only_what_changed(tmp_path):
    opaque = Image.fromarray(pixels()).convert("RGBA")
    result, notes = read_bytes(saved(opaque, "PNG"), tmp_path / "x.png")
    np.testing.assert_array_equal(result, pixels())
    assert notes == []


# Files that are not what their names say.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_pillow_images_are_treated_as_their_files(tmp_path):
    """Opened, loaded and copied. What Pillow has loaded of 16-bit colours are their high bytes."""
    path, compared = tmp_path / "x", 0
    for name, data in well_formed():
        path.write_bytes(data or b"")
        try:
            expected, notes = read_image_with_notes(path)
        except UserError:
            continue
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels_of(image), expected, name)
            image.load()
            deep = ROUNDED in notes and image.mode in ("RGB", "RGBA")
            for memory in (image, image.copy()):
                found = pixels_of(memory)
                assert np.abs(np.subtract(found, expected, dtype=int)).max() <= 2 * deep, name
        compared += 1
    assert compared > 100


def test_pillow_images_that_cannot_be_read(tmp_path, china):
    Image.fromarray(china).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes((tmp_path / "x.png").read_bytes()[:5000])
    with (
        Image.open(tmp_path / "y.png") as image,
        pytest.raises(UserError, match="the Pillow image is damaged"),
    ):
        pixels_of(image)
    with pytest.raises(UserError, match="an image should be uint8"):
        pixels_of(Image.new("RGB", (0, 3)))
    with pytest.raises(TypeError, match="but is of type int"):
        pixels_of(3)


def test_endings_in_capitals_and_archives(china, tmp_path):
    np.save(tmp_path / "x.npy", china)
    os.rename(tmp_path / "x.npy", tmp_path / "x.NPY")
    np.testing.assert_array_equal(read_image(tmp_path / "x.NPY"), china)
    np.savez(tmp_path / "x.npz", china)
    os.rename(tmp_path / "x.npz", tmp_path / "y.npy")
    with pytest.raises(UserError, match="y.npy is damaged or not an .npy file: it is an .npz file"):
        read_image(tmp_path / "y.npy")


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), KeyError("x"), TypeError("a\nb"), IndexError()]
)
def test_whatever_a_decoder_raises_is_the_files_error(china, tmp_path, monkeypatch, error):
    Image.fromarray(china).save(tmp_path / "x.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UserError, match="x.png is damaged or not an image: ") as caught:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "x.png")


def test_outputs_that_pillow_can_write(tmp_path):
    assert {".png", ".jpg", ".webp", ".tif", ".bmp", ".gif", ".ico"} < set(writable_endings())
    for ending in (".fits", ".mpg", ".h5", ".grib", ".wmf", ".npy", ".vbq", ".msp", ".txt", ""):
        assert ending not in writable_endings()
        with pytest.raises(UserError, match="Pillow cannot both write and read") as error:
            check_image_output(tmp_path / f"x{ending}")
        assert "\n" not in str(error.value)
    for ending in (".png", ".PNG", ".jpeg"):
        check_image_output(tmp_path / f"x{ending}", [tmp_path / "y.png"])
    with pytest.raises(UserError, match="is an input"):
        check_image_output(tmp_path / "x.png", [tmp_path / "." / "x.png"])
    with pytest.raises(UserError, match="is a directory"):
        check_image_output(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        check_image_output(tmp_path / "none" / "x.png")
    assert os.listdir(tmp_path) == []
