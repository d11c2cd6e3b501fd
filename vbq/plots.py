"""Rate-distortion curves, as text and as a figure. Each point is a mean over the images of a data set."""

import itertools
import os

import numpy as np

from vbq.files import atomic_write, load_npz

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PUBLISHED = {
    "JPEG": "JPEG_compression_stats_on_Kodak.npz",
    "Ballé 2017": "Balle2017_proposed_compression_stats_on_Kodak.npz",
}
COLUMNS = "BPP", "PSNR (RGB)", "MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"
# Of curves: colours that can be told apart, also by the colour-blind (Okabe and Ito), and their markers.
COLORS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#6a3d9a"
MARKERS = "osD^vPX*"
MOST_LEGEND_CHARACTERS = 150  # in a line of the legend
# Of references: grey tones and dashes.
REFERENCE_STYLES = (("black", "-"), ("0.45", "--"), ("0.45", ":"), ("0.65", "-."))


def curve(label, arrays):
    """Means over images. MS-SSIM leaves out images that are too small for it, whose value is NaN.

    Args:
      label: str.
      arrays: dict, a result file, with the key `settings`; its measures are float [images, settings].

    Returns:
      dict with `label`; `settings` [S]; the COLUMNS, float64 [S], in bits per pixel, dB, 0..1 and dB; and two
      int: `images`, the number of images, and `images_with_ms_ssim`, the number of those with an MS-SSIM.
    """
    ms_ssim = arrays["MS-SSIM (RGB)"]
    counted = ~np.isnan(ms_ssim).all(axis=1) if ms_ssim.size else np.zeros(len(ms_ssim), bool)
    return {
        "label": label,
        "settings": arrays["settings"],
        **{key: _mean(arrays[key], counted if key.startswith("MS-SSIM") else slice(None)) for key in COLUMNS},
        "images": len(ms_ssim),
        "images_with_ms_ssim": int(counted.sum()),
    }


def _mean(values, images):
    """Mean over some images of values [images, settings]: float64 [settings], NaN if there are none."""
    values = values[images]
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)


def published_curves(labels="{}"):
    """Curves on Kodak that ship with the project.

    Args:
      labels: str, the form of the labels; `{}` stands for the name of a curve, a key of PUBLISHED.

    Returns:
      List of dicts, see `curve`.
    """
    return [
        curve(labels.format(name), load_npz(os.path.join(ROOT, file))) for name, file in PUBLISHED.items()
    ]


def text_table(curves):
    """The points of curves, dicts as `curve` returns them, as lines of text in columns: a str."""
    width = max([10, *(len(one["label"]) for one in curves)])
    lines = [f"{'quantizer':<{width}}{'setting':>12}{'bpp':>10}{'PSNR dB':>10}{'MS-SSIM':>10}{'in dB':>8}"]
    for one in curves:
        for setting, bpp, psnr, ms_ssim, decibel in zip(one["settings"], *(one[key] for key in COLUMNS)):
            lines.append(
                f"{one['label']:<{width}}{setting:>12.6g}{bpp:>10.4f}{psnr:>10.2f}{ms_ssim:>10.5f}{decibel:>8.2f}"
            )
    counts = {(one["images_with_ms_ssim"], one["images"]) for one in curves}
    lines += [
        f"MS-SSIM: means of {counted} of {images} images; the others are smaller than 161 x 161 pixels"
        for counted, images in sorted(counts)
        if counted < images
    ]
    return "\n".join(lines)


def rate_distortion(path, curves, references=(), title=None):
    """Draws PSNR and MS-SSIM against bits per pixel into an image file.

    Args:
      path: str or path-like; its ending names the format.
      curves: list of dicts, see `curve`; drawn in colours.
      references: list of such dicts that the others are compared with; drawn in black and grey.
      title: str, or None.

    Raises:
      UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # here, because the import is slow; unlike pyplot, needs no display

    everything = [*curves, *references]
    most = most_rate(curves, references)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, key, name in zip(
        figure.subplots(1, 2), ("PSNR (RGB)", "MS-SSIM (RGB) (dB)"), ("PSNR", "MS-SSIM")
    ):
        for one, style in zip(everything, _styles(len(curves), len(references))):
            order = np.argsort(one["BPP"])
            axes.plot(one["BPP"][order], one[key][order], label=one["label"], markersize=4, **style)
        axes.set(xlabel="bits per pixel", ylabel=f"{name} (RGB), dB", xlim=(0, 1.03 * most))
        axes.set_ylim(_shown_range(everything, key, 1.03 * most))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels))
    if title:
        title = title.encode("utf-8", "backslashreplace").decode()  # of a shell, it may hold other bytes
        figure.suptitle(title, parse_math=False)  # a dollar sign is one
    # Without the name of the software, equal plots are equal files. Other formats have no such field.
    metadata = {"Software": None} if os.fspath(path).endswith(".png") else None
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=metadata)


def _styles(curves, references):
    """Yields how so many curves, then so many references, are drawn: dicts of Matplotlib's options."""
    colors, markers = itertools.cycle(COLORS), itertools.cycle(MARKERS)
    for color, marker in itertools.islice(zip(colors, markers), curves):
        yield {"color": color, "marker": marker}
    for color, dashes in itertools.islice(itertools.cycle(REFERENCE_STYLES), references):
        yield {"color": color, "linestyle": dashes, "marker": "."}


def most_rate(curves, references):
    """The largest rate that the figure shows, in bits per pixel: a float.

    The curves that are compared with references end where the references do: far beyond, they are flat. But
    each curve, and each reference, has a point in the figure.
    """
    everything = [*curves, *references]
    ends = [max(one["BPP"].max() for one in group) for group in (curves, references) if group]
    return max([min(ends), *(one["BPP"].min() for one in everything)]) or 1.0


def _shown_range(curves, key, most):
    """The values that curves have up to a rate, with a margin: (from, to); None if they have none."""
    shown = [np.empty(0)]
    for one in curves:
        order = np.argsort(one["BPP"])
        rate, value = one["BPP"][order], one[key][order]
        end = np.interp(most, rate, value)
        shown.append(np.append(value[rate <= most], end))
    shown = np.concatenate(shown)
    shown = shown[np.isfinite(shown)]
    if not shown.size:
        return None
    margin = max(0.04 * np.ptp(shown), 0.1)
    return shown.min() - margin, shown.max() + margin


def _legend_columns(labels):
    """In how many columns labels fit below the figure, in lines of about equal length."""
    most = max(1, MOST_LEGEND_CHARACTERS // (max(map(len, labels)) + 6))
    lines = -(-len(labels) // most)
    return -(-len(labels) // lines)
