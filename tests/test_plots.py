"""The table and the figure of rate-distortion curves."""

import os

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vbq.command import UserError
from vbq.plots import COLUMNS, curve, most_rate, published_curves, rate_distortion, text_table


def results(settings=(0.5, 8.0), scale=1.0):
    """Measures of three images, float64 [3, 2]."""
    values = scale * np.array([[1.0, 0.5], [1.5, 0.25], [2.0, 0.75]])
    return {"settings": np.array(settings), **{key: values + k for k, key in enumerate(COLUMNS)}}


def test_a_curve_is_the_mean_over_the_images():
    found = curve("mine", results())
    assert found["label"] == "mine" and found["settings"].tolist() == [0.5, 8]
    assert list(found) == ["label", "settings", *COLUMNS, "images", "images_with_ms_ssim"]
    assert found["images"] == found["images_with_ms_ssim"] == 3
    for k, key in enumerate(COLUMNS):
        np.testing.assert_allclose(found[key], [1.5 + k, 0.5 + k])


def test_the_table_has_a_line_for_every_setting():
    lines = text_table([curve("mine", results()), curve("other", results((2, 4), 2.0))]).splitlines()
    assert lines[0].split() == ["quantizer", "setting", "bpp", "PSNR", "dB", "MS-SSIM", "in", "dB"]
    assert [line.split() for line in lines[1:]] == [
        ["mine", "0.5", "1.5000", "2.50", "3.50000", "4.50"],
        ["mine", "8", "0.5000", "1.50", "2.50000", "3.50"],
        ["other", "2", "3.0000", "4.00", "5.00000", "6.00"],
        ["other", "4", "1.0000", "2.00", "3.00000", "4.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_columns_of_the_table_stand_below_each_other_whatever_the_labels():
    long = "VBQ (20 passes, contexts, 20 joint steps)"
    lines = text_table([curve(long, results((0.00390625, 128))), curve("k-means", results((2, 4)))])
    lines = lines.splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[1].startswith(f"{long}  0.00390625 ")
    for word in ("setting", "bpp", "PSNR dB"):
        end = lines[0].index(word) + len(word)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines)


def test_images_too_small_for_ms_ssim_are_left_out_of_its_mean():
    arrays = results()
    for key in ("MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"):
        arrays[key][1] = np.nan
    found = curve("mine", arrays)
    assert (found["images"], found["images_with_ms_ssim"]) == (3, 2)
    np.testing.assert_allclose(found["MS-SSIM (RGB)"], [1.5 + 2, 0.625 + 2])
    np.testing.assert_allclose(found["PSNR (RGB)"], [1.5 + 1, 0.5 + 1])
    assert text_table([found]).splitlines()[-1].startswith("MS-SSIM: means of 2 of 3 images")
    for key in ("MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"):
        arrays[key][:] = np.nan
    assert np.isnan(curve("mine", arrays)["MS-SSIM (RGB)"]).all()


def test_published_curves_rise():
    curves = published_curves()
    assert [one["label"] for one in curves] == ["JPEG", "Ballé 2017"]
    labels = [one["label"] for one in published_curves("{} (24 images)")]
    assert labels == ["JPEG (24 images)", "Ballé 2017 (24 images)"]
    for one in curves:
        order = np.argsort(one["BPP"])
        assert len(order) == len(one["settings"]) > 5
        assert (np.diff(one["PSNR (RGB)"][order]) > 0).all()


def test_the_figure_is_a_picture(tmp_path):
    rate_distortion(tmp_path / "figure.png", [curve("mine", results())], title="a title")
    assert os.listdir(tmp_path) == ["figure.png"]
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG" and image.size == (1440, 720)


def test_every_curve_is_drawn(tmp_path):
    curves = [curve("mine", results()), curve("other", results(scale=0.5))]
    for i in range(3):
        rate_distortion(tmp_path / f"{i}.png", curves[:i] + [curve("mine", results(scale=0.0))])
    images = [np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(3)]
    assert all(image.std() > 10 for image in images)
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function that draws curves, and returns Matplotlib's figure."""
    figures = []
    savefig = Figure.savefig

    def save(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)

    def draw(*args):
        rate_distortion(tmp_path / "figure.png", *args)
        return figures[-1]

    return draw


def test_the_legend_stands_below_the_data(drawn):
    curves = [curve(f"a quantizer with many options, number {i}", results(scale=1 + i)) for i in range(5)]
    figure = drawn(curves, [curve("JPEG", results())], "a title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(one["label"] for one in curves), "JPEG"]
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    for axes in figure.axes:
        assert box.y1 < axes.get_tightbbox().y0


def test_curves_are_told_apart_and_references_are_grey(drawn):
    curves = [curve(str(i), results(scale=1 + i)) for i in range(6)]
    references = [curve(name, results()) for name in ("JPEG", "published", "another")]
    for axes in drawn(curves, references).axes:
        lines = axes.get_lines()
        looks = [(line.get_color(), line.get_linestyle()) for line in lines]
        assert len(set(looks)) == 9 and len({line.get_marker() for line in lines[:6]}) == 6
        assert looks[6] == ("black", "-")
        assert all(len(set(to_rgb(color))) == 1 for color, _ in looks[6:])
        assert all(len(set(to_rgb(color))) > 1 for color, _ in looks[:6])


def one_image(label, rate, quality):
    """A curve of one image, whose MS-SSIM in dB is a third of its PSNR."""
    values = {"BPP": rate, "PSNR (RGB)": quality, "MS-SSIM (RGB)": np.full(len(rate), 0.5)}
    values["MS-SSIM (RGB) (dB)"] = np.array(quality) / 3
    return curve(label, {"settings": np.arange(len(rate)), **{k: np.array([v]) for k, v in values.items()}})


def test_the_axes_fit_the_curves(drawn):
    """They end where the references end, or before that, but show a point of each curve."""
    mine, jpeg = one_image("mine", [0.5, 2, 8], [30, 36, 60]), one_image("JPEG", [0.2, 4.0], [24, 40])
    assert most_rate([mine], [jpeg]) == 4 and most_rate([mine], []) == 8
    assert most_rate([one_image("", [0.1, 0.5], [20, 30])], [jpeg]) == 0.5
    assert most_rate([one_image("", [0.01, 0.05], [20, 30])], [jpeg]) == 0.2
    assert most_rate([mine, one_image("", [6.0, 7], [30, 31])], [jpeg]) == 6
    assert most_rate([one_image("", [0.0, 0], [20, 20])], []) > 0
    left, right = drawn([mine], [jpeg]).axes
    assert left.get_xlim()[0] == 0 and 4 < left.get_xlim()[1] < 4.5
    low, high = left.get_ylim()
    at_the_end = np.interp(left.get_xlim()[1], [2, 8], [36, 60])
    assert 22 < low < 24 and at_the_end < high < at_the_end + 2
    assert right.get_ylim()[1] < 20


def test_curves_without_finite_points_can_be_drawn(drawn):
    """Those of images that are too small for MS-SSIM, or that are decoded without error."""
    for odd in (np.nan, np.inf):
        for axes in drawn([one_image("mine", [0.0, 0.0], [odd, odd])]).axes:
            assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()


def test_a_title_is_no_formula(drawn):
    figure = drawn([curve("mine", results())], (), "from $5 to $\\6")
    assert figure.get_suptitle() == "from $5 to $\\6"


def test_a_title_of_bytes_that_are_no_text(drawn):
    assert drawn([curve("mine", results())], (), "caf\udce9 noir").get_suptitle() == "caf\\udce9 noir"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(UserError, match="none.*figure.png"):
        rate_distortion(tmp_path / "none" / "figure.png", [curve("mine", results())])
