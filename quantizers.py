"""The three quantizers of latents, each with: fit, encode, decode, bits, save, load.

`ChannelwisePriorCDFQuantizer` is the quantizer of Variational Bayesian Quantization (Yang, Bamler, Mandt,
ICML 2020). Its code points are quantiles of the empirical prior at short binary fractions; a latent takes the
code point with the best trade-off between its posterior density and its length in bits. `UniformQuantizer`
and `KmeansQuantizer` are the paper's baselines, which know only the posterior means. A quantizer of your own
is a subclass of `Quantizer`, added to `QUANTIZERS`.

Axis letters: B latent positions, C channels, N max bits, K code points, L lambdas.
"""

import copy
import dataclasses
import functools
import hashlib
import re
import zipfile

import numpy as np

from vbq import code_lengths
from vbq.bitstream import MOST_TOTAL, OVERHEAD, ContextCoder, TableCoder
from vbq.code_points import code_point_bits, look_up, max_bits_of
from vbq.codebook import Codebook
from vbq.context_fit import fit_contexts
from vbq.contexts import Contexts
from vbq.fits import (
    DEFAULT_LAMBS,
    DEFAULT_LEVELS,
    DEFAULT_MAX_BITS,
    FitOptions,
    missing_settings,
    other_values,
)
from vbq.kmeans import kmeans_1d
from vbq.quantizer import Posterior, Quantizer
from vbq.scalar_quantizer import ScalarQuantizer

__all__ = [
    "DEFAULT_LAMBS",
    "DEFAULT_LEVELS",
    "DEFAULT_MAX_BITS",
    "QUANTIZERS",
    "ChannelwisePriorCDFQuantizer",
    "FitOptions",
    "KmeansQuantizer",
    "Posterior",
    "Quantizer",
    "UniformQuantizer",
]


# The quantizer of the paper.


class ChannelwisePriorCDFQuantizer(Quantizer):
    """Code points at the prior's quantiles, and code lengths from counts of validation latents, by lambda."""

    label = "VBQ"
    writes_files = True
    takes_gains = True

    def __init__(
        self,
        code_points,
        lambs,
        bit_length_counts,
        index_counts,
        passes=2,
        shifts=None,
        provenance=None,
        contexts=None,
    ):
        """Takes a fit; `fit` makes one.

        Args:
          code_points: float32 [C, K] ascending, K = 2^(N+1) - 1: the prior's quantiles at
            `code_point_probabilities(N)`.
          lambs: float64 [L] ascending, the trade-offs (nats of distortion a bit) that the counts belong to.
          bit_length_counts: int [L, C, N+1], how often the first pass chose each bit length.
          index_counts: int [L, C, K], how often the last pass chose each code point.
          passes: int, the number of passes behind the counts. With 2 (the paper), latents are quantized by
            the code lengths of bit lengths; with more, by the code points' own code lengths.
          shifts: float16 [L, C, K], how far refinement has moved each code point; None with two passes.
          provenance: dict of str or int, see `Quantizer`.
          contexts: contexts.Contexts, or None; only with more than two passes.

        Raises:
          ValueError: shapes or values do not belong together.
        """
        self.code_points = np.asarray(code_points, np.float32)
        self.lambs = self.settings = np.asarray(lambs, np.float64)
        self.bit_length_counts = np.asarray(bit_length_counts)
        self.index_counts = np.asarray(index_counts)
        self.passes, self.shifts, self.contexts = int(passes), shifts, contexts
        self.gains = None
        super().__init__(provenance)
        channels, points = self.code_points.shape
        self.max_bits = max_bits_of(points)
        expected = [(len(self.lambs), channels, size) for size in (self.max_bits + 1, points, points)]
        tables = self.bit_length_counts, self.index_counts, self.index_counts if shifts is None else shifts
        if [x.shape for x in tables] != expected:
            raise ValueError(f"tables have shapes {[x.shape for x in tables]} instead of {expected}")
        counts = self.index_counts
        if not np.issubdtype(counts.dtype, np.integer) or not 0 <= counts.min() <= counts.max() <= MOST_TOTAL:
            raise ValueError(f"counts are not integers from 0 to {MOST_TOTAL}")
        if counts.sum(axis=-1, dtype=np.int64).max() + points > MOST_TOTAL:
            raise ValueError(f"the counts of a channel have a sum above {MOST_TOTAL}")
        if contexts is not None and (contexts.order.shape != (len(self.lambs), channels) or self.passes == 2):
            raise ValueError(
                f"contexts {contexts.order.shape} do not belong to {self.passes} passes or to these tables"
            )
        if contexts is not None:
            contexts.check(counts)
        self._depth = code_point_bits(self.max_bits)
        self._make_caches()

    def _make_caches(self):
        # Search trees take 4 to 13 MB for 256 channels, a coder with contexts 36 MB.
        self.codebook = functools.lru_cache(maxsize=16)(self._codebook)
        self.coder = functools.lru_cache(maxsize=4)(self._coder)
        self.with_gains = functools.lru_cache(maxsize=4)(self._with_gains)

    def _with_gains(self, gains):
        """The same quantizer with gains of the decoder. `with_gains` is this method with a cache.

        Args:
          gains: gains.DecoderGains that were fitted to this quantizer.

        Returns:
          ChannelwisePriorCDFQuantizer with an identity of its own. The tables are shared.

        Raises:
          ValueError: the gains belong to another fit, or have other lambdas.
        """
        if gains.base != self.identity():
            raise ValueError(f"the gains belong to fit {gains.base}, not to {self.identity()}")
        if not np.array_equal(gains.lambs, self.lambs):
            raise ValueError("the gains have other lambdas than the fit that they belong to")
        other = copy.copy(self)
        other.gains, other._identities = gains, {}
        other._make_caches()
        return other

    @classmethod
    def fit(cls, code_points, mean, std, lambs=DEFAULT_LAMBS, passes=2, provenance=None, contexts=False):
        """Measures the code lengths on validation latents.

        Args:
          code_points: float [C, K] ascending, see the class.
          mean, std: float32 [..., C], the posterior; [N, h, w, C] for contexts.
          lambs: sequence of L positive floats.
          passes: int, at least 2. The passes after the paper's two refine code lengths and code points.
          provenance: dict, see `Quantizer`.
          contexts: bool, whether to fit contexts; only with more than two passes.

        Returns:
          ChannelwisePriorCDFQuantizer.
        """
        code_points, lambs = np.asarray(code_points, np.float32), np.sort(np.asarray(lambs, np.float64))
        flat = (x.reshape(-1, len(code_points)) for x in (mean, std))
        bit_length_counts, index_counts, shifts = code_lengths.fit_counts(code_points, *flat, lambs, passes)
        result = cls(code_points, lambs, bit_length_counts, index_counts, passes, shifts, provenance)
        return result.with_contexts_fitted_to(mean, std) if contexts else result

    def with_contexts_fitted_to(self, mean, std):
        """Adds contexts to a fit that has none.

        Args:
          mean, std: float32 [N, h, w, C], the posterior that it was fitted to.

        Returns:
          ChannelwisePriorCDFQuantizer with the same tables.
        """
        tables = self.code_points, self.lambs, self.bit_length_counts, self.index_counts
        contexts = fit_contexts(self.codebook, self.index_counts, self.lambs, mean, std)
        return type(self)(*tables, self.passes, self.shifts, self.provenance, contexts)

    @property
    def compression(self):
        """Of its file. `codec.py` reads a fit with contexts at every start; deflated, it is read sooner."""
        return zipfile.ZIP_DEFLATED if self.contexts else super().compression

    @property
    def description(self):
        """What the fit consists of, str, such as "20 passes, contexts, gains"."""
        parts = {"contexts": self.contexts, "gains": self.gains}
        return ", ".join([f"{self.passes} passes", *(name for name, part in parts.items() if part)])

    @classmethod
    def file_name(cls, options):
        return cls.__name__ + options.name_of_vbq

    @classmethod
    def result_name(cls, options, joint_steps):
        joint = f"-joint_steps={joint_steps}" if joint_steps else ""
        return cls.file_name(options) + "-gains" * options.gains + joint

    @staticmethod
    def rank(name):
        """Sort key of a file's name, a tuple: the largest is preferred to compress. None for other files."""
        match = re.fullmatch(
            r"ChannelwisePriorCDFQuantizer-max_bits=(\d+)(?:-passes=(\d+))?(-contexts)?(-fit=[0-9a-f]+)?",
            name,
        )
        return match and (bool(match[3]), int(match[2] or 2), int(match[1]), not match[4])

    @classmethod
    def settings_of(cls, options):
        return sorted(set(options.lambs))

    @classmethod
    def fit_to(cls, latents, options):
        if options.contexts:
            plain = dataclasses.replace(options, contexts=False)
            found = latents.saved(cls, plain)
            if found and list(found.quantizer.lambs) == cls.settings_of(options):
                fit = found.quantizer  # the passes, half of the work, need not be done again
            else:
                fit = cls.fit_to(latents, plain)
            return fit.with_contexts_fitted_to(latents.mean, latents.std)
        provenance = {**latents.provenance, "seed": options.seed}
        code_points = latents.code_points(options.max_bits, options.seed)
        return cls.fit(code_points, latents.mean, latents.std, options.lambs, options.passes, provenance)

    def unmet(self, options):
        found = {
            "max_bits": self.max_bits,
            "passes": self.passes,
            "contexts": self.contexts is not None,
            "seed": int(self.provenance.get("seed", options.seed)),
        }
        asked = dataclasses.asdict(options)
        return other_values(found, asked) + missing_settings("lambs", self.lambs, options.lambs)

    # Lengths, codebooks and coders by the number of a lambda of the fit.

    def nearest_lamb_index(self, lamb):
        """Number of the lambda of the fit that is nearest to lamb, as a ratio.

        Raises:
          ValueError: lamb is not positive.
        """
        if not lamb > 0:
            raise ValueError(f"lamb must be positive, found {lamb}")
        return int(np.argmin(np.abs(np.log(self.lambs) - np.log(lamb))))

    def bit_length_lengths(self, lamb_index):
        """For every bit length n, n plus the code length of n, in bits: float32 [C, N+1]."""
        return code_lengths.lengths_of_bit_lengths(self.bit_length_counts[lamb_index])

    def _codebook(self, lamb_index):
        """The `codebook.Codebook` of a lambda. `codebook` is this method with a cache."""
        counts, order = self.index_counts[lamb_index], self.code_points
        points = order if self.shifts is None else order + self.shifts[lamb_index]
        lengths = code_lengths.lengths_of_counts(counts)
        by_bits = self.bit_length_lengths(lamb_index)[:, self._depth] if self.passes == 2 else lengths
        contexts = self.contexts and self.contexts.model(lamb_index, counts)
        gains = self.gains and self.gains.at(lamb_index)
        return Codebook(order, points, lengths, by_bits, contexts, gains)

    def _coder(self, lamb_index):
        """The `bitstream.TableCoder` or `ContextCoder` of a lambda. `coder` is this method with a cache."""
        if self.contexts is None:
            return TableCoder(self.index_counts[lamb_index])
        return ContextCoder(self.codebook(lamb_index).contexts)

    # The protocol: a setting is any lambda. The lengths are those of the nearest lambda of the fit.

    def encode(self, posterior, setting, joint_steps=0):
        return self.codebook(self.nearest_lamb_index(setting)).quantize(posterior, setting, joint_steps)

    def decode(self, indices, setting):
        return self.codebook(self.nearest_lamb_index(setting)).dequantize(indices)

    def decoder_gains(self, setting):
        return self.codebook(self.nearest_lamb_index(setting)).gains

    def bits(self, indices, setting):
        return self.codebook(self.nearest_lamb_index(setting)).bits(indices)

    def bit_length_bits(self, indices, setting):
        lengths = self.bit_length_lengths(self.nearest_lamb_index(setting))
        return look_up(lengths[:, self._depth], indices)

    def file_bits(self, indices, setting):
        coder = self.coder(self.nearest_lamb_index(setting))
        return 8 * (OVERHEAD + len(coder.encode(indices)))

    def arrays(self):
        arrays = {
            "max_bits": self.max_bits,
            "passes": self.passes,
            "lambs": self.lambs,
            "code_points": self.code_points,
        }
        for name in "bit_length_counts", "index_counts":
            counts = getattr(self, name)
            arrays[name] = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
        if self.shifts is not None:
            arrays["shifts"] = self.shifts
        if self.contexts is not None:
            arrays |= {f"contexts_{name}": x for name, x in self.contexts.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays):
        del arrays["max_bits"]  # follows from the number of code points
        names = "code_points", "lambs", "bit_length_counts", "index_counts", "passes"
        prefix = "contexts_"
        names_of_contexts = [name for name in arrays if name.startswith(prefix)]
        of_contexts = {name.removeprefix(prefix): arrays.pop(name) for name in names_of_contexts}
        contexts = Contexts(**of_contexts) if of_contexts else None
        tables = [arrays.pop(name) for name in names]
        return cls(*tables, arrays.pop("shifts", None), arrays, contexts)

    def _digest(self, model_fingerprint):
        """Its first 8 bytes are the fingerprint in .vbq files, so this computation must never change."""
        if self.gains is not None:  # which hold the identity without gains
            return self.gains.identity(model_fingerprint)
        digest = hashlib.sha256(f"{model_fingerprint} {self.index_counts.shape}".encode())

        def update(x, dtype):
            for part in x:  # a copy of all would take as long as the digest itself
                digest.update(np.ascontiguousarray(part, dtype))

        update(self.code_points, "<f4")
        if self.shifts is not None:
            update(self.shifts, "<f2")
        update(self.index_counts, "<u4")
        for name, x in self.contexts.arrays().items() if self.contexts else ():
            digest.update(f"{name} {x.shape}".encode())
            update(x, "<u4" if name == "class_counts" else "<i8")
        return digest.hexdigest()


# The baselines.


class KmeansQuantizer(ScalarQuantizer):
    """Code points that minimize the mean squared error of a channel's posterior means.

    The original runs scikit-learn's KMeans ten times from random starts, over every sample; see
    `vbq/kmeans.py`.
    """

    label = "k-means"

    @staticmethod
    def _fit_channels(mean, levels):
        return kmeans_1d(mean, levels)


class UniformQuantizer(ScalarQuantizer):
    """Equal bins between a channel's smallest and largest posterior mean; code points are their centres."""

    label = "uniform"

    @staticmethod
    def _fit_channels(mean, levels):
        low, high = mean[:, :1].astype(np.float64), mean[:, -1:].astype(np.float64)
        return {k: low + (high - low) * (np.arange(k) + 0.5) / k for k in levels}


# In the order of tables and files.
QUANTIZERS = (ChannelwisePriorCDFQuantizer, KmeansQuantizer, UniformQuantizer)
