"""Atomic writes, `.npz` files and globs."""

import os
import stat
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from vbq.command import UserError
from vbq.files import (
    atomic_write,
    check_output,
    find_images,
    image_endings,
    load_npz,
    open_npy,
    save_npz,
    why_not_writable,
)


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


def test_the_longest_name_that_a_file_can_have(tmp_path):
    path = tmp_path / ("x" * 251 + ".npz")
    save_npz(path, {"x": 1})
    assert load_npz(path)["x"] == 1 and os.listdir(tmp_path) == [path.name]


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
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        save_npz(tmp_path / "x", arrays, compression)  # the name stays as it is, without .npz added
        with zipfile.ZipFile(tmp_path / "x") as archive:
            assert {member.compress_type for member in archive.infolist()} == {compression}
        result = load_npz(tmp_path / "x")
        assert list(result) == list(arrays)
        for key, value in arrays.items():
            np.testing.assert_array_equal(result[key], value)
    assert load_npz(tmp_path / "x", ["max_bits", "nothing"]) == {"max_bits": 10}


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(TypeError, match="objects"):
        save_npz(tmp_path / "x", {"x": np.array([None])})
    assert os.listdir(tmp_path) == []


def test_bad_npz(tmp_path):
    path = tmp_path / "x.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        save_npz(path, {"x": np.arange(1000), "y": np.arange(1000)}, compression)
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


def write(path, text):
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target.txt"
    (tmp_path / "link.txt").symlink_to(os.path.join("folder", "middle.txt"))
    (tmp_path / "folder" / "middle.txt").symlink_to("target.txt")
    for text in ("first", "second"):  # at first, the link leads nowhere
        write(tmp_path / "link.txt", text)
        assert target.read_text() == text and not target.is_symlink()
        assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "folder" / "middle.txt").is_symlink()
    assert sorted(os.listdir(tmp_path / "folder")) == ["middle.txt", "target.txt"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot write .*loop"):
        write(tmp_path / "loop", "text")
    assert (tmp_path / "loop").is_symlink()


def test_what_is_no_regular_file_is_written_straight(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to("fifo")
    received = []
    for path in (fifo, tmp_path / "link"):
        reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
        reader.start()
        write(path, "text")
        reader.join()
        assert stat.S_ISFIFO(os.stat(fifo).st_mode)
    assert received == ["text", "text"]
    write(os.devnull, "text")
    save_npz(os.devnull, {"x": 1})
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link"]
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        write("/dev/full", "text")


def test_the_file_is_synced_while_it_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to sync a file that was opened for reading."""
    modes = []
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE))
    write(tmp_path / "x", "text")
    assert modes == [os.O_RDWR] and (tmp_path / "x").read_text() == "text"


def test_outputs_that_can_be_written(tmp_path):
    (tmp_path / "in.png").write_text("in")
    (tmp_path / "old.VBQ").write_text("old")
    os.mkfifo(tmp_path / "fifo")
    for name in ("new.vbq", "old.VBQ", "fifo", os.devnull):
        check_output(tmp_path / name, [tmp_path / "in.png", tmp_path / "none.png"], (".vbq",))
    assert (tmp_path / "old.VBQ").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["fifo", "in.png", "old.VBQ"]


@pytest.mark.parametrize(
    "output, expected",
    [
        ("in.png", "it is an input"),
        ("./in.png", "it is an input"),
        ("folder/../in.png", "it is an input"),
        ("link.png", "it is an input"),
        ("hard.png", "it is an input"),
        ("linked/in.png", "it is an input"),
        ("folder", "it is a directory"),
        ("linked", "it is a directory"),
        ("none/x.png", "there is no folder .*none"),
        ("in.png/x.png", "Not a directory"),
        ("new/", "its name should end in .png or .npy"),
        ("x.jpg", "its name should end in .png or .npy"),
        ("png", "its name should end in .png or .npy"),
        ("x" * 300 + ".png", "File name too long"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, output, expected):
    (tmp_path / "folder").mkdir()
    (tmp_path / "in.png").write_text("in")
    (tmp_path / "link.png").symlink_to("in.png")
    (tmp_path / "linked").symlink_to(".")
    os.link(tmp_path / "in.png", tmp_path / "hard.png")
    before = sorted(os.listdir(tmp_path))
    path = f"{tmp_path}/{output}"
    with pytest.raises(UserError, match=f"cannot write .*{expected}") as error:
        check_output(path, [tmp_path / "other.png", tmp_path / "in.png"], (".png", ".npy"))
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "in.png").read_text() == "in"


def test_a_folder_that_cannot_be_written_to():
    with pytest.raises(UserError, match="cannot write /proc/x.png: /proc is not writable"):
        check_output("/proc/x.png")
    with pytest.raises(UserError, match="without a name"):
        check_output("")


def test_why_a_folder_cannot_be_written_to(tmp_path):
    assert why_not_writable(tmp_path) is None and os.listdir(tmp_path) == []
    assert isinstance(why_not_writable(tmp_path / "none"), FileNotFoundError)
    assert isinstance(why_not_writable("/proc"), OSError)


def npy(shape, data=b"", descr="|u1"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "content, expected",
    [
        (npy((10**7, 10**6, 3)), "shorter than its header says"),  # 27 TiB
        (npy((2, 2, 3), bytes(11)), "shorter than its header says"),
        (npy((2**40, 2**40, 2**40), bytes(100)), "x.npy is damaged"),
        (npy((2**32, 2**32, 3), bytes(100)), "x.npy is damaged"),  # overflows to nothing
        (npy((-1, 4, 3), bytes(100)), "x.npy is damaged"),
        (npy((2,), bytes(100), "|O"), "x.npy is damaged"),
        (npy((2,), bytes(100), "<u5"), "x.npy is damaged"),
        (b"", "No data left"),
        (b"\x93NUMPY", "x.npy is damaged"),
        (b"\x93NUMPY\1\0\xff\xff((((((", "x.npy is damaged"),
        (b"text", "x.npy is damaged"),
    ],
)
def test_bad_npy(tmp_path, content, expected):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        open_npy(tmp_path / "x.npy")
    assert "\n" not in str(error.value)


def test_open_npy(tmp_path):
    for array in (np.arange(6).reshape(2, 3), np.zeros((0, 3)), np.float32(1)):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(open_npy(tmp_path / "x.npy"), array)
    save_npz(tmp_path / "y.npy", {"x": 1})
    with pytest.raises(UserError, match="it is an .npz file"):
        open_npy(tmp_path / "y.npy")
    with pytest.raises(UserError, match="no such file"):
        open_npy(tmp_path / "none.npy")


class Bomb:
    """An object that leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled(tmp_path):
    bomb = np.array([Bomb(str(tmp_path / "exploded"))], object)
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=bomb)
    (tmp_path / "y.npy").write_bytes(bomb.dumps())
    for name, read in (("x.npy", open_npy), ("y.npy", open_npy), ("y.npy", load_npz), ("x.npz", load_npz)):
        with pytest.raises(UserError):
            read(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_npz_with_absurd_members(tmp_path):
    for content, expected in ((npy((10**7, 10**6, 3)), "x.npz is damaged"), (b"text", "x is not an array")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy" if content[0] == 0x93 else "x", content)
        with pytest.raises(UserError, match=expected) as error:
            load_npz(tmp_path / "x.npz")
        assert "\n" not in str(error.value)


def test_a_folder_stands_for_its_images(tmp_path):
    folder = tmp_path / "my [photographs]"
    (folder / "sub.png").mkdir(parents=True)
    for name in ("b.png", "A.JPG", "c.npy", "notes.txt", "film.mpg", ".hidden.png", "sub.png/d.png"):
        (folder / name).touch()
    expected = [str(folder / name) for name in ("A.JPG", "b.png", "c.npy")]
    assert find_images(str(folder)) == expected
    assert find_images(f"{folder}{os.sep}") == expected
    assert find_images(str(folder / "*.png")) == [str(folder / "b.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image files are in the folder .*empty"):
        find_images(str(tmp_path / "empty"))
    assert {".png", ".jpeg", ".tif", ".npy"} < image_endings()
    assert not {".txt", ".mpg", ".pdf", ".eps"} & image_endings()


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    write(name, "text")
    assert find_images(str(tmp_path / "*.png")) == [name] == find_images(str(tmp_path))
    check_output(name)
