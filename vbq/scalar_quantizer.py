"""A quantizer that knows only posterior means: a few levels a channel, and the nearest one is taken.

Axis letters: B latent positions, C channels.
"""

import numpy as np

from vbq.code_lengths import histogram
from vbq.code_points import look_up
from vbq.fits import DEFAULT_LEVELS, missing_settings
from vbq.quantizer import Quantizer
from vbq.threads import cores, parallel


class ScalarQuantizer(Quantizer):
    """Code points of every channel for several numbers of levels. A latent takes the nearest.

    A setting is a number of levels.
    """

    def __init__(self, code_points, counts, provenance=None):
        """Takes a fit; `fit` makes one.

        Args:
          code_points: dict from levels to float32 [C, levels], ascending.
          counts: dict from levels to int [C, levels], how many of the validation latents took each.
          provenance: dict, see `Quantizer`.

        Raises:
          ValueError: the shapes do not belong together.
        """
        self.code_points = {int(k): np.asarray(x, np.float32) for k, x in code_points.items()}
        self.counts = {int(k): np.asarray(x) for k, x in counts.items()}
        self.levels = sorted(self.code_points)
        self.settings = np.array(self.levels)
        super().__init__(provenance)
        for k in self.levels:
            shapes = self.code_points[k].shape, self.counts[k].shape
            if set(shapes) != {(len(self.code_points[k]), k)}:
                raise ValueError(f"tables for {k} levels have shapes {shapes}")

    @classmethod
    def fit(cls, mean, levels=DEFAULT_LEVELS, provenance=None):
        """Fits code points and counts.

        Args:
          mean: float32 [..., C], the posterior means of the validation latents.
          levels: sequence of int.
          provenance: dict, see `Quantizer`.

        Returns:
          Quantizer of this class.
        """
        mean = mean.reshape(-1, mean.shape[-1])
        blocks = [slice(c, c + 16) for c in range(0, mean.shape[1], 16)]
        fitted = parallel(lambda c: cls._fit_channels(np.sort(mean[:, c].T, axis=1), sorted(levels)), blocks)
        code_points = {k: np.concatenate([block[k] for block in fitted]) for k in levels}
        result = cls(
            code_points, {k: np.zeros(x.shape, np.int64) for k, x in code_points.items()}, provenance
        )
        result.counts = {k: histogram(result.nearest(mean, k).T, k) for k in result.levels}
        return result

    @classmethod
    def settings_of(cls, options):
        return sorted(set(options.levels))

    @classmethod
    def fit_to(cls, latents, options):
        return cls.fit(latents.mean, options.levels, latents.provenance)

    def unmet(self, options):
        return missing_settings("quantization_levels", self.levels, options.levels)

    def nearest(self, mean, levels):
        """Index of the nearest code point, int32 [..., C], of posterior means [..., C]."""
        points = self.code_points[levels]
        boundaries = (points[:, 1:].astype(np.float64) + points[:, :-1]) / 2
        flat = np.asarray(mean, np.float32).reshape(-1, len(points))
        indices = np.empty(flat.shape, np.int32)

        def assign(channels):
            for c in channels:
                indices[:, c] = np.searchsorted(boundaries[c], flat[:, c], side="right")

        parallel(assign, np.array_split(np.arange(len(points)), 4 * cores()))
        return indices.reshape(np.shape(mean))

    def encode(self, posterior, setting, joint_steps=0):
        return self.nearest(posterior.mean, setting)

    def decode(self, indices, setting):
        return look_up(self.code_points[setting], indices)

    def lengths(self, levels):
        """Code lengths in bits, float64 [C, levels]: -log2 of the frequencies.

        In a channel with an empty bin, 1 is added to all counts. The original does the same, but divides by
        the number of samples without these 1s, so its lengths are too short there, by log2(1 + levels / B).
        """
        counts = self.counts[levels].astype(np.float64)
        counts += np.any(counts == 0, axis=1, keepdims=True)
        return -np.log2(counts / counts.sum(axis=1, keepdims=True))

    def bits(self, indices, setting):
        return look_up(self.lengths(setting), indices)

    def arrays(self):
        arrays = {"levels": self.settings}
        for k in self.levels:
            arrays[f"code_points_{k}"], arrays[f"counts_{k}"] = self.code_points[k], self.counts[k]
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        levels = [int(k) for k in arrays.pop("levels")]
        code_points = {k: arrays.pop(f"code_points_{k}") for k in levels}
        return cls(code_points, {k: arrays.pop(f"counts_{k}") for k in levels}, arrays)
