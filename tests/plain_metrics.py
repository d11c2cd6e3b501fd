"""The metrics of `vbq.metrics`, written straight from their definitions for tests and benchmarks.

Everything is float64, every window is an 11 x 11 sum, and no result is kept for the next reconstruction.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

MODES = {"RGB": ("RGB", (0, 1, 2)), "Luma": ("YCbCr", (0,)), "Chroma": ("YCbCr", (1, 2))}
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def gaussian_window():
    """Returns SSIM's window, float64 [11, 11] with sum 1."""
    y, x = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    return window / window.sum()


def ssim_terms(x, y):
    """Compares two planes [H, W] by Wang et al. 2004, equations (12) and (13).

    Returns:
      Two floats: the mean of luminance * contrast-structure, and the mean of contrast-structure.
    """
    window = gaussian_window()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y, xx, yy, xy = (
        ndimage.correlate(z, window)[5:-5, 5:-5] for z in (x, y, x * x, y * y, x * y)
    )
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    return np.mean(luminance * contrast), np.mean(contrast)


def halve(x):
    """Averages 2 x 2 pixels of x [H, W]; an odd side first repeats its last row or column."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2)), mode="symmetric")
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean(axis=(1, 3))


def metrics(reference, reconstruction):
    """Returns the dict of `ImageMetrics(reference).evaluate(reconstruction)`, from 161 x 161 pixels on."""
    result = {}
    for mode, (space, channels) in MODES.items():
        x, y = (
            np.asarray(Image.fromarray(image).convert(space), np.float64)[..., channels]
            for image in (reference, reconstruction)
        )
        mse = np.mean((x - y) ** 2)
        ms_ssim = 1.0
        planes = [(x[..., i], y[..., i]) for i in range(len(channels))]
        for scale, weight in enumerate(WEIGHTS):
            ssim, contrast = np.mean([ssim_terms(*plane) for plane in planes], axis=0)
            if scale == 0:
                result[f"SSIM ({mode})"] = ssim
            ms_ssim *= max(ssim if scale == 4 else contrast, 0) ** weight
            planes = [(halve(x), halve(y)) for x, y in planes]
        with np.errstate(divide="ignore"):
            result[f"MSE ({mode})"] = mse
            result[f"PSNR ({mode})"] = 10 * np.log10(255**2 / mse)
            result[f"MS-SSIM ({mode})"] = ms_ssim
            result[f"MS-SSIM ({mode}) (dB)"] = -10 * np.log10(1 - ms_ssim)
    return result
