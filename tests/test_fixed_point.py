"""Arithmetic by integers: pinned values, and closeness to logarithms and powers."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from vbq import fixed_point


def test_logarithms_are_pinned_and_right_to_a_unit():
    """If the numbers change, files that people have can no longer be read."""
    x = np.array([1, 2, 3, 1000, 2**40, 2**53 - 1])
    assert fixed_point.fixed_log2(x).tolist() == [0, 256, 405, 2551, 10240, 13567]
    x = np.concatenate([np.arange(1, 3000), np.random.default_rng(0).integers(1, 2**53, 3000)])
    errors = fixed_point.fixed_log2(x) - 256 * np.log2(x.astype(np.float64))
    assert errors.min() > -1.01 and errors.max() < 1e-9


def test_fractions_are_pinned():
    fractions = fixed_point._FRACTIONS
    assert fractions.shape == (256,) and fractions.dtype == np.int32
    assert fractions[[0, 1, 128, 255]].tolist() == [2**27, 133854811, 94906266, 67290815]
    assert fractions.sum() == 24818881648
    with localcontext() as context:
        context.prec = 40
        for i, x in enumerate(fractions):
            exact = Decimal(2) ** 27 * Decimal(2) ** (Decimal(-i) / 256)
            assert abs(Decimal(int(x)) - exact) < Decimal("0.500001")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])  # of counts in a file
def test_lengths_are_those_of_smoothed_counts(dtype):
    most = min(np.iinfo(dtype).max, 2**40)
    counts = np.random.default_rng(0).integers(0, min(most, 1000), (4, 31)) * (np.arange(31) % 3 > 0)
    counts[0, 1] = most
    counts, smoothed = counts.astype(dtype), counts + 1
    found = fixed_point.fixed_lengths(counts)
    assert found.dtype == np.int32 and found.min() >= 0
    exact = 256 * np.log2(smoothed.sum(axis=1, keepdims=True) / smoothed)
    assert np.abs(found - exact).max() < 1.01


def test_powers_are_rounded_towards_zero():
    lengths = np.arange(0, 40 * 256, 7, dtype=np.int32)
    for shift in (0, 3, 20):
        found = fixed_point.fixed_powers(lengths, shift)
        assert found.dtype == np.int32
        exact = 2.0 ** (27 - lengths / 256 - shift)
        assert (found <= exact + 0.5).all() and (found > exact - 1.5).all()
    assert fixed_point.fixed_powers(np.array([27 * 256, 28 * 256, 10**6], np.int32), 0).tolist() == [1, 0, 0]
