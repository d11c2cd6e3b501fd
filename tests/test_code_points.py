"""The grid of code points, by its definition."""

from fractions import Fraction

import numpy as np
import pytest

from vbq.code_points import (
    LEAST_STD,
    code_point_bits,
    code_point_probabilities,
    distortion_weight,
    look_up,
    max_bits_of,
)


@pytest.mark.parametrize("max_bits", [0, 1, 4, 10])
def test_code_points_are_all_short_fractions_in_ascending_order(max_bits):
    fractions = [
        (Fraction(2 * i + 1, 2 << n), n)
        for n in range(max_bits + 1)
        for i in range(2**n)  # (i + 1/2) / 2^n
    ]
    assert code_point_probabilities(max_bits).tolist() == [float(x) for x, _ in sorted(fractions)]
    assert code_point_bits(max_bits).tolist() == [n for _, n in sorted(fractions)]
    assert max_bits_of(len(fractions)) == max_bits


@pytest.mark.parametrize("points", [2, 4, 30, 32, 2046])
def test_other_numbers_of_code_points_are_no_grid(points):
    with pytest.raises(ValueError, match=f"{points} code points"):
        max_bits_of(points)


def test_tables_are_looked_up_by_channel():
    table = np.arange(12).reshape(3, 4)
    indices = np.random.default_rng(0).integers(0, 4, size=(2, 5, 3), dtype=np.int32)
    found = look_up(table, indices)
    assert found.shape == indices.shape
    for place in np.ndindex(2, 5, 3):
        assert found[place] == table[place[-1], indices[place]]


def test_the_weight_of_the_distortion_stays_finite():
    std = np.array([2, 0.5, LEAST_STD, 1e-30, 0], np.float32)
    weight = distortion_weight(std)
    assert weight.dtype == np.float32 and np.isfinite(weight).all()
    np.testing.assert_allclose(weight[:2], [1 / 8, 2])
    assert (weight[2:] == weight[2]).all()
