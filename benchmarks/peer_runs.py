"""Runs the codecs that `peers.py` compares, one after the other, and measures what they made."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir), os.path.join(HERE, os.pardir, "tools"), HERE]

import numpy as np
from make_results import crop

from vbq.command import UserError, note, progress
from vbq.images import read_image
from vbq.metrics import METRIC_KEYS, ImageMetrics
from vbq.plots import curve

KODAK_SHAPES = (512, 768), (768, 512)


class Peer(NamedTuple):
    """A row of the table: a codec, and what its process is asked to do."""

    label: str
    codec: str  # a class of peer_codecs.py
    options: dict  # its arguments
    settings: tuple
    pictures: int  # how many of them, from the first on
    required: bool = False  # whether its failure ends the run
    python: str = sys.executable


class Outcome(NamedTuple):
    """What a codec did."""

    peer: Peer
    result: dict  # what peer_codecs.py wrote
    arrays: dict  # those of `measure`; or None for a codec whose pictures mean nothing


def write_pictures(paths, folder):
    """Reads images and leaves what is compared in a folder, as arrays; returns their names there."""
    names = []
    for number_, path in enumerate(paths):
        image = read_image(path)
        if image.shape[:2] in KODAK_SHAPES:
            image = np.ascontiguousarray(crop(image))
        names.append(f"picture-{number_}")
        np.save(os.path.join(folder, f"{names[-1]}.npy"), image)
    return names


def run_peer(peer, folder, pictures):
    """Codes pictures with one codec in a process of its own.

    Args:
      peer: Peer.
      folder: str, where the pictures are, and the decoded ones are left.
      pictures: list of str, their names.

    Returns:
      dict, the result that `peer_codecs.py` writes.

    Raises:
      UserError: the codec refused its options; or RuntimeError: its process failed otherwise.
    """
    job = {"codec": peer.codec, "options": peer.options, "settings": peer.settings, "pictures": pictures}
    with open(os.path.join(folder, "job.json"), "w", encoding="utf-8") as file:
        json.dump(job, file)
    done = subprocess.run(
        [peer.python, os.path.join(HERE, "peer_codecs.py"), folder],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        if lines and lines[-1].startswith("error: "):
            raise UserError(f"{peer.label}: {lines[-1].removeprefix('error: ')}")
        raise RuntimeError("\n".join([f"{peer.label}: status {done.returncode}", *lines[-30:]]))
    with open(os.path.join(folder, "result.json"), encoding="utf-8") as file:
        return json.load(file)


def measure(records, folder, pictures, settings):
    """Measures the decoded pictures, and removes them.

    Args:
      records: list of dicts, those of a codec's result.
      folder, pictures: as for `run_peer`.
      settings: sequence of numbers.

    Returns:
      dict with `settings`, and `BPP` and `METRIC_KEYS`, float64 [pictures, settings].
    """
    rows, waiting = [], iter(records)
    for picture in pictures:
        image = np.load(os.path.join(folder, f"{picture}.npy"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too small for MS-SSIM: the table says "not measured"
            metrics = ImageMetrics(image)
        for _, record in zip(settings, waiting):
            path = os.path.join(folder, f"{record['decoded']}.npy")
            bpp = 8 * record["bytes"] / image[..., 0].size
            rows.append({"BPP": bpp, **metrics.evaluate(np.load(path))})
            os.remove(path)
    shape = len(pictures), len(settings)
    values = {key: np.reshape([row[key] for row in rows], shape) for key in ("BPP", *METRIC_KEYS)}
    return {"settings": np.array(settings), **values}


def measure_all(peers, paths):
    """Codes and measures the images of some files with all codecs.

    Args:
      peers: list of Peer.
      paths: list of image files.

    Returns:
      List of Outcome. One that fails is left out with one line on stderr, unless it is required.

    Raises:
      UserError: an image cannot be read, or a required codec fails.
    """
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        names = write_pictures(paths, folder)
        for peer in progress(peers, unit="codec"):
            pictures = names[: peer.pictures]
            try:
                result = run_peer(peer, folder, pictures)
            except (UserError, RuntimeError) as error:
                if peer.required:
                    raise
                lines = str(error).splitlines()
                note(f"note: left out: {'; '.join(dict.fromkeys([lines[0], lines[-1]]))}")
                continue
            has_pictures = "decoded" in result["records"][0]
            arrays = measure(result["records"], folder, pictures, peer.settings) if has_pictures else None
            outcomes.append(Outcome(peer, result, arrays))
    return outcomes


def curves_of(outcomes, pictures):
    """The curves of the codecs that coded at least so many pictures, over the first so many.

    Args:
      outcomes: list of Outcome.
      pictures: int.

    Returns:
      dict from labels to the dicts of `plots.curve`.
    """
    found = {}
    for peer, _, arrays in outcomes:
        if arrays and peer.pictures >= pictures:
            first = {key: value if key == "settings" else value[:pictures] for key, value in arrays.items()}
            found[peer.label] = curve(peer.label, first)
    return found
