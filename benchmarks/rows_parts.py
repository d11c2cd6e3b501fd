"""The rows of single functions: quantizers, metrics, JPEG, and how soon a program answers."""

import io
import os
import statistics
import subprocess
import sys

import numpy as np
from measure import ROOT, Outcome, alternate, duration, row, seconds
from PIL import Image

import utils
from vbq.images import read_image
from vbq.metrics import METRIC_KEYS, ImageMetrics

QUALITIES = (1, 2, 4, 8, 12, 16, 32, 48, 64, 80, 90, 95)


@row(
    "channelwise",
    "channelwise quantizer, 16 lambdas, a 768 x 512 image, 256 channels",
    "a synthesis per lambda",
    ("<=", 0.3),
    "a search over all code points: the same for 99.99 % of the latents sampled, the same cost to 1e-5 for "
    "all",
)
def channelwise(inputs):
    from quantizers import Posterior

    run = inputs.load("large_run")
    quantizer = inputs.large_fits()[0].quantizer
    image = inputs.photograph(0, inputs.pick(768, 208), inputs.pick(512, 176))
    mean, logvar = run.encode(image[None])
    posterior = Posterior(mean[0], np.exp(0.5 * logvar[0]))

    def quantize():
        for lamb in quantizer.lambs:
            indices = quantizer.encode(posterior, lamb)
            quantizer.decode(indices, lamb)
            quantizer.bits(indices, lamb).sum(dtype=np.float64)
            quantizer.bit_length_bits(indices, lamb).sum(dtype=np.float64)

    def synthesize():
        for _ in quantizer.lambs:
            run.decode(mean)

    ours, synthesis = alternate(quantize, synthesize, inputs.pick(3, 1))
    equal = chooses_the_cheapest(quantizer, posterior, rows=inputs.pick(20, 10))
    return Outcome(duration(ours), duration(synthesis), ours / synthesis, equal)


def chooses_the_cheapest(quantizer, posterior, rows):
    """Whether the code points of some latent rows are those of a search over all code points."""
    import plain

    row_numbers = np.random.default_rng(0).integers(len(posterior.mean), size=rows)

    def by_channel(x):
        return x[row_numbers].reshape(-1, x.shape[-1]).T

    mean, std = by_channel(posterior.mean), by_channel(posterior.std)
    same, cost_equal = [], True
    for number, lamb in enumerate(quantizer.lambs):
        lengths = plain.choosing_lengths(quantizer.bit_length_counts[number])
        indices, costs = plain.best_code_points(quantizer.code_points, mean, std, lamb, lengths)
        found = by_channel(quantizer.encode(posterior, lamb))
        points = np.take_along_axis(quantizer.code_points, found, axis=1).astype(np.float64)
        found_costs = 0.5 * ((points - mean) / std) ** 2 + lamb * np.take_along_axis(lengths, found, axis=1)
        same.append(np.mean(found == indices))
        cost_equal &= np.allclose(found_costs, costs, rtol=1e-5, atol=1e-5)
    return bool(cost_equal and np.mean(same) >= 0.9999)


@row(
    "k-means",
    "k-means, 64 channels, 9 level counts, 200 crops of 256 x 256",
    "scikit-learn's KMeans(n_init=10), from three channels",
    (">=", 50),
    "inertia at most 1.001 times scikit-learn's best of ten, for each channel and level count of the sample",
)
def k_means(inputs):
    from quantizers import DEFAULT_LEVELS, KmeansQuantizer

    run = inputs.load("small_run")
    channels, levels = run.num_channels, inputs.pick(DEFAULT_LEVELS, (2, 8, 16))
    mean, _ = run.encode(inputs.crops(inputs.pick(200, 12)))
    samples = mean.reshape(-1, channels)
    fitted = {}
    ours = statistics.median(
        seconds(lambda: fitted.update(quantizer=KmeansQuantizer.fit(mean, levels)))
        for _ in range(inputs.pick(3, 1))
    )
    # The channels at the quartiles of spread.
    order = np.argsort(samples.std(axis=0))
    chosen = order[[channels // 4, channels // 2, 3 * channels // 4]] if not inputs.quick else order[-1:]
    inertias = {}
    theirs = seconds(lambda: inertias.update(scikit_learn_inertias(samples, chosen, levels)))
    theirs *= channels / len(chosen)

    def inertia(c, k):
        points = fitted["quantizer"].code_points[k][c].astype(np.float64)
        boundaries = (points[1:] + points[:-1]) / 2
        x = samples[:, c].astype(np.float64)
        return np.sum((x - points[np.searchsorted(boundaries, x)]) ** 2)

    equal = all(inertia(c, k) <= 1.001 * best for (c, k), best in inertias.items())
    return Outcome(duration(ours), duration(theirs), theirs / ours, bool(equal))


def scikit_learn_inertias(samples, channels, levels):
    """Inertias of scikit-learn's best of ten starts: dict by channel and number of levels."""
    from sklearn.cluster import KMeans

    return {
        (c, k): KMeans(k, n_init=10, random_state=0).fit(samples[:, [c]].astype(np.float64)).inertia_
        for c in channels
        for k in levels
    }


@row(
    "metrics",
    "all metrics, three modes, of a 752 x 496 reconstruction",
    "double precision with 11 x 11 windows",
    (">=", 20),
    "every figure to 1e-6",
)
def metrics(inputs):
    import plain_metrics

    image = inputs.photograph(0, inputs.pick(752, 208), inputs.pick(496, 176))
    _, reconstruction = as_jpeg(image, 20)
    prepared = ImageMetrics(image)  # once for all reconstructions of an image
    results = {}
    ours, plain = alternate(
        lambda: results.update(ours=prepared.evaluate(reconstruction)),
        lambda: results.update(plain=plain_metrics.metrics(image, reconstruction)),
        inputs.pick(5, 1),
    )
    equal = all(abs(results["ours"][key] - results["plain"][key]) <= 1e-6 for key in METRIC_KEYS)
    return Outcome(duration(ours), duration(plain), plain / ours, bool(equal))


def as_jpeg(image, quality):
    """Pillow's JPEG of an image, uint8 [H, W, 3]: its size in bytes, and the decoded pixels."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.tell(), np.asarray(Image.open(file))


@row(
    "jpeg",
    "evaluate_compression_jpg, 12 qualities, a 752 x 496 crop",
    "Pillow's encoding and decoding of them",
    ("<=", 15),
    "bits to the byte, and every figure to 1e-6, against the plain metrics at two qualities",
)
def jpeg(inputs):
    import plain_metrics

    path = inputs.test_images(1)[0]
    image = read_image(path)
    results = {}
    ours, pillow = alternate(
        lambda: results.update(utils.evaluate_compression_jpg(path, QUALITIES)),
        lambda: [as_jpeg(image, quality) for quality in QUALITIES],
        inputs.pick(7, 2),
    )
    equal = True
    for i in (1, 8):
        size, reconstruction = as_jpeg(image, QUALITIES[i])
        expected = plain_metrics.metrics(image, reconstruction)
        expected["BPP"] = 8 * size / (image.shape[0] * image.shape[1])
        equal &= all(abs(results[key][i] - value) <= 1e-6 for key, value in expected.items())
    return Outcome(duration(ours), duration(pillow), ours / pillow, bool(equal))


@row(
    "help",
    "--help, the slowest of the programs",
    "half a second",
    ("<=", 1),
    "it exits with 0, and importing utils loads no TensorFlow",
)
def help_time(inputs):
    times, equal = [], True
    for name in ("bls2017_vae.py", "post_process.py", "codec.py"):

        def answers(name=name):
            command = [sys.executable, os.path.join(ROOT, name), "--help"]
            done = subprocess.run(command, capture_output=True, check=False)
            return done.returncode == 0 and b"usage" in done.stdout

        equal &= answers()
        times.append(statistics.median(seconds(answers) for _ in range(inputs.pick(5, 1))))
    code = "import sys, utils; sys.exit('tensorflow' in sys.modules)"
    equal &= subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    return Outcome(duration(max(times)), "0.5 s", max(times) / 0.5, bool(equal))
