"""The baselines JPEG and WebP, and the names that a notebook uses.

Nothing here needs TensorFlow or a model, so a notebook that draws only a JPEG curve starts at once.
"""

from vbq.baselines import evaluate_compression_jpg, evaluate_compression_webp
from vbq.command import UserError, progress, run_main
from vbq.files import atomic_write, find_images, load_npz, save_npz
from vbq.images import center_crop, read_image, to_uint8
from vbq.metrics import METRIC_KEYS, MODES, ImageMetrics

__all__ = [
    "METRIC_KEYS",
    "MODES",
    "ImageMetrics",
    "UserError",
    "atomic_write",
    "center_crop",
    "evaluate_compression_jpg",
    "evaluate_compression_webp",
    "find_images",
    "load_npz",
    "progress",
    "read_image",
    "run_main",
    "save_npz",
    "to_uint8",
]
