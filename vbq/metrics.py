"""MSE, PSNR, SSIM and MS-SSIM over RGB, luma and chroma: the metrics of the paper's tables.

The paper is Yang, Bamler, Mandt, "Variational Bayesian Quantization" (ICML 2020). SSIM is that of Wang,
Bovik, Sheikh, Simoncelli (2004), MS-SSIM that of Wang, Simoncelli, Bovik (2003).
"""

import warnings

import numpy as np
from PIL import Image

from vbq.threads import parallel
from vbq.window import TRIM, Workspace, local_means, tiles

MODES = {"RGB": (0, 1, 2), "Luma": (3,), "Chroma": (4, 5)}  # planes of each mode in R, G, B, Y, Cb, Cr
METRIC_KEYS = tuple(
    f"{name} ({mode})" for mode in MODES for name in ("MSE", "PSNR", "MS-SSIM", "SSIM")
) + tuple(f"MS-SSIM ({mode}) (dB)" for mode in MODES)

# SSIM compares two images x and y by their local means, variances and covariance under a Gaussian window.
# Here it is computed from the reference x and the error d = y - x:
#
#   1 - contrast  = var(d)    / (2 var(x) + var(d) + 2 cov(x, d) + C2)
#   1 - luminance = mean(d)^2 / (2 mean(x)^2 + 2 mean(x) mean(d) + mean(d)^2 + C1)
#
# This equals the textbook form. Once the statistics of x are known, a reconstruction needs three filtered
# images: d, d^2 and x d. Equal images give exactly 0. Digits are lost only where the local mean of d is far
# from 0.
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])

# Float32 halves time and memory. Its error on natural images is about 1e-8. The error grows where d is large
# and flat: there var(d) is the difference of two nearly equal numbers, wrong by up to 3e-7 mean(d)^2. Float32
# is used under two conditions, float64 otherwise: the scale has at least FLOAT32_POSITIONS positions, over
# which the errors average out, and the mean of mean(d)^2 / (2 var(x) + C2) is at most FLOAT32_LIMIT. At that
# limit the result is within 1e-6 even if every position has the largest error.
FLOAT32_POSITIONS = 2**16
FLOAT32_LIMIT = 1.5

# Of a larger image, the reference's statistics (72 bytes a pixel) are not kept, but computed for each
# reconstruction anew.
MOST_KEPT_POSITIONS = 2**21

ROWS = 256  # rows of an image that are converted or squared at once


class ImageMetrics:
    """Measures any number of reconstructions of one image; the image's own statistics are computed once.

    SSIM and its window (11 taps, Gaussian of sigma 1.5, no padding; K1 0.01, K2 0.03, range 255) are those of
    `tf.image.ssim`, which the original called in float32. MS-SSIM has five scales. From one scale to the
    next, 2 x 2 pixels are averaged, after an odd side was extended by its last row or column. The term of a
    scale is its mean over the planes of a mode. The product over scales is taken of these means, as in the
    published figures (`tf.image.ssim_multiscale` multiplies first). A negative term counts as 0. Luma and
    chroma are Pillow's YCbCr, that of JPEG. Every metric is within 1e-6 of its value in exact arithmetic.

    Several threads may call `evaluate` at once.
    """

    def __init__(self, reference):
        """Computes the statistics of the reference.

        Args:
          reference: uint8 array [H, W, 3], RGB.

        Warns:
          UserWarning, once: the image is too small for MS-SSIM, which is then NaN. Below 11 x 11 pixels, SSIM
            is NaN too.
        """
        self.shape = _checked(reference).shape
        shorter = min(self.shape[:2])
        scales = sum(-(-shorter // 2**k) > TRIM for k in range(5))
        if scales < 5:
            size = f"{self.shape[1]} x {self.shape[0]} pixels"
            warnings.warn(f"image of {size}: MS-SSIM is NaN, it needs at least 161 x 161", stacklevel=2)
        self._planes = parallel(lambda plane: _PlaneMetrics(plane, scales), _split(reference))
        self._workspaces = []  # those that no thread is using now

    def evaluate(self, reconstruction, threads=None):
        """Measures one reconstruction.

        Args:
          reconstruction: uint8 array [H, W, 3], RGB, of the reference's shape.
          threads: int, by default one per core. 1 is best for a caller that runs in threads itself.

        Returns:
          dict of `METRIC_KEYS` to float. MSE is in squared 8-bit steps; PSNR and MS-SSIM (dB) are in dB,
          infinite for equal images.

        Raises:
          ValueError: the array is not uint8 [H, W, 3], or not of the reference's shape.
        """
        if _checked(reconstruction).shape != self.shape:
            raise ValueError(
                f"the shapes differ: reference {self.shape}, reconstruction {reconstruction.shape}"
            )
        planes = parallel(self._evaluate_plane, list(zip(self._planes, _split(reconstruction))), threads)
        result = {}
        for mode, members in MODES.items():
            mse, ssim, *terms = np.mean([planes[i] for i in members], axis=0)
            ms_ssim = np.prod(np.maximum(terms, 0) ** SCALE_WEIGHTS)
            result[f"MSE ({mode})"] = mse
            result[f"PSNR ({mode})"] = _decibel(mse / 255**2)
            result[f"SSIM ({mode})"] = ssim
            result[f"MS-SSIM ({mode})"] = ms_ssim
            result[f"MS-SSIM ({mode}) (dB)"] = _decibel(np.maximum(1 - ms_ssim, 0))
        return {key: float(result[key]) for key in METRIC_KEYS}

    def _evaluate_plane(self, pair):
        plane, reconstruction = pair
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = Workspace()
        result = plane.evaluate(reconstruction, workspace)
        self._workspaces.append(workspace)
        return result


def _checked(image):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    return image


def _decibel(x):
    with np.errstate(divide="ignore"):
        return -10 * np.log10(x)


def _split(image):
    """Returns the planes R, G, B, Y, Cb, Cr of an RGB image, uint8 [H, W] each."""
    ycbcr = np.empty_like(image)
    for top in range(0, len(image), ROWS):  # Pillow's own copies of a large image take several times its size
        rows = slice(top, top + ROWS)
        ycbcr[rows] = Image.fromarray(image[rows]).convert("YCbCr")
    return [pixels[..., i] for pixels in (image, ycbcr) for i in range(3)]


class _PlaneMetrics:
    """MSE, SSIM and MS-SSIM of one plane against its reference."""

    def __init__(self, reference, scales):
        """Takes the reference, uint8 [H, W], and how many of the five scales the window fits into."""
        self.reference = np.ascontiguousarray(reference)
        workspace = Workspace()
        images = _pyramid(reference.astype(np.float32), scales, workspace)[:scales]
        self.scales = [
            _Scale(image, workspace, self.reference if image is images[0] else None) for image in images
        ]

    def evaluate(self, reconstruction, workspace):
        """Measures a reconstruction, uint8 [H, W].

        Returns:
          List of 7 floats: MSE, SSIM, and the five terms whose weighted product is MS-SSIM.
        """
        error = workspace.array("error", self.reference.shape, np.int16)  # exact, half of float32
        np.subtract(reconstruction, self.reference, out=error, dtype=np.int16)
        square_sum = 0.0
        for top in range(0, len(error), ROWS):  # a sum of 256 squares is below 2^24: exact in float32
            rows = error[top : top + ROWS]
            squares = workspace.array("squares", rows.shape, np.float32)
            np.square(rows, out=squares, dtype=np.float32)
            square_sum += squares.sum(axis=0).sum(dtype=np.float64)

        contrast_loss, ssim_loss = np.full(5, np.nan), np.full(5, np.nan)
        if self.scales:
            errors = _pyramid(error, len(self.scales), workspace)
            precise = self._needs_float64(errors)
            for k, scale in enumerate(self.scales):
                contrast_loss[k], ssim_loss[k] = scale.losses(errors[k], precise, workspace)
        return [square_sum / error.size, 1 - ssim_loss[0], *(1 - contrast_loss[:4]), 1 - ssim_loss[4]]

    def _needs_float64(self, errors):
        """Whether the first scale, in float32, could be wrong by 1e-6."""
        # Means of 4 x 4 pixels (or of fewer, if there are no such) approximate those under the window.
        k, contrast = min(2, len(errors) - 1), self.scales[0].sparse_contrast
        shift = errors[k][5 >> k :: 4 >> k, 5 >> k :: 4 >> k]  # from the middle of the first window on
        shift = shift[: contrast.shape[0], : contrast.shape[1]]
        return np.mean(np.square(shift) / contrast[: shift.shape[0], : shift.shape[1]]) > FLOAT32_LIMIT


class _Scale:
    """Local statistics of a reference plane at one scale.

    Attributes:
      sparse_contrast: float [h / 4, w / 4], 2 var(x) + C2 at every fourth position of every fourth row.
    """

    def __init__(self, x, workspace, pixels=None):
        """Takes the plane.

        Args:
          x: float32 [H, W].
          workspace: Workspace.
          pixels: uint8 [H, W], equal to x, where there are such.
        """
        self.image_shape, self.shape = x.shape, (x.shape[0] - TRIM, x.shape[1] - TRIM)
        self.positions = self.shape[0] * self.shape[1]
        is_large = self.positions > MOST_KEPT_POSITIONS
        self.pixels = pixels if is_large else None
        self.twice_x = 2 * x if self.pixels is None else None  # exact
        self.dtype = np.float64 if self.positions < FLOAT32_POSITIONS else np.float32
        kept = None if is_large else np.empty((3, *self.shape), self.dtype)
        self.sparse_contrast = np.empty([-(-side // 4) for side in self.shape], self.dtype)
        for here, statistics in self._compute(self.dtype, workspace):
            if kept is not None:
                kept[:, here[0], here[1]] = statistics
            first = [-(-part.start // 4) for part in here]  # of the sparse positions that are in the tile
            sparse = statistics[1][4 * first[0] - here[0].start :: 4, 4 * first[1] - here[1].start :: 4]
            rows, columns = (slice(start, start + n) for start, n in zip(first, sparse.shape))
            self.sparse_contrast[rows, columns] = sparse
        self.kept = kept

    def _twice_x(self, here, workspace):
        """Twice the plane at a pair of slices, float32; the next call overwrites it."""
        if self.pixels is None:
            return self.twice_x[here]
        part = self.pixels[here]
        return np.multiply(part, np.float32(2), out=workspace.array("twice x", part.shape, np.float32))

    def _compute(self, dtype, workspace):
        """Computes the statistics tile by tile, in float64.

        Args:
          dtype: NumPy type of the result.
          workspace: Workspace.

        Yields:
          The place of a tile, a pair of slices; and 2 mean(x), 2 var(x) + C2 and 2 mean(x)^2 + C1, [3, h, w].
        """

        def fill(stack, here):
            stack[0] = self._twice_x(here, workspace)
            np.square(stack[0], out=stack[1])

        for here, (mean, square) in local_means(fill, self.image_shape, 2, np.float64, workspace):
            result = workspace.array("statistics", (3, *mean.shape), dtype)
            twice_mean, contrast, luminance = result
            twice_mean[:] = mean
            np.square(mean, out=mean)
            square -= mean
            square /= 2
            np.add(square, C2, out=contrast, casting="same_kind")
            mean /= 2
            np.add(mean, C1, out=luminance, casting="same_kind")
            yield here, result

    def _statistics(self, dtype, workspace):
        """Yields what `_compute` does, from memory where it is kept."""
        if self.kept is None or dtype != self.dtype:
            yield from self._compute(dtype, workspace)
        else:
            for here in tiles(self.image_shape):
                yield here, self.kept[:, here[0], here[1]]

    def losses(self, d, precise, workspace):
        """Returns the means over all positions of 1 - contrast and of 1 - luminance * contrast.

        Args:
          d: int16 or float32 array [H, W], the error.
          precise: bool, whether to compute in float64 whatever the number of positions.
          workspace: Workspace.

        Returns:
          Two floats.
        """

        def fill(stack, here):
            stack[0] = d[here]
            np.square(stack[0], out=stack[1])
            np.multiply(stack[0], self._twice_x(here, workspace), out=stack[2])

        dtype = np.float64 if precise else self.dtype
        contrast_loss = luminance_loss = both = 0.0
        errors = local_means(fill, d.shape, 3, dtype, workspace)
        for (_, (mean, loss, divisor)), (_, reference) in zip(errors, self._statistics(dtype, workspace)):
            twice_mean_x, contrast_x, luminance_x = reference
            cross = workspace.array("cross", mean.shape, dtype)
            np.multiply(twice_mean_x, mean, out=cross)
            np.square(mean, out=mean)
            loss -= mean  # var(d)
            divisor -= cross  # 2 cov(x, d)
            divisor += loss
            divisor += contrast_x
            loss /= divisor  # 1 - contrast
            cross += mean
            cross += luminance_x
            mean /= cross  # 1 - luminance
            # Summed along rows, then over the rows in float64: accurate also if the terms are float32.
            contrast_loss += np.einsum("ij->i", loss).sum(dtype=np.float64)
            luminance_loss += np.einsum("ij->i", mean).sum(dtype=np.float64)
            both += np.einsum("ij,ij->i", loss, mean).sum(dtype=np.float64)
        return contrast_loss / self.positions, (contrast_loss + luminance_loss - both) / self.positions


def _pyramid(x, scales, workspace):
    """Returns the image and its smaller copies, means of 2 x 2 pixels.

    Args:
      x: [H, W], int16 or float32, integers from -255 to 255.
      scales: int, number of images.
      workspace: Workspace.

    Returns:
      List of arrays, exact; the smaller ones are float32.
    """
    images = [x]
    for k in range(1, scales):
        odd = x.shape[0] % 2, x.shape[1] % 2
        if any(odd):
            x = np.pad(x, ((0, odd[0]), (0, odd[1])), mode="edge")
        h, w = x.shape[0] // 2, x.shape[1] // 2
        pairs = np.add(x[0::2], x[1::2], out=workspace.array("pairs", (h, 2 * w), x.dtype))
        x = np.add(pairs[:, 0::2], pairs[:, 1::2], out=workspace.array(f"scale {k}", (h, w), np.float32))
        x *= 0.25
        images.append(x)
    return images
