"""A trained run, as functions on arrays."""

import dataclasses
import hashlib
import os

import numpy as np

from vbq.command import UserError
from vbq.config import ModelConfig
from vbq.record import read_flags

BATCH_PIXELS = (
    2**18
)  # of the images that are transformed at once; bounds the memory of the transforms' activations


def load_run(checkpoint_dir, runname, mixed_precision=False):
    """Loads a trained model.

    The weights are those of the run's latest state: a checkpoint of this program, a checkpoint of the
    original program (TensorFlow 1.15), or `weights.npz`.

    Args:
      checkpoint_dir: str or path-like, directory of runs.
      runname: str, name of the run.
      mixed_precision: bool, whether the transforms are computed in bfloat16, see `Run`.

    Returns:
      Run.

    Raises:
      UserError: there is no such run, it has no checkpoint, or its checkpoint does not fit its `args.json`.
    """
    path = os.path.join(checkpoint_dir, runname)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such run")
    flags = read_flags(path)
    try:
        config = ModelConfig.of(flags)
    except KeyError as error:
        raise UserError(f"{path}/args.json has no flag {error}") from error
    # TensorFlow takes seconds to import: it waits until the cheap tests have passed, and `--help` does
    # without.
    from vbq.checkpoints import latest_state, named_weights

    state = latest_state(path)
    if not state:
        raise UserError(f"{path}: has neither a checkpoint, model.ckpt-STEP.index, nor weights.npz")
    step, state_path, arrays = state
    try:
        model = _build_model(config, named_weights(arrays, "average") or named_weights(arrays))
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{state_path}: the weights do not fit the model in args.json: {error}") from error
    return Run(path, flags, step, model, mixed_precision)


def _build_model(config, weights):
    """Returns the model of a ModelConfig with weights, a dict of arrays by name."""
    if not any(name.startswith("prior/") for name in weights):
        from vbq.inference import Transforms

        return Transforms(dataclasses.replace(config, learned_prior=False), weights)
    from vbq.transforms import VAE

    model = VAE(config)
    model.set_named_weights(weights)
    return model


class Run:
    """A trained model as functions on arrays.

    Attributes:
      path, name: str, the run's directory.
      args: dict, its `args.json`: the flags of its training, those that the latest start had.
      step: int, how many steps it was trained.
      model: vbq.inference.Transforms; or vbq.transforms.VAE, where the prior was learned.
      transforms: vbq.inference.Transforms, with the same weights as the model.
      config: ModelConfig, that of the model.
      num_channels: int, latent channels.
      stride: int, pixels per latent in each direction.
      margin: int, how many latents the receptive field extends beyond a latent, see `ModelConfig.margin`.
      likelihood_variance: float, variance of the Gaussian likelihood of pixels in [0, 1].
      fingerprint: str, SHA-256 in hexadecimal of the transforms' weights: the sorted names, each followed by
        its float32 little-endian bytes.
    """

    def __init__(self, path, args, step, model, mixed_precision=False):
        """Takes the weights of a model: later changes have no effect.

        Args:
          path, args, step, model: see the attributes.
          mixed_precision: bool, whether convolutions and the matrix products of GDN are computed in bfloat16.
            On CPUs with AMX the transforms take less than half the time then. Latents and images differ
            somewhat; the fits and files of the run are the same.
        """
        import tensorflow as tf

        from vbq.inference import Transforms

        self.path, self.args, self.step, self.model = path, args, step, model
        self.name = os.path.basename(os.path.normpath(path))
        self.config = model.config
        self.num_channels, self.stride = self.config.num_channels, self.config.stride
        self.margin = self.config.margin
        self.likelihood_variance = self.config.likelihood_variance
        self.fingerprint = _fingerprint(model.named_weights())
        tf.get_logger().addFilter(_is_no_retracing)
        if mixed_precision or not isinstance(model, Transforms):
            transforms = Transforms(self.config, model.named_weights(), mixed_precision)
        else:
            transforms = model
        self.transforms = transforms
        any_size = [tf.TensorSpec([None, None, None, channels]) for channels in (3, self.num_channels)]

        def function(method, signature):
            # AutoGraph would translate the code first, which takes longer than to transform an image.
            return tf.function(method, signature, autograph=False)

        self._analysis = function(transforms.analysis, any_size[:1])
        of_gains = (tf.TensorSpec([sum(transforms.synthesis_widths)]),) * 2
        self._synthesis, self._likelihood_gradient = (
            # By the number of gains: without any, there is nothing to multiply.
            [function(method, signature), function(method, [*signature, of_gains])]
            for method, signature in (
                (transforms.synthesis, any_size[1:]),
                (transforms.likelihood_gradient, any_size[::-1]),
            )
        )

    def encode(self, images):
        """Maps images to the parameters of the posterior of their latents.

        Args:
          images: [B, H, W, 3], uint8, or float in [0, 1]; may be a memory map. Images whose sides are no
            multiples of `stride` are extended at the bottom and right by their last row and column.

        Returns:
          float32 posterior mean and log-variance, [B, ceil(H / stride), ceil(W / stride), C] each.
        """
        count, height, width, _ = images.shape
        pad = [(0, 0), (0, -height % self.stride), (0, -width % self.stride), (0, 0)]
        parts = [
            self._analysis(np.pad(_intensities(images[some]), pad, mode="edge"))
            for some in _batches(count, height * width)
        ]
        return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))

    def decode(self, z, height=None, width=None, gains=None):
        """Maps latents to images.

        Args:
          z: float [B, h, w, C].
          height, width: int, sides to crop the images to, pixels; None leaves all.
          gains: gains.Gains of the decoder, or None.

        Returns:
          float32 [B, height, width, 3], neither clipped nor rounded.
        """
        z, of_gains = np.asarray(z, np.float32), [] if gains is None else [tuple(gains)]
        synthesis = self._synthesis[len(of_gains)]
        return np.concatenate(
            [
                synthesis(z[some], *of_gains).numpy()[:, :height, :width]
                for some in _batches(len(z), self._pixels_of(z))
            ]
        )

    def likelihood_gradient(self, z, images, gains=None):
        """Decodes latents and computes how the likelihood of images depends on them.

        Args:
          z: float [B, h, w, C].
          images: [B, H, W, 3], uint8, or float in [0, 1], that `encode` would map to latents of this shape.
          gains: gains.Gains of the decoder, or None.

        Returns:
          float32 [B, H, W, 3], what `decode` returns; and float32 [B, h, w, C], the gradient of -log p(x |
          z), in nats, with respect to z.
        """
        z, of_gains = np.asarray(z, np.float32), [] if gains is None else [tuple(gains)]
        gradient = self._likelihood_gradient[len(of_gains)]
        parts = [
            gradient(z[some], _intensities(images[some]), *of_gains)
            for some in _batches(len(z), self._pixels_of(z))
        ]
        return tuple(np.concatenate([part[i].numpy() for part in parts]) for i in (0, 1))

    def _pixels_of(self, z):
        """How many pixels each of the images has that latents [B, h, w, C] decode to."""
        return z.shape[1] * z.shape[2] * self.stride**2


def _is_no_retracing(record):
    """Whether a record of the log is not TensorFlow's warning that many functions were traced.

    It counts those of all runs of a process together, but every run has to trace its own.
    """
    return "tf.function retracing" not in record.getMessage()


def _fingerprint(weights):
    """SHA-256 of the transforms' weights, see `Run`; weights: dict of arrays by name."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.startswith("prior/"):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value, "<f4"))
    return digest.hexdigest()


def _intensities(images):
    """Images, uint8 or float in [0, 1], as float32 in [0, 1]."""
    return np.asarray(images, np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)


def _batches(count, pixels):
    """Yields slices of `count` images of `pixels` pixels each. A slice has `BATCH_PIXELS`, or one image."""
    size = max(1, BATCH_PIXELS // pixels)
    for first in range(0, count, size):
        yield slice(first, first + size)
