"""Atomic writes, `.npz` files and globs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from vbq.command import UserError
from vbq.files import atomic_write, find_images, load_npz, save_npz


def test_atomic_write_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "results.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.endswith(".txt") and os.path.dirname(temporary) == str(tmp_path)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
        assert path.read_text() == text
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["results.txt"]


def test_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.npz"
    save_npz(path, {"x": np.arange(3)})
    code = (
        "import sys, time\n"
        "from vbq.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    open(temporary, 'wb').write(b'half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert load_npz(path)["x"].tolist() == [0, 1, 2]
    save_npz(path, {"x": np.arange(4)})  # what the killed process left is in nobody's way
    assert load_npz(path)["x"].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError):
        find_images(str(tmp_path / "*half*"))
    assert find_images(str(tmp_path / "*")) == [str(path)]


def test_unwritable_places(tmp_path):
    for path in (tmp_path / "none" / "x.npz", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            save_npz(path, {"x": 1})
    assert os.listdir(tmp_path) == []


def test_npz_round_trip(tmp_path):
    arrays = {
        "MS-SSIM (RGB) (dB)": np.eye(2),
        "compressed_files": ["b.png", "a.png"],
        "max_bits": 10,
        "settings": [],
    }
    for compressed in (False, True):
        save_npz(tmp_path / "x", arrays, compressed)  # the name stays as it is, without .npz added
        result = load_npz(tmp_path / "x")
        assert list(result) == list(arrays)
        for key, value in arrays.items():
            np.testing.assert_array_equal(result[key], value)


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="objects"):
        save_npz(tmp_path / "x", {"x": np.array([None])})
    assert os.listdir(tmp_path) == []


def test_bad_npz(tmp_path):
    path = tmp_path / "x.npz"
    save_npz(path, {"x": np.arange(1000), "y": np.arange(1000)}, compressed=True)
    data = path.read_bytes()
    broken = bytearray(data)
    broken[len(data) // 4] ^= 255
    for content in (b"", b"text", data[: len(data) // 2], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="x.npz") as error:
            load_npz(path)
        assert "\n" not in str(error.value)
    with open(path, "wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(UserError, match="single array"):
        load_npz(path)
    with pytest.raises(UserError, match="no such file"):
        load_npz(tmp_path / "none.npz")


def test_find_images(tmp_path):
    for name in ("b.png", "a.png", "[1].png", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    (tmp_path / "d.png" / "e.png").touch()

    def found(pattern):
        return [os.path.relpath(path, tmp_path) for path in find_images(str(tmp_path / pattern))]

    assert found("*.png") == ["[1].png", "a.png", "b.png"]
    assert found("**/*.png") == ["[1].png", "a.png", "b.png", os.path.join("d.png", "e.png")]
    assert found("[1].png") == ["[1].png"]
    with pytest.raises(UserError, match=r"no image files match .*\.jpg"):
        found("*.jpg")
