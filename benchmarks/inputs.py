"""Photographs, models and fits to measure on.

They are made when they are first asked for, in a temporary folder.
"""

import dataclasses
import functools
import json
import os

import numpy as np
from measure import quiet
from PIL import Image
from sklearn.datasets import load_sample_images

from quantizers import QUANTIZERS
from tools.shipped import CHECKPOINTS, PAPER_RUN
from vbq.config import ModelConfig
from vbq.files import find_images, load_npz, save_npz
from vbq.fits import FitOptions, FitStore
from vbq.images import center_crop, read_image
from vbq.runs import load_run
from vbq.validation import Validation

WIDTH, HEIGHT = 752, 496  # pixels, of the evaluation's crops of Kodak images


def model_config(num_filters):
    """The `ModelConfig` of a small model: that of the paper's model, with other numbers of filters."""
    return ModelConfig(tuple(num_filters), (9, 5, 5), (4, 2, 2), likelihood_variance=0.001)


def once(method):
    """Decorates a method whose results the object keeps in its `kept`, by name and arguments."""

    @functools.wraps(method)
    def wrapped(self, *args):
        key = method.__name__, *args
        if key not in self.kept:
            self.kept[key] = method(self, *args)
        return self.kept[key]

    return wrapped


class Inputs:
    """What the rows measure on, in full size, or in small size for a quick run."""

    def __init__(self, folder, kodak="", quick=False):
        """Takes the places.

        Args:
          folder: str, a temporary folder.
          kodak: str, folder of the Kodak images, or empty.
          quick: bool, whether sizes are small.
        """
        self.folder, self.quick = folder, quick
        self.kept = {}  # what one row made or measured, and another needs
        paths = find_images(os.path.join(kodak, "*.png")) if kodak else []
        self.sources = [read_image(path) for path in paths]
        self.kodak = bool(self.sources)

    def pick(self, full, quick):
        """The size for this kind of run."""
        return quick if self.quick else full

    # Photographs.

    @once
    def photograph(self, number, width, height):
        """A photograph, uint8 [height, width, 3].

        It is a Kodak image if there is one with this number, else a part of one of scikit-learn's two
        photographs. Each number shows another part of these, at another scale, mirrored or not.
        """
        if number < len(self.sources) and width <= 768 and height <= 512:
            image = self.sources[number]
            upright = image.shape[0] > image.shape[1]
            return center_crop(image, *((width, height) if upright else (height, width)))
        rng = np.random.default_rng(number)
        image = load_sample_images().images[number % 2]
        scale = max(width / image.shape[1], height / image.shape[0]) * rng.uniform(1, 1.5)
        sides = [int(np.ceil(scale * side)) for side in image.shape[1::-1]]
        image = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.LANCZOS))
        top, left = (rng.integers(room + 1) for room in (image.shape[0] - height, image.shape[1] - width))
        image = image[top : top + height, left : left + width]
        return np.ascontiguousarray(image[:, ::-1] if number // 2 % 2 else image)

    def test_images(self, count, width=None, height=None, name="test"):
        """Sorted paths of PNG files, by default of the size of the evaluation's crops."""
        width, height = width or self.pick(WIDTH, 208), height or self.pick(HEIGHT, 176)
        folder = os.path.join(self.folder, f"{name}-{count}-{width}-{height}")
        paths = [os.path.join(folder, f"{i:03}.png") for i in range(count)]
        if not os.path.isdir(folder):
            os.makedirs(folder)
            for i, path in enumerate(paths):
                Image.fromarray(self.photograph(i, width, height)).save(path, compress_level=1)
        return paths

    @once
    def crops(self, count, height=None, width=None):
        """Validation images, uint8 [count, height, width, 3], by default 256 x 256 pixels."""
        height, width = height or self.pick(256, 64), width or self.pick(256, 64)
        rng = np.random.default_rng(1)
        crops = np.empty((count, height, width, 3), np.uint8)
        for i in range(count):
            large = self.photograph(i % 24, self.pick(WIDTH, 208), self.pick(HEIGHT, 176))
            top, left = (rng.integers(room + 1) for room in (large.shape[0] - height, large.shape[1] - width))
            crops[i] = large[top : top + height, left : left + width]
        return crops

    def validation(self, *size):
        """The `Validation` of `crops(*size)`. The label is the size: equal sizes have equal crops."""
        crops = self.crops(*size)
        return Validation(crops, "crops-" + "x".join(map(str, crops.shape)))

    def crops_file(self, count):
        """Path of an `.npy` file with `crops(count)`."""
        path = os.path.join(self.folder, f"crops-{count}.npy")
        np.save(path, self.crops(count))
        return path

    # Models.

    def small_run(self, filters=None):
        """A run directory of a model that is trained for a few steps: (checkpoint_dir, runname).

        The model has 64 filters by default. The time of metrics and fits depends on the images and latents:
        those of a trained model resemble photographs, and have many scales; those of random weights do not.
        """
        filters = filters or [self.pick(64, 8)] * 3
        name = "filters=" + "_".join(map(str, filters))
        if not os.path.isdir(os.path.join(self.folder, name)):
            self._train(model_config(filters), os.path.join(self.folder, name))
        return self.folder, name

    def _train(self, config, path):
        import tensorflow as tf

        from vbq.trainer import Trainer

        tf.keras.utils.set_random_seed(0)
        trainer = Trainer(config, tf.distribute.get_strategy(), clip_norm=1e5)
        crops = self.crops(self.pick(96, 24))
        rng = np.random.default_rng(0)
        side = self.pick(128, 64)
        steps = self.pick(400, 20)
        for step in range(steps):
            top, left = rng.integers(crops.shape[1] - side + 1, size=2)
            x = crops[rng.integers(len(crops), size=8), top : top + side, left : left + side]
            rate = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
            rate = tf.constant(rate, tf.float32)
            trainer.train_step(tf.constant(x), rate, rate)
        weights = trainer.model.named_weights()
        save_run(path, dataclasses.asdict(config), {**weights, "global_step": steps})

    def large_run(self):
        """A copy, without its fits, of the paper's model, of 256 filters (quick: of the small run)."""
        source = os.path.join(*self.small_run()) if self.quick else os.path.join(CHECKPOINTS, PAPER_RUN)
        return self._copy(source, "large")

    def copy_run(self, kind, name):
        """A copy, without its fits, of `small_run` or `large_run`."""
        return self._copy(os.path.join(*getattr(self, kind)()), name)

    def _copy(self, source, name):
        path = os.path.join(self.folder, name)
        if not os.path.isdir(path):
            with open(os.path.join(source, "args.json"), encoding="utf-8") as file:
                args = json.load(file)
            save_run(path, args, load_npz(os.path.join(source, "weights.npz")))
        return self.folder, name

    @once
    def load(self, kind):
        """The `vbq.runs.Run` of `small_run` or `large_run`."""
        return load_run(*getattr(self, kind)())

    @once
    def load_filters(self, filters):
        """The `vbq.runs.Run` of `small_run(filters)`; filters is a tuple."""
        return load_run(*self.small_run(list(filters)))

    # Fits.

    @once
    def fits(self, kind, crops):
        """Fits at the default settings, to validation crops with the model of `small_run` or `large_run`.

        They are saved in the run's directory.
        """
        import post_process

        with quiet():
            return post_process.fit_or_load(self.load(kind), self.validation(crops), FitOptions())

    def large_fits(self):
        """The fits that ship with `large_run` if they serve; otherwise, or if quick, fits to a few crops."""
        if not self.quick:
            shipped = saved_fits(os.path.join(CHECKPOINTS, PAPER_RUN), self.load("large_run").fingerprint)
            if all(shipped):
                return shipped
        return self.fits("large_run", self.pick(20, 4))


def saved_fits(path, fingerprint):
    """The default fits in a run's directory, for weights of this fingerprint, in the order of `QUANTIZERS`.

    Returns:
      List of fits.Fit, or of None for those that are not there.
    """
    store = FitStore(path, fingerprint)
    return [store.find(kind, FitOptions())[0] for kind in QUANTIZERS]


def save_run(path, args, arrays):
    """Makes a run directory with flags and weights only."""
    os.makedirs(path)
    with open(os.path.join(path, "args.json"), "w", encoding="utf-8") as file:
        json.dump(args, file)
    save_npz(os.path.join(path, "weights.npz"), arrays)
