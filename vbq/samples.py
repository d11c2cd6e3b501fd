"""Samples of pixels: reads those with more than 8 bits, and rounds them to 8 bits."""

import re

import numpy as np

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
_RAW_MODE = re.compile(r"(RGB|RGBX|RGBA|RGBa|CMYK|[RGBA]);16([BLN])")  # of Pillow; the letter: byte order
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}
_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # tags of TIFF
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2  # values of the latter two


def to_uint8(x):
    """Rounds intensities to 8 bits.

    Args:
      x: float array in [0, 1]; values outside are clipped.

    Returns:
      uint8 array in 0..255, of the shape of `x`. Halves are rounded to even.
    """
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def round_samples(values):
    """Rounds samples of any kind to 8 bits.

    Args:
      values: array of uint16, or of float in [0, 1].

    Returns:
      uint8 array of the same shape.
    """
    if values.dtype != np.uint16:
        return to_uint8(values)
    quotient, rest = np.divmod(values, 257)  # 65535 / 255; 257 is odd, so there are no halves
    return (quotient + (rest > 128)).astype(np.uint8)


def lay_on_white(values):
    """Lays samples with an alpha channel on white, and rounds only then.

    Args:
      values: uint16 array [H, W, 2 or 4]; the last channel is alpha.

    Returns:
      uint8 array [H, W, 1 or 3].
    """
    alpha = values[..., -1:] / 65535
    return to_uint8(values[..., :-1] / 65535 * alpha + (1 - alpha))


def outside_unit_range(x):
    """Finds a value of an array that is outside [0, 1].

    Args:
      x: float array, not empty.

    Returns:
      str, the value farthest outside [0, 1] with all of its digits, or "nan"; or None if all lie inside.
    """
    least, largest = x.min(), x.max()  # NaN if any value is
    if least >= 0 and largest <= 1:
        return None
    return str(least if np.isnan(least) or -least > largest - 1 else largest)


def deep_samples(image, reopen):
    """Reads the samples of an image with more than 8 bits a channel.

    Pillow opens 16-bit colours as their high bytes. If the byte order of its raw mode is exchanged, it yields
    the low bytes instead.

    Args:
      image: PIL.Image.Image; opened and not loaded, or in memory. It is loaded here.
      reopen: function without arguments that opens the same file once more.

    Returns:
      uint16 array, or float array in [0, 1]: [H, W, C] of grey, grey and alpha, RGB, RGBA or (if the mode of
      the image is CMYK) CMYK. None if the image has 8 bits a channel or fewer, and of compressed TIFF files
      with separate planes, whose low bytes Pillow does not yield.

    Raises:
      ValueError: the values are neither 16-bit integers nor floats in [0, 1].
      Exception: whatever the decoder raises on a damaged file.
    """
    if image.mode[0] in "IF":
        return _grey_samples(image)
    raw_modes = [_deep_raw_mode(image, tile) for tile in getattr(image, "tile", ())]  # none if it is no file
    if not raw_modes or None in raw_modes:
        image.load()
        return _grey_samples(image) if image.mode[0] in "IF" else None  # an icon's mode is known only now
    premultiplied = _raw_mode(image.tile[0]).startswith("RGBa")
    values = _decode(image, raw_modes)
    if raw_modes[0] == "RGBA":  # grey and alpha, two bytes each, taken for four channels
        return values.view(">u2").astype(np.uint16)
    values = values.astype(np.uint16) << 8
    with reopen() as again:
        values |= _decode(again, [raw[:-1] + _OTHER_ORDER[raw[-1]] for raw in raw_modes])
    if premultiplied:
        alpha = np.maximum(values[..., 3:], 1)
        values[..., :3] = np.minimum(np.rint(values[..., :3] / alpha * 65535), 65535)
    return _with_key(values, image)


def _grey_samples(image):
    """Grey samples [H, W, 1], or [H, W, 2] with alpha, of an image of mode I;16, I or F."""
    tags = getattr(image, "tag_v2", {})
    most = 4095 if tags.get(_BITS) == (12,) else 65535
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    values = np.asarray(image, np.float64) / (1 if image.mode == "F" else most)
    outside = outside_unit_range(values)
    if outside is not None:
        outside = outside if image.mode == "F" else str(round(float(outside) * most))
        raise ValueError(f"it has the value {outside}, and should have 16-bit integers or floats in [0, 1]")
    values = (1 - values if inverted else values)[..., None]
    if image.mode == "F":
        return values
    return _with_key(np.rint(values * 65535).astype(np.uint16), image)


def _with_key(values, image):
    """Adds an alpha channel if the image has a colour that stands for full transparency."""
    key = image.info.get("transparency")
    if not isinstance(key, (int, tuple)) or values.shape[-1] not in (1, 3):
        return values
    opaque = (values != np.array(key)).any(axis=-1, keepdims=True)
    return np.concatenate([values, np.where(opaque, 65535, 0).astype(np.uint16)], axis=-1)


def _raw_mode(tile):
    """The raw mode of one of Pillow's tiles, which tells its decoder how samples lie in the file."""
    args = tile[3]
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    return raw_mode if isinstance(raw_mode, str) else ""


def _deep_raw_mode(image, tile):
    """The raw mode that yields high bytes, or None if the samples have 8 bits or cannot be had."""
    raw_mode = _raw_mode(tile)
    if raw_mode == "LA;16B":
        return "RGBA"
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == _SEPARATE_PLANES:
        if tile[0] == "libtiff":
            return None
        if raw_mode in tuple("RGBA") and set(tags.get(_BITS)) == {16}:  # Pillow forgets the 16
            raw_mode += ";16B" if tags.prefix == b"MM" else ";16L"
    if not _RAW_MODE.fullmatch(raw_mode):
        return None
    return raw_mode.replace("a", "A")  # "RGBa" would divide by alpha at 8 bits


def _decode(image, raw_modes):
    """Loads an image with other raw modes, one for each tile: uint8 [H, W, C]."""
    tiles = []
    for tile, raw_mode in zip(image.tile, raw_modes):
        args = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
        parts = (*tile[:3], args)
        # A tile is a named tuple since Pillow 11.
        tiles.append(type(tile)(*parts) if hasattr(tile, "_fields") else parts)
    image.tile = tiles
    image.load()
    return np.array(image)
