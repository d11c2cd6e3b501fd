"""Refinement with the decoder in the loop: the cost never rises, and it finds what latents alone do not."""

import itertools
import os

import numpy as np
import pytest
from codec_runs import copy_of, golden_fit, make_run
from PIL import Image
from shipped import CHECKPOINTS, RUN

import codec
from quantizers import ChannelwisePriorCDFQuantizer, Posterior
from vbq import joint, tiling
from vbq.images import read_image
from vbq.runs import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The golden run, with a fit of four passes with contexts."""
    return make_run(tmp_path_factory.mktemp("runs"), passes=4, contexts=True)


@pytest.fixture(scope="module")
def quantizers():
    """Fits of four passes to the golden latents, without contexts and with them."""
    adaptive = golden_fit(passes=4, contexts=True)
    return copy_of(adaptive, contexts=None), adaptive


@pytest.fixture(scope="module")
def shipped():
    """The better run that ships and its best quantizer."""
    run = load_run(CHECKPOINTS, RUN)
    quantizer = codec.codec_of(run).quantizer
    assert quantizer.description == "20 passes, contexts, gains"
    return run, quantizer


def posterior_of(run, image):
    return Posterior(*tiling.encode(run, image), tiling.likelihood(run, image))


def costs_of(quantizer, run, image, lamb_index, all_steps):
    """-log p(x | z) + lamb * bits after some numbers of steps."""
    posterior, lamb = posterior_of(run, image), quantizer.lambs[lamb_index]
    costs = []
    for steps in all_steps:
        indices = quantizer.encode(posterior, lamb, steps)
        distortion, _ = posterior.likelihood(quantizer.decode(indices, lamb), quantizer.decoder_gains(lamb))
        costs.append(distortion + lamb * quantizer.bits(indices, lamb).sum(dtype=np.float64))
    return costs


def test_without_steps_the_likelihood_is_not_asked(run, quantizers, china):
    posterior = posterior_of(run, china[:64, :64])
    for quantizer in quantizers:
        for lamb in quantizer.lambs[::5]:
            np.testing.assert_array_equal(
                quantizer.encode(posterior._replace(likelihood=None), lamb),
                quantizer.encode(posterior, lamb),
            )


@pytest.mark.slow
@pytest.mark.parametrize("lamb_index", [3, 8, 11, 15])
def test_steps_lower_the_cost(shipped, china, lamb_index):
    run, quantizer = shipped
    costs = costs_of(quantizer, run, china, lamb_index, (0, 1, 4, 8))
    assert all(after < before for before, after in zip(costs, costs[1:])) and costs[-1] < 0.985 * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_steps_never_raise_the_cost_of_a_model_that_is_hardly_trained(run, quantizers, china, which):
    """Its posterior is no guide to the likelihood: the first steps go too far."""
    for lamb_index in (0, 8, 15):
        costs = costs_of(quantizers[which], run, china[:, :251], lamb_index, (0, 1, 8, 16))
        assert all(after <= before * (1 + 1e-9) for before, after in zip(costs, costs[1:]))
        assert costs[-1] < costs[0] or lamb_index != 8


def test_a_likelihood_that_is_not_a_number_changes_nothing(run, quantizers, china):
    quantizer = quantizers[1]
    posterior = posterior_of(run, china[:64, :64])
    expected = quantizer.codebook(8).quantize(posterior, 1.0)
    for error in (np.nan, np.inf):
        wrong = posterior._replace(likelihood=lambda z, error=error: (error, np.full_like(z, np.nan)))
        np.testing.assert_array_equal(quantizer.codebook(8).quantize(wrong, 1.0, 3), expected)


@pytest.mark.slow
def test_it_comes_near_the_best_of_all_choices():
    """A linear decoder of strongly dependent latents; all choices are tried."""
    random = np.random.default_rng(0)
    points = np.linspace(-1.5, 1.5, 7)[None].repeat(4, axis=0)
    counts = np.array([1, 5, 20, 60, 20, 5, 1])[None, None].repeat(4, axis=1)
    shifts = np.zeros((1, 4, 7), np.float16)
    quantizer = ChannelwisePriorCDFQuantizer(points, [1.0], np.ones((1, 4, 3), int), counts, 3, shifts)
    lengths = quantizer.codebook(0).lengths
    apart, together = [], []
    for _ in range(40):
        decoder = random.normal(size=(6, 4)) + 1.5
        x = decoder @ random.normal(size=4) * 0.7 + 0.1 * random.normal(size=6)

        def likelihood(z, decoder=decoder, x=x):
            error = decoder @ z.ravel() - x
            return 2 * error @ error, (4 * decoder.T @ error).reshape(z.shape)

        hessian = 4 * decoder.T @ decoder
        mean = np.linalg.solve(hessian + 1e-3 * np.eye(4), 4 * decoder.T @ x)
        std = 1 / np.sqrt(np.diag(hessian))
        latents = [y.astype(np.float32).reshape(1, 1, 4) for y in (mean, std)]
        posterior = Posterior(*latents, likelihood)

        def total(indices, likelihood=likelihood):
            chosen = np.arange(4), indices
            return likelihood(points[chosen])[0] + sum(lengths[chosen])

        best = min(total(np.array(choice)) for choice in itertools.product(range(7), repeat=4))
        apart.append(total(quantizer.codebook(0).quantize(posterior, 1.0).ravel()) - best)
        together.append(total(quantizer.codebook(0).quantize(posterior, 1.0, 40).ravel()) - best)
    assert min(together) > -1e-4 and np.mean(together) < 0.35 * np.mean(apart)


def test_a_position_that_overshoots_takes_smaller_steps(monkeypatch):
    """At one position, only the sum of 20 latents matters, and each of them corrects its whole error. The
    cost of all others is so large that the cost of the picture does not show it.
    """
    channels, random = 20, np.random.default_rng(0)
    points = np.linspace(-3, 3, 127)[None].repeat(channels, axis=0)
    counts = np.ones((1, channels, 127), int)
    quantizer = ChannelwisePriorCDFQuantizer(
        points, [1.0], np.ones((1, channels, 7), int), counts, 3, np.zeros(counts.shape, np.float16)
    )
    mean = random.normal(size=(1, 1, channels)).astype(np.float32)
    std = np.full_like(mean, 0.1)

    def likelihood(z):
        error = ((z - mean) / std).sum() - 7
        return 1e6 + error**2 / 2, error / std

    def cost():
        indices = quantizer.codebook(0).quantize(Posterior(mean, std, likelihood), 1.0, 8)
        return likelihood(quantizer.decode(indices, 1.0))[0] - 1e6

    found = cost()
    monkeypatch.setattr(joint, "SAFE_SIZE", joint.STEP_SIZE)
    assert found < 0.1 * cost()


@pytest.mark.slow
def test_files_with_contexts_and_steps(shipped, capsys, tmp_path, china):
    """The codec takes the best quantizer; steps gain quality and hardly take more bits."""
    run, _ = shipped
    source, file, back = (str(tmp_path / name) for name in ("china.png", "china.vbq", "back.png"))
    Image.fromarray(china[20:116, :150]).save(source)
    sizes, qualities = [], []
    for steps in ("0", "8"):
        options = ["--lamb", "2", "--joint_steps", steps]
        assert codec.main(["compress", CHECKPOINTS, run.name, source, file, *options]) == 0
        assert codec.main(["decompress", CHECKPOINTS, run.name, file, back]) == 0
        sizes.append(os.path.getsize(file))
        error = np.subtract(read_image(source), read_image(back), dtype=np.float64)
        qualities.append(-10 * np.log10(np.mean(np.square(error / 255))))
    assert qualities[1] > qualities[0] + 0.5 and sizes[1] < 1.1 * sizes[0]
