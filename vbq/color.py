"""Colours of images that carry an ICC profile, as sRGB."""

import io

from PIL import Image, ImageCms

from vbq.command import reason, shorten

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # ICC's names of the colour spaces by Pillow's modes
SAME = 2  # of 255; a profile that changes the colours of a grid by at most this much counts as sRGB


def to_srgb(image, profile):
    """Converts colours to sRGB.

    A profile that is sRGB itself leaves the pixels as they are: a conversion would only add rounding errors.

    Args:
      image: PIL.Image.Image of mode RGB, L or CMYK.
      profile: bytes, an ICC profile.

    Returns:
      PIL.Image.Image of mode RGB, and a note of what was done, or None if the pixels stay as they are.
    """
    plain = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != _SPACES[image.mode]:
            return plain, f"its colour profile is ignored: it is for {space}, and the image is {image.mode}"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        if image.mode != "CMYK" and _keeps_colours(transform, image.mode):
            return plain, None
        name = shorten(" ".join(ImageCms.getProfileDescription(source).split()))
        converted = ImageCms.applyTransform(image, transform)
    except Exception as error:  # Pillow's CMS raises many kinds of errors on damaged profiles
        return plain, f"its damaged colour profile is ignored: {reason(error)}"
    return converted, f"its colours are converted to sRGB from the profile {name!r}"


def lab_to_srgb(image):
    """Converts an image of mode LAB, which needs no profile, to mode RGB."""
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    return ImageCms.applyTransform(image, transform)


def _keeps_colours(transform, mode):
    """Whether a transform from a mode to RGB changes the colours of a grid by at most `SAME`."""
    if mode == "L":
        grid = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        steps = range(0, 256, 15)
        grid = Image.frombytes(
            "RGB", (18, 324), bytes(v for r in steps for g in steps for b in steps for v in (r, g, b))
        )
    before, after = grid.convert("RGB").tobytes(), ImageCms.applyTransform(grid, transform).tobytes()
    return max(abs(a - b) for a, b in zip(before, after)) <= SAME
