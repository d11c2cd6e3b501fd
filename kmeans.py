"""k-means in one dimension, where it needs no luck: an interval partition found by dynamic programming, then refined.

Axis letters: B samples, C channels, M groups of samples.
"""
import numpy as np

_GROUPS = 2048  # a channel's samples are grouped into so many for the exact partition; then all samples count


def kmeans_1d(samples, levels):
    """k-means in one dimension: an optimal partition of grouped samples, refined by Lloyd's algorithm on all of them.

    A cluster is an interval, so dynamic programming finds the best partition, for all numbers of clusters in one run; the
    groups are as fine as the clusters will be dense.

    Args:
      samples: float [C, B], ascending in every channel.
      levels: sequence of int, the numbers of clusters.
    Returns:
      dict from levels to float64 [C, levels], ascending. A channel with fewer different values repeats the last centre.
    """
    x = samples.astype(np.float64)
    center = x.mean(axis=1, keepdims=True)
    x -= center  # so that the squares lose no digits
    zeros = np.zeros((len(x), 1))
    sums = np.concatenate([zeros, np.cumsum(x, axis=1)], axis=1)
    squares = np.concatenate([zeros, np.cumsum(x * x, axis=1)], axis=1)
    edges = np.stack([_group_edges(row) for row in x])
    partitions = _optimal_partitions(edges, *(np.take_along_axis(a, edges, axis=1) for a in (sums, squares)), levels)
    return {k: center + np.stack([_lloyd(*row) for row in zip(x, sums, squares, partitions[k])]) for k in levels}


def _group_edges(x):
    """Ranks [M+1] that split ascending x [B] into groups (some may be empty), dense as optimal code points are.

    Their density goes with the cube root of that of the samples (Panter and Dite, 1951).
    """
    fine = 2 * _GROUPS + 1
    ranks = np.unique(np.concatenate([np.linspace(0, len(x), fine).astype(np.int64),
                                      np.searchsorted(x, np.linspace(x[0], x[-1], fine))]))
    width = np.diff(x[np.minimum(ranks, len(x) - 1)])
    measure = np.concatenate([[0], np.cumsum(width ** (2 / 3) * np.diff(ranks) ** (1 / 3))])
    return np.interp(np.linspace(0, measure[-1], _GROUPS + 1), measure, ranks).round().astype(np.int64)


def _optimal_partitions(edges, sums, squares, levels):
    """Best partitions of grouped samples into intervals, for all channels at once.

    The cost of the first j groups in k intervals is the least over i of that of the first i in k - 1 plus that of one
    interval i..j. The best i grows with j and with k, so for every k it is found for the middle j first, then within
    these bounds for the middles of both halves, and so on.

    Args:
      edges, sums, squares: [C, M+1], the samples before each edge: their number, sum, and sum of squares.
      levels: sequence of int.
    Returns:
      dict from levels to int64 [C, levels + 1], the number of samples before each interval's ends.
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
            value, split[:, j] = _least_split(cost, number, sums, squares, (j + base).ravel(), low + base, high + base)
            split[:, j] -= base
            new_cost[(j + base).ravel()] = value
            stride //= 2
        best[k], cost = split[:, :-1], new_cost
    return {k: np.take_along_axis(edges, _trace_back(best, k), axis=1) for k in levels}


def _least_split(cost, number, sums, squares, j, low, high):
    """Over all i of low..high: the least of cost[i] plus the cost of an interval i..j, and the first i that reaches it.

    Everything is flat over channels and columns; low and high are [C, R] for the R columns of j [C * R].
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
    """The columns [C, k + 1] where the intervals of the best partition into k end."""
    channels, columns = best.shape[1:]
    ends = [np.full(channels, columns - 1)]
    for intervals in range(k, 1, -1):
        ends.append(best[intervals][np.arange(channels), ends[-1]].astype(np.int64))
    ends.append(np.zeros(channels, np.int64))
    return np.stack(ends[::-1], axis=1)


def _lloyd(x, sums, squares, edges, tolerance=1e-9):
    """Centres [k] that Lloyd's algorithm reaches from a partition of ascending x [B] at edges [k + 1].

    With prefix sums of x and of its squares [B + 1], an iteration costs k binary searches.
    """
    last = np.inf
    while True:
        number, total = np.diff(edges), np.diff(sums[edges])
        inertia = max(0., np.sum(np.diff(squares[edges]) - total ** 2 / np.maximum(number, 1)))
        centers = (total / np.maximum(number, 1))[number > 0]
        if not inertia < last * (1 - tolerance):
            return np.pad(centers, (0, len(edges) - 1 - len(centers)), mode="edge")
        last = inertia
        edges = np.concatenate([[0], np.searchsorted(x, (centers[1:] + centers[:-1]) / 2), [len(x)],
                                np.full(np.sum(number == 0), len(x))])
