"""The basis of the real DFT."""

import numpy as np
import pytest

from vbq.rdft import rdft_basis


@pytest.mark.parametrize("height, width", [(9, 9), (5, 5), (4, 6), (1, 2)])
def test_basis_is_orthonormal(height, width):
    basis = rdft_basis(height, width)
    np.testing.assert_allclose(basis.T @ basis, np.eye(height * width), atol=1e-12)
    np.testing.assert_allclose(
        basis[:, 0], 1 / np.sqrt(height * width)
    )  # the first coefficient is the mean's


@pytest.mark.parametrize("size", [4, 5])
def test_coefficients_are_cosines_and_sines_in_the_originals_order(size):
    angle = 2 * np.pi * np.arange(size) / size
    columns = [np.ones(size), np.cos(angle), -np.sin(angle), np.cos(2 * angle), -np.sin(2 * angle)][:size]
    expected = np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
    np.testing.assert_allclose(rdft_basis(size, 1), expected, atol=1e-12)
    np.testing.assert_allclose(rdft_basis(1, size), expected, atol=1e-12)


def test_shifts_keep_the_energy_of_every_frequency():
    size = 5
    basis = rdft_basis(size, size)
    energy = (basis.T @ np.random.default_rng(0).standard_normal(size**2)).reshape(size, size) ** 2
    shifted = np.roll((basis @ np.sqrt(energy).ravel()).reshape(size, size), (1, 2), axis=(0, 1))
    moved = (basis.T @ shifted.ravel()).reshape(size, size) ** 2
    pairs = [[0], [1, 2], [3, 4]]  # the mean; real and imaginary parts
    for rows in pairs:
        for columns in pairs:
            block = np.ix_(rows, columns)
            assert moved[block].sum() == pytest.approx(energy[block].sum())
