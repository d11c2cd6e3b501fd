"""Tests of image files, metrics, the JPEG baseline and the plumbing."""
import io
import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

import plain_metrics
import reference_stats
import utils

ROOT = os.path.dirname(os.path.abspath(utils.__file__))
JPEG_STATS = os.path.join(ROOT, "JPEG_compression_stats_on_Kodak.npz")
BALLE2017_STATS = os.path.join(ROOT, "Balle2017_proposed_compression_stats_on_Kodak.npz")
PUBLISHED_BPP, PUBLISHED_PSNR, PUBLISHED_MS_SSIM_LUMA = (0.27876, 0.67456, 2.33677), (25.86909, 30.65566, 37.94478), (0.91082, 0.98071, 0.99716)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("name", [f"{image}_q{quality}" for image in ("china", "flower") for quality in (5, 25, 75)])
def test_metrics_equal_the_golden_figures(golden, name):
    with open(os.path.join(golden, "jpeg", "metrics.json"), encoding="utf-8") as file:
        expected = json.load(file)[name]
    expected.pop("bytes")
    reference = utils.read_image(os.path.join(golden, "test", f"{name.split('_')[0]}.png"))
    result = utils.ImageMetrics(reference).evaluate(utils.read_image(os.path.join(golden, "jpeg", f"{name}.png")))
    assert len(expected) == 9
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_metrics_are_named_as_the_originals(golden, china):
    original = utils.load_npz(os.path.join(golden, "UniformQuantizer-compression_results.npz"))
    assert tuple(key for key in original if key.startswith(("MSE", "PSNR", "SSIM", "MS-SSIM"))) == utils.METRIC_KEYS
    assert tuple(utils.ImageMetrics(china).evaluate(china)) == utils.METRIC_KEYS


# Odd sides, a size just above the least, and one with positions enough for float32, in several tiles.
@pytest.mark.parametrize("height, width, quality", [(161, 171, 10), (192, 256, 50), (163, 1100, 3), (350, 301, 20)])
def test_metrics_equal_a_plain_implementation(china, height, width, quality):
    image = np.tile(china, (2, 5, 1))[:height, :width]
    image = image // 2 + noise(height, width) // 8
    reconstruction = jpeg(image, quality)
    expected = plain_metrics.metrics(image, reconstruction)
    result = utils.ImageMetrics(image).evaluate(reconstruction)
    assert result == pytest.approx(expected, abs=1e-6, rel=1e-12)


@pytest.mark.parametrize("level, step", [(0, 255), (100, 50), (3, 13), (250, 1), (241, 9), (40, 8), (60, 5)])
def test_ssim_of_flat_images_is_the_luminance_term(level, step):
    image = np.full((320, 330, 3), level, np.uint8)
    result = utils.ImageMetrics(image).evaluate(image + np.uint8(step))
    other = level + step
    luminance = (2 * level * other + utils.C1) / (level**2 + other**2 + utils.C1)
    assert result["MSE (RGB)"] == step**2  # Pillow's luma of a grey pixel may be one off
    assert result["PSNR (RGB)"] == pytest.approx(20 * np.log10(255 / step))
    assert result["SSIM (RGB)"] == pytest.approx(luminance, abs=1e-6)
    assert result["MS-SSIM (RGB)"] == pytest.approx(luminance**0.1333, abs=1e-6)
    assert result["MS-SSIM (RGB) (dB)"] == pytest.approx(-10 * np.log10(1 - luminance**0.1333), abs=1e-3)


def test_equal_images():
    image = noise(300, 300)
    result = utils.ImageMetrics(image).evaluate(image.copy())
    for key, value in result.items():
        assert value == (0 if "MSE" in key else np.inf if "PSNR" in key or "dB" in key else 1), key


def test_opposite_images_have_no_negative_term():
    image = noise(300, 300)
    result = utils.ImageMetrics(image).evaluate(255 - image)
    assert result["SSIM (RGB)"] < 0  # a single scale is not clipped
    assert result["MS-SSIM (RGB)"] == 0 and result["MS-SSIM (RGB) (dB)"] == 0


def test_mse_is_exact_where_float32_would_round():
    black, white = np.zeros((600, 700, 3), np.uint8), np.full((600, 700, 3), 255, np.uint8)
    white[0, 0] = 254
    expected = 255**2 - (255**2 - 254**2) / (600 * 700)
    assert utils.ImageMetrics(black).evaluate(white)["MSE (RGB)"] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("height, width, ssim", [(160, 400, True), (11, 11, True), (10, 300, False), (1, 1, False)])
def test_small_images_give_nan_and_one_warning(height, width, ssim):
    image = noise(height, width)
    with pytest.warns(UserWarning, match=f"{width} x {height} pixels") as record:
        metrics = utils.ImageMetrics(image)
        results = [metrics.evaluate(noise(height, width, seed)) for seed in (1, 2, 3)]
    assert len(record) == 1
    for result in results:
        assert all(np.isnan(result[key]) == (not ssim) for key in result if key.startswith("SSIM"))
        assert all(np.isnan(result[key]) for key in result if key.startswith("MS-SSIM"))
        assert all(np.isfinite(result[key]) for key in result if "SSIM" not in key)


def test_the_least_size_of_ms_ssim():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(utils.ImageMetrics(noise(161, 161)).evaluate(noise(161, 161, 1))["MS-SSIM (RGB)"])


def test_metrics_reject_other_arrays(china):
    with pytest.raises(ValueError, match="uint8"):
        utils.ImageMetrics(china / 255)
    with pytest.raises(ValueError, match="shape"):
        utils.ImageMetrics(china).evaluate(china[:-1])


# ------------------------------------------------------------------------------------------------------------------ JPEG


def test_jpeg_results_match_the_file_that_pillow_writes(golden, china, tmp_path):
    path = os.path.join(golden, "test", "china.png")
    result = utils.evaluate_compression_jpg(path, [5, 75])
    assert tuple(result) == ("BPP", *utils.METRIC_KEYS)
    for i, quality in enumerate((5, 75)):
        Image.open(path).save(tmp_path / "x.jpg", quality=quality)
        assert result["BPP"][i] == os.path.getsize(tmp_path / "x.jpg") * 8 / (192 * 256)
        expected = utils.ImageMetrics(china).evaluate(utils.read_image(tmp_path / "x.jpg"))
        assert {key: result[key][i] for key in expected} == expected


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
    assert one["BPP"] == pytest.approx(5213 * 8 / (192 * 256), rel=0.02)  # the golden file's size, from another libjpeg


@pytest.mark.parametrize("quality", [0, 101, 12.5, [50, -1], "high"])
def test_jpeg_quality_out_of_range(china, quality):
    with pytest.raises(utils.UserError, match="from 1 to 100"):
        utils.evaluate_compression_jpg(china, quality)


def test_utils_imports_no_tensorflow():
    code = "import sys, utils; print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'scipy', 'sklearn', 'matplotlib')])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


# -------------------------------------------------------------------------------------------------------- reference files


def test_committed_jpeg_file():
    stats = utils.load_npz(JPEG_STATS)
    assert stats["compressed_files"].tolist() == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert stats["quality"].tolist() == list(reference_stats.QUALITIES)
    assert {"pillow_version", "libjpeg_version"} < set(stats)
    for key in ("BPP", *utils.METRIC_KEYS):
        assert stats[key].shape == (24, 12) and np.all(np.isfinite(stats[key]))
    # Means over images as published with VBQ (IJG libjpeg 9), at quality 8, 32 and 90.
    columns = [3, 6, 10]
    np.testing.assert_allclose(stats["BPP"].mean(axis=0)[columns], PUBLISHED_BPP, atol=0.005)
    np.testing.assert_allclose(stats["PSNR (RGB)"].mean(axis=0)[columns], PUBLISHED_PSNR, atol=0.15)
    np.testing.assert_allclose(stats["MS-SSIM (Luma)"].mean(axis=0)[columns], PUBLISHED_MS_SSIM_LUMA, atol=1e-4)


@pytest.mark.slow
def test_jpeg_file_is_made_again(kodak, tmp_path):
    out = str(tmp_path / "jpeg.npz")
    assert reference_stats.main(["jpeg", os.path.join(kodak, "*.png"), "--out", out]) == 0
    result, committed = utils.load_npz(out), utils.load_npz(JPEG_STATS)
    assert list(result) == list(committed)
    same_codec = result["libjpeg_version"] == committed["libjpeg_version"]
    for key in committed:
        if key in ("pillow_version", "libjpeg_version"):
            continue
        if committed[key].dtype != np.float64 or (same_codec and key.startswith(("BPP", "MSE"))):
            np.testing.assert_array_equal(result[key], committed[key], err_msg=key)
        elif same_codec:  # the last digits depend on the processor
            np.testing.assert_allclose(result[key], committed[key], rtol=0, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(result["BPP"], committed["BPP"], atol=0.025)
    np.testing.assert_allclose(result["PSNR (Luma)"], committed["PSNR (Luma)"], atol=0.1)


def test_committed_balle2017_file():
    stats = utils.load_npz(BALLE2017_STATS)
    assert stats["setting"].tolist() == [128, 256, 512, 1024, 2048, 4096]
    assert stats["compressed_files"].tolist() == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert "SSIM (RGB)" not in stats and "2017" in str(stats["source"])
    assert stats["BPP"][0, 0] == 0.081 and stats["PSNR (Chroma)"][23, 5] == 40.714092176645735
    np.testing.assert_allclose(stats["PSNR (RGB)"], 10 * np.log10(255**2 / stats["MSE (RGB)"]), atol=1e-4)
    np.testing.assert_allclose(10 ** (-stats["MS-SSIM (Luma) (dB)"] / 10), 1 - stats["MS-SSIM (Luma)"])


def test_balle2017_table_is_read_in_any_order(tmp_path, capsys):
    table = tmp_path / "table.csv"
    keys = ["BPP", *(f"{name} ({mode})" for mode in utils.MODES for name in ("MSE", "PSNR", "MS-SSIM"))]
    lines = [f"{image},{setting}," + ",".join([f"0.{image[-1]}{setting}"] * 10) for image in ("b2", "a1") for setting in (16, 8)]
    table.write_text("\n".join([",".join(["image", "setting", *keys]), *lines]))
    out = tmp_path / "out.npz"
    assert reference_stats.main(["balle2017", str(table), "--out", str(out)]) == 0
    stats = utils.load_npz(out)
    assert stats["compressed_files"].tolist() == ["a1.png", "b2.png"] and stats["setting"].tolist() == [8, 16]
    assert stats["BPP"].tolist() == [[0.18, 0.116], [0.28, 0.216]]

    table.write_text("\n".join([",".join(["image", "setting", *keys]), *lines[:3]]))
    os.remove(out)
    assert reference_stats.main(["balle2017", str(table), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: expected a table") and not out.exists()


def test_reference_stats_on_bad_input(tmp_path, china, capsys):
    assert reference_stats.main(["jpeg", str(tmp_path / "*.png")]) == 1
    Image.fromarray(china).save(tmp_path / "small.png")
    assert reference_stats.main(["jpeg", str(tmp_path / "*.png")]) == 1
    nothing, small = capsys.readouterr().err.splitlines()
    assert nothing.startswith("error: expected image files") and "752 x 496" in small and "small.png" in small
    with pytest.raises(SystemExit) as usage:
        reference_stats.main([])
    assert usage.value.code == 2


# ---------------------------------------------------------------------------------------------------------------- images


def save(image, path, **options):
    image.save(path, **options)
    return utils.read_image(path)


def test_read_png_and_jpeg(china, tmp_path):
    np.testing.assert_array_equal(save(Image.fromarray(china), tmp_path / "x.png"), china)
    np.testing.assert_array_equal(save(Image.fromarray(china), tmp_path / "x.jpg", quality=25), jpeg(china, 25))


def test_read_grey(china, tmp_path):
    grey = china[..., 0]
    np.testing.assert_array_equal(save(Image.fromarray(grey), tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))
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
    with pytest.raises(utils.UserError, match=r"floats in \[0, 1\]"):
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
        np.testing.assert_array_equal(save(image, tmp_path / name, transparency=1), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(china, tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(save(Image.fromarray(china), tmp_path / "x.png", exif=exif), np.rot90(china, turns))


def test_read_npy(china, tmp_path):
    for array in (china, (china / 255).astype(np.float32), china / 255):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(utils.read_image(tmp_path / "x.npy"), china)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.zeros((4, 4)), "shape H x W x 3"),
        (np.zeros((1, 4, 4, 3)), "shape H x W x 3"),
        (np.zeros((0, 4, 3)), "shape H x W x 3"),
        (np.zeros((4, 4, 3), np.int32), "float or uint8"),
        (np.full((4, 4, 3), 1.5), r"floats in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"floats in \[0, 1\]"),
    ],
)
def test_bad_npy(tmp_path, array, expected):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(utils.UserError, match=f"x.npy.*{expected}"):
        utils.read_image(tmp_path / "x.npy")


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(utils.UserError, match="x.npy"):
        utils.read_image(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.npy"])
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.98])
def test_damaged_images_are_named_in_one_line(china, tmp_path, name, keep):
    path = tmp_path / name
    np.save(path, china) if name == "x.npy" else Image.fromarray(china).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(utils.UserError) as error:
        utils.read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("not\nan image")
    for path, expected in ((tmp_path / "text.png", "expected an image"), (tmp_path, "expected an image"), (tmp_path / "none.png", "no such")):
        with pytest.raises(utils.UserError, match=expected) as error:
            utils.read_image(path)
        assert str(path) in str(error.value)


def test_find_images(tmp_path):
    for name in ("b.png", "a.png", "[1].png", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png" / "e.png").touch()
    found = lambda pattern: [os.path.relpath(path, tmp_path) for path in utils.find_images(str(tmp_path / pattern))]
    assert found("*.png") == ["[1].png", "a.png", "b.png"]
    assert found("**/*.png") == ["[1].png", "a.png", "b.png", os.path.join("d.png", "e.png")]
    assert found("[1].png") == ["[1].png"]
    with pytest.raises(utils.UserError, match="none that match"):
        found("*.jpg")


def test_center_crop():
    image = np.arange(5 * 6).reshape(5, 6)
    np.testing.assert_array_equal(utils.center_crop(image, 2, 4), image[1:3, 1:5])
    with pytest.raises(utils.UserError, match="at least 7 x 5 pixels, found 6 x 5"):
        utils.center_crop(image, 5, 7)


def test_to_uint8_rounds_half_to_even():
    x = np.array([-1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1, 7])
    assert utils.to_uint8(x).tolist() == [0, 0, 2, 2, 255, 255]
    np.testing.assert_array_equal(utils.to_uint8(np.arange(256, dtype=np.float32) / 255), np.arange(256))


# ----------------------------------------------------------------------------------------------------------------- files


def test_atomic_write_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "results.txt"
    for text in ("first", "second"):
        with utils.atomic_write(path) as temporary:
            assert temporary.endswith(".txt") and os.path.dirname(temporary) == str(tmp_path)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
        assert path.read_text() == text
    with pytest.raises(ZeroDivisionError):
        with utils.atomic_write(path) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write("half")
            raise ZeroDivisionError
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["results.txt"]


def test_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.npz"
    utils.save_npz(path, {"x": np.arange(3)})
    code = (
        "import sys, time, utils\n"
        "with utils.atomic_write(sys.argv[1]) as temporary:\n"
        "    open(temporary, 'wb').write(b'half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert utils.load_npz(path)["x"].tolist() == [0, 1, 2]
    utils.save_npz(path, {"x": np.arange(4)})  # what the killed process left is in nobody's way
    assert utils.load_npz(path)["x"].tolist() == [0, 1, 2, 3]
    with pytest.raises(utils.UserError):
        utils.find_images(str(tmp_path / "*half*"))
    assert utils.find_images(str(tmp_path / "*")) == [str(path)]


def test_unwritable_places(tmp_path):
    for path in (tmp_path / "none" / "x.npz", tmp_path):
        with pytest.raises(utils.UserError, match="cannot write"):
            utils.save_npz(path, {"x": 1})
    assert os.listdir(tmp_path) == []


def test_npz_round_trip(tmp_path):
    arrays = {"MS-SSIM (RGB) (dB)": np.eye(2), "compressed_files": ["b.png", "a.png"], "max_bits": 10, "settings": []}
    for compressed in (False, True):
        utils.save_npz(tmp_path / "x", arrays, compressed)  # the name stays as it is, without .npz added
        result = utils.load_npz(tmp_path / "x")
        assert list(result) == list(arrays)
        for key, value in arrays.items():
            np.testing.assert_array_equal(result[key], value)
    with pytest.raises(TypeError, match="objects"):
        utils.save_npz(tmp_path / "x", {"x": np.array([None])})


def test_bad_npz(tmp_path):
    path = tmp_path / "x.npz"
    utils.save_npz(path, {"x": np.arange(1000), "y": np.arange(1000)}, compressed=True)
    data = path.read_bytes()
    broken = bytearray(data)
    broken[len(data) // 4] ^= 255
    for content in (b"", b"text", data[: len(data) // 2], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(utils.UserError, match="x.npz") as error:
            utils.load_npz(path)
        assert "\n" not in str(error.value)
    with open(path, "wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(utils.UserError, match="single array"):
        utils.load_npz(path)
    with pytest.raises(utils.UserError, match="no such file"):
        utils.load_npz(tmp_path / "none.npz")


# -------------------------------------------------------------------------------------------------------------- plumbing


def test_run_main(capsys):
    def fail(error):
        raise error

    assert utils.run_main(lambda argv: None) == 0
    assert utils.run_main(lambda argv: int(argv[0]), ["3"]) == 3
    assert utils.run_main(lambda argv: fail(utils.UserError("expected a, found b"))) == 1
    assert capsys.readouterr().err == "error: expected a, found b\n"
    assert utils.run_main(lambda argv: fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        utils.run_main(lambda argv: fail(ZeroDivisionError()))


def test_progress_is_silent_when_piped(capsys):
    assert list(utils.progress(range(3), desc="test")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_metrics_are_fast(china):
    image = np.tile(china, (3, 3, 1))[:496, :752]
    reconstruction = jpeg(image, 30)
    metrics = utils.ImageMetrics(image)

    def seconds(function, repeats):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    ours = seconds(lambda: metrics.evaluate(reconstruction), 5)
    plain = seconds(lambda: plain_metrics.metrics(image, reconstruction), 1)
    assert plain / ours > 10  # 20 and more on an idle machine, which a test cannot count on
