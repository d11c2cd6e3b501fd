"""Rate-distortion curves, as a table and as a figure. Each point is the mean over the images of a data
set.
"""

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
    """Means over images.

    Args:
      label: str.
      arrays: dict, a result file; its measures are float [images, settings].
      settings: str, key of the settings.

    Returns:
      dict with `label`, `settings` [S] and the COLUMNS, float64 [S]: bits per pixel, dB, 0..1 and dB.
    """
    return {
        "label": label,
        "settings": arrays[settings],
        **{key: np.mean(arrays[key], axis=0) for key in COLUMNS},
    }


def published_curves():
    """Curves on Kodak that ship with the project."""
    return [
        curve(label, load_npz(os.path.join(ROOT, name)), settings)
        for label, (name, settings) in PUBLISHED.items()
    ]


def table(curves):
    """The curves' points as lines of text, in columns."""
    lines = [f"{'quantizer':<10}{'setting':>12}{'bpp':>10}{'PSNR dB':>10}{'MS-SSIM':>10}{'in dB':>8}"]
    for one in curves:
        for setting, bpp, psnr, ms_ssim, decibel in zip(one["settings"], *(one[key] for key in COLUMNS)):
            lines.append(
                f"{one['label']:<10}{setting:>12.6g}{bpp:>10.4f}{psnr:>10.2f}{ms_ssim:>10.5f}{decibel:>8.2f}"
            )
    return "\n".join(lines)


def rate_distortion(path, curves, title=None):
    """Draws PSNR and MS-SSIM against bits per pixel into an image file; its ending names the format.

    Raises:
      UserError: the file cannot be written.
    """
    from matplotlib.figure import (
        Figure,  # takes a while to import; without pyplot there is no display to choose
    )

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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
