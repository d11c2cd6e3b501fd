"""Writes pictures to image files, without loss where the format allows it."""

import io
import os

import numpy as np
from PIL import Image

from vbq.command import UserError, reason
from vbq.files import atomic_write
from vbq.images import check_image_output

MOST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535, "ICO": 256}  # pixels, where a format has a limit
# Pillow's options with which a format loses nothing, or little.
SAVE_OPTIONS = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def check_picture_output(path, inputs, width, height):
    """Checks, before any work, that a picture can be written.

    Args:
      path: str, the image file to write.
      inputs: list of paths that are read.
      width, height: int, pixels.

    Raises:
      UserError: as `images.check_image_output`; or the picture is too large for the format.
    """
    check_image_output(path, inputs)
    kind = _format_of(path)
    if max(width, height) > MOST_SIDE.get(kind, max(width, height)):
        raise UserError(
            f"cannot write {path}: {kind} has at most {MOST_SIDE[kind]} pixels a side, the picture has "
            f"{width} x {height}; use .png, for example"
        )


def write_image(path, image):
    """Writes a picture to an image file, in one step, and compares what was written with the picture.

    Args:
      path: str; its ending names the format.
      image: uint8 [H, W, 3].

    Returns:
      List of str: a remark if the file differs from the picture, else empty.

    Raises:
      UserError: the file cannot be written, or its picture has another size.
    """
    height, width, _ = image.shape
    encoded, kind = io.BytesIO(), _format_of(path)
    try:
        Image.fromarray(image).save(encoded, kind, **SAVE_OPTIONS.get(kind, {}))
        with Image.open(encoded) as file:
            written = np.asarray(file.convert("RGB"))
    except Exception as error:  # no list of what encoders raise is complete
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    if written.shape != image.shape:
        size = f"{written.shape[1]} x {written.shape[0]}"
        raise UserError(
            f"cannot write {path}: the format makes {size} pixels of {width} x {height}; use .png"
        )
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(encoded.getbuffer())
    return [] if np.array_equal(written, image) else ["this format has lost quality; .png would not"]


def _format_of(path):
    """Pillow's name for the format that an ending stands for, or None."""
    Image.init()
    return Image.EXTENSION.get(os.path.splitext(path)[1].lower())
