"""k-means in one dimension against brute force and scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from vbq.kmeans import kmeans_1d


def inertia(x, centers):
    return np.sum(np.min((x[:, None] - centers) ** 2, axis=1))


def test_kmeans_finds_the_optimum_of_few_samples():
    """Against all partitions of 9 samples into intervals."""
    random = np.random.default_rng(0)
    for k in (1, 2, 3, 5):
        x = np.sort(random.standard_t(2, size=9))
        best = min(
            sum(np.var(part) * len(part) for part in np.split(x, cut))
            for cut in combinations(range(1, 9), k - 1)
        )
        assert inertia(x, kmeans_1d(x[None], [k])[k][0]) <= best * (1 + 1e-9)


@pytest.mark.parametrize("name", ["normal", "laplace", "standard_cauchy"])
def test_kmeans_is_at_least_as_good_as_scikit_learn(name):
    x = np.sort(getattr(np.random.default_rng(0), name)(size=4000))
    levels = [2, 6, 16, 64]
    centers = kmeans_1d(x[None], levels)
    for k in levels:
        theirs = KMeans(k, n_init=3, random_state=0).fit(x[:, None]).inertia_
        assert inertia(x, centers[k][0]) <= 1.001 * theirs


def test_kmeans_of_fewer_values_than_levels():
    x = np.sort(np.repeat([1.0, 2, 4], 5))[None]
    for k, centers in kmeans_1d(x, [2, 4, 8]).items():
        assert centers.shape == (1, k) and np.all(np.diff(centers) >= 0)
        assert inertia(x[0], centers[0]) <= (2.5 if k == 2 else 1e-20)
    constant = kmeans_1d(np.full((1, 7), 3.0), [4])[4]
    np.testing.assert_array_equal(constant, np.full((1, 4), 3.0))


def test_kmeans_of_many_equal_values():
    """Groups and intervals are then empty, and the means of two intervals can be equal up to rounding."""
    random = np.random.default_rng(0)
    samples = np.sort([np.round(random.normal(size=20000)), np.full(20000, 3.0)], axis=1)
    for k, centers in kmeans_1d(samples, [2, 16, 64]).items():
        assert centers.shape == (2, k)
        np.testing.assert_allclose(centers[1], 3)
        if k > 2:
            assert inertia(samples[0], centers[0]) < 1e-9
