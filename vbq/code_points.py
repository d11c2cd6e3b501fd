"""The grid of code points, quantiles of the prior at short binary fractions, and look-ups by code point.

Axis letters: C channels, N max bits, K = 2^(N+1) - 1 code points.
"""

import numpy as np

LEAST_STD = np.float32(1e-12)  # below it, 1 / std^2 leaves the range of float32


def code_point_probabilities(max_bits):
    """The fractions xi = (i + 1/2) / 2^n of all n <= max_bits, ascending: float64 [K]."""
    return np.arange(1, 2 << max_bits) / (2 << max_bits)


def code_point_bits(max_bits):
    """The length n, in bits, of each of these fractions: int64 [K].

    (i + 1/2) / 2^n = (2 i + 1) 2^(N-n) / 2^(N+1): in ascending order, the n-bit points are the odd multiples
    of 2^(N-n).
    """
    rank = np.arange(1, 2 << max_bits)
    return max_bits - np.log2(rank & -rank).astype(np.int64)


def max_bits_of(points):
    """The N of a number K of code points.

    Raises:
      ValueError: K is not 2^(N+1) - 1.
    """
    max_bits = int(points).bit_length() - 1
    if points != (2 << max_bits) - 1:
        raise ValueError(f"{points} code points a channel, but a grid has 2^(N+1) - 1")
    return max_bits


def look_up(table, indices):
    """Returns table[c, indices[..., c]] for a table [C, K] and int indices [..., C]."""
    return table.ravel().take(indices + np.arange(len(table)) * table.shape[1])


def distortion_weight(std):
    """1 / (2 std^2), the factor of (z - mean)^2 in the distortion (nats), of float32 standard deviations."""
    return 0.5 / np.square(np.maximum(std, LEAST_STD))
