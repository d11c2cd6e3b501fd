"""Random crops of photographs, for training.

Each crop depends only on the seed and on its number in the stream of crops. A resumed run therefore sees the
data that an uninterrupted one would have seen.
"""

import functools
import itertools
import math
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from PIL import Image

from vbq.command import UserError, progress
from vbq.files import find_images, is_npy, open_npy
from vbq.images import read_image, to_uint8
from vbq.left_out import LeftOut
from vbq.samples import outside_unit_range

MEMORY_BUDGET = (
    4 * 2**30
)  # bytes of decoded photographs to keep; the others are decoded whenever they are needed
MAPPED_BYTES = 2**28  # size of an .npy file above which it is mapped into memory instead of being read
BATCHES_AHEAD = 2  # per thread


class Photographs:
    """The photographs that match a pattern and are large enough for a crop."""

    def __init__(self, pattern, patchsize, threads, budget=MEMORY_BUDGET):
        """Decodes photographs until the budget is used up. The others stay on disk.

        Args:
          pattern: str, a glob of image files, or of `.npy` arrays [H, W, 3] of uint8 or of float in [0, 1].
          patchsize: int, side of the crops in pixels.
          threads: int, how many photographs are decoded at once.
          budget: int, bytes.

        Raises:
          UserError: nothing matches the pattern, or no file that does can be used.
        """
        self.patchsize, self.budget = patchsize, budget
        self._budget_lock = threading.Lock()  # of `budget` and `scaled`, which all threads change
        self.items = []  # arrays [H, W, 3]; paths from the photograph on that exceeds the budget
        self.scaled = {}  # (number of the item, tenths of its size) to uint8 array
        self.left_out = LeftOut(logging.warning)
        paths = find_images(pattern)
        with ThreadPoolExecutor(threads) as pool:
            decoding = ordered_map(pool, self._open, paths, ahead=2 * threads)
            for i, pixels in enumerate(progress(decoding, total=len(paths), desc="decoding", leave=False)):
                if pixels is None:
                    continue
                self.budget -= 0 if isinstance(pixels, np.memmap) else pixels.nbytes
                if self.budget < 0:
                    self.items += paths[i:]
                    break
                self.items.append(pixels)
        self.left_out.tell_rest()
        if not self.items:
            raise UserError(
                f"{pattern}: none of the {len(paths)} files that match is a photograph of at least "
                f"{patchsize} x {patchsize} pixels, the size of a crop"
            )

    def __len__(self):
        return len(self.items)

    def _open(self, path):
        """Returns the photograph [H, W, 3]; or None, with a warning, if it cannot be used."""
        try:
            pixels = read_photograph(path)
            height, width = pixels.shape[:2]
            if min(height, width) < self.patchsize:
                raise UserError(
                    f"{path}: needs at least {self.patchsize} x {self.patchsize} pixels, the size of a crop, "
                    f"but has {width} x {height}"
                )
        except UserError as error:
            self.left_out.add(path, error)
            return None
        return pixels

    def _usable(self, i):
        """Returns the i-th photograph, or the next usable one: its number, and its pixels [H, W, 3]."""
        for number in itertools.chain(range(i, len(self)), range(i)):
            item = self.items[number]
            pixels = self._open(item) if isinstance(item, str) else item
            if pixels is not None:
                return number, pixels
        raise UserError("none of the photographs can be read any more: were they moved or deleted?")

    def _scaled(self, i, pixels, tenths):
        """Scales the i-th photograph, `pixels`, to `tenths` tenths of its size; keeps it if there is room."""
        scaled = self.scaled.get((i, tenths))
        if scaled is None:
            sides = [max(self.patchsize, round(side * tenths / 10)) for side in pixels.shape[1::-1]]
            scaled = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.LANCZOS))
            with self._budget_lock:
                if (i, tenths) not in self.scaled and scaled.nbytes <= self.budget:
                    self.budget -= scaled.nbytes
                    self.scaled[i, tenths] = scaled
        return scaled

    def crop(self, seed, number, flip=False, min_scale=1.0):
        """Takes one crop of the stream.

        The stream goes through all photographs again and again, each time in a new order.

        Args:
          seed: int >= 0.
          number: int >= 0, position in the stream.
          flip: bool, whether half of the crops are mirrored, left to right.
          min_scale: float in (0, 1]. Photographs are first scaled by a random multiple of 0.1 between this
            and 1. Memory maps are not scaled: they are too large.

        Returns:
          uint8 [patchsize, patchsize, 3].
        """
        epoch, position = divmod(number, len(self))
        rng = np.random.default_rng([seed, 1, number])
        i, pixels = self._usable(_permutation(seed, epoch, len(self))[position])
        smallest = max(min_scale, self.patchsize / min(pixels.shape[:2]))
        tenths = int(rng.integers(min(math.ceil(10 * smallest - 1e-9), 10), 11))
        if tenths < 10 and not isinstance(pixels, np.memmap):
            pixels = self._scaled(i, pixels, tenths)
        top, left = (rng.integers(side - self.patchsize + 1) for side in pixels.shape[:2])
        patch = pixels[top : top + self.patchsize, left : left + self.patchsize]
        patch = patch if patch.dtype == np.uint8 else to_uint8(patch)
        return patch[:, ::-1] if flip and rng.random() < 0.5 else patch

    def batches(self, numbers, threads, **crop_args):
        """Yields batches of crops, which other threads make in advance.

        Args:
          numbers: iterable of sequences of int, the crops of each batch.
          threads: int.
          **crop_args: those of `crop`.

        Yields:
          uint8 [B, patchsize, patchsize, 3].
        """

        def batch(numbers):
            return np.stack([self.crop(number=number, **crop_args) for number in numbers])

        try:
            with ThreadPoolExecutor(threads) as pool:
                yield from ordered_map(pool, batch, numbers, ahead=BATCHES_AHEAD * threads)
        finally:
            self.left_out.tell_rest()  # of those that were not kept in memory


def read_photograph(path):
    """Reads a photograph as `vbq.images.read_image` does, but maps a large `.npy` file into memory.

    Args:
      path: str.

    Returns:
      uint8 [H, W, 3], or a memory map of uint8 or float in [0, 1] if the `.npy` file exceeds `MAPPED_BYTES`.

    Raises:
      UserError: the file is missing, damaged, or no photograph.
    """
    if not is_npy(path) or not os.path.isfile(path) or os.path.getsize(path) <= MAPPED_BYTES:
        return read_image(path)
    array = open_npy(path)
    is_float = np.issubdtype(array.dtype, np.floating)
    if array.ndim != 3 or array.shape[2] != 3 or not (is_float or array.dtype == np.uint8):
        raise UserError(f"{path}: must be H x W x 3, uint8 or float, but is {array.dtype} {array.shape}")
    outside = outside_unit_range(array) if is_float else None
    if outside is not None:
        raise UserError(f"{path}: must have values in [0, 1], but has {outside}")
    return array


@functools.lru_cache(maxsize=8)
def _permutation(seed, epoch, size):
    return np.random.default_rng([seed, 0, epoch]).permutation(size)


def ordered_map(pool, function, arguments, ahead):
    """Applies a function to arguments in the threads of a pool.

    Args:
      pool: concurrent.futures.Executor.
      function: function of one argument.
      arguments: iterable; it is read only as far as needed.
      ahead: int, how many arguments at most are under way.

    Yields:
      The results, in the order of the arguments.
    """
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
