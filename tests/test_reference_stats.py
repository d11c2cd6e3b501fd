"""The committed files of reference curves, and the tool that makes them."""

import os
import pathlib

import numpy as np
import pytest
import reference_stats
from conftest import ROOT
from PIL import Image

from vbq.files import load_npz
from vbq.metrics import METRIC_KEYS, MODES

JPEG_STATS = os.path.join(ROOT, reference_stats.JPEG_FILE)
BALLE2017_STATS = os.path.join(ROOT, reference_stats.BALLE2017_FILE)
PUBLISHED_BPP = (0.27876, 0.67456, 2.33677)
PUBLISHED_PSNR = (25.86909, 30.65566, 37.94478)
PUBLISHED_MS_SSIM_LUMA = (0.91082, 0.98071, 0.99716)


def test_committed_jpeg_file():
    stats = load_npz(JPEG_STATS)
    assert stats["compressed_files"].tolist() == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert stats["quality"].tolist() == stats["settings"].tolist() == list(reference_stats.JPEG_QUALITIES)
    assert {"pillow_version", "libjpeg_version"} < set(stats)
    for key in ("BPP", *METRIC_KEYS):
        assert stats[key].shape == (24, 12) and np.all(np.isfinite(stats[key]))
    # Means over images as published with VBQ (IJG libjpeg 9), at quality 8, 32 and 90.
    columns = [3, 6, 10]
    np.testing.assert_allclose(stats["BPP"].mean(axis=0)[columns], PUBLISHED_BPP, atol=0.005)
    np.testing.assert_allclose(stats["PSNR (RGB)"].mean(axis=0)[columns], PUBLISHED_PSNR, atol=0.15)
    np.testing.assert_allclose(
        stats["MS-SSIM (Luma)"].mean(axis=0)[columns], PUBLISHED_MS_SSIM_LUMA, atol=1e-4
    )


@pytest.mark.slow
def test_jpeg_file_is_made_again(kodak, tmp_path):
    out = str(tmp_path / "jpeg.npz")
    assert reference_stats.main(["jpeg", os.path.join(kodak, "*.png"), "--out", out]) == 0
    result, committed = load_npz(out), load_npz(JPEG_STATS)
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
    stats = load_npz(BALLE2017_STATS)
    assert stats["setting"].tolist() == stats["settings"].tolist() == [128, 256, 512, 1024, 2048, 4096]
    assert stats["compressed_files"].tolist() == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert "SSIM (RGB)" not in stats and "2017" in str(stats["source"])
    assert stats["BPP"][0, 0] == 0.081 and stats["PSNR (Chroma)"][23, 5] == 40.714092176645735
    np.testing.assert_allclose(stats["PSNR (RGB)"], 10 * np.log10(255**2 / stats["MSE (RGB)"]), atol=1e-4)
    np.testing.assert_allclose(10 ** (-stats["MS-SSIM (Luma) (dB)"] / 10), 1 - stats["MS-SSIM (Luma)"])


def test_balle2017_table_is_read_in_any_order(tmp_path, capsys):
    table = tmp_path / "table.csv"
    keys = ["BPP", *(f"{name} ({mode})" for mode in MODES for name in ("MSE", "PSNR", "MS-SSIM"))]
    lines = [
        f"{image},{setting}," + ",".join([f"0.{image[-1]}{setting}"] * 10)
        for image in ("b2", "a1")
        for setting in (16, 8)
    ]
    table.write_text("\n".join([",".join(["image", "setting", *keys]), *lines]))
    out = tmp_path / "out.npz"
    assert reference_stats.main(["balle2017", str(table), "--out", str(out)]) == 0
    stats = load_npz(out)
    assert stats["compressed_files"].tolist() == ["a1.png", "b2.png"]
    assert stats["setting"].tolist() == stats["settings"].tolist() == [8, 16]
    assert stats["BPP"].tolist() == [[0.18, 0.116], [0.28, 0.216]]

    table.write_text("\n".join([",".join(["image", "setting", *keys]), *lines[:3]]))
    os.remove(out)
    assert reference_stats.main(["balle2017", str(table), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: the table ") and not out.exists()


def test_reference_stats_on_bad_input(tmp_path, china, capsys):
    out = ["--out", str(tmp_path / "out.npz")]
    assert reference_stats.main(["jpeg", str(tmp_path / "*.png"), *out]) == 1
    Image.fromarray(china).save(tmp_path / "small.png")
    assert reference_stats.main(["jpeg", str(tmp_path / "*.png"), *out]) == 1
    nothing, small = capsys.readouterr().err.splitlines()
    assert nothing.startswith("error: no image files match") and "752 x 496" in small and "small.png" in small
    with pytest.raises(SystemExit) as usage:
        reference_stats.main([])
    assert usage.value.code == 2


def shipped():
    return [pathlib.Path(path).read_bytes() for path in (JPEG_STATS, BALLE2017_STATS)]


def test_figures_of_other_images_do_not_replace_what_ships(tmp_path, capsys, monkeypatch):
    before = shipped()
    photograph = Image.fromarray(np.random.default_rng(0).integers(256, size=(512, 768, 3), dtype=np.uint8))
    for i in range(1, 25):  # names and sizes are Kodak's, the pixels are not
        photograph.save(tmp_path / f"kodim{i:02d}.png", compress_level=0)
    (tmp_path / "link.npz").symlink_to(JPEG_STATS)
    table = tmp_path / "table.csv"
    keys = ["BPP", *(f"{name} ({mode})" for mode in MODES for name in ("MSE", "PSNR", "MS-SSIM"))]
    table.write_text(",".join(["image", "setting", *keys]) + "\nkodim01,128," + ",".join(["0.5"] * 10))
    monkeypatch.chdir(ROOT)
    for argv in (
        ["jpeg", str(tmp_path)],
        ["jpeg", str(tmp_path / "kodim0*.png")],
        ["jpeg", str(tmp_path), "--out", JPEG_STATS],
        ["jpeg", str(tmp_path), "--out", str(tmp_path / "link.npz")],
        ["jpeg", str(tmp_path), "--out", BALLE2017_STATS],
        ["balle2017", str(table)],
        ["balle2017", str(table), "--out", JPEG_STATS],
    ):
        assert reference_stats.main(argv) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "ships with the program" in error and "--out" in error
    assert shipped() == before


def test_kodak_images_may_replace_what_ships(kodak, tmp_path):
    paths = reference_stats.find_images(os.path.join(kodak, "*.png"))
    reference_stats.check_out(JPEG_STATS, "jpeg", lambda: reference_stats.are_kodak(paths), paths)
    assert not reference_stats.are_kodak(paths[:-1])


@pytest.mark.parametrize(
    "out, expected",
    [
        ("kodim01.png", "it is an input"),
        ("x.png", "should end in .npz"),
        ("none/x.npz", "there is no folder"),
    ],
)
def test_outputs_are_checked_before_the_work(tmp_path, capsys, out, expected):
    Image.new("RGB", (768, 512)).save(tmp_path / "kodim01.png")
    assert reference_stats.main(["jpeg", str(tmp_path / "*.png"), "--out", str(tmp_path / out)]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "table", ["", "image,setting\n", "image,setting,BPP\na,8,1\n", "a\0b", '"' * 5, "\xff"]
)
def test_strange_tables_are_one_error(tmp_path, capsys, table):
    (tmp_path / "table.csv").write_bytes(table.encode("latin-1"))
    argv = ["balle2017", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out.npz")]
    assert reference_stats.main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the table ") and error.count("\n") == 1
