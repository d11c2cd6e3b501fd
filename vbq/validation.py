"""Validation images: an array, or the centres of image files, with a label that identifies them."""

import dataclasses
import hashlib
import os
import re

import numpy as np

from vbq.command import UserError, note, progress
from vbq.files import find_images, is_npy, open_npy
from vbq.images import center_crop, read_image
from vbq.samples import outside_unit_range

CROP_PIXELS = 256  # side of the crops that are taken of image files
PART_BYTES = 2**25  # bytes of the images that are checked at a time


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation images, and a label that identifies them."""

    images: np.ndarray  # uint8, or float in [0, 1], [N, H, W, 3], perhaps a memory map
    label: str  # name and digest


def read_validation(name):
    """Opens a validation array, or cuts the centres out of image files.

    Args:
      name: str, an `.npy` file of N x H x W x 3, or a glob of image files.

    Returns:
      Validation.

    Raises:
      UserError: there are no such images, or they cannot be used.
    """
    is_array = is_npy(name) and (os.path.isfile(name) or not re.search(r"[*?[]", name))
    images = _open_array(name) if is_array else _read_crops(find_images(name))
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    for part in _parts(images):
        outside = None if images.dtype == np.uint8 else outside_unit_range(part)
        if outside is not None:
            raise UserError(f"{name}: values should be in [0, 1], but there is {outside}")
        digest.update(part)
    return Validation(images, f"{os.path.basename(name)} sha256:{digest.hexdigest()}")


def _open_array(path):
    """A memory map of an `.npy` file, [N, H, W, 3]."""
    images = open_npy(path)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(
            f"{path}: the shape of validation images should be N x H x W x 3, but is {images.shape}"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{path}: validation images should be uint8 or float, but are {images.dtype}")
    return images


def _read_crops(paths):
    """Centre crops of image files: uint8 [N, S, S, 3].

    A file that cannot be read or has a smaller image is left out, with a note.
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
