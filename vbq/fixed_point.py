"""Logarithms and powers of two by integer arithmetic, which gives the same bits on every machine."""

import numpy as np

UNIT = 256  # code lengths are integers, in 1/256 bits
WEIGHT_BITS = 27  # the largest weight that `fixed_powers` returns is 2^27

# From 2^27 down to just above 2^26. A test pins them.
_FRACTIONS = np.round(2.0 ** (WEIGHT_BITS - np.arange(UNIT) / UNIT)).astype(np.int32)


def fixed_log2(x):
    """Computes floor(256 log2 x), at most 1 too small.

    Args:
      x: int64, 0 < x < 2^53.

    Returns:
      int64, shape of x.
    """
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))  # exact
    mantissa = (mantissa * 2.0**32).astype(np.uint64)
    result = np.asarray(exponent, np.int64) - 1
    for _ in range(UNIT.bit_length() - 1):  # squaring doubles the logarithm: its next binary digit appears
        mantissa = mantissa * mantissa >> np.uint64(31)
        digit = mantissa >> np.uint64(32)
        mantissa >>= digit
        result = 2 * result + digit.astype(np.int64)
    return result


def fixed_lengths(counts):
    """Code lengths from add-one smoothed counts [C, K]: int32 [C, K], in 1/256 bits."""
    totals = counts.sum(axis=1, dtype=np.int64) + counts.shape[1]
    # Most counts are 0, and the logarithm of 1 is 0.
    result = fixed_log2(totals).astype(np.int32)[:, None].repeat(counts.shape[1], axis=1)
    counted = np.flatnonzero(counts > 0)
    result.ravel()[counted] -= fixed_log2(counts.ravel()[counted].astype(np.int64) + 1).astype(np.int32)
    return result


def fixed_powers(lengths, shift):
    """2^(27 - length - shift), rounded towards zero.

    Args:
      lengths: int32, at least 0, in 1/256 bits.
      shift: int, at least 0, whole bits.

    Returns:
      int32, shape of lengths.
    """
    return _FRACTIONS[lengths % UNIT] >> np.minimum(lengths // UNIT + shift, 31)
