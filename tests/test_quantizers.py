"""The three quantizers against the original's figures and brute force; their files."""

import os
import warnings

import brute_force
import numpy as np
import pytest
from conftest import GOLDEN

from quantizers import (
    QUANTIZERS,
    ChannelwisePriorCDFQuantizer,
    FitOptions,
    KmeansQuantizer,
    Posterior,
    Quantizer,
    UniformQuantizer,
)
from vbq.code_points import code_point_bits
from vbq.command import UserError
from vbq.files import load_npz, save_npz

NEAREST_LAMBDAS = [(1e-9, 0), (0.3, 0), (0.33, 1), (3.0, 1), (3.3, 2), (1e9, 2)]  # of 0.1, 1 and 10


@pytest.fixture(scope="module")
def expected():
    return load_npz(os.path.join(GOLDEN, "expected.npz"))


def std_of(logvar):
    return np.exp(0.5 * logvar)


# The channelwise quantizer.


def test_rates_and_code_points_are_the_originals(expected):
    quantizer = ChannelwisePriorCDFQuantizer.fit(
        expected["code_points"], expected["val_mean"], std_of(expected["val_logvar"]), expected["lambs"]
    )
    lengths = np.stack([quantizer.codebook(lamb_index).lengths for lamb_index in range(16)])
    np.testing.assert_allclose(lengths, expected["index_code_lengths"], atol=1e-5)

    posterior = Posterior(expected["mean"], std_of(expected["logvar"]))
    for lamb_index, lamb in enumerate(expected["lambs"]):
        indices = quantizer.encode(posterior, lamb)
        found = (
            quantizer.decode(indices, lamb),
            quantizer.bits(indices, lamb),
            quantizer.bit_length_bits(indices, lamb),
        )
        for values, key in zip(found, ("z_hat", "num_bits", "num_bits_cl")):
            error = np.abs(values[0] - expected[key][lamb_index])
            assert np.mean(error < 1e-5) >= 0.999, (key, lamb)


def test_more_passes_choose_the_best_of_all_neighbours():
    points, mean, std = brute_force.random_latents(0)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.5, 4.0], passes=6)
    for lamb_index, lamb in enumerate(quantizer.lambs):
        indices, codebook = quantizer.encode(Posterior(mean, std), lamb), quantizer.codebook(lamb_index)
        for b, c in np.ndindex(mean.shape):
            ranks = []
            for n in range(5):
                of_n = np.flatnonzero(code_point_bits(4) == n)
                split = np.searchsorted(points[c][of_n], mean[b, c])
                ranks += [*of_n[:split][-1:], *of_n[split:][:1]]
            distortion = (codebook.points[c, ranks] - mean[b, c]) ** 2 / (2 * std[b, c] ** 2)
            cost = distortion + lamb * codebook.lengths[c, ranks]
            chosen = indices[b, c]
            assert chosen in ranks
            assert cost[ranks.index(chosen)] <= cost.min() * (1 + 1e-5) + 1e-5


@pytest.mark.parametrize("passes", [2, 5])
def test_code_lengths_satisfy_kraft(passes):
    points, mean, std = brute_force.random_latents(1)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.1, 10.0], passes)
    for lamb_index in range(2):
        lengths = quantizer.codebook(lamb_index).lengths.astype(np.float64)
        assert np.all(np.sum(2.0**-lengths, axis=1) <= 1 + 1e-6)
        of_index = quantizer.bit_length_lengths(lamb_index).astype(np.float64)[:, code_point_bits(4)]
        assert np.all(np.sum(2.0**-of_index, axis=1) <= 1 + 1e-6)
    for levels, kind in ((3, UniformQuantizer), (64, UniformQuantizer), (64, KmeansQuantizer)):
        lengths = kind.fit(mean, [levels]).lengths(levels)
        np.testing.assert_allclose(np.sum(2.0**-lengths, axis=1), 1)


def test_any_lambda_takes_the_lengths_of_the_nearest():
    points, mean, std = brute_force.random_latents(2)
    quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.1, 1.0, 10.0])
    posterior = Posterior(mean, std)
    for lamb, lamb_index in NEAREST_LAMBDAS:
        assert quantizer.nearest_lamb_index(lamb) == lamb_index
        indices, codebook = quantizer.encode(posterior, lamb), quantizer.codebook(lamb_index)
        np.testing.assert_array_equal(indices, codebook.quantize(posterior, lamb))
        np.testing.assert_array_equal(quantizer.decode(indices, lamb), codebook.dequantize(indices))
        np.testing.assert_array_equal(quantizer.bits(indices, lamb), codebook.bits(indices))
    bits = [quantizer.bits(quantizer.encode(posterior, lamb), 1.0).sum() for lamb in (0.5, 1.0, 2.0)]
    assert bits[0] > bits[1] > bits[2]
    for lamb in (0, -1.0, np.nan):
        with pytest.raises(ValueError):
            quantizer.encode(posterior, lamb)


def test_degenerate_latents_stay_finite():
    points, mean, std = brute_force.random_latents(0)
    mean[0], mean[1] = 1e4, -1e4
    std[2], std[3] = 1e-30, 1e10
    points[0] = 0  # all code points equal
    for passes in (2, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quantizer = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.1, 10.0], passes)
            indices = quantizer.encode(Posterior(mean, std), 1.0)
        assert indices.min() >= 0 and indices.max() < points.shape[1]
        assert np.isfinite(quantizer.codebook(1).dequantize(indices)).all()
    assert quantizer.encode(Posterior(mean[:0], std[:0]), 1.0).shape == (0, 3)


def test_arrays_that_do_not_belong_together_are_refused():
    quantizer, _, _ = brute_force.context_fit()
    arrays = quantizer.code_points, quantizer.lambs, quantizer.bit_length_counts, quantizer.index_counts
    points, lambs, bit_length_counts, index_counts = arrays
    wrong = [
        (points[:, :-1], lambs, bit_length_counts, index_counts),  # 30 code points
        (points[:2], lambs, bit_length_counts, index_counts),
        (points, lambs[:1], bit_length_counts, index_counts),
        (points, lambs, bit_length_counts[:, :, 1:], index_counts),
        (points, lambs, bit_length_counts, index_counts - 1),
        (points, lambs, bit_length_counts, index_counts + 2**40),
        (points, lambs, bit_length_counts, index_counts.astype(float)),
        (*arrays, 4, quantizer.shifts[:, :, 1:]),
        (*arrays, 2, quantizer.shifts, {}, quantizer.contexts),  # two passes have no contexts
    ]
    for some in wrong:
        with pytest.raises(ValueError):
            ChannelwisePriorCDFQuantizer(*some)


# Files.


@pytest.mark.parametrize("passes", [2, 4])
def test_saved_channelwise_quantizer_equals_loaded(tmp_path, passes):
    points, mean, std = brute_force.random_latents(0)
    provenance = {"model_fingerprint": "abc", "seed": 3}
    saved = ChannelwisePriorCDFQuantizer.fit(points, mean, std, [0.1, 10.0], passes, provenance)
    saved.save(tmp_path / "q.npz")
    loaded = ChannelwisePriorCDFQuantizer.load(tmp_path / "q.npz")
    assert (loaded.passes, loaded.max_bits) == (passes, 4) and loaded.provenance == provenance
    assert loaded.identity() == saved.identity()
    for lamb in (0.05, 2.0, 100.0):
        indices = saved.encode(Posterior(mean, std), lamb)
        np.testing.assert_array_equal(loaded.encode(Posterior(mean, std), lamb), indices)
        np.testing.assert_array_equal(loaded.bits(indices, lamb), saved.bits(indices, lamb))
        np.testing.assert_array_equal(loaded.decode(indices, lamb), saved.decode(indices, lamb))


def test_saved_contexts_equal_loaded(tmp_path):
    saved, mean, std = brute_force.context_fit(model_fingerprint="abc")
    saved.save(tmp_path / "q.npz")
    loaded = ChannelwisePriorCDFQuantizer.load(tmp_path / "q.npz")
    assert loaded.provenance == {"model_fingerprint": "abc"} and loaded.identity() == saved.identity()
    for name, array in saved.contexts.arrays().items():
        found = loaded.contexts.arrays()[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    indices = saved.encode(Posterior(mean, std), 1.0)
    np.testing.assert_array_equal(loaded.encode(Posterior(mean, std), 1.0), indices)
    np.testing.assert_array_equal(loaded.bits(indices, 1.0), saved.bits(indices, 1.0))
    assert loaded.file_bits(indices[0], 1.0) == saved.file_bits(indices[0], 1.0)


@pytest.mark.parametrize("kind", [UniformQuantizer, KmeansQuantizer])
def test_saved_scalar_quantizer_equals_loaded(tmp_path, kind):
    _, mean, _ = brute_force.random_latents(0)
    saved = kind.fit(mean, [2, 5], {"validation": "x"})
    saved.save(tmp_path / "q.npz")
    loaded = kind.load(tmp_path / "q.npz")
    assert loaded.levels == [2, 5] and loaded.provenance == {"validation": "x"}
    assert loaded.identity() == saved.identity()
    for levels in loaded.levels:
        indices = saved.nearest(mean, levels)
        np.testing.assert_array_equal(saved.encode(Posterior(mean, None), levels), indices)
        np.testing.assert_array_equal(loaded.nearest(mean, levels), indices)
        np.testing.assert_array_equal(loaded.bits(indices, levels), saved.bits(indices, levels))
        np.testing.assert_array_equal(loaded.decode(indices, levels), saved.decode(indices, levels))


@pytest.mark.parametrize("kind", [ChannelwisePriorCDFQuantizer, UniformQuantizer])
def test_other_files_are_a_user_error(tmp_path, kind):
    path = tmp_path / "q.npz"
    for arrays in (
        {"x": np.arange(3)},
        {"levels": np.array([2]), "code_points_2": np.zeros((3, 2)), "counts_2": np.zeros(7)},
        {
            "code_points": np.zeros((2, 5)),
            "lambs": [1.0],
            "bit_length_counts": np.zeros((1, 2, 2)),
            "passes": 2,
            "index_counts": np.zeros((1, 2, 5)),
            "max_bits": 1,
        },
    ):
        save_npz(path, arrays)
        with pytest.raises(UserError, match="q.npz"):
            kind.load(path)


def test_the_default_files_have_the_originals_names():
    options = FitOptions()
    names = ["ChannelwisePriorCDFQuantizer-max_bits=10", "KmeansQuantizer", "UniformQuantizer"]
    assert [kind.file_name(options) for kind in QUANTIZERS] == names
    assert [kind.result_name(options, 0) for kind in QUANTIZERS] == names
    options = FitOptions(max_bits=4, passes=6, contexts=True)
    names[0] = "ChannelwisePriorCDFQuantizer-max_bits=4-passes=6-contexts"
    assert [kind.file_name(options) for kind in QUANTIZERS] == names
    names[0] += "-joint_steps=3"
    assert [kind.result_name(options, 3) for kind in QUANTIZERS] == names


def test_fits_are_preferred_with_contexts_then_by_passes_then_by_bits():
    names = [
        "-max_bits=4",
        "-max_bits=10-fit=0123456789abcdef",
        "-max_bits=10",
        "-max_bits=4-passes=3",
        "-max_bits=4-passes=10-fit=0123456789abcdef",
        "-max_bits=4-passes=10",
        "-max_bits=4-passes=3-contexts",
    ]
    ranks = [ChannelwisePriorCDFQuantizer.rank("ChannelwisePriorCDFQuantizer" + name) for name in names]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)
    for name in (
        "ChannelwisePriorCDFQuantizer-max_bits=10-compression_results",
        "ChannelwisePriorCDFQuantizer-max_bits=10-passes=10-joint_steps=3-compression_results",
        "ChannelwisePriorCDFQuantizer-max_bits=ten",
        "KmeansQuantizer",
        "prior",
    ):
        assert ChannelwisePriorCDFQuantizer.rank(name) is None


# The baselines.


def test_uniform_quantizer_is_the_originals_but_for_normalization(expected):
    """Its B of the test image, with the same code lengths as the original where no bin was empty."""
    original = load_npz(os.path.join(GOLDEN, "UniformQuantizer-compression_results.npz"))
    of_image = original["B"][list(original["compressed_files"]).index(str(expected["image"]))]
    samples = expected["val_mean"].reshape(-1, 8)
    quantizer = UniformQuantizer.fit(samples)
    np.testing.assert_array_equal(quantizer.levels, original["settings"])
    np.testing.assert_array_equal(quantizer.settings, original["settings"])
    for levels, bits in zip(quantizer.levels, of_image):
        indices = quantizer.nearest(expected["mean"], levels)
        empty = np.any(quantizer.counts[levels] == 0, axis=1)
        forgotten = np.where(empty, np.log2(1 + levels / len(samples)), 0)
        np.testing.assert_allclose(np.sum(quantizer.bits(indices, levels) - forgotten), bits, rtol=1e-9)


def test_uniform_code_points_are_bin_centres():
    mean = np.array([[0.0, 5], [10.0, 5], [2.4, 5], [2.6, 5]], np.float32)
    quantizer = UniformQuantizer.fit(mean, [4, 1])
    np.testing.assert_array_equal(quantizer.code_points[4], [[1.25, 3.75, 6.25, 8.75], [5, 5, 5, 5]])
    indices = quantizer.nearest(np.array([[-3, 0], [2.4, 5], [2.6, 9], [99, 9]]), 4)
    np.testing.assert_array_equal(indices[:, 0], [0, 0, 1, 3])
    np.testing.assert_array_equal(quantizer.counts[4][0], [2, 1, 0, 1])
    np.testing.assert_allclose(quantizer.lengths(4)[0], -np.log2([3 / 8, 2 / 8, 1 / 8, 2 / 8]))
    assert quantizer.bits(quantizer.nearest(mean, 1), 1).sum() == 0


def test_kmeans_quantizer_of_fewer_values_than_levels_loses_nothing():
    x = np.sort(np.repeat([1.0, 2, 4], 5))[:, None]
    quantizer = KmeansQuantizer.fit(x.astype(np.float32), [8])
    np.testing.assert_array_equal(quantizer.decode(quantizer.nearest(x, 8), 8), x)


def test_baselines_take_the_nearest_code_point():
    _, mean, _ = brute_force.random_latents(3)
    for kind in (KmeansQuantizer, UniformQuantizer):
        quantizer = kind.fit(mean, [5])
        indices = quantizer.nearest(mean, 5)
        distances = np.abs(quantizer.code_points[5].astype(np.float64) - mean[:, :, None])
        np.testing.assert_allclose(
            np.abs(quantizer.decode(indices, 5) - mean), distances.min(axis=2), atol=1e-6
        )
        counts = [np.bincount(row, minlength=5) for row in indices.T]
        np.testing.assert_array_equal(quantizer.counts[5], counts)


def test_what_a_quantizer_need_not_define():
    """Its rate by bit lengths is then its rate; it has no file."""

    class Plain(Quantizer):
        def bits(self, indices, setting):
            return 3.0 * indices

    assert Plain().bit_length_bits(np.array([1, 2]), 1).tolist() == [3, 6]
    assert not Plain.writes_files
    with pytest.raises(NotImplementedError):
        Plain().file_bits(np.array([1, 2]), 1)
    assert Plain.result_name(FitOptions(), 5) == Plain.file_name(FitOptions()) == "Plain"
