"""Result files: their names, their arrays, and how shards are put together.

Axis letters: I images, S settings.
"""

import collections
import os

import numpy as np

from vbq.command import UserError
from vbq.files import load_npz
from vbq.metrics import METRIC_KEYS

MEASURES = ("B", "BPP", "BPPCL", "BPL", *METRIC_KEYS)
FILE_KEY = "BPP (file)"  # with --bitstream


def results_path(folder, name, shard=None):
    """The path of a quantizer's result file; that of a shard (i, n) stands beside it."""
    part = "-shard={}-of-{}".format(*shard) if shard else ""
    return os.path.join(folder, f"{name}-compression_results{part}.npz")


def distinct_names(paths):
    """The names of image files for `compressed_files`.

    A name is a base name. Equal base names are preceded by as much of the path as tells them apart.

    Args:
      paths: list of str, different from each other.

    Returns:
      List of str, in the same order.
    """
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    names = [os.path.join(*path[-1:]) for path in parts]
    for length in range(2, max(map(len, parts), default=0) + 1):
        counts = collections.Counter(names)
        if len(counts) == len(names):
            break
        names = [
            os.path.join(*path[-length:]) if counts[name] > 1 else name for path, name in zip(parts, names)
        ]
    return names


def as_arrays(fit, settings, files, records, keys=MEASURES):
    """The arrays of a result file, with the original's keys.

    Args:
      fit: fits.Fit.
      settings: list of S settings.
      files: list of I names; I is 0 in a shard without images.
      records: list by image of lists by setting of dicts of measures, which may have a uint8
        "reconstruction".
      keys: sequence of str, the measures to keep.

    Returns:
      dict with `settings` [S], `compressed_files` [I], `quantizer_path` and `fit` (the identity of the fit);
      float64 [I, S] for each measure: `B` bits, `BPP` bits per pixel, `BPPCL` bits per pixel by bit lengths,
      `BPL` bits per latent, and `METRIC_KEYS`; and `reconstructions`, empty or uint8 [I, S, H, W, 3]. Smaller
      images are padded by 0, and `sizes`, int [I, 2], then has the height and width of each.
    """
    kept = [
        np.stack([record["reconstruction"] for record in image])
        for image in records
        if "reconstruction" in image[0]
    ]
    sizes = np.array([x.shape[1:3] for x in kept])
    if kept:
        height, width = sizes.max(axis=0)
        kept = [np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0))) for x in kept]
    shape = len(files), len(settings)
    return {
        "settings": np.array(settings),
        "compressed_files": np.array(files, dtype=str),
        "quantizer_path": np.array(fit.name + ".npz"),
        "reconstructions": np.array(kept),
        **{
            key: np.array([[r[key] for r in image] for image in records], float).reshape(shape)
            for key in keys
        },
        **({"sizes": sizes} if kept else {}),
        "fit": np.array(fit.quantizer.identity()),
    }


def merge(folder, names, files, count):
    """Puts the results of all shards together.

    Args:
      folder: str, where the result files of the shards are.
      names: list of str, what their names start with, one a quantizer.
      files: names of the test images, sorted.
      count: int, number of shards; shard i has every count-th image, from the i-th on.

    Returns:
      dict from names to the arrays that a single evaluation would have written.

    Raises:
      UserError: a shard is missing, or has other images, settings or another fit than the first.
    """
    results = {}
    for name in names:
        paths = [results_path(folder, name, (i + 1, count)) for i in range(count)]
        shards = [load_npz(path) for path in paths]
        for i, (path, shard) in enumerate(zip(paths, shards)):
            _check_shard(path, shard, paths[0], shards[0], files[i::count])
        merged = dict(shards[0], compressed_files=np.array(files))
        for key in (key for key in (*MEASURES, FILE_KEY) if key in merged):
            merged[key] = np.empty((len(files), len(merged["settings"])))
            for i, shard in enumerate(shards):
                merged[key][i::count] = shard[key]
        results[name] = merged
    return results


def _check_shard(path, shard, first_path, first, files):
    """Raises a UserError if a shard does not belong with the first one, or has other images than `files`."""
    if "fit" not in shard:
        differs = "it does not say which fit it was evaluated with"
    elif str(shard["fit"]) != str(first.get("fit")):
        differs = f"it was evaluated with another fit than {os.path.basename(first_path)}"
    elif shard.keys() != first.keys() or not np.array_equal(shard["settings"], first["settings"]):
        differs = f"it has other settings than {os.path.basename(first_path)}"
    elif list(shard["compressed_files"]) != files:
        differs = "it has other images"
    else:
        return
    raise UserError(f"{path}: this shard does not belong to the others: {differs}; evaluate it again")
