"""Bjontegaard deltas between rate-distortion curves (package `bjontegaard`, pchip), and a table of them."""

import numpy as np

QUALITIES = {"PSNR (RGB)": "PSNR", "MS-SSIM (RGB) (dB)": "MS-SSIM"}  # both in dB


class NotComparable(Exception):
    """Two curves have no Bjontegaard delta. The message says why, in a few words."""


def increasing(one, key):
    """The part of a curve where more bits bring more quality.

    Args:
      one: dict, a curve as of `plots.curve`.
      key: str, the measure of quality.

    Returns:
      float64 bits per pixel and quality, both increasing and finite.
    """
    order = np.lexsort((-one[key], one["BPP"]))  # of points of one rate, the best comes first
    rate, quality = one["BPP"][order], one[key][order]
    usable = (rate > 0) & np.isfinite(quality)  # the logarithm of the rate is interpolated
    rate, quality = rate[usable], quality[usable]
    best = np.maximum.accumulate(np.concatenate([[-np.inf], quality[:-1]]))
    return rate[quality > best], quality[quality > best]


def bd_rate(anchor, test, key):
    """How many more bits a curve takes than an anchor, at the qualities that both cover.

    Args:
      anchor, test: dict, curves as of `plots.curve`.
      key: str, the measure of quality.

    Returns:
      float, in percent, negative if the curve takes fewer bits; and the range of quality, (from, to) in dB.

    Raises:
      NotComparable: there is no such range, or a curve has fewer than two points.
    """
    import bjontegaard  # here, because it imports Matplotlib

    curves = _pair(anchor, test, key)
    overlap = _overlap(curves[1], curves[3])
    return bjontegaard.bd_rate(*curves, "pchip", require_matching_points=False, min_overlap=0), overlap


def bd_quality(anchor, test, key):
    """How much better a curve is than an anchor, in dB, at the rates that both cover.

    The arguments and the errors are those of `bd_rate`.
    """
    import bjontegaard

    curves = _pair(anchor, test, key)
    _overlap(curves[0], curves[2])
    return bjontegaard.bd_psnr(*curves, "pchip", require_matching_points=False, min_overlap=0)


def _pair(anchor, test, key):
    """The rates and qualities of the anchor, then of the other curve, as `increasing` returns them."""
    curves = [*increasing(anchor, key), *increasing(test, key)]
    if np.isnan(test[key]).all():
        raise NotComparable("not measured")
    if min(len(rate) for rate in curves[::2]) < 2:
        raise NotComparable("too few points")
    return curves


def _overlap(one, other):
    """The range, (from, to), that two increasing arrays share."""
    low, high = max(one[0], other[0]), min(one[-1], other[-1])
    if low >= high:
        raise NotComparable("the curves do not overlap")
    return low, high


def jpeg_table(jpeg, curves):
    """Compares curves with JPEG on the same images.

    Args:
      jpeg: dict, a curve as of `plots.curve`, or None if JPEG was not measured.
      curves: list of such dicts.

    Returns:
      str: a line that says what follows, and a Markdown table of BD-rates.
    """
    if jpeg is None:
        return "BD-rates: none, because JPEG was not measured on these images"
    images = f"{jpeg['images']} image" + "s" * (jpeg["images"] != 1)
    rows = [["quantizer", *(f"BD-rate ({name})" for name in QUALITIES.values())]]
    rows += [[one["label"], *(_cell(jpeg, one, key) for key in QUALITIES)] for one in curves]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)
    title = f"BD-rates against JPEG on {images}: bits at equal quality, negative where fewer than JPEG's"
    return "\n".join([title, "", *(f"| {line} |" for line in lines)])


def _cell(jpeg, one, key):
    try:
        percent, (low, high) = bd_rate(jpeg, one, key)
    except NotComparable as error:
        return str(error)
    return f"{percent:+.1f} % over {low:.1f} to {high:.1f} dB"
