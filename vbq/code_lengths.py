"""Code lengths from the latents of validation images: the paper's two passes, and refinement.

The first pass chooses a code point for every latent with n as the length of a point of n bits, and counts how
often each n is chosen. The second pass chooses with n plus the code length of n, and counts how often each
code point is chosen. The paper has no further passes. Here they choose by the code points' own lengths, refit
these lengths, and move every point to the weighted mean of the latents that chose it. This is an
entropy-constrained quantizer (Chou, Lookabaugh, Gray, 1989) in one dimension.

Axis letters: B latent positions, C channels, N max bits, K code points, L lambdas.
"""

import numpy as np

from vbq.code_points import code_point_bits, distortion_weight, look_up, max_bits_of
from vbq.search import SearchTrees, descend
from vbq.threads import parallel

FIT_BLOCK_LATENTS = 1 << 15  # refined at a time by a thread
# The first two passes take so many of these blocks at a time. With small arrays, threads mostly wait for the
# interpreter: on two cores, 16 channels of 65,536 latents at 16 lambdas took 3.0 s with one block, and 1.3 s
# with four.
BLOCKS_TOGETHER = 4
# Refined counts are kept 64 times as large as they are, so that the 1 that smoothing adds weighs 1/64. Unseen
# images need fewer bits then: most code points of a channel are never chosen, and their 1s add up.
REPEATS = 64
LEAST_GAIN = 1e-4  # refinement ends when no channel's objective falls by this share
# Where a channel has more latents than this, refinement sees an even sample of them, until its last passes.
SAMPLE_LATENTS = 1 << 16
LAST_PASSES = 2  # these see all latents


def lengths_of_counts(counts):
    """-log2 of the add-one smoothed frequencies along the last axis, in bits: float32, shape of counts."""
    counts = np.asarray(counts)
    totals = counts.sum(axis=-1, dtype=np.float64) + counts.shape[-1]
    # Most code points of a large grid were never counted; those of a channel have the same length.
    of_uncounted = -np.log2(1 / totals)
    lengths = of_uncounted.astype(np.float32)[..., None].repeat(counts.shape[-1], axis=-1)
    counted = np.flatnonzero(counts > 0)
    shares = (counts.ravel()[counted] + 1.0) / totals.ravel()[counted // counts.shape[-1]]
    lengths.ravel()[counted] = -np.log2(shares)
    return lengths


def lengths_of_bit_lengths(counts):
    """n plus the code length of n, in bits, from counts of n: float32 and int, both [..., N+1]."""
    return np.arange(counts.shape[-1], dtype=np.float32) + lengths_of_counts(counts)


def fit_counts(code_points, mean, std, lambs, passes):
    """Measures the counts at every lambda.

    Args:
      code_points: float32 [C, K] ascending, K = 2^(N+1) - 1.
      mean, std: float32 [B, C], the validation latents' posterior.
      lambs: float64 [L], positive.
      passes: int, at least 2.

    Returns:
      bit_length_counts: int64 [L, C, N+1], how often the first pass chose each bit length.
      index_counts: int64 [L, C, K], how often the last pass chose each code point; `REPEATS` times that if
        passes > 2.
      shifts: float16 [L, C, K], how far refinement moved each code point; None if passes is 2.
    """
    channels = len(code_points)
    together = BLOCKS_TOGETHER * max(1, FIT_BLOCK_LATENTS // len(mean))
    blocks = [slice(c, c + together) for c in range(0, channels, together)]

    def fit(c):
        return _fit_channels(code_points[c], mean[:, c].T, std[:, c].T, lambs, passes)

    tables = parallel(fit, blocks, desc="code lengths")
    bit_length_counts, index_counts, shifts = (np.concatenate(x, axis=1) for x in zip(*tables))
    return bit_length_counts, index_counts, shifts if passes > 2 else None


def _fit_channels(code_points, mean, std, lambs, passes):
    """Does what `fit_counts` does for some channels, with mean and std float32 [C, B].

    With two passes the shifts are [L, C, 0].
    """
    channels, points = code_points.shape
    max_bits = max_bits_of(points)
    depth = code_point_bits(max_bits)
    order = np.argsort(mean, axis=1)  # neighbours then read the same entries of tables, which is faster
    mean, std = np.take_along_axis(mean, order, axis=1), np.take_along_axis(std, order, axis=1)
    blocks = [slice(b, b + FIT_BLOCK_LATENTS) for b in range(0, mean.shape[1], FIT_BLOCK_LATENTS)]
    latents = [(mean[:, b], distortion_weight(std[:, b])) for b in blocks]
    own_bits = np.tile(np.arange(max_bits + 1, dtype=np.float32), (channels, 1))

    bit_length_counts = np.zeros((len(lambs), channels, max_bits + 1), np.int64)
    index_counts = np.zeros((len(lambs), channels, points), np.int64)
    shifts = np.zeros((len(lambs), channels, points if passes > 2 else 0), np.float16)
    for l, lamb in enumerate(lambs):
        chosen = _choose(latents, code_points, code_points, own_bits[:, depth], lamb)
        bit_length_counts[l] = sum(histogram(depth[block], max_bits + 1) for block in chosen)
        lengths = lengths_of_bit_lengths(bit_length_counts[l])[:, depth]
        chosen = _choose(latents, code_points, code_points, lengths, lamb)
        if passes == 2:
            index_counts[l] = sum(histogram(block, points) for block in chosen)
            continue
        together = max(1, FIT_BLOCK_LATENTS // mean.shape[1])
        for c in (slice(c, c + together) for c in range(0, channels, together)):
            some = [tuple(x[c] for x in block) for block in latents], [block[c] for block in chosen]
            index_counts[l, c], shifts[l, c] = _refine(code_points[c], *some, lamb, passes - 2)
    return bit_length_counts, index_counts, shifts


def _choose(latents, order, points, lengths, lamb):
    """The cheapest code points of latents in blocks: a list of int32 [C, B], see `SearchTrees.build`."""
    trees = SearchTrees.build(order, points, lengths)
    return [descend(trees, mean, weight, lamb) for mean, weight in latents]


def histogram(values, size, weights=None):
    """Counts [C, size] of non-negative integers [C, B] < size, weighted by [C, B] if weights are given."""
    weights = [None] * len(values) if weights is None else weights
    return np.stack([np.bincount(row, weight, size) for row, weight in zip(values, weights)])


def _refine(code_points, latents, chosen, lamb, passes):
    """Refits lengths and code points to the choices, and chooses again, until the objective stops falling.

    The objective is distortion + lamb * bits over a channel's validation latents. Every channel keeps its
    best pass.

    Args:
      code_points: float32 [C, K].
      latents: list of blocks: means and weights 1 / (2 std^2), float32 [C, B], the means ascending.
      chosen: list of int32 [C, B], the indices that the second pass chose, by blocks.
      lamb: float.
      passes: int, the largest number of further passes.

    Returns:
      counts: int64 [C, K], `REPEATS` times as large as they are.
      shifts: float16 [C, K].
    """
    best = tables = None
    step = -(-sum(indices.shape[1] for indices in chosen) // SAMPLE_LATENTS)
    if step > 1 and passes > LAST_PASSES:
        some = [tuple(_sample(x, step) for x in zip(*latents))], [_sample(chosen, step)]
        tables = _refine(code_points, *some, lamb, passes - LAST_PASSES)
        passes = LAST_PASSES
    for remaining in range(passes, -1, -1):
        counts, shifts = _refit(code_points, latents, chosen)
        objective = _objective(
            latents, chosen, code_points + shifts, lamb * lengths_of_counts(counts), counts
        )
        if best is None:
            best = objective, counts, shifts
        else:
            better, enough = objective < best[0], objective < best[0] * (1 - LEAST_GAIN)
            best = tuple(
                np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip((objective, counts, shifts), best)
            )
            if not enough.any():
                break
        if remaining:
            chosen = _choose_refined(latents, code_points, *(tables or (counts, shifts)), lamb)
            tables = None
    return best[1:]


def _sample(blocks, step):
    """Every step-th latent of blocks [C, B]: one block."""
    return np.concatenate([block[:, ::step] for block in blocks], axis=1)


def _choose_refined(latents, code_points, counts, shifts, lamb):
    """Does what `_choose` does, with the tables that `_refine` returns.

    A bit length that a channel no longer uses stays unused, as if its points had infinite length.
    """
    depth = code_point_bits(max_bits_of(code_points.shape[1]))
    used = histogram(np.tile(depth, (len(counts), 1)), depth.max() + 1, counts)[:, depth] > 0
    lengths = np.where(used, lengths_of_counts(counts), np.float32(np.inf))
    return _choose(latents, code_points, code_points + shifts, lengths, lamb)


def _objective(latents, chosen, points, penalties, counts):
    """Distortion plus penalties over a channel's latents: float64 [C].

    The penalties are lamb * bits, float32 [C, K].
    """
    objective = np.sum(penalties * counts, axis=1, dtype=np.float64) / REPEATS
    for (mean, weight), indices in zip(latents, chosen):
        error = look_up(points, indices.T).T
        error -= mean
        np.square(error, out=error)
        error *= weight
        objective += np.sum(error, axis=1, dtype=np.float64)
    return objective


def _refit(code_points, latents, chosen):
    """Counts the choices and moves each code point to the weighted mean of its latents.

    Returns:
      counts: int64 [C, K], times `REPEATS`.
      shifts: float16 [C, K], from the code points to the means.
    """
    points = code_points.shape[1]
    counts, weights, sums = 0, 0, 0
    for (mean, weight), indices in zip(latents, chosen):
        counts += histogram(indices, points)
        weights += histogram(indices, points, weight)
        sums += histogram(indices, points, weight * mean)
    with np.errstate(over="ignore"):
        means = np.divide(sums, weights, out=code_points.astype(np.float64), where=weights > 0)
        shifts = (means - code_points).astype(np.float16)
    return counts * REPEATS, np.where(np.isfinite(shifts), shifts, np.float16(0))
