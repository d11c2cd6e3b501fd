"""Quantizers of latents, as pure arrays: grids of code points, assignments, code lengths.

`ChannelwisePriorCDFQuantizer` is the quantizer of Variational Bayesian Quantization (Yang, Bamler, Mandt, ICML 2020):
code points are quantiles of the empirical prior at short binary fractions, and a latent takes the one with the best
trade-off between its posterior density and its length in bits. `UniformQuantizer` and `KmeansQuantizer` are the baselines,
which know only the posterior means. All treat every channel on its own, but for code lengths with contexts.

Axis letters: B latent positions, C channels, N max bits, K code points, L lambdas, J candidates of a latent.
"""
from concurrent.futures import ThreadPoolExecutor
import os

import numpy as np

import kmeans
import utils
from contexts import Contexts, look_up

DEFAULT_MAX_BITS = 10
DEFAULT_LAMBS = tuple(2. ** np.linspace(-8, 7, 16))
DEFAULT_LEVELS = (2, 4, 6, 8, 16, 32, 64, 128, 256)
_BLOCK = 1 << 15  # latents handled at a time by a thread: some arrays of them fit into a processor's cache
LEAST_STD = np.float32(1e-12)  # below it, 1 / std^2 leaves the range of float32


def code_point_probabilities(max_bits):
    """The xi = (i + 1/2) / 2^n of all n <= max_bits, ascending: float64 [K], K = 2^(max_bits+1) - 1."""
    return np.arange(1, 2 << max_bits) / (2 << max_bits)


def code_point_bits(max_bits):
    """The n of each of these xi: int64 [K].

    (i + 1/2) / 2^n = (2 i + 1) 2^(N-n) / 2^(N+1): in the order of xi, the n-bit points are the odd multiples of 2^(N-n).
    """
    rank = np.arange(1, 2 << max_bits)
    return max_bits - np.log2(rank & -rank).astype(np.int64)


def code_lengths(counts):
    """-log2 of the add-one smoothed frequencies along the last axis, in bits: float32, shape of counts."""
    counts = np.asarray(counts, np.float64) + 1
    return -np.log2(counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)


def parallel(function, items, desc=None):
    """Results of the function, in the order of the items; shows progress where there is a description."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's loops run outside the interpreter lock
        results = pool.map(function, items)
        return list(utils.progress(results, total=len(items), desc=desc, unit="block") if desc else results)


def _look_up_rows(table, indices):
    """table[c, indices[c, b]] for table [C, K] and int indices [C, B]."""
    return table.ravel().take(indices + np.arange(len(table))[:, None] * table.shape[1])


# The quantizer of the paper.

class ChannelwisePriorCDFQuantizer:
    """Code points at the prior's quantiles; code lengths measured on validation latents, for several lambdas.

    Args:
      code_points: float32 [C, K] ascending, K = 2^(N+1) - 1: the prior's quantiles at `code_point_probabilities(N)`.
      lambs: float64 [L] ascending, the trade-offs (nats of distortion a bit) that the counts belong to.
      bit_length_counts: int [L, C, N+1], how often the first pass chose each bit length.
      index_counts: int [L, C, K], how often the last pass chose each code point.
      passes: int, the number of passes the counts come from. With 2 (the paper), a latent is quantized by bit lengths and
        their code lengths; with more, by the code points' own code lengths.
      shifts: float16 [L, C, K], with more than two passes: how far each code point has moved at each lambda.
      provenance: dict of str or int to keep with the tables: what they were measured on.
      contexts: contexts.Contexts, where code lengths follow a latent's surroundings; only with more than two passes. `choose`
        and `quantize` do not know of them, `joint.choose` does.
    """

    def __init__(self, code_points, lambs, bit_length_counts, index_counts, passes=2, shifts=None, provenance=None,
                 contexts=None):
        self.code_points = np.asarray(code_points, np.float32)
        self.lambs = np.asarray(lambs, np.float64)
        self.bit_length_counts = np.asarray(bit_length_counts)
        self.index_counts = np.asarray(index_counts)
        self.passes = int(passes)
        self.shifts = shifts
        self.provenance = provenance or {}
        self.contexts = contexts
        channels, points = self.code_points.shape
        self.max_bits = int(points).bit_length() - 1
        expected = [(len(self.lambs), channels, size) for size in (self.max_bits + 1, points, points)]
        found = [x.shape for x in (self.bit_length_counts, self.index_counts, index_counts if shifts is None else shifts)]
        if points != (2 << self.max_bits) - 1 or found != expected:
            raise ValueError(f"shapes do not fit: {points} code points, tables {found} where {expected} are expected")
        if not np.issubdtype(self.index_counts.dtype, np.integer) or not 0 <= self.index_counts.min() <= self.index_counts.max() < 2**40:
            raise ValueError("expected counts that are integers from 0 to 2^40")
        if contexts is not None and (contexts.order.shape != (len(self.lambs), channels) or self.passes == 2):
            raise ValueError(f"{self.passes} passes and contexts {contexts.order.shape} do not fit tables {expected}")
        self._bits = code_point_bits(self.max_bits)
        self._lengths, self._contexts = {}, {}

    @classmethod
    def fit(cls, code_points, mean, std, lambs=DEFAULT_LAMBS, passes=2, provenance=None):
        """Measures the code lengths on validation latents (the original's two passes, and more if wanted).

        Args:
          code_points: float [C, K] ascending, see the class.
          mean, std: float32 [..., C], posterior means and standard deviations.
          lambs: sequence of L positive floats.
          passes: int, at least 2.
          provenance: dict of str or int to keep with the result.
        Returns:
          A `ChannelwisePriorCDFQuantizer`.
        """
        code_points = np.asarray(code_points, np.float32)
        channels = len(code_points)
        mean, std = mean.reshape(-1, channels), std.reshape(-1, channels)
        lambs = np.sort(np.asarray(lambs, np.float64))
        together = max(1, _BLOCK // len(mean))
        blocks = [slice(c, c + together) for c in range(0, channels, together)]
        tables = parallel(lambda c: _measure(code_points[c], mean[:, c].T, std[:, c].T, lambs, passes), blocks,
                           "code lengths")
        bit_length_counts, index_counts, shifts = (np.concatenate(x, axis=1) for x in zip(*tables))
        return cls(code_points, lambs, bit_length_counts, index_counts, passes, shifts if passes > 2 else None, provenance)

    def nearest_table(self, lamb):
        """Index of the lambda of the tables that is nearest to lamb, as a ratio; ValueError if lamb is not positive."""
        if not lamb > 0:
            raise ValueError(f"lamb must be positive, found {lamb}")
        return int(np.argmin(np.abs(np.log(self.lambs) - np.log(lamb))))

    def prepare(self, mean, std):
        """Finds the candidates of every latent, once for all lambdas.

        Args:
          mean, std: float32 [..., C].
        Returns:
          An opaque object for `choose`: 6 bytes a latent and candidate, or 2 with more than two passes.
        """
        channels = len(self.code_points)
        flat_mean, flat_std = (np.asarray(x, np.float32).reshape(-1, channels) for x in (mean, std))
        positions = len(flat_mean)
        together = max(1, _BLOCK // max(1, positions))
        blocks = [(slice(b, b + _BLOCK), slice(c, c + together))
                  for c in range(0, channels, together) for b in range(0, positions, _BLOCK)]
        find = _nearest_of_each_length if self.passes == 2 else _neighbours_of_each_length
        return np.shape(mean), blocks, parallel(
            lambda block: find(self.code_points[block[1]], flat_mean[block].T, flat_std[block].T), blocks)

    def choose(self, prepared, lamb):
        """The code point of every latent that minimizes (z - mean)^2 / (2 std^2) + lamb * length.

        Args:
          prepared: what `prepare` returned.
          lamb: float > 0; any value: the lengths are those of the nearest lambda that they were measured at.
        Returns:
          int32 [..., C], indices of code points.
        """
        shape, blocks, candidates = prepared
        table = self.nearest_table(lamb)
        indices = np.empty((int(np.prod(shape[:-1])), shape[-1]), np.int32)

        def assign(block, candidates):
            c = block[1]
            if self.passes == 2:
                chosen, _ = _cheapest_bit_length(*candidates, lamb, self.bit_length_code_lengths(table)[c])
            else:
                chosen = _cheapest_point(*candidates, self.code_points_at(table)[c], lamb * self.code_lengths(table)[c])
            indices[block] = chosen.T

        parallel(lambda pair: assign(*pair), zip(blocks, candidates))
        return indices.reshape(shape)

    def quantize(self, mean, std, lamb):
        """`choose` for a single lambda."""
        return self.choose(self.prepare(mean, std), lamb)

    def code_points_at(self, table):
        """The code points of table (an int < L): float32 [C, K]; ascending with two passes, all but so with more."""
        return self.code_points if self.shifts is None else self.code_points + self.shifts[table]

    def code_lengths(self, table):
        """Code length in bits of every code point under table: float32 [C, K]."""
        if table not in self._lengths:
            self._lengths[table] = code_lengths(self.index_counts[table])
        return self._lengths[table]

    def bit_length_code_lengths(self, table):
        """n plus the code length of n, in bits, of every bit length under table: float32 [C, N+1]."""
        return np.arange(self.max_bits + 1, dtype=np.float32) + code_lengths(self.bit_length_counts[table])

    def dequantize(self, indices, table):
        """The code points, float32 [..., C], of int indices [..., C] that were chosen with the lambda of table."""
        return look_up(self.code_points_at(table), indices)

    def contexts_at(self, table):
        """`contexts.TableContexts` of table."""
        if table not in self._contexts:
            self._contexts[table] = self.contexts.at(table, self.index_counts[table])
        return self._contexts[table]

    def bits(self, indices, table):
        """Bits spent on every latent, [..., C]: the rate that is reported (BPP). With contexts, indices are [..., h, w, C]."""
        if self.contexts is None:
            return look_up(self.code_lengths(table), indices)
        images = indices.reshape(-1, *indices.shape[-3:])
        contexts = self.contexts_at(table)
        return contexts.bits(images, contexts.classes(images)).reshape(indices.shape)

    def bit_length_bits(self, indices, table):
        """The same if a code point were sent as its bit length, coded, and that many bits as they are (BPPCL)."""
        return look_up(self.bit_length_code_lengths(table)[:, self._bits], indices)

    def save(self, path):
        """Writes everything to an .npz file; UserError if that fails."""
        arrays = {name: x.astype(np.min_scalar_type(int(x.max(initial=0))))
                  for name, x in (("bit_length_counts", self.bit_length_counts), ("index_counts", self.index_counts))}
        if self.shifts is not None:
            arrays["shifts"] = self.shifts
        if self.contexts is not None:
            arrays |= {f"contexts_{name}": x for name, x in self.contexts.arrays().items()}
        utils.save_npz(path, {**self.provenance, "max_bits": self.max_bits, "passes": self.passes, "lambs": self.lambs,
                              "code_points": self.code_points, **arrays}, compressed=True)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote; UserError if the file is no such thing."""
        def build(arrays):
            del arrays["max_bits"]  # the number of code points tells
            names = "code_points", "lambs", "bit_length_counts", "index_counts", "passes"
            contexts = [arrays.pop(f"contexts_{name}") for name in Contexts.NAMES if f"contexts_{name}" in arrays]
            return cls(*(arrays.pop(name) for name in names), arrays.pop("shifts", None), arrays,
                       Contexts(*contexts) if contexts else None)
        return _load(path, build)


def _load(path, build):
    arrays = utils.load_npz(path)
    try:
        return build({key: str(x) if x.dtype.kind == "U" else x for key, x in arrays.items()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise utils.UserError(f"{path}: expected a quantizer, found something else ({error})") from error


# The candidates of a latent do not depend on lambda. All n-bit points cost the same as long as the length is that of n, and
# then the nearest is the best of them; where each has a length of its own, one above and one below the mean remain. (All
# 2^(N+1) - 1 as candidates were tried with lengths of their own: on unseen images they gain nothing more.)


def _ranks(code_points, mean):
    """How many of the code points [C, K] lie below each mean [C, B]: int64 [C, B]."""
    return np.stack([np.searchsorted(row, x) for row, x in zip(code_points, mean)])


def _around(rank, max_bits):
    """For every n, the last n-bit point below and the first above a mean with rank points below it.

    Yields pairs of arrays like rank (int). Points are counted from 1; where there is none, the number is 0 or K + 1.
    """
    for n in range(max_bits + 1):
        shift = max_bits - n
        below = (((rank >> shift) - 1) | 1) << shift  # the last odd multiple of 2^shift that is no larger than rank
        yield np.maximum(below, 0), np.minimum(below + (2 << shift), 2 << max_bits)


def _neighbours(max_bits):
    """Both n-bit points around a mean for every n, by rank: indices int16 [2 (N+1), K+1]; at the ends, twice the only one."""
    table = []
    for below, above in _around(np.arange(2 << max_bits), max_bits):
        table += [np.where(below < 1, above, below) - 1, np.where(above == 2 << max_bits, below, above) - 1]
    return np.stack(table).astype(np.int16)


def _nearest_of_each_length(code_points, mean, std):
    """The nearest n-bit point for every n.

    Args:
      code_points: float32 [C, K] ascending.
      mean, std: float32 [C, B].
    Returns:
      distortion: float32 [N+1, C, B], (z - mean)^2 / (2 std^2).
      index: int16 [N+1, C, B] into the code points.
    """
    padded = np.pad(code_points, ((0, 0), (1, 1)), constant_values=((0, 0), (-np.inf, np.inf)))  # counted from 1
    weight = weight_of(std)
    distortion, index = [], []
    for below, above in _around(_ranks(code_points, mean), code_points.shape[1].bit_length() - 1):
        to_below, to_above = mean - _look_up_rows(padded, below), _look_up_rows(padded, above) - mean
        distortion.append(np.square(np.minimum(to_below, to_above)) * weight)
        index.append((np.where(to_above < to_below, above, below) - 1).astype(np.int16))
    return np.stack(distortion), np.stack(index)


def _neighbours_of_each_length(code_points, mean, std):
    """Both n-bit points around the mean for every n.

    Returns:
      index: int16 [2 (N+1), C, B] into the code points.
      mean: float32 [C, B], as given.
      weight: float32 [C, B], 1 / (2 std^2).
    """
    return _neighbours(code_points.shape[1].bit_length() - 1)[:, _ranks(code_points, mean)], mean, weight_of(std)


def weight_of(std):
    """1 / (2 std^2) of float32 standard deviations."""
    return .5 / np.square(np.maximum(std, LEAST_STD))


def _cheapest(cost_of, count):
    """The number j < count, uint8, of the first smallest of the arrays cost_of(0), cost_of(1), ..."""
    best = cost_of(0)
    choice = np.zeros(best.shape, np.uint8)
    better = np.empty(best.shape, bool)
    for j in range(1, count):
        cost = cost_of(j)
        np.less(cost, best, out=better)
        np.minimum(cost, best, out=best)
        np.maximum(choice, better.view(np.uint8) * np.uint8(j), out=choice)  # choice[better] = j, but faster
    return choice


def _cheapest_bit_length(distortion, index, lamb, lengths):
    """Best candidates under lengths [C, N+1] of bit lengths: indices int16 [C, B], and their bit lengths uint8 [C, B]."""
    penalty = (lamb * lengths).astype(np.float32).T[:, :, None]  # (N+1, C, 1)
    n = _cheapest(lambda j: distortion[j] + penalty[j], len(distortion))
    return np.take_along_axis(index, n[None].astype(np.intp), axis=0)[0], n


def _cheapest_point(index, mean, weight, code_points, penalties):
    """Best candidates under penalties [C, K] of code points [C, K]: indices int16 [C, B]."""
    def candidate(j):
        return _look_up_rows(code_points, index[j]), _look_up_rows(penalties, index[j])

    j = _cheapest(lambda j: _cost(*candidate(j), mean, weight), len(index))
    return np.take_along_axis(index, j[None].astype(np.intp), axis=0)[0]


def _cost(z, penalty, mean, weight):
    """(z - mean)^2 * weight + penalty; overwrites z."""
    z -= mean
    np.square(z, out=z)
    z *= weight
    z += penalty
    return z


def _measure(code_points, mean, std, lambs, passes):
    """The tables of some channels: counts of bit lengths [L, C, N+1], of code points [L, C, K], and shifts [L, C, K].

    Args:
      code_points: float32 [C, K] ascending.
      mean, std: float32 [C, B], the validation latents.
      lambs: float64 [L].
      passes: int.
    """
    channels, points = code_points.shape
    order = np.argsort(mean, axis=1)  # neighbours then look at the same entries of tables, which is faster
    mean, std = np.take_along_axis(mean, order, axis=1), np.take_along_axis(std, order, axis=1)
    n = np.arange(points.bit_length())
    blocks = [slice(b, b + _BLOCK) for b in range(0, mean.shape[1], _BLOCK)]
    nearest = [_nearest_of_each_length(code_points, mean[:, b], std[:, b]) for b in blocks]
    latents = [(_ranks(code_points, mean[:, b]), mean[:, b], weight_of(std[:, b])) for b in blocks if passes > 2]
    bit_length_counts = np.zeros((len(lambs), channels, len(n)), np.int64)
    index_counts = np.zeros((len(lambs), channels, points), np.int64)
    shifts = np.zeros((len(lambs), channels, points if passes > 2 else 0), np.float16)
    for l, lamb in enumerate(lambs):
        for block in nearest:
            _, chosen = _cheapest_bit_length(*block, lamb, np.tile(n, (channels, 1)))
            bit_length_counts[l] += _histogram(chosen, len(n))
        lengths = n + code_lengths(bit_length_counts[l])
        chosen = [_cheapest_bit_length(*block, lamb, lengths)[0] for block in nearest]
        index_counts[l] = sum(_histogram(x, points) for x in chosen)
        if passes > 2:
            index_counts[l], shifts[l] = _refine(code_points, latents, chosen, lamb, passes - 2)
    return bit_length_counts, index_counts, shifts


def _histogram(values, size, weights=None):
    """Histogram [C, size] of non-negative integers [C, B] < size, weighted by [C, B]."""
    weights = [None] * len(values) if weights is None else weights
    return np.stack([np.bincount(row, weight, size) for row, weight in zip(values, weights)])


# More passes than the paper's two: an entropy-constrained vector quantizer (Chou, Lookabaugh, Gray, 1989), in one dimension.

_REPEATS = 64       # every count is kept as so many: the 1 added to each then weighs little beside them. Unseen images gain.
_LEAST_GAIN = 1e-4  # of the objective, below which more passes are not worth while


def _refine(code_points, latents, chosen, lamb, passes):
    """Chooses by the code points' own code lengths and refits these, and the points, until the objective stops falling.

    The objective is distortion + lamb * bits over the validation latents, each channel's own; a channel keeps the best.

    Args:
      code_points: float32 [C, K].
      latents: list of blocks: their ranks int64 [C, B], means and weights 1 / (2 std^2) float32 [C, B].
      chosen: list of int16 [C, B], the indices that the second pass chose, by blocks.
      lamb: float.
      passes: int, how many more passes at most.
    Returns:
      counts: int64 [C, K], _REPEATS times as large as they are.
      shifts: float16 [C, K].
    """
    neighbours = _neighbours(code_points.shape[1].bit_length() - 1).reshape(-1, 2, code_points.shape[1] + 1)
    best = None
    for remaining in range(passes, -1, -1):
        counts, shifts = _refit(code_points, latents, chosen)
        moved, penalties = code_points + shifts, (lamb * code_lengths(counts)).astype(np.float32)
        objective = np.sum(penalties * counts, axis=1, dtype=np.float64) / _REPEATS
        for (_, mean, weight), indices in zip(latents, chosen):
            objective += np.sum(_cost(_look_up_rows(moved, indices), 0, mean, weight), axis=1, dtype=np.float64)
        if best is None:
            best = objective, counts, shifts
        else:
            better, enough = objective < best[0], objective < best[0] * (1 - _LEAST_GAIN)
            best = tuple(np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                         for new, old in zip((objective, counts, shifts), best))
            if not enough.any():
                break
        if remaining:
            of_length = counts.sum(axis=0)[neighbours].any(axis=(1, 2))  # lengths that are not used stay so
            chosen = _choose_by_rank(latents, neighbours[of_length].reshape(-1, neighbours.shape[2]), moved, penalties)
    return best[1:]


def _refit(code_points, latents, chosen):
    """Counts of what was chosen, times _REPEATS, and the shifts that take each point to the mean of what it stands for."""
    points = code_points.shape[1]
    counts, weights, sums = 0, 0, 0
    for (_, mean, weight), indices in zip(latents, chosen):
        counts += _histogram(indices, points)
        weights += _histogram(indices, points, weight)
        sums += _histogram(indices, points, weight * mean)
    with np.errstate(over="ignore"):
        shifts = (np.divide(sums, weights, out=code_points.astype(np.float64), where=weights > 0)
                  - code_points).astype(np.float16)
    return counts * _REPEATS, np.where(np.isfinite(shifts), shifts, np.float16(0))


def _choose_by_rank(latents, neighbours, code_points, penalties):
    """Like `_cheapest_point` for many latents, with the candidates [J, K+1] of every rank: list of indices int16 [C, B]."""
    z, penalty = (np.moveaxis(table[:, neighbours], 1, 0).copy() for table in (code_points, penalties))  # (J, C, K+1)
    chosen = []
    for rank, mean, weight in latents:
        j = _cheapest(lambda j: _cost(_look_up_rows(z[j], rank), _look_up_rows(penalty[j], rank), mean, weight), len(z))
        chosen.append(neighbours[j, rank])
    return chosen


# The baselines.

class _ScalarQuantizer:
    """Code points of every channel, with as many levels as wanted; a latent takes the nearest.

    Args:
      code_points: dict from levels to float32 [C, levels], ascending.
      counts: dict from levels to int [C, levels], how often the posterior means of the validation images took each.
      provenance: dict of str or int to keep with them: what they were fitted to.
    """

    def __init__(self, code_points, counts, provenance=None):
        self.code_points = {int(k): np.asarray(x, np.float32) for k, x in code_points.items()}
        self.counts = {int(k): np.asarray(x) for k, x in counts.items()}
        self.levels = sorted(self.code_points)
        self.provenance = provenance or {}
        for k in self.levels:
            if not self.code_points[k].shape == self.counts[k].shape == (len(self.code_points[k]), k):
                raise ValueError(f"shapes do not fit: {self.code_points[k].shape}, {self.counts[k].shape} for {k} levels")

    @classmethod
    def fit(cls, mean, levels=DEFAULT_LEVELS, provenance=None):
        """Fits code points and counts to posterior means float32 [..., C], for every number of levels wanted."""
        mean = mean.reshape(-1, mean.shape[-1])
        fitted = parallel(lambda c: cls._fit_channels(np.sort(mean[:, c].T, axis=1), sorted(levels)),
                           [slice(c, c + 16) for c in range(0, mean.shape[1], 16)])
        code_points = {k: np.concatenate([block[k] for block in fitted]) for k in levels}
        result = cls(code_points, {k: np.zeros(x.shape, np.int64) for k, x in code_points.items()}, provenance)
        result.counts = {k: _histogram(result.quantize(mean, k).T, k) for k in result.levels}
        return result

    def quantize(self, mean, levels):
        """Index of the nearest code point, int32 [..., C], of posterior means [..., C]."""
        points = self.code_points[levels]
        boundaries = (points[:, 1:].astype(np.float64) + points[:, :-1]) / 2
        flat = np.asarray(mean, np.float32).reshape(-1, len(points))
        indices = np.empty(flat.shape, np.int32)

        def assign(channels):
            for c in channels:
                indices[:, c] = np.searchsorted(boundaries[c], flat[:, c], side="right")

        parallel(assign, np.array_split(np.arange(len(points)), 4 * os.cpu_count()))
        return indices.reshape(np.shape(mean))

    def dequantize(self, indices, levels):
        """The code points, float32 [..., C]."""
        return look_up(self.code_points[levels], indices)

    def code_lengths(self, levels):
        """Code lengths in bits, float64 [C, levels]: -log2 of the frequencies.

        In a channel with an empty bin, 1 is added to all counts. The original did the same, but divided by the number of
        samples without what was added, so its lengths fall short by log2(1 + levels / B) there.
        """
        counts = self.counts[levels].astype(np.float64)
        counts += np.any(counts == 0, axis=1, keepdims=True)
        return -np.log2(counts / counts.sum(axis=1, keepdims=True))

    def bits(self, indices, levels):
        """Bits spent on every latent, float64 [..., C]."""
        return look_up(self.code_lengths(levels), indices)

    def save(self, path):
        """Writes everything to an .npz file; UserError if that fails."""
        arrays = {**self.provenance, "levels": np.array(self.levels)}
        for k in self.levels:
            arrays[f"code_points_{k}"], arrays[f"counts_{k}"] = self.code_points[k], self.counts[k]
        utils.save_npz(path, arrays)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote; UserError if the file is no such thing."""
        def build(arrays):
            levels = [int(k) for k in arrays.pop("levels")]
            return cls({k: arrays.pop(f"code_points_{k}") for k in levels},
                       {k: arrays.pop(f"counts_{k}") for k in levels}, arrays)
        return _load(path, build)


class UniformQuantizer(_ScalarQuantizer):
    """Equal bins between a channel's smallest and largest mean; a code point is the centre of its bin."""

    @staticmethod
    def _fit_channels(mean, levels):
        low, high = mean[:, :1].astype(np.float64), mean[:, -1:].astype(np.float64)
        return {k: low + (high - low) * (np.arange(k) + .5) / k for k in levels}


class KmeansQuantizer(_ScalarQuantizer):
    """Code points that minimize the mean squared error of a channel's means.

    The original ran scikit-learn's KMeans ten times from random starts, over every sample; see `kmeans.kmeans_1d`.
    """

    @staticmethod
    def _fit_channels(mean, levels):
        return kmeans.kmeans_1d(mean, levels)
