"""The rows of single functions: quantizers, metrics, JPEG, and how soon a program answers."""

import io
import os
import statistics
import subprocess
import sys

import numpy as np
from PIL import Image

import utils
from measure import ROOT, Outcome, alternate, duration, row, seconds

QUALITIES = (1, 2, 4, 8, 12, 16, 32, 48, 64, 80, 90, 95)


@row("channelwise", "channelwise quantizer, 16 lambdas, a 768 x 512 image, 256 channels", "a synthesis per lambda", ("<=", .3),
     "a search over all code points: the same for 99.99 % of the latents sampled, the same cost to 1e-5 for all")
def channelwise(inputs):
    import plain
    import post_process
    run = inputs.load("large_run")
    quantizer = inputs.large_quantizers()[post_process.Settings().names[0]]
    image = inputs.photograph(0, inputs.pick(768, 208), inputs.pick(512, 176))
    mean, logvar = run.encode(image[None])
    std = np.exp(.5 * logvar)

    def quantize():
        return sum(1 for _ in post_process.quantize(quantizer, mean, std))

    def synthesize():
        for _ in quantizer.lambs:
            run.decode(mean)

    ours, synthesis = alternate(quantize, synthesize, inputs.pick(3, 1))

    prepared = quantizer.prepare(mean, std)
    position = np.random.default_rng(0).integers(mean.shape[1], size=inputs.pick(20, 10))
    same, cost_equal = [], True
    mean_of, std_of = (x[0, position].reshape(-1, run.num_channels).T for x in (mean, std))
    for table, lamb in enumerate(quantizer.lambs):
        bits = plain.bit_lengths(quantizer.max_bits)
        lengths = (np.arange(quantizer.max_bits + 1) + plain.smoothed_lengths(quantizer.bit_length_counts[table]))[:, bits]
        indices, costs = plain.best_code_points(quantizer, mean_of, std_of, lamb, lengths)
        found = quantizer.choose(prepared, lamb)[0, position].reshape(-1, run.num_channels).T
        points = np.take_along_axis(quantizer.code_points, found, axis=1).astype(np.float64)
        found_costs = .5 * ((points - mean_of) / std_of)**2 + lamb * np.take_along_axis(lengths, found, axis=1)
        same.append(np.mean(found == indices))
        cost_equal &= np.allclose(found_costs, costs, rtol=1e-5, atol=1e-5)
    return Outcome(duration(ours), duration(synthesis), ours / synthesis, bool(cost_equal and np.mean(same) >= .9999))


@row("k-means", "k-means, 64 channels, 9 level counts, 200 crops of 256 x 256",
     "scikit-learn's KMeans(n_init=10), from three channels", (">=", 50),
     "inertia at most 1.001 times scikit-learn's best of ten, for each channel and level count of the sample")
def k_means(inputs):
    from sklearn.cluster import KMeans
    from quantizers import DEFAULT_LEVELS, KmeansQuantizer
    run = inputs.load("small_run")
    channels, levels = run.num_channels, inputs.pick(DEFAULT_LEVELS, (2, 8, 16))
    mean, _ = run.encode(inputs.crops(inputs.pick(200, 12)))
    samples = mean.reshape(-1, channels)
    fitted = {}
    ours = statistics.median(seconds(lambda: fitted.update(quantizer=KmeansQuantizer.fit(mean, levels)))
                             for _ in range(inputs.pick(3, 1)))
    # The channels at the quartiles of spread.
    order = np.argsort(samples.std(axis=0))
    chosen = order[[channels // 4, channels // 2, 3 * channels // 4]] if not inputs.quick else order[-1:]
    inertias = {}

    def scikit_learn():
        for c in chosen:
            for k in levels:
                inertias[c, k] = KMeans(k, n_init=10, random_state=0).fit(samples[:, [c]].astype(np.float64)).inertia_

    theirs = seconds(scikit_learn) * channels / len(chosen)

    def inertia(c, k):
        points = fitted["quantizer"].code_points[k][c].astype(np.float64)
        boundaries = (points[1:] + points[:-1]) / 2
        x = samples[:, c].astype(np.float64)
        return np.sum((x - points[np.searchsorted(boundaries, x)])**2)

    equal = all(inertia(c, k) <= 1.001 * best for (c, k), best in inertias.items())
    return Outcome(duration(ours), duration(theirs), theirs / ours, bool(equal))


@row("metrics", "all metrics, three modes, of a 752 x 496 reconstruction", "double precision with 11 x 11 windows", (">=", 20),
     "every figure to 1e-6")
def metrics(inputs):
    import plain_metrics
    image = inputs.photograph(0, inputs.pick(752, 208), inputs.pick(496, 176))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=20)
    reconstruction = np.asarray(Image.open(file))
    prepared = utils.ImageMetrics(image)  # once for all reconstructions of an image
    results = {}
    ours, plain = alternate(lambda: results.update(ours=prepared.evaluate(reconstruction)),
                            lambda: results.update(plain=plain_metrics.metrics(image, reconstruction)), inputs.pick(5, 1))
    equal = all(abs(results["ours"][key] - results["plain"][key]) <= 1e-6 for key in utils.METRIC_KEYS)
    return Outcome(duration(ours), duration(plain), plain / ours, bool(equal))


@row("jpeg", "evaluate_compression_jpg, 12 qualities, a 752 x 496 crop", "Pillow's encoding and decoding of them", ("<=", 15),
     "bits to the byte, and every figure to 1e-6, against the plain metrics at two qualities")
def jpeg(inputs):
    import plain_metrics
    path = inputs.test_images(1)[0]
    image = utils.read_image(path)

    def compress(quality):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return file.tell(), np.asarray(Image.open(file))

    results = {}
    ours, pillow = alternate(lambda: results.update(utils.evaluate_compression_jpg(path, QUALITIES)),
                             lambda: [compress(quality) for quality in QUALITIES], inputs.pick(7, 2))
    equal = True
    for i in (1, 8):
        size, reconstruction = compress(QUALITIES[i])
        expected = {"BPP": 8 * size / (image.shape[0] * image.shape[1]), **plain_metrics.metrics(image, reconstruction)}
        equal &= all(abs(results[key][i] - value) <= 1e-6 for key, value in expected.items())
    return Outcome(duration(ours), duration(pillow), ours / pillow, bool(equal))


@row("help", "--help, the slowest of the programs", "half a second", ("<=", 1),
     "it exits with 0, and importing utils loads no TensorFlow")
def help_time(inputs):
    times, equal = [], True
    for name in ("bls2017_vae.py", "post_process.py", "codec.py"):
        def answer():
            done = subprocess.run([sys.executable, os.path.join(ROOT, name), "--help"], capture_output=True, check=False)
            return done.returncode == 0 and b"usage" in done.stdout
        equal &= answer()
        times.append(statistics.median(seconds(answer) for _ in range(inputs.pick(5, 1))))
    code = "import sys, utils; sys.exit('tensorflow' in sys.modules)"
    equal &= subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    return Outcome(duration(max(times)), "0.5 s", max(times) / .5, bool(equal))
