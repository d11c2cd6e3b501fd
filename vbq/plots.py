"""Rate-distortion curves, as text and as a figure. Each point is a mean over the images of a data set."""

import os

import numpy as np

from vbq.files import atomic_write, load_npz

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PUBLISHED = {
    "JPEG": ("JPEG_compression_stats_on_Kodak.npz", "quality"),
    "Ballé 2017": ("Balle2017_proposed_compression_stats_on_Kodak.npz", "setting"),
}
COLUMNS = "BPP", "PSNR (RGB)", "MS-SSIM (RGB)", "MS-SSIM (RGB) (dB)"


def curve(label, arrays, settings="settings"):
    """Means over images. MS-SSIM leaves out images that are too small for it, whose value is NaN.

    Args:
      label: str.
      arrays: dict, a result file; its measures are float [images, settings].
      settings: str, key of the settings.

    Returns:
      dict with `label`; `settings` [S]; the COLUMNS, float64 [S], in bits per pixel, dB, 0..1 and dB; and two
      int: `images`, the number of images, and `images_with_ms_ssim`, the number of those with an MS-SSIM.
    """
    ms_ssim = arrays["MS-SSIM (RGB)"]
    counted = ~np.isnan(ms_ssim).all(axis=1) if ms_ssim.size else np.zeros(len(ms_ssim), bool)
    return {
        "label": label,
        "settings": arrays[settings],
        **{key: _mean(arrays[key], counted if key.startswith("MS-SSIM") else slice(None)) for key in COLUMNS},
        "images": len(ms_ssim),
        "images_with_ms_ssim": int(counted.sum()),
    }


def _mean(values, images):
    """Mean over some images of values [images, settings]: float64 [settings], NaN if there are none."""
    values = values[images]
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)


def published_curves():
    """Curves on Kodak that ship with the project: a list of dicts, see `curve`."""
    return [
        curve(label, load_npz(os.path.join(ROOT, name)), settings)
        for label, (name, settings) in PUBLISHED.items()
    ]


def text_table(curves):
    """The points of curves, dicts as `curve` returns them, as lines of text in columns: a str."""
    lines = [f"{'quantizer':<10}{'setting':>12}{'bpp':>10}{'PSNR dB':>10}{'MS-SSIM':>10}{'in dB':>8}"]
    for one in curves:
        for setting, bpp, psnr, ms_ssim, decibel in zip(one["settings"], *(one[key] for key in COLUMNS)):
            lines.append(
                f"{one['label']:<10}{setting:>12.6g}{bpp:>10.4f}{psnr:>10.2f}{ms_ssim:>10.5f}{decibel:>8.2f}"
            )
    counts = {(one["images_with_ms_ssim"], one["images"]) for one in curves}
    lines += [
        f"MS-SSIM: means of {counted} of {images} images; the others are smaller than 161 x 161 pixels"
        for counted, images in sorted(counts)
        if counted < images
    ]
    return "\n".join(lines)


def rate_distortion(path, curves, title=None):
    """Draws PSNR and MS-SSIM against bits per pixel into an image file.

    Args:
      path: str or path-like; its ending names the format.
      curves: list of dicts, see `curve`.
      title: str, or None.

    Raises:
      UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # here, because the import is slow; unlike pyplot, needs no display

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, key, name in zip(
        figure.subplots(1, 2), ("PSNR (RGB)", "MS-SSIM (RGB) (dB)"), ("PSNR", "MS-SSIM")
    ):
        for one in curves:
            order = np.argsort(one["BPP"])
            axes.plot(one["BPP"][order], one[key][order], marker=".", label=one["label"])
        axes.set(xlabel="bits per pixel", ylabel=f"{name} (RGB), dB", xlim=(0, 2.5))
        axes.grid(alpha=0.3)
        axes.legend()
    if title:
        figure.suptitle(title)
    # Without the name of the software, equal plots are equal files. Other formats have no such field.
    metadata = {"Software": None} if os.fspath(path).endswith(".png") else None
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=metadata)
