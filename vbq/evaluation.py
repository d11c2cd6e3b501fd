"""The evaluation: compresses images by every quantizer at every setting, and measures rate and distortion."""

import collections
import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vbq import tiling
from vbq.command import note, progress
from vbq.images import read_image
from vbq.metrics import ImageMetrics
from vbq.quantizer import Posterior
from vbq.results import FILE_KEY, MEASURES, as_arrays, distinct_names

MOST_PENDING = 1  # reconstructions that wait to be measured while the next one is computed


def evaluate(
    run, fits, options, paths, keep_reconstructions=False, bitstream=False, joint_steps=0, names=None
):
    """Compresses images at all settings.

    Args:
      run: runs.Run.
      fits: list of fits.Fit.
      options: FitOptions, whose settings are evaluated.
      paths: list of image files.
      keep_reconstructions: bool.
      bitstream: bool, whether to measure the files that `codec.py` writes, too.
      joint_steps: int, see `Quantizer.encode`.
      names: list of str, what the images are called in the result; by default `distinct_names(paths)`.

    Returns:
      List by fit of the arrays of a result file, see `results.as_arrays`.

    Raises:
      UserError: an image cannot be read.
    """
    records = [[] for _ in fits]
    settings = [fit.quantizer.settings_of(options) for fit in fits]
    total = len(paths) * sum(map(len, settings))
    with progress(None, total=total, desc="evaluation", unit="image") as bar:
        for path in paths:
            with naming_warnings(path):
                image = read_image(path)
                evaluation = ImageEvaluation(run, image, keep_reconstructions, bitstream, joint_steps)
            for of_fit, fit, fit_settings in zip(records, fits, settings):
                of_fit.append(evaluation.measure(fit.quantizer, fit_settings, bar.update))
    names = distinct_names(paths) if names is None else names
    keys = [MEASURES + (FILE_KEY,) * (bitstream and fit.quantizer.writes_files) for fit in fits]
    return [
        as_arrays(fit, fit_settings, names, of_fit, of_keys)
        for fit, fit_settings, of_fit, of_keys in zip(fits, settings, records, keys)
    ]


@contextlib.contextmanager
def naming_warnings(path):
    """Prints Python's warnings as notes that name an image file, instead of a line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        note(f"warning: {path}: {warning.message}")


class ImageEvaluation:
    """An image, uint8 [H, W, 3], that is compressed by any quantizer at any setting."""

    def __init__(self, run, image, keep_reconstructions=False, bitstream=False, joint_steps=0):
        """Computes the image's posterior; the arguments are those of `evaluate`."""
        self.run, self.image = run, image
        self.keep_reconstructions, self.bitstream = keep_reconstructions, bitstream
        self.joint_steps = joint_steps
        self.metrics = ImageMetrics(image)
        self.posterior = Posterior(*tiling.encode(run, image), tiling.likelihood(run, image))

    def measure(self, quantizer, settings, advance=lambda: None):
        """Measures a quantizer.

        A reconstruction is measured in a second thread while the next one is computed.

        Args:
          quantizer: quantizer.Quantizer.
          settings: list.
          advance: function that is called after every setting.

        Returns:
          List by setting of dicts of measures.
        """
        records, pending = [], collections.deque()

        def collect(most_pending):
            while len(pending) > most_pending:
                records.append(pending.popleft().result())
                advance()

        with ThreadPoolExecutor(1) as worker:
            for setting in settings:
                rates, x_hat = self._compress(quantizer, setting)
                pending.append(worker.submit(self._record, rates, x_hat))
                collect(MOST_PENDING)
            collect(0)
        return records

    def _compress(self, quantizer, setting):
        """Quantizes at a setting: dict of rates, and the reconstruction, uint8 [H, W, 3]."""
        indices = quantizer.encode(self.posterior, setting, self.joint_steps)
        bits = quantizer.bits(indices, setting).sum(dtype=np.float64)
        pixels = self.image.shape[0] * self.image.shape[1]
        rates = {
            "B": bits,
            "BPP": bits / pixels,
            "BPPCL": quantizer.bit_length_bits(indices, setting).sum(dtype=np.float64) / pixels,
            "BPL": bits / indices.size,
        }
        if self.bitstream and quantizer.writes_files:
            rates[FILE_KEY] = quantizer.file_bits(indices, setting) / pixels
        x_hat = tiling.decode(
            self.run,
            lambda some: quantizer.decode(some, setting),
            indices,
            *self.image.shape[:2],
            quantizer.decoder_gains(setting),
        )
        return rates, x_hat

    def _record(self, rates, x_hat):
        """Adds the metrics of a reconstruction, and the reconstruction if it is kept, to a dict of rates."""
        record = {**rates, **self.metrics.evaluate(x_hat)}
        return {**record, "reconstruction": x_hat} if self.keep_reconstructions else record
