"""Image files in and out, the distortion metrics, the JPEG baseline and the plumbing that every script shares.

Nothing here needs TensorFlow or a model, so a notebook that only wants a JPEG curve pays for neither.

The metrics are those of the tables in Yang, Bamler, Mandt, "Variational Bayesian Quantization" (ICML 2020): MSE, PSNR, SSIM
(Wang, Bovik, Sheikh, Simoncelli 2004) and MS-SSIM (Wang, Simoncelli, Bovik 2003), each over RGB, luma and chroma.
"""
import contextlib
import glob
import io
import math
import os
import secrets
import struct
import sys
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

MODES = {"RGB": (0, 1, 2), "Luma": (3,), "Chroma": (4, 5)}  # planes of each mode in R, G, B, Y, Cb, Cr
METRIC_KEYS = tuple(f"{name} ({mode})" for mode in MODES for name in ("MSE", "PSNR", "MS-SSIM", "SSIM")) + tuple(
    f"MS-SSIM ({mode}) (dB)" for mode in MODES
)


# ---------------------------------------------------------------------------------------------------------------- errors


class UserError(Exception):
    """Bad input or an unusable place on disk; the message is one line that says what was expected, found, and where."""


def run_main(main, argv=None):
    """Runs a script's main function and turns what a user can mend into one line on stderr.

    Args:
      main: function of one argument, `argv`; its return value, or 0 for None, is the exit status.
      argv: list of str, or None for the process's own arguments.

    Returns:
      int, the exit status: 1 after a `UserError`, 130 after Ctrl-C. Other exceptions are bugs and keep their traceback.
    """
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _reason(error):
    """One line for an exception that a library raised."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def progress(iterable, **options):
    """Wraps an iterable in a progress bar with the time left, on a terminal only; takes tqdm's options."""
    from tqdm import tqdm  # here, because `--help` should not wait for it

    return tqdm(iterable, **{"disable": None, "dynamic_ncols": True, "file": sys.stderr, **options})


# ----------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary path beside `path` that takes its place only when the block ends without an exception.

    The temporary name is hidden, ends in the suffix of `path` (writers that look at it see the right one) and is unique, so
    that neither a killed run's remains nor a second process get in the way.

    Args:
      path: str or path-like, the file to write.

    Raises:
      UserError: the folder or the file cannot be written. An older file at `path` is then as it was.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    temporary = os.path.join(folder, f".{stem}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def save_npz(path, arrays, compressed=False):
    """Writes named arrays to an `.npz` file that loads without pickle, in one step.

    Args:
      path: str or path-like.
      arrays: dict of names (spaces and parentheses are fine) to array-likes.
      compressed: bool, whether to deflate them.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.hasobject:  # NumPy would pickle it without a word
            raise TypeError(f"array {name!r} holds Python objects")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)


def load_npz(path):
    """Reads every array of an `.npz` file.

    Args:
      path: str or path-like.

    Returns:
      dict of names to arrays.

    Raises:
      UserError: the file is missing, damaged, or no `.npz` file without pickled objects.
    """
    try:
        with open(path, "rb") as file:  # so that a bad file is closed, too
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise UserError(f"expected an .npz file, found something else or a damaged one: {path} ({_reason(error)})") from error


def find_images(pattern):
    """Expands a glob (`**` for any folders) to the files that it matches.

    Args:
      pattern: str; the name of an existing file stands for itself, whatever characters it has.

    Returns:
      Sorted list of paths.

    Raises:
      UserError: nothing matches.
    """
    pattern = os.path.expanduser(pattern)
    names = [pattern] if os.path.isfile(pattern) else filter(os.path.isfile, glob.iglob(pattern, recursive=True))
    paths = sorted(names)
    if not paths:
        raise UserError(f"expected image files, found none that match: {pattern}")
    return paths


# ---------------------------------------------------------------------------------------------------------------- images


def to_uint8(x):
    """Rounds intensities in [0, 1] (float; values outside are clipped) to uint8 0..255, half to even."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def read_image(path):
    """Reads an image file as 8-bit RGB, the way a viewer would show it.

    Grey and palette images are expanded, transparent ones laid on white, 16-bit ones rounded to 8 bits, photographs turned
    upright by their EXIF tag. An `.npy` file holds H x W x 3 values, float in [0, 1] or uint8.

    Args:
      path: str or path-like.

    Returns:
      uint8 array [H, W, 3].

    Raises:
      UserError: naming the file: it is missing, no image, truncated, or an array of another kind.
    """
    try:
        if os.fspath(path).endswith(".npy"):
            return _read_npy(path)
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    # Pillow's decoders raise all of these on damaged data.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise UserError(f"expected an image, found a damaged or another file: {path} ({_reason(error)})") from error


def _read_npy(path):
    array = np.load(path, allow_pickle=False)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"expected shape H x W x 3, found {array.shape}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected float or uint8, found {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 1):  # NaN fails, too
        raise ValueError(f"expected floats in [0, 1], found {array.min():.6g} to {array.max():.6g}")
    return to_uint8(array)


def _to_rgb(image):
    """Converts a Pillow image of any mode to mode RGB."""
    if image.mode[0] in "IF":  # 16 bits (I;16, I;16B, I) or float (F); Pillow's own conversion clips them at 255
        values = np.asarray(image, np.float64) / (1 if image.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("expected 16-bit integers or floats in [0, 1]")
        image = Image.fromarray(to_uint8(values))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image, height, width):
    """Cuts the middle out of an image.

    Args:
      image: array [H, W, ...].
      height, width: int, pixels.

    Returns:
      View of `image`, [height, width, ...]; an odd margin leaves its larger half at the bottom and right.

    Raises:
      UserError: the image is smaller.
    """
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if top < 0 or left < 0:
        raise UserError(f"expected an image of at least {width} x {height} pixels, found {image.shape[1]} x {image.shape[0]}")
    return image[top : top + height, left : left + width]


# --------------------------------------------------------------------------------------------------------------- metrics
#
# SSIM compares two images x and y by local means, variances and a covariance under a Gaussian window. It is computed here
# from the reference x and the error d = y - x:
#
#   1 - contrast  = var(d)    / (2 var(x) + var(d) + 2 cov(x, d) + C2)
#   1 - luminance = mean(d)^2 / (2 mean(x)^2 + 2 mean(x) mean(d) + mean(d)^2 + C1)
#
# which equals the textbook form, needs three filtered images per reconstruction (d, d^2, x d) once the statistics of x are
# known, is exactly 0 for equal images, and loses digits only where the local mean of d is far from 0.

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
MARGIN = len(WINDOW) - 1  # what a "valid" filter takes off each axis
TILE = 128, 960  # rows and columns that are filtered at once: the buffers stay in the cache

# Float32 halves time and memory, and natural images keep an accuracy of some 1e-8. Where it errs is an error d that is large
# and flat: var(d) is then a difference of equal numbers, off by up to 3e-7 mean(d)^2. So float32 is used for scales of many
# positions, over which rounding averages out, as long as the mean of mean(d)^2 / (2 var(x) + C2) is below a limit that keeps
# the result within 1e-6 even if all of the image is as bad as that; and float64 elsewhere.
FLOAT32_POSITIONS = 2**16
FLOAT32_LIMIT = 1.5


class ImageMetrics:
    """Distortion of any number of reconstructions of one image, whose own statistics are computed once.

    SSIM and its window (11 taps, Gaussian of sigma 1.5, no padding; K1 0.01, K2 0.03, range 255) are those of `tf.image.ssim`,
    which the original called in float32. MS-SSIM has five scales, pixels averaged 2 x 2 from one to the next, odd sides first
    extended by their last row or column. The terms of a scale are averaged over the planes of a mode and then multiplied over
    scales, which is what the published figures are (`tf.image.ssim_multiscale` multiplies first); a negative term counts as 0.
    Luma and chroma are Pillow's YCbCr, that of JPEG. All are within 1e-6 of their values in exact arithmetic.

    Calls of `evaluate` may run in several threads at once.
    """

    def __init__(self, reference):
        """Prepares the statistics of the reference.

        Args:
          reference: uint8 array [H, W, 3], RGB.

        Warns:
          UserWarning, once: the image is too small for MS-SSIM, which is then NaN (as is SSIM below 11 x 11).
        """
        self.shape = _checked(reference).shape
        size = min(self.shape[:2])
        scales = sum(-(-size // 2**k) > MARGIN for k in range(5))
        if scales < 5:
            warnings.warn(f"image of {self.shape[1]} x {self.shape[0]} pixels: MS-SSIM needs 161 x 161, it is NaN", stacklevel=2)
        self._planes = _each(lambda plane: _PlaneMetrics(plane, scales), _split(reference))
        self._workspaces = []  # those that no thread uses at the moment

    def evaluate(self, reconstruction, threads=None):
        """Measures one reconstruction.

        Args:
          reconstruction: uint8 array [H, W, 3], RGB, of the reference's shape.
          threads: int, how many to use; all cores by default. 1 is best where the caller works in threads itself.

        Returns:
          dict of `METRIC_KEYS` to float: MSE in squared 8-bit steps, PSNR and MS-SSIM (dB) in dB (infinite for equal images).
        """
        if _checked(reconstruction).shape != self.shape:
            raise ValueError(f"expected shape {self.shape}, found {reconstruction.shape}")
        planes = _each(self._evaluate_plane, list(zip(self._planes, _split(reconstruction))), threads)
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
            workspace = _Workspace()
        result = plane.evaluate(reconstruction, workspace)
        self._workspaces.append(workspace)
        return result


def _checked(image):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], found {image.dtype} {list(image.shape)}")
    return image


def _decibel(x):
    with np.errstate(divide="ignore"):
        return -10 * np.log10(x)


def _split(image):
    """The planes R, G, B, Y, Cb, Cr of an RGB image, uint8 [H, W] each."""
    ycbcr = np.asarray(Image.fromarray(image).convert("YCbCr"))
    return [pixels[..., i] for pixels in (image, ycbcr) for i in range(3)]


def _each(function, items, threads=None):
    """List of the function's values, computed in threads, by default one a core: NumPy and Pillow release the interpreter."""
    threads = min(threads or _cores(), len(items))
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class _Workspace:
    """Memory that is used again and again: to touch fresh memory costs more time than the arithmetic done in it."""

    def __init__(self):
        self._arrays, self._filters = {}, {}

    def array(self, name, shape, dtype):
        """The array of this name, [shape] of dtype, with whatever was in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, np.uint8)
        return self._arrays[name][:size].view(dtype).reshape(shape)

    def filter(self, *args):
        """The _WindowFilter of these arguments."""
        if args not in self._filters:
            self._filters[args] = _WindowFilter(*args)
        return self._filters[args]


class _PlaneMetrics:
    """MSE, SSIM and MS-SSIM of one plane against its reference."""

    def __init__(self, reference, scales):
        """Takes the reference, uint8 [H, W], and at how many of the five scales the window fits."""
        self.reference = np.ascontiguousarray(reference)
        workspace = _Workspace()
        self.scales = [_Scale(x, workspace) for x in _pyramid(reference.astype(np.float32), scales, workspace)[:scales]]

    def evaluate(self, reconstruction, workspace):
        """Returns MSE, SSIM and the five terms whose weighted product is MS-SSIM, for a uint8 [H, W] reconstruction."""
        error = workspace.array("error", self.reference.shape, np.float32)
        np.subtract(reconstruction, self.reference, out=error, dtype=np.float32)
        square_sum = 0.0
        for top in range(0, len(error), 256):  # sums of 256 squares are integers below 2^24 and exact in float32
            rows = error[top : top + 256]
            squares = np.square(rows, out=workspace.array("squares", rows.shape, np.float32))
            square_sum += squares.sum(axis=0).sum(dtype=np.float64)

        contrast_loss, ssim_loss = np.full(5, np.nan), np.full(5, np.nan)
        if self.scales:
            errors = _pyramid(error, len(self.scales), workspace)
            precise = self._needs_float64(errors)
            for k, scale in enumerate(self.scales):
                contrast_loss[k], ssim_loss[k] = scale.losses(errors[k], precise, workspace)
        return [square_sum / error.size, 1 - ssim_loss[0], *(1 - contrast_loss[:4]), 1 - ssim_loss[4]]

    def _needs_float64(self, errors):
        """Whether the first scale, in float32, could be off by 1e-6."""
        k = min(2, len(errors) - 1)  # means of 4 x 4 pixels stand for those under the window
        contrast = self.scales[0].contrast[:: 2**k, :: 2**k]
        shift = errors[k][5 >> k :, 5 >> k :][: contrast.shape[0], : contrast.shape[1]]  # at the middle of the window
        return np.mean(np.square(shift) / contrast[: shift.shape[0], : shift.shape[1]]) > FLOAT32_LIMIT


class _Scale:
    """Local statistics of a reference plane at one scale."""

    def __init__(self, x, workspace):
        """Takes the plane, float32 [H, W]."""
        self.twice_x = 2 * x  # exact
        self.shape = x.shape[0] - MARGIN, x.shape[1] - MARGIN
        self.positions = self.shape[0] * self.shape[1]
        self.dtype = np.float64 if self.positions < FLOAT32_POSITIONS else np.float32
        self.twice_mean, self.contrast, self.luminance = self.statistics(self.dtype, workspace)

    def statistics(self, dtype, workspace):
        """Array [3, h, w] of 2 mean(x), 2 var(x) + C2 and 2 mean(x)^2 + C1 at all positions, computed in float64."""

        def fill(stack, here):
            stack[0] = self.twice_x[here]
            np.square(stack[0], out=stack[1])

        result = np.empty((3, *self.shape), dtype)
        for here, (mean, square) in _local_means(fill, self.twice_x.shape, 2, np.float64, workspace):
            twice_mean, contrast, luminance = result[:, here[0], here[1]]
            twice_mean[:] = mean
            np.square(mean, out=mean)
            square -= mean
            square /= 2
            np.add(square, C2, out=contrast, casting="same_kind")
            mean /= 2
            np.add(mean, C1, out=luminance, casting="same_kind")
        return result

    def losses(self, d, precise, workspace):
        """Means over all positions of 1 - contrast and of 1 - luminance * contrast.

        Args:
          d: float32 array [H, W], the error.
          precise: bool, whether to compute in float64 in any case.
          workspace: _Workspace.

        Returns:
          Two floats.
        """

        def fill(stack, here):
            stack[0] = d[here]
            np.square(stack[0], out=stack[1])
            np.multiply(stack[0], self.twice_x[here], out=stack[2])

        dtype, twice_mean_x, contrast_x, luminance_x = self.dtype, self.twice_mean, self.contrast, self.luminance
        if precise and dtype != np.float64:
            dtype = np.float64
            twice_mean_x, contrast_x, luminance_x = self.statistics(dtype, workspace)  # rare, and too large to keep
        contrast_loss = luminance_loss = both = 0.0
        for here, (mean, loss, divisor) in _local_means(fill, d.shape, 3, dtype, workspace):
            cross = workspace.array("cross", mean.shape, dtype)
            np.multiply(twice_mean_x[here], mean, out=cross)
            np.square(mean, out=mean)
            loss -= mean  # var(d)
            divisor -= cross  # 2 cov(x, d)
            divisor += loss
            divisor += contrast_x[here]
            loss /= divisor  # 1 - contrast
            cross += mean
            cross += luminance_x[here]
            mean /= cross  # 1 - luminance
            # Sums by rows, then over rows in float64: accurate in float32, too.
            contrast_loss += np.einsum("ij->i", loss).sum(dtype=np.float64)
            luminance_loss += np.einsum("ij->i", mean).sum(dtype=np.float64)
            both += np.einsum("ij,ij->i", loss, mean).sum(dtype=np.float64)
        return contrast_loss / self.positions, (contrast_loss + luminance_loss - both) / self.positions


def _pyramid(x, scales, workspace):
    """The image and its smaller copies, 2 x 2 pixels averaged from one to the next; in float32 exact for 8-bit values."""
    images = [x]
    for k in range(1, scales):
        odd = x.shape[0] % 2, x.shape[1] % 2
        if any(odd):
            x = np.pad(x, ((0, odd[0]), (0, odd[1])), mode="edge")
        h, w = x.shape[0] // 2, x.shape[1] // 2
        pairs = np.add(x[0::2], x[1::2], out=workspace.array("pairs", (h, 2 * w), x.dtype))
        x = np.add(pairs[:, 0::2], pairs[:, 1::2], out=workspace.array(f"scale {k}", (h, w), x.dtype))
        x *= 0.25
        images.append(x)
    return images


def _local_means(fill, shape, count, dtype, workspace):
    """Filters images with the Gaussian window, tile by tile so that all buffers stay in the cache.

    Args:
      fill: function (stack, here) that writes the images' pixels at `here`, a pair of slices, into stack [count, h, w].
      shape: (H, W) of the images.
      count: int, number of images.
      dtype: precision.
      workspace: _Workspace.

    Yields:
      (here, means): where the tile lies among the [H - 10, W - 10] positions of the window, as a pair of slices, and the
      local means [count, h - 10, w - 10], a buffer that is free to be overwritten and is used again for the next tile.
    """
    tops, height = _cut(shape[0] - MARGIN, TILE[0])
    lefts, width = _cut(shape[1] - MARGIN, TILE[1])
    for top in tops:
        h = min(height, shape[0] - MARGIN - top)
        for left in lefts:
            w = min(width, shape[1] - MARGIN - left)
            window = workspace.filter(count, h, w, dtype)
            fill(window.stack, (slice(top, top + h + MARGIN), slice(left, left + w + MARGIN)))
            yield (slice(top, top + h), slice(left, left + w)), window.means()


def _cut(length, most):
    """Starts and size of the fewest nearly equal pieces of at most `most`."""
    pieces = -(-length // most)
    size = -(-length // pieces)
    return range(0, length, size), size


class _WindowFilter:
    """Correlates a stack of images of one size with the Gaussian window, without padding.

    A block of outputs along an axis is one product with a banded matrix of block x (block + 10): more multiplications than
    the window has, but in BLAS, which does them faster than anything else in NumPy and SciPy. The blocks and TILE keep every
    product below 2^18 multiplications, where OpenBLAS starts threads of its own, which would only disturb ours.
    """

    def __init__(self, count, height, width, dtype):
        """Takes the number and size of the outputs."""
        self.stack = np.empty((count, height + MARGIN, width + MARGIN), dtype)  # the input
        columns = np.empty((count, height, width + MARGIN), dtype)
        self._means = np.empty((count, height, width), dtype)
        self._products = []
        for start, size, number in _blocks(height, 12):
            target = _strided(columns, 1, start, size, size, number)
            self._products.append((_band(size).astype(dtype), _strided(self.stack, 1, start, size + MARGIN, size, number), target))
        columns, means = columns.reshape(1, -1, width + MARGIN), self._means.reshape(1, -1, width)  # all rows are alike
        for start, size, number in _blocks(width, 16):
            target = _strided(means, 2, start, size, size, number)
            self._products.append((_strided(columns, 2, start, size + MARGIN, size, number), _band(size).T.astype(dtype), target))

    def means(self):
        """Returns the local means [count, height, width] of what is in `stack`, a buffer that the caller may overwrite."""
        for left, right, target in self._products:
            np.matmul(left, right, out=target)
        return self._means


def _blocks(length, block):
    """(start, size, number) of the whole blocks in a length, and of the rest."""
    rest = length % block
    return [item for item in ((0, block, length // block), (length - rest, rest, 1)) if item[1] and item[2]]


def _strided(x, axis, start, size, step, number):
    """View [N, number, h, w] of the parts of x [N, H, W] along an axis that are `size` long and `step` apart."""
    shape, strides = list(x.shape), list(x.strides)
    shape[axis] = size
    x = x[:, start:] if axis == 1 else x[:, :, start:]
    return np.lib.stride_tricks.as_strided(x, (shape[0], number, *shape[1:]), (strides[0], step * strides[axis], *strides[1:]))


def _band(size):
    """Matrix [size, size + 10] whose rows are the window, each one column further to the right."""
    band = np.zeros((size, size + MARGIN))
    for i in range(size):
        band[i, i : i + len(WINDOW)] = WINDOW
    return band


# ------------------------------------------------------------------------------------------------------------------ JPEG


def evaluate_compression_jpg(test_img_file, quality):
    """Encodes an image as JPEG with Pillow's defaults (4:2:0, standard tables) and measures the decoded pixels.

    Follows the function of the same name in the original's `utils.py`.

    Args:
      test_img_file: name of an image file, or a uint8 array [H, W, 3].
      quality: int or several, 1 to 95 (up to 100 is allowed).

    Returns:
      dict of float64 arrays with one entry per quality: `BPP`, the size of the file in bits per pixel, and `METRIC_KEYS`.

    Raises:
      UserError: the file is no image, or a quality is out of range.
    """
    qualities = np.atleast_1d(quality)
    if not (np.issubdtype(qualities.dtype, np.number) and np.all((qualities >= 1) & (qualities <= 100) & (qualities % 1 == 0))):
        raise UserError(f"expected JPEG qualities from 1 to 100, found {quality}")
    image = test_img_file if isinstance(test_img_file, np.ndarray) else read_image(test_img_file)
    metrics = ImageMetrics(image)

    def measure(q):
        file = io.BytesIO()
        # An image of its own: Pillow keeps the quality in it, and other threads save at others.
        Image.fromarray(image).save(file, "JPEG", quality=int(q))
        bpp = 8 * file.tell() / (image.shape[0] * image.shape[1])
        return {"BPP": bpp, **metrics.evaluate(np.asarray(Image.open(file)), threads=1)}

    records = _each(measure, qualities)
    return {key: np.array([record[key] for record in records]) for key in ("BPP", *METRIC_KEYS)}
