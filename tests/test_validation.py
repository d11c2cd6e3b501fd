"""Validation images: an array, or the centres of image files."""

import hashlib
import os

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import CHECKPOINTS, TEST_IMAGES, contents, copy_run, fails
from PIL import Image

from vbq import validation
from vbq.command import UserError
from vbq.validation import read_validation


def test_validation_array_and_files_are_the_same_images(tmp_path, china, capsys):
    images = [china[:64, 64 * i : 64 * i + 64] for i in range(3)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "all.npy", images)
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    Image.fromarray(china[:30, :70]).save(tmp_path / "4.png")
    files = read_validation(str(tmp_path / "*.png"))
    array = read_validation(str(tmp_path / "all.npy"))
    np.testing.assert_array_equal(files.images, array.images)
    assert files.label.split()[-1] == array.label.split()[-1]
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 2 and "3.png" in warned[0] and "4.png" in warned[1]
    assert isinstance(array.images, np.memmap)


def test_large_validation_files_are_cropped(tmp_path, china):
    large = np.tile(china, (2, 2, 1))[:300, :500]
    Image.fromarray(large).save(tmp_path / "a.png")
    images = read_validation(str(tmp_path / "a.png")).images
    np.testing.assert_array_equal(images, large[None, 22:278, 122:378])


def test_the_label_holds_the_name_and_a_digest_of_the_images(tmp_path, monkeypatch):
    images = np.random.default_rng(0).random((5, 8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "val.npy", images)
    label = read_validation(str(tmp_path / "val.npy")).label
    digest = hashlib.sha256(b"<f4 (5, 8, 8, 3)" + images.tobytes()).hexdigest()
    assert label == f"val.npy sha256:{digest}"
    monkeypatch.setattr(validation, "PART_BYTES", 2 * images[0].nbytes)
    assert read_validation(str(tmp_path / "val.npy")).label == label
    images[-1, -1, -1, -1] = 0
    np.save(tmp_path / "val.npy", images)
    assert read_validation(str(tmp_path / "val.npy")).label != label


def test_without_a_readable_file_there_are_no_images(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 validation images can be read, .*a.png"):
        read_validation(str(tmp_path / "*.png"))
    assert "warning: left out" in capsys.readouterr().err


def bad(shape=(2, 32, 32, 3), value=0.5, dtype=np.float32):
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    "array, words",
    [
        (bad((32, 32, 3)), "N x H x W x 3"),
        (bad((2, 32, 32, 4)), "N x H x W x 3"),
        (bad((0, 32, 32, 3)), "N x H x W x 3"),
        (bad(value=3, dtype=np.int32), "int32"),
        (bad(value=255.0), "255"),
        (bad(value=-0.1), "-0.1"),
        (bad(value=np.nan), "nan"),
        (bad(dtype=object), "npy"),
        (b"", "npy"),
        (b"\x93NUMPY no", "npy"),
    ],
)
def test_bad_validation_arrays(tmp_path, capsys, array, words):
    """The command names them in one line, and leaves the run as it was."""
    checkpoints = copy_run(CHECKPOINTS, tmp_path / "checkpoints")
    path = tmp_path / "val.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    run = os.path.join(checkpoints, GOLDEN_RUN)
    before = contents(run)
    line = fails(capsys, checkpoints, GOLDEN_RUN, path, TEST_IMAGES)
    assert words in line and "val.npy" in line
    assert contents(run) == before
