"""The rows of `post_process.py`: evaluation, fitting, and the whole program."""

import os
import statistics

import numpy as np
from inputs import saved_fits
from measure import Outcome, duration, peak_memory, quiet, row, run_child, seconds

from quantizers import QUANTIZERS
from vbq.files import load_npz, save_npz
from vbq.fits import FitOptions
from vbq.images import read_image
from vbq.results import results_path

ORIGINAL = 1639  # seconds of the original program, see the row "whole"


def run_post_process(inputs, *arguments):
    """Runs the program in a child process (quick: in this one) and returns its peak memory in bytes."""
    if not inputs.quick:
        code = (
            "import post_process\n"
            "from vbq.command import run_main\n"
            "status = run_main(post_process.main, sys.argv[2:])\n"
            "report()\n"
            "sys.exit(status)"
        )
        return run_child(code, *arguments)["peak"]
    import post_process

    with quiet():
        post_process.main(list(map(str, arguments)))
    return peak_memory()


def fit(run, validation, options):
    """Makes and saves all fits, as the program does; returns them."""
    import post_process

    with quiet():
        return post_process.fit_or_load(run, validation, options, rebuild=True)


def evaluate(run, fits, options, paths, folder):
    """Evaluates images and writes the result files, as the program does; returns their arrays, by fits."""
    from vbq import evaluation

    with quiet():
        results = evaluation.evaluate(run, fits, options, paths)
    for one, arrays in zip(fits, results):
        save_npz(os.path.join(folder, one.name + "-results.npz"), arrays)
    return results


def some_settings(inputs):
    """Numbers of settings to check, by `QUANTIZERS`: two for that of the paper, one for each other."""
    return [[3, 12], *[[inputs.pick(4, 2)]] * (len(QUANTIZERS) - 1)]


def saved_results(run_dir):
    """The arrays of the program's result files at the default options, in the order of `QUANTIZERS`."""
    return [load_npz(results_path(run_dir, kind.result_name(FitOptions(), 0))) for kind in QUANTIZERS]


def compare_evaluation(inputs, kind, fits, count):
    """Compares the evaluation of some images with the synthesis alone, in turns by image: an Outcome."""
    import plain

    run, options = inputs.load(kind), FitOptions()
    paths = inputs.test_images(count)
    settings = sum(len(one.quantizer.settings_of(options)) for one in fits)
    latents = run.encode(read_image(paths[0])[None])[0]

    def synthesize():
        for _ in range(settings):
            run.decode(latents)

    evaluate(run, fits, options, paths[:1], inputs.folder)
    times, parts = [], []
    for path in paths:
        ours = seconds(lambda path=path: parts.append(evaluate(run, fits, options, [path], inputs.folder)))
        times.append((ours, seconds(synthesize)))
    ours, synthesis = (statistics.median(column) * 24 for column in zip(*times))
    equal = plain.same_evaluation(run, fits, parts[0], paths[0], 0, some_settings(inputs))
    return Outcome(duration(ours), duration(synthesis), ours / synthesis, equal)


CHECK = (
    "bits, bits per pixel and all metrics at four settings, against a search over all code points, the "
    "layers of tensorflow-compression and the plain metrics, to 1e-4"
)


@row(
    "evaluation-256",
    "evaluation of 24 Kodak crops at 34 settings, 256 filters (from 3 crops)",
    "the synthesis alone",
    ("<=", 2),
    CHECK,
)
def evaluation_256(inputs):
    return compare_evaluation(inputs, "large_run", inputs.large_fits(), inputs.pick(3, 1))


@row("evaluation-64", "the same with 64 filters (from 6 crops)", "the synthesis alone", ("<=", 4), CHECK)
def evaluation_64(inputs):
    return compare_evaluation(
        inputs, "small_run", inputs.fits("small_run", inputs.pick(20, 4)), inputs.pick(6, 1)
    )


@row(
    "fitting",
    "all fitting, 64 channels, 200 crops of 256 x 256",
    "the evaluation with 64 filters",
    ("<=", 0.5),
    "the prior's CDF at all code points to 1e-6; both passes' counts for three lambdas, against a search "
    "over all code points, to 1e-4 of the samples; the bins of the uniform quantizer",
)
def fitting(inputs):
    run, options = inputs.load("small_run"), FitOptions()
    validation = inputs.validation(inputs.pick(200, 12))
    run.encode(validation.images[:4])
    made = []
    fit_time = statistics.median(
        seconds(lambda: made.append(fit(run, validation, options))) for _ in range(inputs.pick(3, 1))
    )
    paths = inputs.test_images(inputs.pick(4, 1))
    evaluate(run, made[-1], options, paths[:1], inputs.folder)
    evaluation_time = 24 * statistics.median(
        seconds(lambda path=path: evaluate(run, made[-1], options, [path], inputs.folder)) for path in paths
    )
    equal = same_fits(run, validation, [one.quantizer for one in made[-1]])
    return Outcome(duration(fit_time), duration(evaluation_time), fit_time / evaluation_time, equal)


def same_fits(run, validation, quantizers):
    """Whether the prior, the counts and the uniform bins of fits are what plain computations give."""
    from vbq.priors import DeepFactorizedPrior

    channelwise, _, uniform = quantizers
    prior = DeepFactorizedPrior.from_arrays(load_npz(os.path.join(run.path, "prior.npz")))
    points = channelwise.code_points.shape[1]
    probabilities = np.arange(1, points + 1) / (points + 1)
    equal = np.abs(prior.cdf(channelwise.code_points) - probabilities).max() <= 1e-6
    mean, logvar = run.encode(validation.images)
    flat = (x.reshape(-1, run.num_channels) for x in (mean, np.exp(0.5 * logvar)))
    equal &= same_counts(channelwise, *flat)
    low, high = mean.min(axis=(0, 1, 2)), mean.max(axis=(0, 1, 2))
    for k in uniform.levels:
        expected = np.linspace(low, high, 2 * k + 1, axis=1)[:, 1::2]
        equal &= np.allclose(uniform.code_points[k], expected, rtol=1e-5, atol=1e-5)
    return bool(equal)


def same_counts(quantizer, mean, std, lamb_indices=(2, 8, 14)):
    """Whether a plain search finds the counts of some lambdas, in the channel of the largest spread.

    Args:
      quantizer: the paper's quantizer, of two passes.
      mean, std: float32 [B, C], the validation latents' posterior.
      lamb_indices: ints, numbers of lambdas.
    """
    import plain

    c = int(np.argmax(mean.std(axis=0)))
    code_points, mean, std = quantizer.code_points[[c]], mean[:, [c]].T, std[:, [c]].T
    bits = plain.bit_lengths(quantizer.max_bits)
    for number in lamb_indices:
        lamb = quantizer.lambs[number]
        indices, _ = plain.best_code_points(code_points, mean, std, lamb, bits[None])
        bit_counts = np.bincount(bits[indices[0]], minlength=quantizer.max_bits + 1)
        lengths = plain.choosing_lengths(bit_counts[None])
        indices, _ = plain.best_code_points(code_points, mean, std, lamb, lengths)
        counts = np.bincount(indices[0], minlength=len(bits))
        for found, expected in (
            (quantizer.bit_length_counts[number, c], bit_counts),
            (quantizer.index_counts[number, c], counts),
        ):
            if np.abs(found - expected).sum() > max(2e-4 * mean.size, 2):
                return False
    return True


@row(
    "whole",
    "the whole of post_process.py: 64 filters, 60 crops of 256 x 256, three images",
    "the original, measured as 1639 s on a 2-core machine",
    (">=", 50),
    CHECK + "; two shards, merged, give the same files",
)
def whole(inputs):
    import plain

    checkpoint_dir, runname = inputs.copy_run("small_run", "whole")
    run_dir = os.path.join(checkpoint_dir, runname)
    paths = inputs.test_images(3)
    pattern = os.path.join(os.path.dirname(paths[0]), "*.png")
    arguments = [checkpoint_dir, runname, inputs.crops_file(inputs.pick(60, 4)), pattern]
    time = seconds(lambda: run_post_process(inputs, *arguments))

    run, results = inputs.load("small_run"), saved_results(run_dir)
    fits = saved_fits(run_dir, run.fingerprint)
    equal = plain.same_evaluation(run, fits, results, paths[1], 1, some_settings(inputs))
    for more in (["--shard", "1/2"], ["--shard", "2/2"], ["--merge", "2"]):
        run_post_process(inputs, *arguments, *more)
    for merged, arrays in zip(saved_results(run_dir), results):
        equal &= merged.keys() == arrays.keys()
        equal &= all(np.array_equal(merged[key], value) for key, value in arrays.items())
    return Outcome(duration(time), f"{ORIGINAL} s", ORIGINAL / time, bool(equal))
