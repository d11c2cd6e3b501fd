"""Quantizers against the original's figures, brute force and scikit-learn."""
import os
import warnings

import numpy as np
import pytest

import kmeans
import quantizers
import utils
from quantizers import ChannelwisePriorCDFQuantizer, KmeansQuantizer, UniformQuantizer


@pytest.fixture(scope="module")
def expected():
    return utils.load_npz(os.path.join(os.path.dirname(__file__), "golden", "expected.npz"))


def std(logvar):
    return np.exp(.5 * logvar)


def random_problem(seed, max_bits=4, channels=3, positions=200):
    """Code points, means (some beyond the code points, some on them) and stds."""
    random = np.random.default_rng(seed)
    points = np.sort(random.normal(size=(channels, (2 << max_bits) - 1)), axis=1).astype(np.float32)
    mean = random.normal(scale=1.5, size=(positions, channels)).astype(np.float32)
    mean[::7] = points[:, 5]
    return points, mean, np.exp(random.normal(-2, 1, size=mean.shape)).astype(np.float32)


def objective(quantizer, mean, std):
    """distortion + lamb * bits of these latents, at every lambda: float64 [L]."""
    prepared, result = quantizer.prepare(mean, std), []
    for table, lamb in enumerate(quantizer.lambs):
        indices = quantizer.choose(prepared, lamb)
        distortion = (quantizer.dequantize(indices, table) - mean) ** 2 / (2 * std ** 2)
        result.append(distortion.sum(dtype=np.float64) + lamb * quantizer.bits(indices, table).sum(dtype=np.float64))
    return np.array(result)


# The channelwise quantizer.


def test_both_passes_give_the_originals_code_lengths(expected):
    quantizer = ChannelwisePriorCDFQuantizer.fit(expected["code_points"], expected["val_mean"], std(expected["val_logvar"]),
                                                 expected["lambs"])
    np.testing.assert_allclose(quantizers.code_lengths(quantizer.bit_length_counts), expected["bit_length_code_lengths"],
                               atol=1e-5)
    lengths = np.stack([quantizer.code_lengths(table) for table in range(16)])
    np.testing.assert_allclose(lengths, expected["index_code_lengths"], atol=1e-5)

    prepared = quantizer.prepare(expected["mean"], std(expected["logvar"]))
    for table, lamb in enumerate(expected["lambs"]):
        indices = quantizer.choose(prepared, lamb)
        found = quantizer.dequantize(indices, table), quantizer.bits(indices, table), quantizer.bit_length_bits(indices, table)
        for values, key in zip(found, ("z_hat", "num_bits", "num_bits_cl")):
            assert np.mean(np.abs(values[0] - expected[key][table]) < 1e-5) >= .999, (key, lamb)


def brute_force(points, mean, std, lamb, length_of_bits):
    """The issue's definition, latent by latent: of each n the two n-bit points around the mean; the cheapest of all."""
    max_bits = (len(points) + 1).bit_length() - 2
    best = []
    for mu, sigma in zip(mean.astype(np.float64), std.astype(np.float64)):
        candidates = []
        for n in range(max_bits + 1):
            xi = (np.arange(2 ** n) + .5) / 2 ** n
            ranks = np.round(xi * (2 << max_bits)).astype(int) - 1
            below, above = ranks[points[ranks] < mu], ranks[points[ranks] >= mu]
            for rank in [*below[-1:], *above[:1]]:
                candidates.append(((points[rank] - mu) ** 2 / (2 * sigma ** 2) + lamb * length_of_bits[n], n, rank))
        best.append(min(candidates))
    return np.array([n for _, n, _ in best]), np.array([rank for _, _, rank in best])


@pytest.mark.parametrize("seed", range(3))
def test_two_passes_equal_brute_force(seed):
    points, mean, sigma = random_problem(seed)
    lambs = [.02, .5, 3., 40.]
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, lambs)
    for table, lamb in enumerate(lambs):
        for c in range(3):
            n, _ = brute_force(points[c], mean[:, c], sigma[:, c], lamb, np.arange(5))
            counts = np.bincount(n, minlength=5)
            np.testing.assert_array_equal(quantizer.bit_length_counts[table, c], counts)
            lengths = np.arange(5) - np.log2((counts + 1) / (counts.sum() + 5))
            n, rank = brute_force(points[c], mean[:, c], sigma[:, c], lamb, lengths)
            np.testing.assert_array_equal(quantizer.index_counts[table, c], np.bincount(rank, minlength=31))
            indices = quantizer.quantize(mean, sigma, lamb)[:, c]
            np.testing.assert_array_equal(indices, rank)
            np.testing.assert_allclose(quantizer.bit_length_bits(indices[:, None].repeat(3, 1), table)[:, c], lengths[n], 1e-5)


def test_more_passes_choose_the_best_of_all_neighbours():
    points, mean, sigma = random_problem(0)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.5, 4.], passes=6)
    for table, lamb in enumerate(quantizer.lambs):
        indices = quantizer.quantize(mean, sigma, lamb)
        z, lengths = quantizer.code_points_at(table), quantizer.code_lengths(table)
        for b, c in np.ndindex(mean.shape):
            ranks = []
            for n in range(5):
                of_n = np.flatnonzero(quantizers.code_point_bits(4) == n)
                split = np.searchsorted(points[c][of_n], mean[b, c])
                ranks += [*of_n[:split][-1:], *of_n[split:][:1]]
            cost = (z[c, ranks] - mean[b, c]) ** 2 / (2 * sigma[b, c] ** 2) + lamb * lengths[c, ranks]
            chosen = indices[b, c]
            assert chosen in ranks
            assert cost[ranks.index(chosen)] <= cost.min() * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_more_passes_never_raise_the_objective(seed):
    points, mean, sigma = random_problem(seed, max_bits=6, positions=3000)
    lambs = 2. ** np.arange(-6, 8, 2)
    last = np.full(len(lambs), np.inf)
    for passes in (2, 3, 4, 6, 10, 20):
        value = objective(ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, lambs, passes), mean, sigma)
        assert np.all(value <= last * (1 + 1e-9))
        last = value


def test_more_passes_gain_on_other_latents():
    points, mean, sigma = random_problem(0, max_bits=8, channels=2, positions=20000)
    two, ten = (ChannelwisePriorCDFQuantizer.fit(points, mean[::2], sigma[::2], [1., 16.], passes) for passes in (2, 10))
    assert np.all(objective(ten, mean[1::2], sigma[1::2]) < .97 * objective(two, mean[1::2], sigma[1::2]))


@pytest.mark.parametrize("passes", [2, 5])
def test_code_lengths_satisfy_kraft(passes):
    points, mean, sigma = random_problem(1)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.1, 10.], passes)
    for table in range(2):
        assert np.all(np.sum(2. ** -quantizer.code_lengths(table).astype(np.float64), axis=1) <= 1 + 1e-6)
        of_index = quantizer.bit_length_code_lengths(table).astype(np.float64)[:, quantizers.code_point_bits(4)]
        assert np.all(np.sum(2. ** -of_index, axis=1) <= 1 + 1e-6)
    for levels, kind in ((3, UniformQuantizer), (64, UniformQuantizer), (64, KmeansQuantizer)):
        lengths = kind.fit(mean, [levels]).code_lengths(levels)
        np.testing.assert_allclose(np.sum(2. ** -lengths, axis=1), 1)


@pytest.mark.parametrize("passes", [2, 4])
def test_blocks_change_nothing(passes, monkeypatch):
    points, mean, sigma = random_problem(2)
    whole = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.3, 3.], passes)
    indices = whole.quantize(mean, sigma, 1.)
    for block in (64, 500):
        monkeypatch.setattr(quantizers, "_BLOCK", block)
        again = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.3, 3.], passes)
        np.testing.assert_array_equal(again.index_counts, whole.index_counts)
        np.testing.assert_array_equal(again.quantize(mean, sigma, 1.), indices)


def test_any_lambda_takes_the_nearest_table():
    points, mean, sigma = random_problem(2)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.1, 1., 10.])
    assert [quantizer.nearest_table(lamb) for lamb in (1e-9, .3, .33, 3., 3.3, 1e9)] == [0, 0, 1, 1, 2, 2]
    bits = [quantizer.bits(quantizer.quantize(mean, sigma, lamb), 1).sum() for lamb in (.5, 1., 2.)]
    assert bits[0] > bits[1] > bits[2]
    with pytest.raises(ValueError):
        quantizer.quantize(mean, sigma, 0)


def test_degenerate_latents_stay_finite():
    points, mean, sigma = random_problem(0)
    mean[0], mean[1] = 1e4, -1e4
    sigma[2], sigma[3] = 1e-30, 1e10
    points[0] = 0  # all code points equal
    for passes in (2, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.1, 10.], passes)
            indices = quantizer.quantize(mean, sigma, 1.)
        assert indices.min() >= 0 and indices.max() < points.shape[1]
        assert np.isfinite(quantizer.dequantize(indices, 1)).all()
    assert quantizer.quantize(mean[:0], sigma[:0], 1.).shape == (0, 3)


# Files.


@pytest.mark.parametrize("passes", [2, 4])
def test_saved_channelwise_quantizer_equals_loaded(tmp_path, passes):
    points, mean, sigma = random_problem(0)
    saved = ChannelwisePriorCDFQuantizer.fit(points, mean, sigma, [.1, 10.], passes, {"model_fingerprint": "abc", "seed": 3})
    saved.save(tmp_path / "q.npz")
    loaded = ChannelwisePriorCDFQuantizer.load(tmp_path / "q.npz")
    assert (loaded.passes, loaded.max_bits) == (passes, 4) and loaded.provenance == {"model_fingerprint": "abc", "seed": 3}
    for lamb in (.05, 2., 100.):
        indices = saved.quantize(mean, sigma, lamb)
        table = saved.nearest_table(lamb)
        np.testing.assert_array_equal(loaded.quantize(mean, sigma, lamb), indices)
        np.testing.assert_array_equal(loaded.bits(indices, table), saved.bits(indices, table))
        np.testing.assert_array_equal(loaded.dequantize(indices, table), saved.dequantize(indices, table))


@pytest.mark.parametrize("kind", [UniformQuantizer, KmeansQuantizer])
def test_saved_scalar_quantizer_equals_loaded(tmp_path, kind):
    _, mean, _ = random_problem(0)
    saved = kind.fit(mean, [2, 5], {"validation": "x"})
    saved.save(tmp_path / "q.npz")
    loaded = kind.load(tmp_path / "q.npz")
    assert loaded.levels == [2, 5] and loaded.provenance == {"validation": "x"}
    for levels in loaded.levels:
        indices = saved.quantize(mean, levels)
        np.testing.assert_array_equal(loaded.quantize(mean, levels), indices)
        np.testing.assert_array_equal(loaded.bits(indices, levels), saved.bits(indices, levels))
        np.testing.assert_array_equal(loaded.dequantize(indices, levels), saved.dequantize(indices, levels))


@pytest.mark.parametrize("kind", [ChannelwisePriorCDFQuantizer, UniformQuantizer])
def test_other_files_are_a_user_error(tmp_path, kind):
    path = tmp_path / "q.npz"
    for arrays in ({"x": np.arange(3)}, {"levels": np.array([2]), "code_points_2": np.zeros((3, 2)), "counts_2": np.zeros(7)},
                   {"code_points": np.zeros((2, 5)), "lambs": [1.], "bit_length_counts": np.zeros((1, 2, 2)), "passes": 2,
                    "index_counts": np.zeros((1, 2, 5)), "max_bits": 1}):
        utils.save_npz(path, arrays)
        with pytest.raises(utils.UserError, match="q.npz"):
            kind.load(path)


# The baselines.


def test_uniform_quantizer_is_the_originals_but_for_normalization(expected):
    """Its B of the test image, with the same code lengths as the original where no bin was empty."""
    original = utils.load_npz(os.path.join(os.path.dirname(__file__), "golden", "UniformQuantizer-compression_results.npz"))
    of_image = original["B"][list(original["compressed_files"]).index(str(expected["image"]))]
    samples = expected["val_mean"].reshape(-1, 8)
    quantizer = UniformQuantizer.fit(samples)
    np.testing.assert_array_equal(quantizer.levels, original["settings"])
    for levels, bits in zip(quantizer.levels, of_image):
        indices = quantizer.quantize(expected["mean"], levels)
        empty = np.any(quantizer.counts[levels] == 0, axis=1)
        forgotten = np.where(empty, np.log2(1 + levels / len(samples)), 0)
        np.testing.assert_allclose(np.sum(quantizer.bits(indices, levels) - forgotten), bits, rtol=1e-9)


def test_uniform_code_points_are_bin_centres():
    mean = np.array([[0., 5], [10., 5], [2.4, 5], [2.6, 5]], np.float32)
    quantizer = UniformQuantizer.fit(mean, [4, 1])
    np.testing.assert_array_equal(quantizer.code_points[4], [[1.25, 3.75, 6.25, 8.75], [5, 5, 5, 5]])
    np.testing.assert_array_equal(quantizer.quantize(np.array([[-3, 0], [2.4, 5], [2.6, 9], [99, 9]]), 4)[:, 0], [0, 0, 1, 3])
    np.testing.assert_array_equal(quantizer.counts[4][0], [2, 1, 0, 1])
    np.testing.assert_allclose(quantizer.code_lengths(4)[0], -np.log2([3 / 8, 2 / 8, 1 / 8, 2 / 8]))
    assert quantizer.bits(quantizer.quantize(mean, 1), 1).sum() == 0


def inertia(x, centers):
    return np.sum(np.min((x[:, None] - centers) ** 2, axis=1))


def test_kmeans_finds_the_optimum_of_few_samples():
    """Against all partitions of 9 samples into intervals."""
    from itertools import combinations

    random = np.random.default_rng(0)
    for k in (1, 2, 3, 5):
        x = np.sort(random.standard_t(2, size=9))
        best = min(sum(np.var(part) * len(part) for part in np.split(x, cut)) for cut in combinations(range(1, 9), k - 1))
        assert inertia(x, kmeans.kmeans_1d(x[None], [k])[k][0]) <= best * (1 + 1e-9)


@pytest.mark.parametrize("name", ["normal", "laplace", "standard_cauchy"])
def test_kmeans_is_at_least_as_good_as_scikit_learn(name):
    from sklearn.cluster import KMeans

    x = np.sort(getattr(np.random.default_rng(0), name)(size=4000))
    levels = [2, 6, 16, 64]
    centers = kmeans.kmeans_1d(x[None], levels)
    for k in levels:
        theirs = KMeans(k, n_init=3, random_state=0).fit(x[:, None]).inertia_
        assert inertia(x, centers[k][0]) <= 1.001 * theirs


def test_kmeans_of_fewer_values_than_levels():
    x = np.sort(np.repeat([1., 2, 4], 5))[None]
    for k, centers in kmeans.kmeans_1d(x, [2, 4, 8]).items():
        assert centers.shape == (1, k) and np.all(np.diff(centers) >= 0)
        assert inertia(x[0], centers[0]) <= (2.5 if k == 2 else 1e-20)
    quantizer = KmeansQuantizer.fit(x.T.astype(np.float32), [8])
    np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(x.T, 8), 8), x.T)
    assert np.all(kmeans.kmeans_1d(np.full((1, 7), 3.), [4])[4] == 3)
