"""Result files, and how shards are put together."""

import types

import numpy as np
import pytest

from vbq.command import UserError
from vbq.files import save_npz
from vbq.fits import Fit
from vbq.metrics import METRIC_KEYS
from vbq.results import FILE_KEY, MEASURES, as_arrays, distinct_names, merge, results_path

FILES = ["a.png", "b.png", "c.png", "d.png", "e.png"]
SETTINGS = [0.5, 2.0]


def fit_of(identity="abc"):
    return Fit(types.SimpleNamespace(identity=lambda: identity), "Name")


def records_of(files, file_bits=True):
    """Records whose values tell the image, the setting and the measure."""
    keys = (*MEASURES, FILE_KEY) if file_bits else MEASURES
    return [
        [{key: 100.0 * FILES.index(file) + 10 * j + k / 10 for k, key in enumerate(keys)} for j in range(2)]
        for file in files
    ]


def arrays_of(files, identity="abc", settings=SETTINGS, **kwargs):
    keys = MEASURES if not kwargs.get("file_bits", True) else (*MEASURES, FILE_KEY)
    return as_arrays(fit_of(identity), settings, files, records_of(files, **kwargs), keys)


def test_paths():
    assert results_path("run", "Name") == "run/Name-compression_results.npz"
    assert results_path("run", "Name", (2, 3)) == "run/Name-compression_results-shard=2-of-3.npz"


def test_images_of_equal_names_are_told_apart_by_their_folders():
    assert distinct_names(["x/a.png", "x/b.png"]) == ["a.png", "b.png"]
    assert distinct_names(["x/a.png", "y/a.png", "y/b.png"]) == ["x/a.png", "y/a.png", "b.png"]
    assert distinct_names(["p/x/a.png", "q/x/a.png", "q/y/a.png"]) == ["p/x/a.png", "q/x/a.png", "y/a.png"]
    assert distinct_names([]) == []


@pytest.mark.parametrize("file_bits", [False, True])
def test_arrays_have_an_entry_for_every_image_and_setting(file_bits):
    arrays = arrays_of(FILES[:3], file_bits=file_bits)
    head = ["settings", "compressed_files", "quantizer_path", "reconstructions"]
    measures = ["B", "BPP", "BPPCL", "BPL", *METRIC_KEYS]
    assert list(arrays) == [*head, *measures, *[FILE_KEY] * file_bits, "fit"]
    assert arrays["settings"].tolist() == SETTINGS and arrays["compressed_files"].tolist() == FILES[:3]
    assert str(arrays["quantizer_path"]) == "Name.npz" and str(arrays["fit"]) == "abc"
    assert arrays["reconstructions"].shape == (0,)
    for k, key in enumerate(measures):
        expected = 100 * np.arange(3)[:, None] + 10 * np.arange(2) + k / 10
        np.testing.assert_array_equal(arrays[key], expected)


def test_smaller_reconstructions_are_padded():
    records = records_of(FILES[:2])
    shapes = [(4, 7, 3), (5, 6, 3)]
    for image, shape in zip(records, shapes):
        for j, record in enumerate(image):
            record["reconstruction"] = np.full(shape, j + 1, np.uint8)
    arrays = as_arrays(fit_of(), SETTINGS, FILES[:2], records)
    kept = arrays["reconstructions"]
    assert kept.shape == (2, 2, 5, 7, 3) and kept.dtype == np.uint8
    np.testing.assert_array_equal(arrays["sizes"], [[4, 7], [5, 6]])
    for i, (height, width, _) in enumerate(shapes):
        for j in range(2):
            assert (kept[i, j, :height, :width] == j + 1).all()
            assert kept[i, j].sum() == (j + 1) * height * width * 3


def save_shards(folder, count, **of_last):
    """Saves the shards of an evaluation; the last one is made with other arguments."""
    for i in range(count):
        arrays = arrays_of(**{"files": FILES[i::count], **(of_last if i == count - 1 else {})})
        save_npz(results_path(folder, "Name", (i + 1, count)), arrays)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_merged_shards_are_the_whole(tmp_path, count):
    save_shards(tmp_path, count)
    merged, whole = merge(tmp_path, ["Name"], FILES, count)["Name"], arrays_of(FILES)
    assert list(merged) == list(whole)
    for key, x in whole.items():
        assert merged[key].dtype == x.dtype
        np.testing.assert_array_equal(merged[key], x)


@pytest.mark.parametrize(
    "of_last, words",
    [
        ({"identity": "abd"}, "another fit than Name-compression_results-shard=1-of-2.npz"),
        ({"settings": [0.5, 4.0]}, "other settings than Name-compression_results-shard=1-of-2.npz"),
        ({"file_bits": False}, "other settings than Name-compression_results-shard=1-of-2.npz"),
        ({"files": FILES[0::2]}, "other images"),
        ({"files": FILES[1:2]}, "other images"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(tmp_path, of_last, words):
    save_shards(tmp_path, 2, **of_last)
    with pytest.raises(UserError, match="shard=2-of-2.npz: .*again") as caught:
        merge(tmp_path, ["Name"], FILES, 2)
    assert words in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
    save_shards(tmp_path, 2)
    with pytest.raises(UserError, match="no such file: .*shard=3-of-3"):
        save_npz(results_path(tmp_path, "Name", (1, 3)), arrays_of(FILES[0::3]))
        save_npz(results_path(tmp_path, "Name", (2, 3)), arrays_of(FILES[1::3]))
        merge(tmp_path, ["Name"], FILES, 3)


def test_shards_that_do_not_name_their_fit_are_refused(tmp_path):
    """Older versions wrote such shards."""
    for i in range(2):
        arrays = arrays_of(FILES[i::2])
        del arrays["fit"]
        save_npz(results_path(tmp_path, "Name", (i + 1, 2)), arrays)
    with pytest.raises(UserError, match="shard=1-of-2.npz: .*does not say .*fit.*again"):
        merge(tmp_path, ["Name"], FILES, 2)
