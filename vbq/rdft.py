"""The real-DFT domain in which the kernels of the convolutions are trained. Both trainers use it."""

import numpy as np
from scipy import fft


def rdft_basis(height, width):
    """Returns the orthonormal basis of the real DFT of a kernel.

    It is the basis of the original's `kernel_rdft` (tensorflow-compression 1.3, `RDFTParameterizer`).

    Args:
      height, width: int, sides of the kernel in pixels.

    Returns:
      float64 [height * width, height * width], with `kernel = basis @ kernel_rdft`. Rows are pixels in
      row-major order. Columns are pairs of a coefficient along the height and one along the width, each in
      the order Re y0, Re y1, Im y1, Re y2, Im y2, ...
    """
    return np.kron(_basis_1d(height), _basis_1d(width))


def _basis_1d(n):
    """The same for one axis: float64 [n pixels, n coefficients]."""
    spectrum = fft.rfft(np.eye(n))  # complex [n, n // 2 + 1]
    parts = np.stack([spectrum.real, spectrum.imag], axis=-1).reshape(n, -1)
    coefficients = np.delete(parts, 1, axis=1)[
        :, :n
    ]  # y0 is real, and for an even n so is the highest frequency
    scale = np.full(n, np.sqrt(2 / n))
    scale[0] = np.sqrt(1 / n)
    if n % 2 == 0:
        scale[-1] = np.sqrt(1 / n)  # like y0, the highest frequency has no complex conjugate beside it
    return coefficients * scale
