"""The crops of training."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from small_runs import picture, save_photographs

from vbq import photographs
from vbq.command import UserError
from vbq.log import log_to_terminal
from vbq.photographs import Photographs


@pytest.fixture(name="pattern")
def fixture_pattern(tmp_path):
    """A glob of three pictures."""
    return save_photographs(str(tmp_path / "photographs"))


def test_files_of_all_kinds(tmp_path):
    pixels = picture()
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    sixteen = grey.astype(np.uint16) * 257
    for name, converted in {
        "a_rgb": image,
        "b_grey": image.convert("L"),
        "c_alpha": Image.fromarray(alpha),
        "d_palette": image.quantize(256),
        "e_16": Image.fromarray(sixteen),
    }.items():
        converted.save(tmp_path / f"{name}.png")
    image.save(tmp_path / "f.jpg", quality=95)
    np.save(tmp_path / "g.npy", pixels)
    np.save(tmp_path / "h.npy", pixels / np.float32(255))
    data = Photographs(str(tmp_path / "*"), 16, threads=2)
    grey = np.dstack([grey] * 3)
    expected = (pixels, grey, pixels, pixels, grey, pixels, pixels, pixels)
    for found, reference, tolerance in zip(data.items, expected, (0, 0, 0, 40, 0, 40, 0, 0)):
        assert found.dtype == np.uint8 and found.shape == reference.shape
        assert np.abs(found.astype(int) - reference).max() <= tolerance
    assert len(data) == 8


def test_crops_are_a_function_of_seed_and_number(pattern):
    data = Photographs(pattern, 16, threads=2)
    arguments = {"flip": True, "min_scale": 0.5}
    crops = [data.crop(0, n, **arguments) for n in range(12)]
    assert all(crop.shape == (16, 16, 3) and crop.dtype == np.uint8 for crop in crops)
    again = Photographs(pattern, 16, threads=1, budget=0)  # nothing is kept in memory
    assert isinstance(again.items[0], str)
    for n in reversed(range(12)):
        np.testing.assert_array_equal(again.crop(0, n, **arguments), crops[n])
    batches = list(data.batches([[0, 1, 2], [3, 4, 5]], threads=2, seed=0, **arguments))
    np.testing.assert_array_equal(np.concatenate(batches), crops[:6])
    assert not np.array_equal(data.crop(1, 0), crops[0])


def test_every_photograph_is_seen_once_an_epoch(tmp_path):
    for i in range(5):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    data = Photographs(str(tmp_path / "*.png"), 16, threads=1)
    order = [data.crop(0, n)[0, 0, 0] for n in range(50)]
    assert all(sorted(order[i : i + 5]) == list(range(5)) for i in range(0, 50, 5))
    assert len({tuple(order[i : i + 5]) for i in range(0, 50, 5)}) > 3


def test_flipped_and_unflipped_crops_are_cut_from_the_photograph(pattern):
    data = Photographs(pattern.replace("*", "0"), 16, threads=1)
    windows = np.lib.stride_tricks.sliding_window_view(picture(), (16, 16), axis=(0, 1)).transpose(
        0, 1, 3, 4, 2
    )
    found = []
    for n in range(20):
        crop = data.crop(0, n, flip=True)
        found.append(
            [np.any(np.all(windows == version, axis=(2, 3, 4))) for version in (crop, crop[:, ::-1])]
        )
    assert all(any(pair) for pair in found) and 4 < sum(straight for straight, _ in found) < 16


def test_large_arrays_stay_on_disk(tmp_path, monkeypatch, capsys):
    log_to_terminal()
    pixels = picture()
    np.save(tmp_path / "a.npy", pixels / np.float32(255))
    np.save(tmp_path / "b.npy", pixels / np.float32(255) + 1)
    np.save(tmp_path / "c.npy", pixels[..., 0])
    np.save(tmp_path / "d.npy", np.full(pixels.shape, np.nan))
    with monkeypatch.context() as patch:
        patch.setattr(photographs, "MAPPED_BYTES", 1000)
        data = Photographs(str(tmp_path / "*.npy"), 16, threads=1, budget=1)
    assert len(data) == 1 and isinstance(data.items[0], np.memmap)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert all(
        line.startswith("warning: left out: ") and name in line
        for line, name in zip(warnings, ("b.npy", "c.npy", "d.npy"))
    )
    whole = Photographs(str(tmp_path / "a.npy"), 16, threads=1)
    np.testing.assert_array_equal(data.crop(0, 3), whole.crop(0, 3))


def test_unusable_photographs_are_named_and_left_out(tmp_path, capsys):
    log_to_terminal()
    Image.fromarray(picture()).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:-60])
    Image.fromarray(picture()[:12]).save(tmp_path / "small.png")
    np.save(tmp_path / "array.png.npy", picture()[..., 0])
    assert len(Photographs(str(tmp_path / "*"), 16, threads=3)) == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 5
    for name in ("empty.png", "text.png", "truncated.png", "small.png", "array.png.npy"):
        assert any(name in line and line.startswith("warning: left out") for line in warnings), name
    assert any("at least 16 x 16 pixels" in line and "80 x 12" in line for line in warnings)


def test_very_many_unusable_photographs_are_told_in_few_lines(tmp_path, capsys):
    log_to_terminal()
    folder = tmp_path / "photographs"
    save_photographs(str(folder))
    for i in range(30):
        (folder / f"bad{i}.png").write_bytes(b"")
    Photographs(str(folder / "*.png"), 16, threads=3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and all("bad" in line for line in lines[:10])
    assert lines[10] == "warning: left out: 20 more files that cannot be used"
    # Those that are decoded only when they are needed are told at the end, and once.
    data = Photographs(str(folder / "*.png"), 16, threads=1, budget=0)
    list(data.batches([range(33), range(33, 66)], threads=2, seed=0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[10] == "warning: left out: 20 more files that cannot be used"


def test_scaled_photographs_stay_within_the_budget_with_many_threads(pattern, monkeypatch):
    """Threads meet where each has scaled a photograph, and none has taken room for it yet."""
    data = Photographs(pattern, 16, threads=1)
    one = data.items[0].nbytes
    data.budget = one  # room for one of half the size, and one of the full size: not for all that follow
    barrier = threading.Barrier(8)
    fromarray = Image.fromarray

    def wait(pixels):
        barrier.wait(timeout=60)
        return fromarray(pixels)

    monkeypatch.setattr(Image, "fromarray", wait)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: data._scaled(k % 2, data.items[k % 2], 9 - k // 4), range(8)))
    kept = sum(pixels.nbytes for pixels in data.scaled.values())
    assert len(data.scaled) == 1 and data.budget == one - kept >= 0


def test_a_large_array_that_vanishes_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file: .*a.npy"):
        photographs.read_photograph(str(tmp_path / "a.npy"))


def test_photographs_that_all_vanish_are_an_error(tmp_path, pattern, capsys):
    log_to_terminal()
    data = Photographs(pattern, 16, threads=1, budget=0)
    for path in (tmp_path / "photographs").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the photographs can be read any more"):
        data.crop(0, 0)
    assert capsys.readouterr().err.count("left out: no such file") == 3
