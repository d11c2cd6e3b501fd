"""What the evaluation compares with JPEG: the curves of the plot, and the table of BD-rates."""

import os

import numpy as np
import pytest
from conftest import GOLDEN_RUN
from evaluation import SMALL, SMALL_NAMES, TEST_IMAGES, results
from PIL import Image
from shipped import CHECKPOINTS, RUN

import post_process
from quantizers import QUANTIZERS
from vbq import plots
from vbq.baselines import JPEG_QUALITIES, KODAK, jpeg_results
from vbq.results import MEASURES

pytestmark = pytest.mark.usefixtures("quick_priors")


def curve(label, rate, quality):
    values = {key: np.array([quality], float) for key in plots.COLUMNS}
    return plots.curve(label, {"settings": np.arange(len(rate)), **values, "BPP": np.array([rate], float)})


@pytest.fixture
def plotted(monkeypatch):
    """What was plotted last: labels of curves, labels of references, and the title."""
    seen = {}
    draw = plots.rate_distortion

    def record(path, curves, references=(), title=None):
        seen.update(curves=[one["label"] for one in curves], title=title)
        seen.update(references=[one["label"] for one in references], jpeg=[*references, None][0])
        draw(path, curves, references, title)

    monkeypatch.setattr(plots, "rate_distortion", record)
    return seen


def kodak_in(folder, china, names=KODAK):
    """Small images with the names of Kodak's: their paths."""
    paths = [str(folder / f"{name}.png") for name in names]
    for path in paths:
        Image.fromarray(china[:16, :16]).save(path)
    return paths


def test_jpeg_is_measured_on_the_test_images(tmp_path, plotted, capsys):
    paths = post_process.find_test_images(TEST_IMAGES)
    post_process.report(str(tmp_path), [curve("mine", [0.5, 1, 2], [25, 30, 35])], paths, "a title")
    assert plotted["curves"] == ["mine"] and plotted["references"] == ["JPEG"]
    assert plotted["title"] == "a title"
    expected = jpeg_results(paths)
    np.testing.assert_array_equal(plotted["jpeg"]["BPP"], expected["BPP"].mean(axis=0))
    np.testing.assert_array_equal(plotted["jpeg"]["settings"], JPEG_QUALITIES)
    table = (tmp_path / "bd_rates.md").read_text()
    assert table.startswith("BD-rates against JPEG on 2 images") and "| mine " in table
    out = capsys.readouterr().out
    assert table in out and len([line for line in out.splitlines() if line.startswith("JPEG")]) == 12
    assert sorted(os.listdir(tmp_path)) == ["bd_rates.md", "rate_distortion.png"]


def test_published_curves_are_shown_for_all_24_kodak_images_only(tmp_path, plotted, china):
    paths, mine = kodak_in(tmp_path, china), [curve("mine", [0.5, 1, 2], [25, 30, 35])]
    post_process.report(str(tmp_path), mine, paths)
    assert plotted["references"] == [
        "JPEG",
        "JPEG, published (24 Kodak images)",
        "Ballé 2017, published (24 Kodak images)",
    ]
    post_process.report(str(tmp_path), mine, paths[:-1])
    assert plotted["references"] == ["JPEG"]


def test_an_image_too_large_for_jpeg_leaves_the_plot_without_it(tmp_path, plotted, capsys):
    Image.fromarray(np.zeros((1, 65501, 3), np.uint8)).save(tmp_path / "wide.png")
    post_process.report(str(tmp_path), [curve("mine", [1, 2], [30, 35])], [str(tmp_path / "wide.png")])
    out, err = capsys.readouterr()
    assert plotted["references"] == []
    assert err == (
        f"note: JPEG is not measured: {tmp_path / 'wide.png'}: a JPEG file has at most 65500 pixels a side, "
        "but the image has 65501 x 1\n"
    )
    table = (tmp_path / "bd_rates.md").read_text()
    assert table == "BD-rates: none, because JPEG was not measured on these images\n" and table in out


def test_curves_that_cannot_be_compared_are_told_in_words(tmp_path, plotted, capsys):
    curves = [curve("one", [1], [30]), curve("low", [1, 2], [1, 2])]
    post_process.report(str(tmp_path), curves, post_process.find_test_images(TEST_IMAGES))
    table = (tmp_path / "bd_rates.md").read_text()
    assert table.count("too few points") == 2 and table.count("the curves do not overlap") == 2


@pytest.mark.slow
def test_shards_make_no_plot_and_their_merger_makes_that_of_the_whole(fresh, validation, tmp_path, capsys):
    checkpoints, run = fresh
    argv = [checkpoints, GOLDEN_RUN, validation, TEST_IMAGES, *SMALL]
    for shard in ("1/2", "2/2"):
        assert post_process.main([*argv, "--shard", shard]) == 0
    out = capsys.readouterr().out
    assert out == "" and not {"rate_distortion.png", "bd_rates.md"} & set(os.listdir(run))
    assert post_process.main([*argv, "--merge", "2"]) == 0
    merged = capsys.readouterr().out
    assert post_process.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.replace(str(tmp_path / "whole"), run) == merged
    for name in ("rate_distortion.png", "bd_rates.md"):
        with open(os.path.join(run, name), "rb") as file:
            assert file.read() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--passes", "20", "--contexts"]])
def test_the_fits_that_ship_serve_fewer_settings_with_the_same_numbers(tmp_path, china, capsys, flags):
    before = os.listdir(f"{CHECKPOINTS}/{RUN}")
    Image.fromarray(china[:64, :64]).save(tmp_path / "x.png")
    argv = [CHECKPOINTS, RUN, "-", str(tmp_path / "*.png"), *flags]
    assert post_process.main([*argv, "--out", str(tmp_path / "all")]) == 0
    capsys.readouterr()
    few = ["--lambs", "1", "4", "--quantization_levels", "4", "16"]
    assert post_process.main([*argv, *few, "--out", str(tmp_path / "few")]) == 0
    options = post_process.fit_options(post_process.parse_args([*argv, *few]))
    names = [kind.file_name(options) for kind in QUANTIZERS]
    assert names[1:] == list(SMALL_NAMES[1:])
    assert f"uses the saved fits {', '.join(names)}, to " in capsys.readouterr().err
    for name, settings in zip(names, ([1, 4], [4, 16], [4, 16])):
        whole, part = results(tmp_path / "all", name), results(tmp_path / "few", name)
        assert part["settings"].tolist() == settings and str(part["quantizer_path"]) == name + ".npz"
        columns = [whole["settings"].tolist().index(setting) for setting in settings]
        for key in MEASURES:
            np.testing.assert_array_equal(part[key], whole[key][:, columns], err_msg=key)
        assert str(part["fit"]) == str(whole["fit"])
    assert os.listdir(f"{CHECKPOINTS}/{RUN}") == before
