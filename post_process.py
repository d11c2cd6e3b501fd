"""Compresses test images with a trained model, by three quantizers at many settings, and measures rate and distortion.

The evaluation of Yang, Bamler, Mandt, "Variational Bayesian Quantization" (ICML 2020), section 5: fits an empirical prior and
the quantizers to the latents of validation images, once; then reconstructs every test image at every setting. The rates are
ideal code lengths; `codec.py` writes the files.
"""
import argparse
import collections
import dataclasses
import hashlib
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import joint
import pieces
import utils
from bitstream import file_size
from bls2017_vae import load_run, number
from priors import DeepFactorizedPrior
from quantizers import (DEFAULT_LAMBS, DEFAULT_LEVELS, DEFAULT_MAX_BITS, ChannelwisePriorCDFQuantizer, KmeansQuantizer,
                        UniformQuantizer, code_point_probabilities)

VALIDATION_SIDE = 256  # pixels, of the crops that are taken where the validation images come as files
MOST_PENDING = 1       # reconstructions that wait to be measured while the next is computed
MEASURES = ("B", "BPP", "BPPCL", "BPL", *utils.METRIC_KEYS)
FILE_KEY = "BPP (file)"  # with --bitstream
PLOT_NAME = "rate_distortion.png"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the fits depend on, besides the model and the validation images."""

    max_bits: int = DEFAULT_MAX_BITS
    lambs: tuple = DEFAULT_LAMBS
    levels: tuple = DEFAULT_LEVELS
    passes: int = 2
    contexts: bool = False
    seed: int = 0

    @property
    def names(self):
        """Names of the three quantizers' files, without suffix; the original's, if the passes are the original's two."""
        more = (f"-passes={self.passes}" if self.passes > 2 else "") + "-contexts" * self.contexts
        return f"ChannelwisePriorCDFQuantizer-max_bits={self.max_bits}{more}", "KmeansQuantizer", "UniformQuantizer"

    def result_names(self, joint_steps):
        """What the names of the result files start with."""
        channelwise, *baselines = self.names
        return channelwise + (f"-joint_steps={joint_steps}" if joint_steps else ""), *baselines


def note(text):
    """Tells the user something beside the results."""
    print(text, file=sys.stderr)


# Validation images.


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation images [N, H, W, 3], uint8 or float in [0, 1], maybe a memory map, and a name and digest of them."""

    images: np.ndarray
    label: str


def read_validation(name):
    """Opens a validation array, or cuts the centres out of image files.

    Args:
      name: str, an `.npy` file of N x H x W x 3, or a glob of image files.

    Returns:
      Validation.

    Raises:
      utils.UserError: there is no such thing, or it is not fit for use.
    """
    is_array = name.endswith(".npy") and (os.path.isfile(name) or not re.search(r"[*?[]", name))
    images = _open_array(name) if is_array else _read_crops(utils.find_images(name))
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    for part in _parts(images):
        if images.dtype != np.uint8 and not (part.min() >= 0 and part.max() <= 1):  # NaN fails, too
            raise utils.UserError(f"{name}: expected values in [0, 1], found {part.min():.6g} to {part.max():.6g}")
        digest.update(part)
    return Validation(images, f"{os.path.basename(name)} sha256:{digest.hexdigest()}")


def _open_array(path):
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise utils.UserError(f"{path}: expected an .npy array of validation images, found none ({error})") from error
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise utils.UserError(f"{path}: expected shape N x H x W x 3, found {getattr(images, 'shape', type(images).__name__)}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise utils.UserError(f"{path}: expected values of type uint8 or float, found {images.dtype}")
    return images


def _read_crops(paths):
    """Centre crops of image files, uint8 [N, S, S, 3]; what cannot be read or is smaller is named and left out."""
    images = {}
    for path in utils.progress(paths, desc="validation images", unit="image"):
        try:
            image = utils.read_image(path)
            images[path] = utils.center_crop(image, *(min(VALIDATION_SIDE, side) for side in image.shape[:2])).copy()
        except utils.UserError as error:
            note(f"warning: left out: {error}")
    if not images:
        raise utils.UserError(f"expected validation images, none of {len(paths)} files can be read: {paths[0]}")
    side = max(min(image.shape[:2]) for image in images.values())
    for path in [path for path, image in images.items() if min(image.shape[:2]) < side]:
        note(f"warning: left out: {path} is smaller than {side} x {side} pixels")
        del images[path]
    return np.stack([utils.center_crop(image, side, side) for image in images.values()])


def _parts(images):
    """Yields some 30 MB of the images at a time, as contiguous arrays."""
    step = max(1, 2**25 // images[0].nbytes)
    for first in range(0, len(images), step):
        yield np.ascontiguousarray(images[first:first + step])


# Fits.


def fit(run, validation, settings):
    """Fits prior and quantizers to the validation images, and saves them in the run's directory.

    Args:
      run: bls2017_vae.Run.
      validation: Validation.
      settings: Settings.

    Returns:
      dict from the names of `settings` to quantizers.

    Raises:
      utils.UserError: the model's latents are not finite, or the directory cannot be written.
    """
    mean, logvar = run.encode(validation.images)
    if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
        raise utils.UserError(f"{run.path}: expected a model with finite latents, found others")
    std = np.exp(.5 * logvar, out=logvar)
    provenance = {"model_fingerprint": run.fingerprint, "validation": validation.label, "seed": settings.seed}

    prior = DeepFactorizedPrior.fit(mean.reshape(-1, run.num_channels), settings.seed)
    code_points = prior.inverse_cdf(code_point_probabilities(settings.max_bits))
    channelwise = ChannelwisePriorCDFQuantizer.fit(code_points, mean, std, settings.lambs, settings.passes, provenance)
    if settings.contexts:
        channelwise.contexts = joint.fit_contexts(channelwise, mean, std)
    fitted = (channelwise,
              KmeansQuantizer.fit(mean, settings.levels, provenance),
              UniformQuantizer.fit(mean, settings.levels, provenance))
    utils.save_npz(os.path.join(run.path, "prior.npz"), {**prior.arrays(), **provenance})
    for name, quantizer in zip(settings.names, fitted):
        quantizer.save(os.path.join(run.path, name + ".npz"))
    return dict(zip(settings.names, fitted))


def load_fit(run, settings):
    """Loads what `fit` saved.

    Returns:
      (quantizers, validation label), or (None, why not) if there is no fit of this model with these settings.

    Raises:
      utils.UserError: a file is damaged.
    """
    paths = [os.path.join(run.path, name + ".npz") for name in settings.names]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        return None, f"there is no {os.path.basename(missing[0])}"
    channelwise, kmeans, uniform = quantizers = [
        kind.load(path) for kind, path in zip((ChannelwisePriorCDFQuantizer, KmeansQuantizer, UniformQuantizer), paths)]
    labels = [quantizer.provenance.get("validation") for quantizer in quantizers]
    if any(quantizer.provenance.get("model_fingerprint") != run.fingerprint for quantizer in quantizers):
        return None, "the saved fit is of another model"
    if len(set(labels)) > 1:
        return None, "the parts of the saved fit are of different validation images"
    found = (Settings(channelwise.max_bits, tuple(channelwise.lambs), tuple(levels.levels), channelwise.passes,
                      channelwise.contexts is not None, int(levels.provenance.get("seed", -1))) for levels in (kmeans, uniform))
    if any(other != settings for other in found):
        return None, "the saved fit has other settings"
    return dict(zip(settings.names, quantizers)), labels[0]


def fit_or_load(run, validation, settings, rebuild):
    """Returns the saved quantizers where they fit, else new ones; validation is None if only saved ones will do."""
    quantizers, found = (None, "--rebuild is given") if rebuild else load_fit(run, settings)
    if quantizers:
        note(f"uses the saved fit to {found}")
        if validation and validation.label.split()[-1] != found.split()[-1]:
            note(f"warning: the validation images {validation.label} are others; --rebuild fits to them")
        return quantizers
    if not validation:
        raise utils.UserError(f"{run.path}: expected a saved fit, as no validation images are given, but {found}")
    note(f"fits prior and quantizers to {len(validation.images)} validation images: {found}")
    return fit(run, validation, settings)


# Evaluation.


def evaluate(run, quantizers, paths, keep_reconstructions=False, bitstream=False, joint_steps=0):
    """Compresses images at all settings.

    Args:
      run: bls2017_vae.Run.
      quantizers: dict from names to quantizers.
      paths: list of image files.
      keep_reconstructions: bool.
      bitstream: bool, whether to measure the size of the files that `codec.py` writes, too.
      joint_steps: int, how often to improve what the channelwise quantizer chose, see `joint.choose`.

    Returns:
      dict from names to the arrays of a result file, see `as_arrays`.
    """
    records = {name: [] for name in quantizers}
    settings = sum(len(settings_of(quantizer)) for quantizer in quantizers.values())
    with utils.progress(None, total=len(paths) * settings, desc="evaluation", unit="image") as bar:
        for path in paths:
            image = utils.read_image(path)
            image_records = evaluate_image(run, quantizers, image, keep_reconstructions, bitstream, joint_steps, bar.update)
            for name, record in image_records.items():
                records[name].append(record)
    names = [os.path.basename(path) for path in paths]
    return {name: as_arrays(name, quantizer, names, records[name]) for name, quantizer in quantizers.items()}


def evaluate_image(run, quantizers, image, keep_reconstructions=False, bitstream=False, joint_steps=0, advance=lambda: None):
    """Compresses an image uint8 [H, W, 3] at all settings: dict from names to a list of dicts of measures, by settings.

    A reconstruction is measured while the next is computed.
    """
    height, width = image.shape[:2]
    metrics = utils.ImageMetrics(image)
    mean, logvar = run.encode(image[None])
    likelihood = pieces.likelihood_of(run, image)

    def measure(bits, length_bits, file_bits, x_hat):
        x_hat = utils.to_uint8(x_hat)
        record = {"B": bits, "BPP": bits / (height * width), "BPPCL": length_bits / (height * width), "BPL": bits / mean.size,
                  **metrics.evaluate(x_hat), **({} if file_bits is None else {FILE_KEY: file_bits / (height * width)})}
        return {**record, "reconstruction": x_hat} if keep_reconstructions else record

    records, pending = {name: [] for name in quantizers}, collections.deque()

    def collect(most_pending):
        while len(pending) > most_pending:
            name, future = pending.popleft()
            records[name].append(future.result())
            advance()

    with ThreadPoolExecutor(1) as worker:
        for name, quantizer in quantizers.items():
            for z_hat, *bits in quantize(quantizer, mean, np.exp(.5 * logvar), bitstream, joint_steps, likelihood):
                x_hat = run.decode(z_hat, height, width)[0]
                pending.append((name, worker.submit(measure, *bits, x_hat)))
                collect(MOST_PENDING)
        collect(0)
    return records


def settings_of(quantizer):
    """The settings of a quantizer: float64 lambdas, or int64 levels."""
    return quantizer.lambs if isinstance(quantizer, ChannelwisePriorCDFQuantizer) else np.array(quantizer.levels)


def quantize(quantizer, mean, std, bitstream=False, joint_steps=0, likelihood=None):
    """Yields for every setting the quantized latents, like mean, their bits, their bits by bit length, and those of a file.

    The last are None without `bitstream`, and for the baselines, which have no file format. `joint.choose` explains
    the last two arguments; they concern only the channelwise quantizer.
    """
    if isinstance(quantizer, ChannelwisePriorCDFQuantizer):
        plain = not (joint_steps or quantizer.contexts)
        prepared = quantizer.prepare(mean, std) if plain else None
        for table, lamb in enumerate(quantizer.lambs):
            indices = (quantizer.choose(prepared, lamb) if plain else
                       joint.choose(quantizer, mean[0], std[0], lamb, table, likelihood, joint_steps)[None])
            yield (quantizer.dequantize(indices, table), quantizer.bits(indices, table).sum(dtype=np.float64),
                   quantizer.bit_length_bits(indices, table).sum(dtype=np.float64),
                   8 * file_size(quantizer, indices[0], table) if bitstream else None)
    else:
        for levels in quantizer.levels:
            indices = quantizer.quantize(mean, levels)
            bits = quantizer.bits(indices, levels).sum()
            yield quantizer.dequantize(indices, levels), bits, bits, None


# Results.


def as_arrays(name, quantizer, files, records):
    """The arrays of a result file, with the original's keys.

    `settings` [S], `compressed_files` [I], `quantizer_path`, and per image and setting, float64 [I, S]: `B` bits, `BPP` bits
    per pixel, `BPPCL` the same by bit lengths, `BPL` bits per latent, and `utils.METRIC_KEYS`. `reconstructions` is empty or
    uint8 [I, S, H, W, 3], smaller images filled up with 0; their own `sizes` [I, 2] are then kept, too.
    """
    settings = settings_of(quantizer)
    kept = [np.stack([record.pop("reconstruction") for record in image]) for image in records if "reconstruction" in image[0]]
    sizes = np.array([x.shape[1:3] for x in kept])
    if kept:
        height, width = sizes.max(axis=0)
        kept = [np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0))) for x in kept]
    measures = {key: np.array([[record[key] for record in image] for image in records]).reshape(len(files), len(settings))
                for key in (*MEASURES, FILE_KEY) if key in records[0][0]}
    return {"settings": settings, "compressed_files": np.array(files, dtype=str), "quantizer_path": np.array(name + ".npz"),
            "reconstructions": np.array(kept), **measures, **({"sizes": sizes} if kept else {})}


def results_path(run_dir, name, shard=None):
    """Where the results of a quantizer go; those of a shard (I, N) beside them."""
    part = "-shard={}-of-{}".format(*shard) if shard else ""
    return os.path.join(run_dir, f"{name}-compression_results{part}.npz")


def merge(run_dir, names, files, count):
    """Puts the results of all shards together.

    Args:
      run_dir: str.
      names: names of the quantizers.
      files: names of the test images, sorted.
      count: int, number of shards; shard I has every count-th image, from the I-th on.

    Returns:
      dict from names to the arrays that a single run would have written.

    Raises:
      utils.UserError: a shard is missing, or is of other images, settings or fits.
    """
    results = {}
    for name in names:
        paths = [results_path(run_dir, name, (i + 1, count)) for i in range(count)]
        shards = [utils.load_npz(path) for path in paths]
        for i, (path, shard) in enumerate(zip(paths, shards)):
            same = (all(np.array_equal(shard.get(key), shards[0].get(key)) for key in ("settings", "fit"))
                    and shard.keys() == shards[0].keys())
            if not same or list(shard["compressed_files"]) != files[i::count]:
                raise utils.UserError(f"{path}: expected image {i + 1} and every {count}th after it, of {len(files)}, with the "
                                      f"fit and settings of the first shard, found others; run this shard again")
        merged = {key: shards[0][key] for key in ("settings", "compressed_files", "quantizer_path", "reconstructions")}
        merged["compressed_files"] = np.array(files)
        for key in (key for key in (*MEASURES, FILE_KEY) if key in shards[0]):
            merged[key] = np.empty((len(files), len(merged["settings"])))
            for i, shard in enumerate(shards):
                merged[key][i::count] = shard[key]
        results[name] = merged
    return results


# The program.


def parse_args(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("checkpoint_dir", help="directory of runs")
    add("runname", help="name of the run: its directory in checkpoint_dir")
    add("val_imgs", help="validation images: an .npy file, N x H x W x 3, or a glob of image files; - for a saved fit")
    add("test_glob", help="test images")
    add("--max_bits", type=number(int, at_least=1, at_most=14), default=DEFAULT_MAX_BITS,
        help="length of the longest code points")
    add("--lambs", type=number(float, above=0), nargs="+", default=DEFAULT_LAMBS, metavar="LAMB",
        help="trade-offs of the channelwise quantizer, nats of distortion a bit")
    add("--quantization_levels", type=number(int, at_least=1, at_most=1024), nargs="+", default=DEFAULT_LEVELS,
        metavar="LEVELS", help="levels a channel of the uniform and k-means quantizers")
    add("--passes", type=number(int, at_least=2), default=2,
        help="passes over the validation latents; more than the paper's 2 refine code lengths and points, while that helps")
    add("--contexts", action="store_true",
        help="fit code lengths that follow a latent's surroundings; with more than two passes")
    add("--joint_steps", type=number(int, at_least=0), default=0, metavar="K",
        help="quantize K times more, with the decoder in the loop: each latent makes up for what others have lost")
    add("--seed", type=number(int, at_least=0), default=0, help="of the prior's initial weights")
    add("--reconstructions", action="store_true", help="keep the reconstructed images in the result files")
    add("--rebuild", action="store_true", help="fit again, even if there is a saved fit")
    add("--bitstream", action="store_true", help=f"measure the files of codec.py, too: {FILE_KEY}")
    add("--shard", type=shard, metavar="I/N", help="evaluate only every Nth test image from the Ith on, for --merge")
    add("--merge", type=number(int, at_least=1), metavar="N", help="only put the results of N shards together")
    args = parser.parse_args(argv)
    if args.shard and (args.reconstructions or args.merge):
        parser.error("--shard goes neither with --reconstructions nor with --merge")
    if args.contexts and args.passes == 2:
        parser.error("--contexts goes with --passes K of at least 3")
    return args


def settings_of_arguments(args):
    """The `Settings` that `parse_args` found."""
    return Settings(args.max_bits, tuple(sorted(set(args.lambs))), tuple(sorted(set(args.quantization_levels))), args.passes,
                    args.contexts, args.seed)


def shard(text):
    """Parses I/N into (I, N)."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    i, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= count:
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text!r}")
    return i, count


def find_test_images(pattern):
    """Image files sorted by name; UserError now, not after hours, if one of them is none."""
    paths = sorted(utils.find_images(pattern), key=lambda path: (os.path.basename(path), path))
    for path in utils.progress(paths, desc="test images", unit="image"):
        utils.read_image(path)
    return paths


def check_writable(folder):
    """UserError now, not after hours, if no file can be written to the folder."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise utils.UserError(f"{folder}: expected a directory to write results to, found: {error.strerror}") from error


def main(argv=None):
    """Evaluates; returns the exit status."""
    args = parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # nothing about missing GPUs; read when TensorFlow is imported
    settings = settings_of_arguments(args)
    names = settings.result_names(args.joint_steps)
    run_dir = os.path.join(args.checkpoint_dir, args.runname)
    if not os.path.isdir(run_dir):
        raise utils.UserError(f"{run_dir}: expected the directory of a run, found none")
    check_writable(run_dir)
    paths = find_test_images(args.test_glob)

    if args.merge:
        results = merge(run_dir, names, [os.path.basename(path) for path in paths], args.merge)
    else:
        validation = None if args.val_imgs == "-" else read_validation(args.val_imgs)
        run = load_run(args.checkpoint_dir, args.runname)
        quantizers = fit_or_load(run, validation, settings, args.rebuild)
        if args.shard:
            paths = paths[args.shard[0] - 1::args.shard[1]]
        results = evaluate(run, quantizers, paths, args.reconstructions, args.bitstream, args.joint_steps)
        results = dict(zip(names, results.values()))
        if args.shard:
            for name, quantizer in zip(names, quantizers.values()):
                results[name]["fit"] = np.array(" ".join(map(str, quantizer.provenance.values())))

    for name, arrays in results.items():
        utils.save_npz(results_path(run_dir, name, args.shard), arrays)
    if args.shard:
        note(f"wrote shard {args.shard[0]} of {args.shard[1]} to {run_dir}")
        return 0
    import plots  # Matplotlib takes a while
    curves = plots.curves(results)
    print(plots.table(curves))
    path = os.path.join(run_dir, PLOT_NAME)
    plots.rate_distortion(path, curves + plots.published_curves())
    print(f"results and plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(utils.run_main(main))
