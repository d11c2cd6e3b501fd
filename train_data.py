"""Random crops of photographs for training. Each crop is a function of the seed and of its number in the stream alone: a
resumed run sees the data that an uninterrupted one would have seen."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
import functools
import itertools
import math
import os
import sys

import numpy as np
from PIL import Image

import utils

MEMORY_BUDGET = 4 * 2**30  # bytes of decoded photographs to keep; those beyond are decoded whenever they are needed
MAPPED_BYTES = 2**28  # of an .npy file that is not read but mapped
BATCHES_AHEAD = 2  # per thread


class Photographs:
    """The photographs that match a pattern and are large enough for a patch."""

    def __init__(self, pattern, patchsize, threads, budget=MEMORY_BUDGET):
        """Decodes as many photographs as the budget holds; the rest wait on disk.

        Args:
          pattern: str, a glob of image files, or of `.npy` arrays [H, W, 3] of uint8 or of float in [0, 1].
          patchsize: int, side of the patches in pixels.
          threads: int, how many photographs are decoded at once.
          budget: int, bytes.

        Raises:
          utils.UserError: nothing matches, or no photograph is of use.
        """
        self.patchsize, self.budget = patchsize, budget
        self.items = []  # arrays [H, W, 3], or paths of what is beyond the budget
        self.scaled = {}  # (number of the item, tenths of its size) to uint8 array
        paths = utils.find_images(pattern)
        with ThreadPoolExecutor(threads) as pool:
            decoding = ordered_map(pool, self._open, paths, ahead=2 * threads)
            for i, pixels in enumerate(utils.progress(decoding, total=len(paths), desc="decoding", leave=False)):
                if pixels is None:
                    continue
                self.budget -= 0 if isinstance(pixels, np.memmap) else pixels.nbytes
                if self.budget < 0:
                    self.items += paths[i:]
                    break
                self.items.append(pixels)
        if not self.items:
            raise utils.UserError(f"expected photographs of at least {patchsize} x {patchsize} pixels (--patchsize), "
                                  f"found none among the {len(paths)} files that match {pattern!r}")

    def __len__(self):
        return len(self.items)

    def _open(self, path):
        """Returns the photograph, [H, W, 3], or None, with a warning, if it is of no use."""
        try:
            pixels = read_photograph(path)
            if min(pixels.shape[:2]) < self.patchsize:
                raise utils.UserError(f"{path}: expected at least {self.patchsize} x {self.patchsize} pixels (--patchsize), "
                                      f"found {pixels.shape[1]} x {pixels.shape[0]}")
        except utils.UserError as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            return None
        return pixels

    def _usable(self, i):
        """Returns the number of the i-th photograph, or of the next one that is of use, and it, [H, W, 3]."""
        for number in itertools.chain(range(i, len(self)), range(i)):
            item = self.items[number]
            pixels = self._open(item) if isinstance(item, str) else item
            if pixels is not None:
                return number, pixels
        raise utils.UserError("expected photographs, found that none can be read any more")

    def _scaled(self, i, pixels, tenths):
        """Returns the i-th photograph, `pixels`, in so many tenths of its size; kept for the next time if there is room."""
        scaled = self.scaled.get((i, tenths))
        if scaled is None:
            sides = [max(self.patchsize, round(side * tenths / 10)) for side in pixels.shape[1::-1]]
            scaled = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.LANCZOS))
            if scaled.nbytes <= self.budget:  # another thread may see the same room; the budget need not be exact
                self.budget -= scaled.nbytes
                self.scaled[i, tenths] = scaled
        return scaled

    def crop(self, seed, number, flip=False, min_scale=1.):
        """Takes one crop of the stream, which goes through all photographs, in a new order each time.

        Args:
          seed: int >= 0.
          number: int >= 0, position in the stream.
          flip: bool, whether half of the crops are mirrored, left to right.
          min_scale: float in (0, 1], photographs are first scaled by a random multiple of 0.1 from this to 1 (but those
            that are mapped from disk, which are too large).

        Returns:
          uint8 [patchsize, patchsize, 3].
        """
        epoch, position = divmod(number, len(self))
        rng = np.random.default_rng([seed, 1, number])
        i, pixels = self._usable(permutation(seed, epoch, len(self))[position])
        smallest = max(min_scale, self.patchsize / min(pixels.shape[:2]))
        tenths = int(rng.integers(min(math.ceil(10 * smallest - 1e-9), 10), 11))
        if tenths < 10 and not isinstance(pixels, np.memmap):
            pixels = self._scaled(i, pixels, tenths)
        top, left = (rng.integers(side - self.patchsize + 1) for side in pixels.shape[:2])
        patch = pixels[top:top + self.patchsize, left:left + self.patchsize]
        patch = patch if patch.dtype == np.uint8 else utils.to_uint8(patch)
        return patch[:, ::-1] if flip and rng.random() < .5 else patch

    def batches(self, numbers, threads, **crop_args):
        """Yields batches of crops, made ahead in other threads.

        Args:
          numbers: iterable of sequences of int, the crops of each batch.
          threads: int.
          **crop_args: those of `crop`.

        Yields:
          uint8 [B, patchsize, patchsize, 3].
        """
        def batch(numbers):
            return np.stack([self.crop(number=number, **crop_args) for number in numbers])
        with ThreadPoolExecutor(threads) as pool:
            yield from ordered_map(pool, batch, numbers, ahead=BATCHES_AHEAD * threads)


def read_photograph(path):
    """As `utils.read_image`, but an `.npy` file of more than `MAPPED_BYTES` stays on disk, and float if it is."""
    if not path.endswith(".npy") or os.path.getsize(path) <= MAPPED_BYTES:
        return utils.read_image(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise utils.UserError(f"{path}: expected an array, found {error}") from error
    is_float = np.issubdtype(array.dtype, np.floating)
    if array.ndim != 3 or array.shape[2] != 3 or not (is_float or array.dtype == np.uint8):
        raise utils.UserError(f"{path}: expected H x W x 3, float or uint8, found {array.dtype} {array.shape}")
    if is_float and not (array.min() >= 0 and array.max() <= 1):  # NaN fails, too
        raise utils.UserError(f"{path}: expected floats in [0, 1], found {array.min()} to {array.max()}")
    return array


@functools.lru_cache(maxsize=8)
def permutation(seed, epoch, size):
    return np.random.default_rng([seed, 0, epoch]).permutation(size)


def ordered_map(pool, function, arguments, ahead):
    """Yields `function` of each argument, in order, with up to `ahead` of them under way in the pool."""
    futures = deque()
    try:
        for argument in arguments:
            futures.append(pool.submit(function, argument))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:  # the consumer may stop early
        for future in futures:
            future.cancel()
