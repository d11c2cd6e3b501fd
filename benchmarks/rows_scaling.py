"""The rows of what `post_process.py` takes as the work grows: its peak memory, and time against work."""

import os
from types import SimpleNamespace

import numpy as np
from inputs import saved_fits
from measure import Outcome, alternate, duration, row
from rows_evaluation import evaluate, fit, run_post_process, saved_results

from quantizers import Posterior
from vbq.fits import FitOptions, FitStore
from vbq.latents import ValidationLatents
from vbq.results import MEASURES

GIGABYTE = 1e9

# Memory.


def peak_of_post_process(inputs, source, crops, paths, bound, chosen, all_metrics):
    """Measures the program's peak memory in a process of its own, and checks some of what it wrote.

    Args:
      inputs: inputs.Inputs.
      source: str, "small_run" or "large_run".
      crops: int, number of validation images.
      paths: list of str, all images of a folder.
      bound: float, GB that the peak is compared with.
      chosen, all_metrics: see `plain.same_evaluation`.

    Returns:
      Outcome.
    """
    import plain

    checkpoint_dir, runname = inputs.copy_run(source, f"memory-{source}")
    run_dir = os.path.join(checkpoint_dir, runname)
    pattern = os.path.join(os.path.dirname(paths[0]), "*.png")
    peak = run_post_process(inputs, checkpoint_dir, runname, inputs.crops_file(crops), pattern)
    run = inputs.load(source)
    fits = saved_fits(run_dir, run.fingerprint)
    equal = plain.same_evaluation(run, fits, saved_results(run_dir), paths[0], 0, chosen, all_metrics)
    return Outcome(f"{peak / GIGABYTE:.2f} GB", f"{bound:g} GB", peak / (bound * GIGABYTE), equal)


@row(
    "memory-validation",
    "peak memory of post_process.py, 256 filters, 500 crops of 256 x 256, 2 Kodak crops",
    "6 GB",
    ("<=", 1),
    "as evaluation-256, at three settings",
)
def memory_validation(inputs):
    # Test images are taken one at a time, so 24 need no more memory than two.
    paths = inputs.test_images(inputs.pick(2, 1))
    chosen = [[8], [3], [3]]
    return peak_of_post_process(inputs, "large_run", inputs.pick(500, 4), paths, 6, chosen, True)


@row(
    "memory-image",
    "peak memory of post_process.py, 64 filters, one 4000 x 3000 image, 34 settings",
    "2 GB",
    ("<=", 1),
    "bits and RGB MSE at two settings, against plain implementations, to 1e-4",
)
def memory_image(inputs):
    paths = inputs.test_images(1, inputs.pick(4000, 400), inputs.pick(3000, 300), "large")
    chosen = [[], [2], [1]]
    return peak_of_post_process(inputs, "small_run", inputs.pick(20, 4), paths, 2, chosen, False)


# Time against work.


def fit_and_evaluate(run, validation, paths, options, folder):
    """Does all that `post_process.py` computes: returns the fits, and the arrays of the result files."""
    fits = fit(run, validation, options)
    return fits, evaluate(run, fits, options, paths, folder)


def doubling(inputs, small, large, same):
    """Times two amounts of work.

    Args:
      inputs: inputs.Inputs.
      small, large: tuples, the arguments of `fit_and_evaluate` except for the folder.
      same: function of the two results that says whether they agree.

    Returns:
      Outcome, with the ratio of the times.
    """
    results = {}

    def measured(name, arguments):
        return lambda: results.update({name: fit_and_evaluate(*arguments, inputs.folder)})

    one, two = alternate(
        measured("small", small), measured("large", large), inputs.pick(3, 1), warm_up=not inputs.quick
    )
    equal = bool(same(results["small"], results["large"]))
    return Outcome(duration(two), duration(one), two / one, equal)


def sizes(inputs):
    """Crops, test images and options of the smaller of two runs, whose constant costs are a small share."""
    crops = inputs.pick(40, 6)
    lambs = tuple(2.0 ** np.linspace(-8, 7, inputs.pick(4, 2)))
    return crops, inputs.pick(2, 1), FitOptions(levels=inputs.pick((4, 16, 64), (2, 4)), lambs=lambs)


def same_results(some, more):
    """Whether the figures of all images and settings in the first results are in the second results, too.

    Args:
      some, more: lists of the arrays of result files; the images of `some` are the first ones of `more`.
    """
    same = True
    for one, other in zip(some, more, strict=True):
        settings = np.isin(other["settings"], one["settings"])
        same &= settings.sum() == len(one["settings"])
        for key in MEASURES:
            same &= np.allclose(one[key], other[key][: len(one[key]), settings])
    return same


@row(
    "double-images",
    "time with twice the crops and images",
    "the time with half of them",
    ("<=", 2.2),
    "with the same fit, the images that both have get the same figures",
)
def double_images(inputs):
    crops, images, options = sizes(inputs)
    run = inputs.load("small_run")
    paths = inputs.test_images(2 * images)

    def same(_, large):
        fits, results = large
        return same_results(evaluate(run, fits, options, paths[:images], inputs.folder), results)

    return doubling(
        inputs,
        (run, inputs.validation(crops), paths[:images], options),
        (run, inputs.validation(2 * crops), paths, options),
        same,
    )


@row(
    "double-lambdas",
    "time with twice the lambdas",
    "the time with half of them",
    ("<=", 2.2),
    "the lambdas that both have get the same figures",
)
def double_lambdas(inputs):
    crops, images, options = sizes(inputs)
    lambs = tuple(2.0 ** np.linspace(-8, 7, inputs.pick(16, 4)))
    arguments = inputs.load("small_run"), inputs.validation(crops), inputs.test_images(images)

    def with_lambs(some):
        return *arguments, FitOptions(lambs=some, levels=options.levels[:1])

    return doubling(
        inputs,
        with_lambs(lambs[::2]),
        with_lambs(lambs),
        lambda small, large: same_results(small[1], large[1]),
    )


@row(
    "double-pixels",
    "time with twice the pixels in every crop and image",
    "the time with half of them",
    ("<=", 2.2),
    "as evaluation-64, at three settings",
)
def double_pixels(inputs):
    import plain

    crops, images, options = sizes(inputs)
    run = inputs.load("small_run")
    side = inputs.pick(256, 64)
    wide = inputs.test_images(images, inputs.pick(752, 416))
    narrow = inputs.test_images(images, inputs.pick(376, 208))

    def same(_, large):
        return plain.same_evaluation(run, *large, wide[0], 0, [[1] for _ in large[0]])

    return doubling(
        inputs,
        (run, inputs.validation(crops, side, side // 2), narrow, options),
        (run, inputs.validation(crops, side, side), wide, options),
        same,
    )


@row(
    "double-channels",
    "time with 128 latent channels in place of 64",
    "the time with 64",
    ("<=", 2.2),
    "the fits of the first half of the channels, against a fit to these alone",
)
def double_channels(inputs):
    crops, images, options = sizes(inputs)
    filters = inputs.pick(64, 8)
    runs = [inputs.load_filters((filters, filters, channels)) for channels in (filters, 2 * filters)]
    validation, paths = inputs.validation(crops), inputs.test_images(images)
    return doubling(
        inputs,
        *((run, validation, paths, options) for run in runs),
        lambda small, large: same_fits_of_half(runs[1], validation, options, large[0]),
    )


def same_fits_of_half(run, validation, options, fits):
    """Whether fits to all channels treat the first half of the channels as fits to this half alone do.

    The validation latents are quantized by both, at every setting.
    """
    latents = ValidationLatents(run, validation, FitStore(run.path, run.fingerprint))
    half = slice(run.num_channels // 2)
    of_half = SimpleNamespace(
        provenance=latents.provenance,
        mean=latents.mean[..., half],
        std=latents.std[..., half],
        code_points=lambda max_bits, seed: latents.code_points(max_bits, seed)[half],
    )
    same = True
    for quantizer in (one.quantizer for one in fits):
        alone = type(quantizer).fit_to(of_half, options)
        for setting in quantizer.settings_of(options):
            indices = quantizer.encode(Posterior(latents.mean, latents.std), setting)
            found = alone.encode(Posterior(of_half.mean, of_half.std), setting)
            same &= np.array_equal(found, indices[..., half])
            for name in "decode", "bits", "bit_length_bits":
                expected = getattr(quantizer, name)(indices, setting)[..., half]
                same &= np.array_equal(getattr(alone, name)(found, setting), expected)
    return same
