"""Local means of images under SSIM's Gaussian window, computed tile by tile."""

import math

import numpy as np

WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
TRIM = len(WINDOW) - 1  # pixels by which the filter, without padding, shortens each axis
FILTER_TILE = 128, 960  # rows and columns that are filtered at once, so that the buffers stay in the cache


class Workspace:
    """Buffers that are reused, because touching fresh memory takes longer than the arithmetic on it."""

    def __init__(self):
        self._arrays, self._filters = {}, {}

    def array(self, name, shape, dtype):
        """Returns the buffer of this name as an array [shape] of dtype. Its contents are undefined."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, np.uint8)
        return self._arrays[name][:size].view(dtype).reshape(shape)

    def filter(self, *args):
        """Returns the `_WindowFilter` of these arguments."""
        if args not in self._filters:
            self._filters[args] = _WindowFilter(*args)
        return self._filters[args]


def local_means(fill, shape, count, dtype, workspace):
    """Filters a stack of images with the Gaussian window, tile by tile.

    Args:
      fill: function (stack, here) that writes the pixels of all images at `here`, a pair of slices, into
        stack [count, h, w].
      shape: (H, W) of the images.
      count: int, number of images.
      dtype: NumPy type of the arithmetic.
      workspace: Workspace.

    Yields:
      (here, means). `here` is a pair of slices, the place of the tile among the [H - 10, W - 10] positions of
      the window. `means` [count, h, w] are the local means there. It is a buffer: the caller may overwrite
      it, and the next tile does.
    """
    for here in tiles(shape):
        window = workspace.filter(count, *(part.stop - part.start for part in here), dtype)
        fill(window.stack, tuple(slice(part.start, part.stop + TRIM) for part in here))
        yield here, window.means()


def tiles(shape):
    """Yields the places of the tiles of `local_means`, pairs of slices, for images of a shape (H, W)."""
    tops, height = _parts(shape[0] - TRIM, FILTER_TILE[0])
    lefts, width = _parts(shape[1] - TRIM, FILTER_TILE[1])
    for top in tops:
        for left in lefts:
            bottom, right = min(top + height, shape[0] - TRIM), min(left + width, shape[1] - TRIM)
            yield slice(top, bottom), slice(left, right)


def _parts(length, most):
    """Cuts a length into the fewest parts of at most `most`, nearly equal; returns their starts and size."""
    parts = -(-length // most)
    size = -(-length // parts)
    return range(0, length, size), size


class _WindowFilter:
    """Correlates a stack of images of one size with the Gaussian window, without padding.

    Along an axis, a block of outputs is one product with a banded matrix, block x (block + 10). This takes
    more multiplications than the window has taps, but BLAS does them faster than any filter of NumPy or
    SciPy. Every product stays below 2^18 multiplications. Above that, OpenBLAS starts threads of its own,
    which would compete with ours.
    """

    def __init__(self, count, height, width, dtype):
        """Takes the number of images, and the height and width of the output."""
        self.stack = np.empty((count, height + TRIM, width + TRIM), dtype)  # the input
        columns = np.empty((count, height, width + TRIM), dtype)
        self._means = np.empty((count, height, width), dtype)
        self._products = []
        for start, size, number in _blocks(height, 12):
            band = _band(size).astype(dtype)
            source = _strided(self.stack, 1, start, size + TRIM, size, number)
            target = _strided(columns, 1, start, size, size, number)
            self._products.append((band, source, target))
        columns = columns.reshape(1, -1, width + TRIM)  # the rows of all images are filtered alike
        means = self._means.reshape(1, -1, width)
        for start, size, number in _blocks(width, 16):
            band = _band(size).T.astype(dtype)
            source = _strided(columns, 2, start, size + TRIM, size, number)
            target = _strided(means, 2, start, size, size, number)
            self._products.append((source, band, target))

    def means(self):
        """Returns the local means [count, height, width] of `stack`, a buffer that may be overwritten."""
        for left, right, target in self._products:
            np.matmul(left, right, out=target)
        return self._means


def _blocks(length, block):
    """Returns (start, size, number) of the whole blocks in a length, and of the rest."""
    rest = length % block
    return [item for item in ((0, block, length // block), (length - rest, rest, 1)) if item[1] and item[2]]


def _strided(x, axis, start, size, step, number):
    """Returns parts of x [N, H, W] along an axis, `size` long and `step` apart: a view [N, number, h, w]."""
    shape, strides = list(x.shape), list(x.strides)
    shape[axis] = size
    x = x[:, start:] if axis == 1 else x[:, :, start:]
    return np.lib.stride_tricks.as_strided(
        x, (shape[0], number, *shape[1:]), (strides[0], step * strides[axis], *strides[1:])
    )


def _band(size):
    """Returns a matrix [size, size + 10] whose row i is the window, i columns further to the right."""
    band = np.zeros((size, size + TRIM))
    for i in range(size):
        band[i, i : i + len(WINDOW)] = WINDOW
    return band
