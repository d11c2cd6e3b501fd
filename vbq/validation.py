"""Validation images: an array, or the centres of image files, with a label that identifies them."""

import dataclasses
import hashlib
import os
import re

import numpy as np

from vbq.command import UserError, note, progress
from vbq.files import find_images
from vbq.images import center_crop, read_image

CROP_PIXELS = 256  # side of the crops that are taken of image files
PART_BYTES = 2**25  # of the images that are looked at at a time


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation images [N, H, W, 3], uint8 or float in [0, 1], perhaps a memory map; and their name and
    digest.
    """

    images: np.ndarray
    label: str


def read_validation(name):
    """Opens a validation array, or cuts the centres out of image files.

    Args:
      name: str, an `.npy` file of N x H x W x 3, or a glob of image files.

    Returns:
      Validation.

    Raises:
      UserError: there are no such images, or they cannot be used.
    """
    is_array = name.endswith(".npy") and (os.path.isfile(name) or not re.search(r"[*?[]", name))
    images = _open_array(name) if is_array else _read_crops(find_images(name))
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    for part in _parts(images):
        if images.dtype != np.uint8 and not (part.min() >= 0 and part.max() <= 1):  # NaN fails, too
            raise UserError(
                f"{name}: values should be in [0, 1], but go from {part.min():.6g} to {part.max():.6g}"
            )
        digest.update(part)
    return Validation(images, f"{os.path.basename(name)} sha256:{digest.hexdigest()}")


def _open_array(path):
    """A memory map of an `.npy` file, [N, H, W, 3]."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not an .npy array of validation images ({error})") from error
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        found = getattr(images, "shape", type(images).__name__)
        raise UserError(f"{path}: the shape of validation images should be N x H x W x 3, but is {found}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{path}: validation images should be uint8 or float, but are {images.dtype}")
    return images


def _read_crops(paths):
    """Centre crops of image files, uint8 [N, S, S, 3]. Files that cannot be read or are smaller are named and
    left out.
    """
    images = {}
    for path in progress(paths, desc="validation images", unit="image"):
        try:
            image = read_image(path)
            images[path] = center_crop(image, *(min(CROP_PIXELS, side) for side in image.shape[:2])).copy()
        except UserError as error:
            note(f"warning: left out: {error}")
    if not images:
        raise UserError(f"none of the {len(paths)} validation images can be read, {paths[0]} for one")
    side = max(min(image.shape[:2]) for image in images.values())
    for path in [path for path, image in images.items() if min(image.shape[:2]) < side]:
        note(f"warning: left out: {path} is smaller than {side} x {side} pixels")
        del images[path]
    return np.stack([center_crop(image, side, side) for image in images.values()])


def _parts(images):
    """Yields parts of the images, as contiguous arrays."""
    step = max(1, PART_BYTES // images[0].nbytes)
    for first in range(0, len(images), step):
        yield np.ascontiguousarray(images[first : first + step])
