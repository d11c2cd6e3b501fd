"""The JPEG baseline, and the names that a notebook uses.

Nothing here needs TensorFlow or a model, so a notebook that draws only a JPEG curve starts at once.
"""

import io

import numpy as np
from PIL import Image

from vbq.command import UserError, progress, run_main
from vbq.files import atomic_write, find_images, load_npz, save_npz
from vbq.image_output import MOST_SIDE
from vbq.images import center_crop, check_rgb, read_image, to_uint8
from vbq.metrics import METRIC_KEYS, MODES, ImageMetrics
from vbq.threads import parallel

__all__ = [
    "METRIC_KEYS",
    "MODES",
    "ImageMetrics",
    "UserError",
    "atomic_write",
    "center_crop",
    "evaluate_compression_jpg",
    "find_images",
    "load_npz",
    "progress",
    "read_image",
    "run_main",
    "save_npz",
    "to_uint8",
]


def evaluate_compression_jpg(test_img_file, quality):
    """Encodes an image as JPEG and measures the decoded pixels.

    The encoder has Pillow's defaults: 4:2:0 and the standard tables. Follows the function of the same name in
    the original's `utils.py`.

    Args:
      test_img_file: name of an image file, or a uint8 array [H, W, 3].
      quality: int or a sequence of int, usually 1 to 95; 96 to 100 are allowed.

    Returns:
      dict of float64 arrays with one entry per quality: `BPP`, the size of the file in bits per pixel, and
      `METRIC_KEYS`.

    Raises:
      UserError: the file or the array is not an image, the image is too large for JPEG, a quality is out of
        range, or no quality is given.
    """
    qualities = _check_qualities(quality)
    image = test_img_file if isinstance(test_img_file, np.ndarray) else read_image(test_img_file)
    check_rgb(image)
    most = MOST_SIDE["JPEG"]
    if max(image.shape) > most:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise UserError(f"a JPEG file has at most {most} pixels a side, but the image has {size}")
    metrics = ImageMetrics(image)

    def measure(q):
        file = io.BytesIO()
        # Every thread needs a Pillow image of its own, because saving stores the quality in the image.
        Image.fromarray(image).save(file, "JPEG", quality=int(q))
        bpp = 8 * file.tell() / (image.shape[0] * image.shape[1])
        return {"BPP": bpp, **metrics.evaluate(np.asarray(Image.open(file)), threads=1)}

    records = parallel(measure, qualities)
    return {key: np.array([record[key] for record in records]) for key in ("BPP", *METRIC_KEYS)}


def _check_qualities(quality):
    """One or more JPEG qualities as an array [Q]; raises a UserError if they are anything else."""
    try:
        qualities = np.atleast_1d(quality)
    except ValueError:  # a ragged list
        qualities = np.array([None])
    is_real = np.issubdtype(qualities.dtype, np.integer) or np.issubdtype(qualities.dtype, np.floating)
    if qualities.ndim != 1 or not qualities.size or not is_real:
        raise UserError(f"a JPEG quality must be an integer from 1 to 100, or a list of them, not {quality}")
    if not np.all((qualities >= 1) & (qualities <= 100) & (qualities % 1 == 0)):
        raise UserError(f"a JPEG quality must be an integer from 1 to 100, not {quality}")
    return qualities
