"""The rows of `post_process.py`: evaluation, fitting, the whole program, its memory, and how its time grows."""

import argparse
import os
import statistics

import numpy as np

import utils
from measure import Outcome, alternate, duration, peak_memory, quiet, row, run_child, seconds

ORIGINAL = 1639  # seconds of the original program, see the row "whole"
GIGABYTE = 1e9


def run_post_process(inputs, *arguments):
    """Runs the program in a process of its own (quick: in this one) and returns the most memory that it had, in bytes."""
    if not inputs.quick:
        return run_child("import post_process, utils\nstatus = utils.run_main(post_process.main, sys.argv[2:])\n"
                         "report()\nsys.exit(status)", *arguments)["peak"]
    import post_process
    with quiet():
        post_process.main(list(map(str, arguments)))
    return peak_memory()


def evaluate(run, quantizers, paths, folder):
    """The program's evaluation, with the writing of its files."""
    import post_process
    with quiet():
        results = post_process.evaluate(run, quantizers, paths)
    for name, arrays in results.items():
        utils.save_npz(os.path.join(folder, name + "-results.npz"), arrays)
    return results


def some_settings(quantizers, inputs):
    """A few settings of each quantizer, by number, to check."""
    return {name: [3, 12] if hasattr(quantizer, "lambs") else [inputs.pick(4, 2)] for name, quantizer in quantizers.items()}


def evaluation(inputs, kind, quantizers, count):
    """Outcome of the evaluation of some images against the synthesis alone, image by image in turns."""
    import plain
    import post_process
    run = inputs.load(kind)
    paths = inputs.test_images(count)
    settings = sum(len(post_process.settings_of(quantizer)) for quantizer in quantizers.values())
    latents = run.encode(utils.read_image(paths[0])[None])[0]

    def synthesize():
        for _ in range(settings):
            run.decode(latents)

    evaluate(run, quantizers, paths[:1], inputs.folder)
    times, parts = [], []
    for path in paths:
        evaluation_time = seconds(lambda: parts.append(evaluate(run, quantizers, [path], inputs.folder)))
        times.append((evaluation_time, seconds(synthesize)))
    ours, synthesis = (statistics.median(column) * 24 for column in zip(*times))
    equal = plain.same_evaluation(run, quantizers, parts[0], paths[0], 0, some_settings(quantizers, inputs))
    return Outcome(duration(ours), duration(synthesis), ours / synthesis, equal)


CHECK = ("bits, bits per pixel and all metrics at four settings, against a search over all code points, the layers as they "
         "come and the plain metrics, to 1e-4")


@row("evaluation-256", "evaluation of 24 Kodak crops at 34 settings, 256 filters (from 3 crops)", "the synthesis alone",
     ("<=", 2), CHECK)
def evaluation_256(inputs):
    return evaluation(inputs, "large_run", inputs.large_quantizers(), inputs.pick(3, 1))


@row("evaluation-64", "the same with 64 filters (from 6 crops)", "the synthesis alone", ("<=", 4), CHECK)
def evaluation_64(inputs):
    return evaluation(inputs, "small_run", inputs.quantizers("small_run", inputs.pick(20, 4)), inputs.pick(6, 1))


@row("fitting", "all fitting, 64 channels, 200 crops of 256 x 256", "the evaluation with 64 filters", ("<=", .5),
     "the prior's CDF at all code points to 1e-6; both passes' counts for three lambdas, against a search over all code "
     "points, to 1e-4 of the samples; the bins of the uniform quantizer")
def fitting(inputs):
    import post_process
    from priors import DeepFactorizedPrior
    run = inputs.load("small_run")
    validation = post_process.Validation(inputs.crops(inputs.pick(200, 12)), "crops")
    run.encode(validation.images[:4])
    fits = []
    fit_time = statistics.median(seconds(lambda: fits.append(post_process.fit(run, validation, post_process.Settings())))
                                 for _ in range(inputs.pick(3, 1)))
    evaluations = []
    paths = inputs.test_images(inputs.pick(4, 1))
    evaluate(run, fits[-1], paths[:1], inputs.folder)
    for path in paths:
        evaluations.append(seconds(lambda: evaluate(run, fits[-1], [path], inputs.folder)))
    evaluation_time = 24 * statistics.median(evaluations)

    channelwise, _, uniform = fits[-1].values()
    prior = DeepFactorizedPrior.from_arrays(utils.load_npz(os.path.join(run.path, "prior.npz")))
    probabilities = np.arange(1, channelwise.code_points.shape[1] + 1) / (channelwise.code_points.shape[1] + 1)
    equal = np.abs(prior.cdf(channelwise.code_points) - probabilities).max() <= 1e-6
    mean, logvar = run.encode(validation.images)
    equal &= same_counts(channelwise, mean.reshape(-1, run.num_channels), np.exp(.5 * logvar).reshape(-1, run.num_channels))
    low, high = mean.min(axis=(0, 1, 2)), mean.max(axis=(0, 1, 2))
    for k in uniform.levels:
        expected = np.linspace(low, high, 2 * k + 1, axis=1)[:, 1::2]
        equal &= np.allclose(uniform.code_points[k], expected, rtol=1e-5, atol=1e-5)
    return Outcome(duration(fit_time), duration(evaluation_time), fit_time / evaluation_time, bool(equal))


def same_counts(quantizer, mean, std, tables=(2, 8, 14)):
    """Whether the counts of some tables, for the channel of the largest spread, are those of a plain search."""
    import plain
    c = int(np.argmax(mean.std(axis=0)))
    one = type(quantizer)(quantizer.code_points[[c]], quantizer.lambs, quantizer.bit_length_counts[:, [c]],
                          quantizer.index_counts[:, [c]])
    bits = plain.bit_lengths(quantizer.max_bits)
    for table in tables:
        lamb = quantizer.lambs[table]
        indices, _ = plain.best_code_points(one, mean[:, [c]].T, std[:, [c]].T, lamb, bits[None])
        bit_counts = np.bincount(bits[indices[0]], minlength=quantizer.max_bits + 1)
        lengths = (np.arange(quantizer.max_bits + 1) + plain.smoothed_lengths(bit_counts))[None, bits]
        indices, _ = plain.best_code_points(one, mean[:, [c]].T, std[:, [c]].T, lamb, lengths)
        counts = np.bincount(indices[0], minlength=len(bits))
        pairs = (quantizer.bit_length_counts[table, c], bit_counts), (quantizer.index_counts[table, c], counts)
        for found, expected in pairs:
            if np.abs(found - expected).sum() > max(2e-4 * len(mean), 2):
                return False
    return True


@row("whole", "the whole of post_process.py: 64 filters, 60 crops of 256 x 256, three images",
     "the original, measured as 1639 s on a 2-core machine", (">=", 50),
     CHECK + "; two shards, merged, give the same files")
def whole(inputs):
    import plain
    import post_process
    checkpoint_dir, runname = inputs.copy_run("small_run", "whole")
    run_dir = os.path.join(checkpoint_dir, runname)
    paths = inputs.test_images(3)
    pattern = os.path.join(os.path.dirname(paths[0]), "*.png")
    arguments = [checkpoint_dir, runname, inputs.crops_file(inputs.pick(60, 4)), pattern]
    time = seconds(lambda: run_post_process(inputs, *arguments))

    names = post_process.Settings().names
    results = {name: utils.load_npz(post_process.results_path(run_dir, name)) for name in names}
    run = inputs.load("small_run")
    quantizers, _ = post_process.load_fit(run_at(run, run_dir), post_process.Settings())
    equal = plain.same_evaluation(run, quantizers, results, paths[1], 1, some_settings(quantizers, inputs))
    for more in (["--shard", "1/2"], ["--shard", "2/2"], ["--merge", "2"]):
        run_post_process(inputs, *arguments, *more)
    for name in names:
        merged = utils.load_npz(post_process.results_path(run_dir, name))
        equal &= merged.keys() == results[name].keys() and all(
            np.array_equal(merged[key], value) for key, value in results[name].items())
    return Outcome(duration(time), f"{ORIGINAL} s", ORIGINAL / time, bool(equal))


def run_at(run, path):
    """What `post_process.load_fit` needs to know of a run, for a copy of it."""
    return argparse.Namespace(path=path, fingerprint=run.fingerprint)


# Memory.

def peak_of_post_process(inputs, source, crops, paths, settings, all_metrics):
    """The outcome of a memory row: runs the program in a process of its own, and checks some of what it wrote."""
    import plain
    import post_process
    checkpoint_dir, runname = inputs.copy_run(source, f"memory-{source}")
    run_dir = os.path.join(checkpoint_dir, runname)
    pattern = os.path.join(os.path.dirname(paths[0]), "*.png")
    peak = run_post_process(inputs, checkpoint_dir, runname, inputs.crops_file(crops), pattern)
    run = inputs.load(source)
    quantizers, _ = post_process.load_fit(run_at(run, run_dir), post_process.Settings())
    results = {name: utils.load_npz(post_process.results_path(run_dir, name)) for name in quantizers}
    chosen = {name: numbers for name, numbers in zip(quantizers, settings)}
    equal = plain.same_evaluation(run, quantizers, results, paths[0], 0, chosen, all_metrics)
    return Outcome(f"{peak / GIGABYTE:.2f} GB", "6 GB", peak / (6 * GIGABYTE), equal)


@row("memory-validation", "peak memory of post_process.py, 256 filters, 500 crops of 256 x 256, 2 Kodak crops", "6 GB",
     ("<=", 1), "as evaluation-256, at three settings")
def memory_validation(inputs):
    # Test images are taken one at a time, so that two are as large as 24.
    paths = inputs.test_images(inputs.pick(2, 1))
    return peak_of_post_process(inputs, "large_run", inputs.pick(500, 4), paths, ([8], [3], [3]), True)


@row("memory-image", "peak memory of post_process.py, 64 filters, one 4000 x 3000 image, 34 settings", "6 GB", ("<=", 1),
     "bits and RGB MSE at two settings, plainly, to 1e-4")
def memory_image(inputs):
    paths = inputs.test_images(1, inputs.pick(4000, 400), inputs.pick(3000, 300), "large")
    return peak_of_post_process(inputs, "small_run", inputs.pick(20, 4), paths, ([], [2], [1]), False)


# Time against work.


def fit_and_evaluate(run, validation, paths, settings, folder):
    """All that `post_process.py` computes: the fit, and the evaluation."""
    import post_process
    quantizers = post_process.fit(run, validation, settings)
    return quantizers, evaluate(run, quantizers, paths, folder)


def doubling(inputs, small, large, same):
    """The outcome of a row: times of two `fit_and_evaluate`, given as arguments, and of `same` on their results."""
    results = {}
    def measured(name, arguments):
        return lambda: results.update({name: fit_and_evaluate(*arguments, inputs.folder)})
    one, two = alternate(measured("small", small), measured("large", large), inputs.pick(3, 1), warm_up=not inputs.quick)
    return Outcome(duration(two), duration(one), two / one, bool(same(results["small"], results["large"])))


def sizes(inputs):
    """Crops, test images and settings of the smaller of two runs: the rows' time is that of the work, not of constants."""
    import post_process
    crops = inputs.pick(40, 6)
    levels, lambs = inputs.pick((4, 16, 64), (2, 4)), tuple(2. ** np.linspace(-8, 7, inputs.pick(4, 2)))
    return crops, inputs.pick(2, 1), post_process.Settings(levels=levels, lambs=lambs)


def crops_of(inputs, *size):
    import post_process
    return post_process.Validation(inputs.crops(*size), "crops")


def same_results(first, second, images=slice(None), settings=slice(None)):
    """Whether the figures in the first result, of all quantizers that both have, are some of those in the second."""
    import post_process
    return all(np.allclose(arrays[key], second[name][key][images, settings if "Channelwise" in name else slice(None)])
               for name, arrays in first.items() for key in post_process.MEASURES)


@row("double-images", "time with twice the crops and images", "the time with half of them", ("<=", 2.2),
     "with the same fit, the images that both have get the same figures")
def double_images(inputs):
    crops, images, settings = sizes(inputs)
    run = inputs.load("small_run")
    paths = inputs.test_images(2 * images)

    def same(small, large):
        return same_results(evaluate(run, large[0], paths[:images], inputs.folder), large[1], slice(images))
    return doubling(inputs, (run, crops_of(inputs, crops), paths[:images], settings),
                    (run, crops_of(inputs, 2 * crops), paths, settings), same)


@row("double-lambdas", "time with twice the lambdas", "the time with half of them", ("<=", 2.2),
     "the lambdas that both have get the same figures")
def double_lambdas(inputs):
    import post_process
    crops, images, settings = sizes(inputs)
    count = inputs.pick(16, 4)
    lambs = tuple(2. ** np.linspace(-8, 7, count))
    arguments = inputs.load("small_run"), crops_of(inputs, crops), inputs.test_images(images)

    def with_lambs(some):
        return (*arguments, post_process.Settings(lambs=some, levels=settings.levels[:1]))
    return doubling(inputs, with_lambs(lambs[::2]), with_lambs(lambs),
                    lambda small, large: same_results(small[1], large[1], settings=slice(None, None, 2)))


@row("double-pixels", "time with twice the pixels in every crop and image", "the time with half of them", ("<=", 2.2),
     "as evaluation-64, at three settings")
def double_pixels(inputs):
    import plain
    crops, images, settings = sizes(inputs)
    run = inputs.load("small_run")
    side = inputs.pick(256, 64)
    wide = inputs.test_images(images, inputs.pick(752, 416))
    narrow = inputs.test_images(images, inputs.pick(376, 208))

    def same(small, large):
        return plain.same_evaluation(run, *large, wide[0], 0, {name: [1] for name in large[0]})
    return doubling(inputs, (run, crops_of(inputs, crops, side, side // 2), narrow, settings),
                    (run, crops_of(inputs, crops, side, side), wide, settings), same)


@row("double-channels", "time with 128 latent channels in place of 64", "the time with 64", ("<=", 2.2),
     "the fits of the first half of the channels, against a fit to these alone")
def double_channels(inputs):
    crops, images, settings = sizes(inputs)
    filters = inputs.pick(64, 8)
    runs = [inputs.load_filters((filters, filters, channels)) for channels in (filters, 2 * filters)]
    validation, paths = crops_of(inputs, crops), inputs.test_images(images)
    return doubling(inputs, *((run, validation, paths, settings) for run in runs),
                    lambda small, large: same_fit_of_half(runs[1], validation, settings, large[0]))


def same_fit_of_half(run, validation, settings, fitted):
    """Whether quantizers fitted to all channels are, in their first half, those that are fitted to this half alone."""
    import quantizers
    mean, logvar = run.encode(validation.images)
    half = run.num_channels // 2
    mean, std = mean[..., :half], np.exp(.5 * logvar[..., :half])
    channelwise, kmeans, uniform = fitted.values()
    alone = quantizers.ChannelwisePriorCDFQuantizer.fit(channelwise.code_points[:half], mean, std, settings.lambs)
    equal = np.array_equal(alone.index_counts, channelwise.index_counts[:, :half])
    for kind, whole_fit in ((quantizers.KmeansQuantizer, kmeans), (quantizers.UniformQuantizer, uniform)):
        alone = kind.fit(mean, settings.levels)
        equal &= all(np.array_equal(alone.code_points[k], whole_fit.code_points[k][:half]) for k in settings.levels)
    return equal
