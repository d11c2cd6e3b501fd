"""The baselines JPEG and WebP: encodes images with Pillow and measures the decoded pixels.

Nothing here needs TensorFlow or a model.
"""

import io
import os
import warnings

import numpy as np
from PIL import Image

from vbq.command import UserError, progress
from vbq.image_output import MOST_SIDE
from vbq.images import pixels_of, read_image
from vbq.metrics import METRIC_KEYS, ImageMetrics
from vbq.threads import parallel

JPEG_QUALITIES = (1, 2, 4, 8, 12, 16, 32, 48, 64, 80, 90, 95)  # those of the published figures
KODAK = tuple(f"kodim{i:02d}" for i in range(1, 25))  # names of the 24 Kodak images, without ending
MOST_AT_ONCE = 2**23  # bytes of an image of which several qualities are measured at once
_NAMES = {"JPEG": "JPEG", "WEBP": "WebP"}  # by Pillow's names of the formats
_WORST = {"JPEG": 1, "WEBP": 0}  # the lowest quality; the highest is 100


def evaluate_compression_jpg(test_img_file, quality):
    """Encodes an image as JPEG and measures the decoded pixels.

    The encoder has Pillow's defaults: 4:2:0 and the standard tables. Follows the function of the same name in
    the original's `utils.py`.

    Args:
      test_img_file: name of an image file, a Pillow image, or a uint8 array [H, W, 3].
      quality: int or a sequence of int, usually 1 to 95; 96 to 100 are allowed.

    Returns:
      dict of float64 arrays with one entry per quality: `BPP`, the size of the file in bits per pixel, and
      `METRIC_KEYS`.

    Raises:
      UserError: the file or the array is not an image, the image is too large for JPEG, a quality is out of
        range, or no quality is given.
    """
    return _evaluate("JPEG", test_img_file, quality)


def evaluate_compression_webp(test_img_file, quality):
    """Encodes an image as WebP and measures the decoded pixels.

    The encoder has Pillow's defaults: lossy, method 4.

    Args:
      test_img_file: name of an image file, a Pillow image, or a uint8 array [H, W, 3].
      quality: int or a sequence of int, 0 to 100.

    Returns:
      dict as of `evaluate_compression_jpg`.

    Raises:
      UserError: as `evaluate_compression_jpg`; WebP has at most 16383 pixels a side.
    """
    return _evaluate("WEBP", test_img_file, quality)


def _evaluate(kind, image, quality):
    """Measures an image, a name or a uint8 array [H, W, 3], in a format that is named as in Pillow."""
    qualities = _check_qualities(kind, quality)
    image = pixels_of(image)
    _check_size(kind, *image.shape[:2])
    metrics = ImageMetrics(image)
    # Threads work on the qualities of an image, or on the planes of a large one, which takes less memory.
    of_qualities, of_planes = (None, 1) if image.nbytes <= MOST_AT_ONCE else (1, None)

    def measure(q):
        file = io.BytesIO()
        # Every thread needs a Pillow image of its own, because saving stores the quality in the image.
        Image.fromarray(image).save(file, kind, quality=int(q))
        bpp = 8 * file.tell() / (image.shape[0] * image.shape[1])
        return {"BPP": bpp, **metrics.evaluate(np.asarray(Image.open(file)), of_planes)}

    records = parallel(measure, qualities, of_qualities)
    return {key: np.array([record[key] for record in records]) for key in ("BPP", *METRIC_KEYS)}


def _check_qualities(kind, quality):
    """One or more qualities as an array [Q]; raises a UserError if they are anything else."""
    wanted = f"a {_NAMES[kind]} quality must be an integer from {_WORST[kind]} to 100"
    try:
        qualities = np.atleast_1d(quality)
    except ValueError:  # a ragged list
        qualities = np.array([None])
    is_real = np.issubdtype(qualities.dtype, np.integer) or np.issubdtype(qualities.dtype, np.floating)
    if qualities.ndim != 1 or not qualities.size or not is_real:
        raise UserError(f"{wanted}, or a list of them, not {quality}")
    if not np.all((qualities >= _WORST[kind]) & (qualities <= 100) & (qualities % 1 == 0)):
        raise UserError(f"{wanted}, not {quality}")
    return qualities


def _check_size(kind, height, width):
    """Raises a UserError if a format has no images of this size, in pixels."""
    most = MOST_SIDE[kind]
    if max(height, width) > most:
        raise UserError(
            f"a {_NAMES[kind]} file has at most {most} pixels a side, but the image has {width} x {height}"
        )


def jpeg_results(paths):
    """Measures JPEG on images, for the curve beside those of the quantizers.

    Args:
      paths: list of image files.

    Returns:
      dict with `settings` [12], the JPEG_QUALITIES, and `BPP` and `METRIC_KEYS`, float64 [images, 12]. An
      image that is too small for MS-SSIM has NaN there, without a warning.

    Raises:
      UserError: an image cannot be read, or is too large for JPEG.
    """
    records = []
    for path in progress(paths, desc="JPEG", unit="image"):
        image = read_image(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the evaluation has told which images are small
                records.append(evaluate_compression_jpg(image, JPEG_QUALITIES))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return {
        "settings": np.array(JPEG_QUALITIES),
        **{key: np.stack([record[key] for record in records]) for key in ("BPP", *METRIC_KEYS)},
    }


def are_named_as_kodak(paths):
    """Whether image files have the names of all 24 Kodak images, kodim01 to kodim24, and there are no others.

    The folders, the endings and the case of the names do not matter. Pixels are not compared, so that crops
    of the Kodak images count.

    Args:
      paths: list of str.
    """
    names = [os.path.splitext(os.path.basename(path))[0].lower() for path in paths]
    return sorted(names) == list(KODAK)
