"""k-means in one dimension, without random restarts: dynamic programming, then Lloyd's algorithm.

Axis letters: B samples, C channels, M groups of samples, R ends of intervals that are treated at once.
"""

import numpy as np

_GROUPS = 2048  # groups of a channel's samples that dynamic programming partitions


def kmeans_1d(samples, levels):
    """Finds the centres of the clusters of every channel.

    In one dimension a cluster is an interval. Dynamic programming therefore finds the best partition of
    grouped samples, for all numbers of clusters in one run. Lloyd's algorithm then refines it on all samples.

    Args:
      samples: float [C, B], ascending in every channel.
      levels: sequence of int, the numbers of clusters.

    Returns:
      dict from levels to float64 [C, levels], ascending. A channel with fewer different values than levels
      repeats the last centre.
    """
    x = samples.astype(np.float64)
    center = x.mean(axis=1, keepdims=True)
    x -= center  # so that the squares lose no digits
    zeros = np.zeros((len(x), 1))
    sums = np.concatenate([zeros, np.cumsum(x, axis=1)], axis=1)
    squares = np.concatenate([zeros, np.cumsum(x * x, axis=1)], axis=1)
    edges = np.stack([_group_edges(row) for row in x])
    at_edges = (np.take_along_axis(a, edges, axis=1) for a in (sums, squares))
    partitions = _optimal_partitions(edges, *at_edges, levels)
    return {
        k: center + np.stack([_lloyd(*row) for row in zip(x, sums, squares, partitions[k])]) for k in levels
    }


def _group_edges(x):
    """Returns the ranks [M + 1] that split ascending x [B] into groups, some of which may be empty.

    The density of the groups is that of optimal code points: proportional to the cube root of the density of
    the samples (Panter and Dite, 1951).
    """
    fine = 2 * _GROUPS + 1
    quantiles = np.linspace(0, len(x), fine).astype(np.int64)
    widths = np.searchsorted(x, np.linspace(x[0], x[-1], fine))
    ranks = np.unique(np.concatenate([quantiles, widths]))
    width = np.diff(x[np.minimum(ranks, len(x) - 1)])
    measure = np.concatenate([[0], np.cumsum(width ** (2 / 3) * np.diff(ranks) ** (1 / 3))])
    return np.interp(np.linspace(0, measure[-1], _GROUPS + 1), measure, ranks).round().astype(np.int64)


def _optimal_partitions(edges, sums, squares, levels):
    """Finds the best partitions of grouped samples into intervals, for all channels at once.

    Let cost(k, j) be the least cost of the first j groups in k intervals. It is the minimum over i of
    cost(k - 1, i) plus the cost of one interval i..j. The best i never falls when j or k grows. For every k
    it is therefore found for the middle j first. It then bounds the search for the middles of both halves,
    and so on.

    Args:
      edges, sums, squares: [C, M + 1], number, sum and sum of squares of the samples before each edge.
      levels: sequence of int.

    Returns:
      dict from levels to int64 [C, levels + 1], the number of samples before each end of an interval.
    """
    channels, columns = edges.shape
    row = np.arange(channels)[:, None]
    base = row * columns
    number, sums, squares = (a.ravel() for a in (edges.astype(np.float64), sums, squares))
    cost = squares - sums * sums / np.maximum(number, 1)  # of k = 1; flat [C * (M+1)]
    best = np.zeros((max(levels) + 1, channels, columns), np.int16)
    for k in range(2, max(levels) + 1):
        new_cost = np.zeros_like(cost)
        split = np.zeros((channels, columns + 1), np.int64)
        split[:, -1] = columns - 1
        stride = 1 << (columns - 1).bit_length()
        while stride > 1:
            j = np.arange(stride // 2, columns, stride)
            high = np.minimum(split[:, np.minimum(j + stride // 2, columns)], j)
            low = np.minimum(np.maximum(split[:, j - stride // 2], best[k - 1][:, j]), high)
            ends = (j + base).ravel()
            new_cost[ends], best_i = _least_split(cost, number, sums, squares, ends, low + base, high + base)
            split[:, j] = best_i - base
            stride //= 2
        best[k], cost = split[:, :-1], new_cost
    return {k: np.take_along_axis(edges, _trace_back(best, k), axis=1) for k in levels}


def _least_split(cost, number, sums, squares, j, low, high):
    """Minimizes cost[i] plus the cost of the interval i..j over i from low to high, for every j.

    Args:
      cost, number, sums, squares: [C * (M + 1)], flat over channels and columns.
      j: int [C * R], positions in these flat arrays.
      low, high: int [C, R], such positions, too.

    Returns:
      The minima [C * R], and for each the first i that reaches it [C, R].
    """
    shape, low = low.shape, low.ravel()
    lengths = high.ravel() - low + 1
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])])
    i = np.repeat(low - starts, lengths)
    i += np.arange(len(i))
    n = np.repeat(number[j], lengths) - number[i]
    s = np.repeat(sums[j], lengths) - sums[i]
    value = cost[i] - squares[i] - s * s / np.maximum(n, 1)
    least = np.minimum.reduceat(value, starts)
    hits = np.flatnonzero(value == np.repeat(least, lengths))
    return least + squares[j], i[hits[np.searchsorted(hits, starts)]].reshape(shape)


def _trace_back(best, k):
    """Returns the columns [C, k + 1] of the ends of the k best intervals."""
    channels, columns = best.shape[1:]
    ends = [np.full(channels, columns - 1)]
    for intervals in range(k, 1, -1):
        ends.append(best[intervals][np.arange(channels), ends[-1]].astype(np.int64))
    ends.append(np.zeros(channels, np.int64))
    return np.stack(ends[::-1], axis=1)


def _lloyd(x, sums, squares, edges, tolerance=1e-9):
    """Runs Lloyd's algorithm on ascending x [B] from a partition at edges [k + 1]; returns the centres [k].

    The prefix sums [B + 1] of x and of its squares reduce an iteration to k binary searches.
    """
    k = len(edges) - 1
    last = np.inf
    while True:
        number, total = np.diff(edges), np.diff(sums[edges])
        inertia = max(0.0, np.sum(np.diff(squares[edges]) - total**2 / np.maximum(number, 1)))
        centers = (total / np.maximum(number, 1))[number > 0]
        if not len(centers):  # all values are equal, and no interval holds any of them
            centers = x[:1]
        empty = k - len(centers)
        if not inertia < last * (1 - tolerance):
            return np.pad(centers, (0, empty), mode="edge")
        last = inertia
        inner = np.searchsorted(x, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], inner, np.full(empty + 1, len(x))])
