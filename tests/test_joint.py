"""Joint quantization: nothing changes without steps, the cost never rises, and it finds what latents alone do not."""
import itertools
import os

import numpy as np
import pytest
from PIL import Image

import codec
import fuzz_codec
import joint
import pieces
import tree_search
import utils
from contexts import TableContexts
from bls2017_vae import load_run
from fuzz_codec import GOLDEN, QUANTIZER
from quantizers import ChannelwisePriorCDFQuantizer

CHECKPOINTS = os.path.join(os.path.dirname(os.path.dirname(GOLDEN)), "checkpoints")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The golden run with quantizers of two passes, of four, and of four with contexts."""
    run = fuzz_codec.make_run(tmp_path_factory.mktemp("runs"))
    fuzz_codec.add_quantizer(run, passes=4, contexts=True)
    plain = ChannelwisePriorCDFQuantizer.load(quantizer_path(run, "-contexts"))
    plain.contexts = None
    plain.save(quantizer_path(run, ""))
    return run


def quantizer_path(run, suffix):
    return os.path.join(run.path, QUANTIZER.replace(".npz", f"-passes=4{suffix}.npz"))


@pytest.fixture(scope="module")
def quantizers(place):
    """The last two of them."""
    return [ChannelwisePriorCDFQuantizer.load(quantizer_path(place, suffix)) for suffix in ("", "-contexts")]


def test_without_contexts_and_steps_it_is_the_quantizers_choice(place, quantizers, china):
    plain, _ = quantizers
    mean, std = pieces.posterior(place, china)
    for table, lamb in enumerate(plain.lambs):
        np.testing.assert_array_equal(joint.choose(plain, mean, std, lamb, table), plain.quantize(mean, std, lamb))


def test_contexts_lower_bits_and_cost(place, quantizers, china):
    plain, adaptive = quantizers
    mean, std = pieces.posterior(place, china)
    for table in (6, 8, 10, 12):
        lamb = plain.lambs[table]
        def total(quantizer):
            indices = joint.choose(quantizer, mean, std, lamb, table)
            distortion = np.sum(np.square((quantizer.dequantize(indices, table) - mean) / std, dtype=np.float64)) / 2
            return distortion + lamb * quantizer.bits(indices, table).sum(dtype=np.float64)
        assert total(adaptive) < total(plain)


@pytest.fixture(scope="module")
def shipped():
    """The run that ships and its quantizer with contexts."""
    run = load_run(CHECKPOINTS, os.listdir(CHECKPOINTS)[0])
    return run, codec.codec_of(run).quantizer


def costs_of(quantizer, run, image, table, all_steps):
    mean, std = pieces.posterior(run, image)
    likelihood, lamb = pieces.likelihood_of(run, image), quantizer.lambs[table]
    chosen = [joint.choose(quantizer, mean, std, lamb, table, likelihood, steps) for steps in all_steps]
    return [likelihood(quantizer.dequantize(indices, table))[0] + lamb * quantizer.bits(indices, table).sum(dtype=np.float64)
            for indices in chosen]


@pytest.mark.parametrize("table", [3, 8, 11, 15])
def test_steps_lower_the_cost(shipped, china, table):
    costs = costs_of(shipped[1], shipped[0], china[20:116, :150], table, (0, 1, 4, 8))
    assert all(after < before for before, after in zip(costs, costs[1:])) and costs[-1] < .98 * costs[0]


@pytest.mark.parametrize("which", [0, 1])
def test_steps_never_raise_the_cost_of_a_model_that_is_hardly_trained(place, quantizers, china, which):
    """Its posterior is no guide to the likelihood: the first steps go too far."""
    for table in (0, 8, 15):
        costs = costs_of(quantizers[which], place, china[:, :251], table, (0, 1, 8, 16))
        assert all(after <= before * (1 + 1e-9) for before, after in zip(costs, costs[1:]))
        assert costs[-1] < costs[0] or table != 8


def test_a_likelihood_that_is_no_number_is_of_no_consequence(place, quantizers, china):
    quantizer = quantizers[1]
    mean, std = pieces.posterior(place, china[:64, :64])
    expected = joint.choose(quantizer, mean, std, 1., 8)
    for error in (np.nan, np.inf):
        found = joint.choose(quantizer, mean, std, 1., 8, lambda z: (error, np.full_like(z, np.nan)), 3)
        np.testing.assert_array_equal(found, expected)


def test_it_comes_near_the_best_of_all_choices():
    """A linear decoder of strongly dependent latents; all choices are tried."""
    random = np.random.default_rng(0)
    points = np.linspace(-1.5, 1.5, 7)[None].repeat(4, axis=0)
    counts = np.array([1, 5, 20, 60, 20, 5, 1])[None, None].repeat(4, axis=1)
    quantizer = ChannelwisePriorCDFQuantizer(points, [1.], np.ones((1, 4, 3), int), counts, 3, np.zeros((1, 4, 7), np.float16))
    lengths = quantizer.code_lengths(0)
    apart, together = [], []
    for _ in range(40):
        decoder = random.normal(size=(6, 4)) + 1.5
        x = decoder @ random.normal(size=4) * .7 + .1 * random.normal(size=6)

        def likelihood(z):
            error = decoder @ z.ravel() - x
            return 2 * error @ error, (4 * decoder.T @ error).reshape(z.shape)

        hessian = 4 * decoder.T @ decoder
        mean = np.linalg.solve(hessian + 1e-3 * np.eye(4), 4 * decoder.T @ x).astype(np.float32).reshape(1, 1, 4)
        std = (1 / np.sqrt(np.diag(hessian))).astype(np.float32).reshape(1, 1, 4)

        def total(indices):
            return likelihood(points[np.arange(4), indices])[0] + sum(lengths[np.arange(4), indices])

        best = min(total(np.array(choice)) for choice in itertools.product(range(7), repeat=4))
        apart.append(total(joint.choose(quantizer, mean, std, 1., 0).ravel()) - best)
        together.append(total(joint.choose(quantizer, mean, std, 1., 0, likelihood, 40).ravel()) - best)
    assert min(together) > -1e-4 and np.mean(together) < .35 * np.mean(apart)


def test_fitted_contexts_take_fewer_bits_of_what_they_are_fitted_to(quantizers):
    expected = utils.load_npz(os.path.join(GOLDEN, "expected.npz"))
    plain, adaptive = quantizers
    mean, std = expected["val_mean"], np.exp(.5 * expected["val_logvar"])
    for table in (4, 8, 12):
        indices = tree_search.quantize(plain, mean, std, plain.lambs[table], table)
        found = adaptive.contexts_at(table)
        assert isinstance(found, TableContexts)
        assert found.bits(indices, found.classes(indices)).sum() < plain.bits(indices, table).sum(dtype=np.float64)


# In files.


def test_files_with_contexts_and_steps(shipped, capsys, tmp_path, china):
    """The codec takes the quantizer with contexts; steps gain quality at hardly more bits."""
    run, _ = shipped
    source, file, back = (str(tmp_path / name) for name in ("china.png", "china.vbq", "back.png"))
    Image.fromarray(china[20:116, :150]).save(source)
    sizes, qualities = [], []
    for steps in ("0", "8"):
        assert codec.main(["compress", CHECKPOINTS, run.name, source, file, "--lamb", "2", "--joint_steps", steps]) == 0
        assert codec.main(["decompress", CHECKPOINTS, run.name, file, back]) == 0
        sizes.append(os.path.getsize(file))
        qualities.append(utils.ImageMetrics(utils.read_image(source)).evaluate(utils.read_image(back))["PSNR (RGB)"])
    assert qualities[1] > qualities[0] + .5 and sizes[1] < 1.1 * sizes[0]


def test_files_are_as_long_as_estimated_and_older_ones_are_still_read(place, china):
    run = place
    one = codec.codec_of(run)
    encoder = codec.Encoder(one, china, joint_steps=3)
    for table in range(0, 16, 3):
        compressed = encoder.compress(one.quantizer.lambs[table])
        header, indices = one.read(compressed.data)
        np.testing.assert_array_equal(indices, compressed.indices)
        assert header.table == table
        assert -8 <= len(compressed.data) - compressed.estimated_bits / 8 <= .005 * compressed.estimated_bits / 8 + 64
    plain = ChannelwisePriorCDFQuantizer.load(quantizer_path(run, ""))
    old = codec.Encoder(codec.Codec(run, plain), china).compress(1.).data
    assert codec.codec_of(run, old).quantizer.contexts is None and codec.decompress(old, run).shape == china.shape


def test_targets_are_reached_with_steps(place, china):
    encoder = codec.Encoder(codec.codec_of(place), china, joint_steps=2)
    low, high = (encoder.compress(lamb).bpp for lamb in (16., .1))
    target = (low * high)**.5
    found = encoder.search_bpp(target)
    assert .95 * target <= found.bpp <= target


def test_every_flipped_bit_of_a_stream_with_contexts_is_noticed(place, china):
    one = codec.codec_of(place)
    data = codec.Encoder(one, china[:48, :40]).compress(1.).data
    for bit in range(0, 8 * len(data), 7):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(utils.UserError):
            one.read(bytes(wrong))
        try:
            one.read(fuzz_codec.repair(bytes(wrong)))  # a CRC-32 that fits: a picture or one error
        except utils.UserError as error:
            assert len(str(error).splitlines()) == 1
