"""Image files in and out, as 8-bit RGB."""

import functools
import io
import logging
import os
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vbq.command import UserError, reason
from vbq.decoding import decode, to_rgb
from vbq.files import check_output, is_npy, open_npy
from vbq.samples import outside_unit_range, to_uint8

__all__ = [
    "center_crop",
    "check_image_output",
    "check_rgb",
    "outside_unit_range",
    "pixels_of",
    "read_image",
    "read_image_with_notes",
    "to_uint8",
    "writable_endings",
]

# Pillow warns of damaged metadata, which nothing here needs, and of the reasons of the errors that it raises.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def read_image(path):
    """Reads an image file as 8-bit RGB, the way a viewer would show it.

    Grey and palette images are expanded, transparent images are laid on white, 16-bit images are rounded to 8
    bits, colours with an ICC profile are converted to sRGB, and photographs are turned upright by their EXIF
    tag. Of an animation, the first frame is taken. An `.npy` file holds H x W x 3 values, uint8 or float in
    [0, 1].

    Args:
      path: str or path-like.

    Returns:
      uint8 array [H, W, 3].

    Raises:
      UserError: the file is missing, truncated or not an image, or holds an array of another kind.
    """
    return read_image_with_notes(path)[0]


def read_image_with_notes(path):
    """Reads an image file as `read_image` does, and tells what was changed on the way.

    Args:
      path: str or path-like.

    Returns:
      uint8 array [H, W, 3]; and a list of str, such as "its transparency is laid on white". A message
      puts the name of the file before them.

    Raises:
      UserError: as `read_image`.
    """
    try:
        if is_npy(path):
            return _read_npy(path), []
        with open(path, "rb") as file:
            return decode(file)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is damaged or not an image: its format is unknown") from error
    except Exception as error:  # no list of what decoders raise on damaged data is complete
        raise UserError(f"{path} is damaged or not an image: {reason(error)}") from error


def pixels_of(image):
    """Returns the pixels of an image in any form.

    Args:
      image: str or path-like, an image file; PIL.Image.Image of any mode, which is treated as `read_image`
        treats a file with these pixels, this EXIF orientation and this colour profile; or uint8 [H, W, 3].

    Returns:
      uint8 array [H, W, 3].

    Raises:
      UserError: as `read_image`; or the array is not an image.
      TypeError: it is something else.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            file = _unread_file(image)
            image, _ = decode(file) if file else to_rgb(image)
        except Exception as error:  # as in `read_image_with_notes`
            raise UserError(f"the Pillow image is damaged or not an image: {reason(error)}") from error
    if not isinstance(image, np.ndarray):
        raise TypeError(
            "an image should be a path, a Pillow image or a uint8 array [H, W, 3], "
            f"but is of type {type(image).__name__}"
        )
    check_rgb(image)
    return image


def _unread_file(image):
    """The file of a Pillow image that is not loaded, from its start; None if the pixels are in memory.

    Pillow loads 16-bit colours as 8 bits, but the file has them all. The first frame is the file's.
    """
    if not getattr(image, "tile", None) or not getattr(image, "fp", None) or image.tell():
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    contents = io.BytesIO(image.fp.read())
    image.fp.seek(position)
    return contents


def _read_npy(path):
    """Reads an image, uint8 [H, W, 3], from an `.npy` file."""
    array = open_npy(path)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"the array has shape {array.shape}, not H x W x 3")
    if array.dtype == np.uint8:
        return np.array(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"the array is {array.dtype}, not float or uint8")
    outside = outside_unit_range(array)
    if outside is not None:
        raise ValueError(f"it has the value {outside}, and should have floats in [0, 1]")
    return to_uint8(array)


@functools.cache
def _can_write(ending):
    """Whether Pillow can write RGB images to files with this ending, and read them.

    A picture is compared with what was written of it, see `image_output.write_image`.
    """
    Image.init()
    kind = Image.EXTENSION.get(ending)
    if kind not in Image.SAVE:
        return False
    file = io.BytesIO()
    try:
        Image.new("RGB", (16, 16)).save(file, kind)
        with Image.open(file) as written:
            written.load()
    except Exception:  # the format has no RGB images, needs another program, or is write-only, as PDF is
        return False
    return True


@functools.lru_cache(maxsize=1)
def writable_endings():
    """Returns the endings of image files that Pillow can write, a sorted tuple of str such as '.png'."""
    Image.init()
    return tuple(ending for ending in sorted(Image.EXTENSION) if _can_write(ending))


def check_image_output(path, inputs=()):
    """Checks, before any work, that an image file can be written and replaces no input.

    Args:
      path: str or path-like, the image file to write.
      inputs: iterable of paths that are read.

    Raises:
      UserError: as `vbq.files.check_output`; or Pillow cannot write an image with that ending.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if not _can_write(ending) and not os.path.isdir(path):
        what = f"images that end in {ending}" if ending else "an image whose name has no ending"
        raise UserError(
            f"cannot write {path}: Pillow cannot both write and read {what}; use .png, for example"
        )
    check_output(path, inputs)


def check_rgb(image):
    """Raises a UserError if an array is not an image: uint8 [H, W, 3] with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise UserError(f"an image should be uint8 [H, W, 3], but is {image.dtype} {list(image.shape)}")


def center_crop(image, height, width):
    """Cuts out the middle of an image.

    Args:
      image: array [H, W, ...].
      height, width: int, pixels.

    Returns:
      View of `image`, [height, width, ...]. If a margin is odd, one more pixel is cut at the bottom or right.

    Raises:
      UserError: the image is smaller, or nothing would be left of it.
    """
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    size = f"{image.shape[1]} x {image.shape[0]}"
    if top < 0 or left < 0:
        raise UserError(f"the image has {size} pixels, and needs at least {width} x {height} pixels")
    if height < 1 or width < 1:
        raise UserError(f"the image has {size} pixels, of which the crop would leave none")
    return image[top : top + height, left : left + width]
