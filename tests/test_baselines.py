"""JPEG measured on images, and which images are Kodak's. `test_utils.py` tests the measures of one image."""

import warnings

import numpy as np
import pytest
from PIL import Image

from vbq import baselines
from vbq.baselines import JPEG_QUALITIES, KODAK, are_named_as_kodak, evaluate_compression_jpg, jpeg_results
from vbq.command import UserError
from vbq.metrics import METRIC_KEYS
from vbq.threads import parallel


def test_jpeg_is_measured_on_every_image(tmp_path, china):
    images = [china, china[:170, :203], china[:40, :30]]
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jpeg_results(paths)
    assert found["settings"].tolist() == list(JPEG_QUALITIES) and len(JPEG_QUALITIES) == 12
    assert list(found) == ["settings", "BPP", *METRIC_KEYS]
    for i, image in enumerate(images[:2]):
        expected = evaluate_compression_jpg(image, JPEG_QUALITIES)
        for key, x in expected.items():
            np.testing.assert_array_equal(found[key][i], x)
    assert found["BPP"].shape == (3, 12) and np.isnan(found["MS-SSIM (RGB)"][2]).all()


def test_a_large_image_is_measured_one_quality_at_a_time(china, monkeypatch):
    expected, threads = evaluate_compression_jpg(china, [5, 50, 95]), []

    def counted(function, items, most=None):
        threads.append(most)
        return parallel(function, items, most)

    monkeypatch.setattr(baselines, "MOST_AT_ONCE", china.nbytes - 1)
    monkeypatch.setattr(baselines, "parallel", counted)
    found = evaluate_compression_jpg(china, [5, 50, 95])
    assert threads == [1]
    for key, x in expected.items():
        np.testing.assert_array_equal(found[key], x)


def test_an_image_that_cannot_be_jpeg_is_named(tmp_path):
    Image.fromarray(np.zeros((1, 65501, 3), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png: a JPEG file has at most 65500 pixels a side"):
        jpeg_results([str(tmp_path / "wide.png")])


def test_the_names_of_the_kodak_images():
    names = [f"some/where/{name}.png" for name in KODAK]
    assert len(names) == 24 and names[0].endswith("kodim01.png") and names[-1].endswith("kodim24.png")
    assert are_named_as_kodak(names)
    assert are_named_as_kodak([name.upper().replace("PNG", "webp") for name in reversed(names)])
    assert not are_named_as_kodak(names[:-1])
    assert not are_named_as_kodak([*names, "other.png"])
    assert not are_named_as_kodak([*names[:-1], names[0]])
    assert not are_named_as_kodak([*names[:-1], "kodim25.png"])
