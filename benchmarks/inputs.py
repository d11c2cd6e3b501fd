"""Photographs and models to measure on, made when they are first asked for, in a folder that goes away."""

import argparse
import functools
import json
import os

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

import utils
from measure import ROOT

WIDTH, HEIGHT = 752, 496  # of the evaluation's crops of Kodak images
SHIPPED = ("bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False-"
           "likelihood_variance=0.001-last_step=336000")
LAYERS = dict(filter_dims=[9, 5, 5], sampling_rates=[4, 2, 2])


class Inputs:
    """Sizes are the issue's, or small ones where `quick` is set."""

    def __init__(self, folder, kodak="", quick=False):
        """Args: folder: str, a temporary one; kodak: str, folder of the Kodak images, or empty; quick: bool."""
        self.folder, self.quick = folder, quick
        self.kept = {}  # what one row measured and another needs
        self.sources = [utils.read_image(path) for path in utils.find_images(os.path.join(kodak, "*.png"))] if kodak else []
        self.kodak = bool(self.sources)

    def pick(self, full, quick):
        """The size for this kind of run."""
        return quick if self.quick else full

    @functools.cache
    def photograph(self, number, width, height):
        """A photograph, uint8 [height, width, 3]: a Kodak image where there is one, else part of one of scikit-learn's.

        Those are two; other numbers show other parts, at other scales, mirrored or not.
        """
        if number < len(self.sources) and width <= 768 and height <= 512:
            image = self.sources[number]
            upright = image.shape[0] > image.shape[1]
            return utils.center_crop(image, *((width, height) if upright else (height, width)))
        rng = np.random.default_rng(number)
        image = load_sample_images().images[number % 2]
        scale = max(width / image.shape[1], height / image.shape[0]) * rng.uniform(1, 1.5)
        sides = [int(np.ceil(scale * side)) for side in image.shape[1::-1]]
        image = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.LANCZOS))
        top, left = (rng.integers(room + 1) for room in (image.shape[0] - height, image.shape[1] - width))
        image = image[top:top + height, left:left + width]
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

    @functools.cache
    def crops(self, count, height=None, width=None):
        """Validation images, uint8 [count, height, width, 3], by default 256 x 256."""
        height, width = height or self.pick(256, 64), width or self.pick(256, 64)
        rng = np.random.default_rng(1)
        crops = np.empty((count, height, width, 3), np.uint8)
        for i in range(count):
            large = self.photograph(i % 24, self.pick(WIDTH, 208), self.pick(HEIGHT, 176))
            top, left = (rng.integers(room + 1) for room in (large.shape[0] - height, large.shape[1] - width))
            crops[i] = large[top:top + height, left:left + width]
        return crops

    def crops_file(self, count):
        """The same as an `.npy` file."""
        path = os.path.join(self.folder, f"crops-{count}.npy")
        np.save(path, self.crops(count))
        return path

    def small_run(self, filters=None):
        """A run directory of a model trained for a few steps, on what there is: (checkpoint_dir, runname).

        By default of 64 filters. A trained model has images that resemble the photographs, and latents of many scales;
        random weights have neither, and it is these that the time of metrics and fits depends on.
        """
        filters = filters or [self.pick(64, 8)] * 3
        name = "filters=" + "_".join(map(str, filters))
        if not os.path.isdir(os.path.join(self.folder, name)):
            self._train(filters, os.path.join(self.folder, name))
        return self.folder, name

    def _train(self, filters, path):
        import tensorflow as tf
        import training
        tf.keras.utils.set_random_seed(0)
        model_args = dict(num_filters=filters, learned_prior=False, prior_init_scale=10., likelihood_variance=.001, **LAYERS)
        trainer = training.Trainer(model_args, tf.distribute.get_strategy(), clip_norm=1e5)
        crops = self.crops(self.pick(96, 24))
        rng = np.random.default_rng(0)
        side = self.pick(128, 64)
        steps = self.pick(400, 20)
        for step in range(steps):
            top, left = rng.integers(crops.shape[1] - side + 1, size=2)
            x = crops[rng.integers(len(crops), size=8), top:top + side, left:left + side]
            rate = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
            trainer.train_step(tf.constant(x), tf.constant(rate, tf.float32), tf.constant(rate, tf.float32))
        weights = trainer.model.named_weights()
        save_run(path, model_args, {**weights, "global_step": steps})

    def large_run(self):
        """A copy, without its fits, of the shipped run of 256 filters (quick: of the small run)."""
        return self._copy(os.path.join(*self.small_run()) if self.quick else os.path.join(ROOT, "checkpoints", SHIPPED), "large")

    def copy_run(self, kind, name):
        """A copy, without its fits, of `small_run` or `large_run`."""
        return self._copy(os.path.join(*getattr(self, kind)()), name)

    def _copy(self, source, name):
        path = os.path.join(self.folder, name)
        if not os.path.isdir(path):
            with open(os.path.join(source, "args.json"), encoding="utf-8") as file:
                args = json.load(file)
            arrays = utils.load_npz(os.path.join(source, "weights.npz"))
            save_run(path, args, arrays)
        return self.folder, name

    @functools.cache
    def load(self, kind):
        """The `bls2017_vae.Run` of `small_run` or `large_run`."""
        from bls2017_vae import load_run
        return load_run(*getattr(self, kind)())

    @functools.cache
    def load_filters(self, filters):
        """The `bls2017_vae.Run` of `small_run(filters)`, filters a tuple."""
        from bls2017_vae import load_run
        return load_run(*self.small_run(list(filters)))

    @functools.cache
    def quantizers(self, kind, crops):
        """Quantizers at the default settings, fitted to validation crops with the model of `small_run` or `large_run`."""
        import post_process
        return post_process.fit(self.load(kind), post_process.Validation(self.crops(crops), "crops"), post_process.Settings())

    def large_quantizers(self):
        """The shipped run's quantizers, if they are of its weights; else (and if quick) such as are fitted to a few crops."""
        import post_process
        run = self.load("large_run")
        if not self.quick:
            shipped = argparse.Namespace(path=os.path.join(ROOT, "checkpoints", SHIPPED), fingerprint=run.fingerprint)
            quantizers, _ = post_process.load_fit(shipped, post_process.Settings())
            if quantizers:
                return quantizers
        return self.quantizers("large_run", self.pick(20, 4))


def save_run(path, args, arrays):
    """Makes a run directory of weights alone."""
    os.makedirs(path)
    with open(os.path.join(path, "args.json"), "w", encoding="utf-8") as file:
        json.dump(args, file)
    utils.save_npz(os.path.join(path, "weights.npz"), arrays)
