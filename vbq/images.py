"""Image files in and out, as 8-bit RGB."""

import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from vbq.command import UserError, reason

# What Pillow's decoders and np.load raise on damaged data.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def to_uint8(x):
    """Rounds intensities to 8 bits.

    Args:
      x: float array in [0, 1]; values outside are clipped.

    Returns:
      uint8 array in 0..255, of the shape of `x`. Halves are rounded to even.
    """
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def read_image(path):
    """Reads an image file as 8-bit RGB, the way a viewer would show it.

    Grey and palette images are expanded, transparent images are laid on white, 16-bit images are rounded to 8
    bits, and photographs are turned upright by their EXIF tag. An `.npy` file holds H x W x 3 values, uint8
    or float in [0, 1].

    Args:
      path: str or path-like.

    Returns:
      uint8 array [H, W, 3].

    Raises:
      UserError: the file is missing, truncated or not an image, or holds an array of another kind.
    """
    try:
        if os.fspath(path).endswith(".npy"):
            return _read_npy(path)
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except _READ_ERRORS as error:
        raise UserError(f"{path} is damaged or not an image: {reason(error)}") from error


def _read_npy(path):
    array = np.load(path, allow_pickle=False)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"the array has shape {array.shape}, not H x W x 3")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"the array is {array.dtype}, not float or uint8")
    if not (array.min() >= 0 and array.max() <= 1):  # also true for NaN
        raise ValueError(f"values from {array.min():.6g} to {array.max():.6g} are not floats in [0, 1]")
    return to_uint8(array)


def _to_rgb(image):
    """Converts a Pillow image of any mode to mode RGB."""
    if image.mode[0] in "IF":  # 16 bits (I;16, I;16B, I) or float (F), which Pillow itself would clip at 255
        values = np.asarray(image, np.float64) / (1 if image.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError("values are neither 16-bit integers nor floats in [0, 1]")
        image = Image.fromarray(to_uint8(values))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image, height, width):
    """Cuts out the middle of an image.

    Args:
      image: array [H, W, ...].
      height, width: int, pixels.

    Returns:
      View of `image`, [height, width, ...]. Of an odd margin, the larger half is cut at the bottom and right.

    Raises:
      UserError: the image is smaller.
    """
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if top < 0 or left < 0:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UserError(f"the image has {size} pixels, and needs at least {width} x {height} pixels")
    return image[top : top + height, left : left + width]
