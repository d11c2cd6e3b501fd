"""From an open image file to 8-bit RGB, the way a viewer would show it."""

import io

import numpy as np
from PIL import Image

from vbq import samples
from vbq.color import lab_to_srgb, to_srgb
from vbq.metadata import without_metadata

_ORIENTATION = 0x0112  # tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_MODES = ("1", "L", "LA", "La")


def decode(file):
    """Decodes an image.

    Args:
      file: binary file object.

    Returns:
      uint8 array [H, W, 3]; and notes, a list of str that tell what was changed on the way.

    Raises:
      Exception: whatever Pillow raises on a damaged file, or MemoryError.
    """
    if not file.seekable():
        file = io.BytesIO(file.read())
    try:
        return _decode(file)
    except Exception as error:
        file.seek(0)
        for data in without_metadata(file.read()):
            try:
                pixels, notes = _decode(io.BytesIO(data), only_pixels=True)
            except Exception:
                continue
            return pixels, [*notes, "its damaged metadata is ignored"]
        raise error


def _decode(file, only_pixels=False):
    """As `decode`. With `only_pixels`, Pillow ignores the metadata of a TIFF file while it decodes."""

    def reopen():
        file.seek(0)
        image = Image.open(file)
        if only_pixels and image.format == "TIFF":
            image.load_end = lambda: setattr(image, "_size", image.im.size)
        return image

    with reopen() as image:
        return to_rgb(image, reopen, only_pixels)


def to_rgb(image, reopen=None, only_pixels=False):
    """Converts an image that Pillow has opened.

    Args:
      image: PIL.Image.Image. It is loaded here if it was opened from a file.
      reopen: function without arguments that opens the same file once more; None for an image that is loaded.
      only_pixels: bool, see `_decode`.

    Returns:
      uint8 array [H, W, 3]; and notes, a list of str.

    Raises:
      Exception: whatever Pillow raises on damaged data.
    """
    notes = []
    deep = samples.deep_samples(image, reopen)
    turn = _TURNS.get(_orientation(image, only_pixels))
    profile = image.info.get("icc_profile")
    if deep is None:
        # A copy has a palette, even where Pillow has set none, as in icons.
        flat = image.copy() if image.mode == "P" else image
        rgb = _flatten(flat, image.mode in _GREY_MODES, profile, notes)
    else:
        kind = "16-bit" if deep.dtype == np.uint16 else "float"
        notes.append(f"its {kind} values are rounded to 8 bits")
        rgb = _flatten_deep(deep, image.mode, profile, notes)
    if _is_animated(image):
        notes.append("only the first of its frames is taken")
    return np.array(rgb if turn is None else rgb.transpose(turn)), notes


def _orientation(image, only_pixels):
    try:
        if only_pixels and image.format == "TIFF":  # Pillow turns it itself, unless it decodes only pixels
            return image.tag_v2.get(_ORIENTATION)
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF is ignored: the image can be shown without it
        return None


def _is_animated(image):
    """Whether there are more frames. What Pillow calls the frames of a PSD file are its layers."""
    try:
        return image.format != "PSD" and getattr(image, "is_animated", False)
    except Exception:  # the second frame is damaged
        return False


def _flatten_deep(values, mode, profile, notes):
    """Rounds samples to an RGB image without transparency; adds to the notes."""
    channels = values.shape[-1]
    mode = mode if mode == "CMYK" else samples.MODES[channels]
    if mode in ("LA", "RGBA") and not profile:  # at 16 bits; a profile needs 8 bits
        if values[..., -1].min() < 65535:
            notes.append("its transparency is laid on white")
        values, mode = samples.lay_on_white(values), samples.MODES[channels - 1]
    else:
        values = samples.round_samples(values)
    bands = [Image.fromarray(np.ascontiguousarray(values[..., c])) for c in range(values.shape[-1])]
    return _flatten(Image.merge(mode, bands), mode in _GREY_MODES, profile, notes)


def _flatten(image, is_grey, profile, notes):
    """Converts an image of any mode with 8 bits to mode RGB, without transparency; adds to the notes."""
    alpha = None
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:
            notes.append("its transparency is laid on white")
    if image.mode == "LAB":
        image = lab_to_srgb(image)
    elif profile:
        if image.mode != "CMYK":
            image = image.convert("RGB")
        image, note = to_srgb(image.getchannel("R") if is_grey else image, profile)
        if note:
            notes.append(note)
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
