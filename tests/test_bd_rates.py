"""Bjontegaard deltas, and the table of those against JPEG."""

import numpy as np
import pytest

from vbq.bd_rates import NotComparable, bd_quality, bd_rate, increasing, jpeg_table

PSNR, MS_SSIM = "PSNR (RGB)", "MS-SSIM (RGB) (dB)"
RATE = np.array([0.25, 0.5, 1, 2])
QUALITY = 26 + 5 * np.log2(RATE / 0.25)


def curve(rate, psnr, label="", images=2):
    psnr = np.array(psnr, float)
    return {"label": label, "BPP": np.array(rate, float), PSNR: psnr, MS_SSIM: psnr / 2, "images": images}


def test_deltas_of_known_curves():
    anchor, half = curve(RATE, QUALITY), curve(RATE / 2, QUALITY)
    percent, overlap = bd_rate(anchor, half, PSNR)
    assert percent == pytest.approx(-50) and overlap == (26, 41)
    assert bd_quality(anchor, half, PSNR) == pytest.approx(5)
    assert bd_quality(anchor, half, MS_SSIM) == pytest.approx(2.5)
    assert bd_rate(half, anchor, PSNR)[0] == pytest.approx(100)
    part = curve(RATE[1:3], QUALITY[1:3])
    assert bd_rate(anchor, part, PSNR) == (pytest.approx(0), (31, 36))


def test_points_where_more_bits_bring_nothing_do_not_count():
    """The order of the points does not matter. Neither do points without bits or of infinite quality."""
    rate, psnr = [*RATE, 3, 4, 0.5, 0, 5], [*QUALITY, 41, 40.9, 20, 3, np.inf]
    for order in (slice(None), slice(None, None, -1)):
        one = curve(rate[order], psnr[order])
        np.testing.assert_array_equal(increasing(one, PSNR), [RATE, QUALITY])
        assert bd_rate(curve(RATE, QUALITY), one, PSNR)[0] == pytest.approx(0)


@pytest.mark.parametrize(
    "rate, psnr, words",
    [
        (RATE, QUALITY - 20, "the curves do not overlap"),
        (RATE, QUALITY - 15, "the curves do not overlap"),  # they share one quality
        ([1], [30], "too few points"),
        ([1, 2, 3], [30, 30, 29], "too few points"),
        (RATE, [np.inf] * 4, "too few points"),
        (RATE, [np.nan] * 4, "not measured"),
    ],
)
def test_curves_without_a_delta(rate, psnr, words):
    anchor, test = curve(RATE, QUALITY), curve(rate, psnr, "mine")
    with pytest.raises(NotComparable, match=words):
        bd_rate(anchor, test, PSNR)
    with pytest.raises(NotComparable, match=words):
        bd_rate(test, test if "overlap" not in words else anchor, PSNR)
    assert jpeg_table(anchor, [test]).splitlines()[-1].split(" | ")[1].strip() == words


def test_curves_of_other_rates_have_no_delta_of_quality():
    with pytest.raises(NotComparable, match="do not overlap"):
        bd_quality(curve(RATE, QUALITY), curve(RATE * 100, QUALITY), PSNR)


def test_the_table_has_a_line_for_every_curve():
    curves = [curve(RATE / 2, QUALITY, "VBQ (20 passes)"), curve(RATE * 4, QUALITY + 5, "k-means")]
    lines = jpeg_table(curve(RATE, QUALITY, "JPEG"), curves).splitlines()
    assert lines[0].startswith("BD-rates against JPEG on 2 images: ") and lines[1] == ""
    assert len({len(line) for line in lines[2:]}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["quantizer", "BD-rate (PSNR)", "BD-rate (MS-SSIM)"]
    assert set("".join(cells[1])) == {"-"}
    assert cells[2:] == [
        ["VBQ (20 passes)", "-50.0 % over 26.0 to 41.0 dB", "-50.0 % over 13.0 to 20.5 dB"],
        ["k-means", "+100.0 % over 31.0 to 41.0 dB", "+100.0 % over 15.5 to 20.5 dB"],
    ]
    assert "on 1 image: " in jpeg_table(curve(RATE, QUALITY, images=1), curves)


def test_without_jpeg_the_table_says_so():
    assert jpeg_table(None, [curve(RATE, QUALITY)]) == (
        "BD-rates: none, because JPEG was not measured on these images"
    )
