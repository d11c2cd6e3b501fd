"""Gains of the decoder: a scale and an offset for every channel that enters one of its layers, by lambda.

The decoder is trained on samples of the posterior. What it decodes are code points, which spread less than
samples do, and the less the larger lambda is. Its inverse GDN layers amplify each channel by how large all
are together, so pictures get a contrast that is slightly wrong. A scale and an offset for every channel,
fitted to the validation images at every lambda, set that right. Weights, code points, code lengths and
streams stay as they are.

Gains by rate are from Cui et al., "Asymmetric gained deep image compression with continuous rate adaptation"
(CVPR 2021), who train them with the model, and have them in the encoder, too.

Axis letters: N images, h, w latent positions, C channels, L lambdas, D channels that enter the layers of the
decoder, one layer after the other.
"""

from typing import NamedTuple

import numpy as np

from vbq.command import progress
from vbq.fits import Fit, SavedFit, missing_settings

PIXELS = 2**18  # of the images in a step
FIRST_STEPS, STEPS = 150, 50  # at the first lambda, and at the others, each from the gains before
LEARNING_RATE = 1e-2  # constant for the first half of the steps, then falling to zero


class Gains(NamedTuple):
    """The gains of one lambda: an affine map of each channel that enters a layer, layer after layer.

    Each is float32 [D], where D is the sum of `inference.Transforms.synthesis_widths`.
    """

    scales: np.ndarray
    offsets: np.ndarray  # added after the scales


class DecoderGains(SavedFit):
    """The gains of a quantizer's lambdas.

    Attributes:
      base: str, identity of the quantizer that they belong to.
      lambs: float64 [L], its lambdas.
      scales, offsets: float32 [L, D], see `Gains`.
    """

    def __init__(self, base, lambs, scales, offsets, provenance=None):
        """Takes gains; the arguments are attributes of the class, but for the provenance, see `SavedFit`.

        Raises:
          ValueError: the shapes do not belong together, or a gain is not finite.
        """
        super().__init__(provenance)
        self.base, self.lambs = str(base), np.asarray(lambs, np.float64)
        self.scales, self.offsets = np.asarray(scales, np.float32), np.asarray(offsets, np.float32)
        shapes = self.scales.shape, self.offsets.shape
        if shapes[0] != shapes[1] or self.scales.ndim != 2 or len(self.scales) != len(self.lambs):
            raise ValueError(f"scales and offsets have shapes {shapes} for {len(self.lambs)} lambdas")
        if not (np.isfinite(self.scales).all() and np.isfinite(self.offsets).all()):
            raise ValueError("scales or offsets are not finite")

    @classmethod
    def fit(cls, run, quantizer, images, mean, std, provenance=None):
        """Fits gains: the squared error of the decoded images falls in steps of Adam.

        Args:
          run: runs.Run.
          quantizer: ChannelwisePriorCDFQuantizer, fitted.
          images: uint8 or float in [0, 1], [N, H, W, 3]: the validation images. A random part is used.
          mean, std: float32 [N, h, w, C], their posterior.
          provenance: dict, see `SavedFit`.

        Returns:
          DecoderGains.
        """
        fitting, found = _Fitting(run, images), []
        batch = max(1, PIXELS // (images.shape[1] * images.shape[2]))
        order = _endless(np.random.default_rng(0), len(images))
        for i, lamb in enumerate(progress(quantizer.lambs, desc="gains", unit="lambda")):
            codebook, steps = quantizer.codebook(i), STEPS if i else FIRST_STEPS
            for step in range(steps):
                some = np.sort([next(order) for _ in range(batch)])
                z = codebook.dequantize(codebook.choose(mean[some], std[some], lamb))
                fitting.step(z, images[some], LEARNING_RATE * min(1, 2 * (1 - step / steps)))
            found.append(fitting.gains())
        return cls(
            quantizer.identity(run.fingerprint), quantizer.lambs, *map(np.stack, zip(*found)), provenance
        )

    @classmethod
    def file_name(cls, options):
        return cls.__name__ + options.name_of_vbq

    @staticmethod
    def rank(name):
        """Sort key of a file's name, see `FitStore.usable`."""
        return (("-fit=" not in name),) if name.startswith("DecoderGains-") else None

    def unmet(self, options):
        differs = [] if self.base == options.base else ["the fit that its gains belong to"]
        return differs + missing_settings("lambs", self.lambs, options.lambs)

    @property
    def width(self):
        """D, int."""
        return self.scales.shape[1]

    def at(self, lamb_index):
        """The `Gains` of a lambda."""
        return Gains(self.scales[lamb_index], self.offsets[lamb_index])

    def arrays(self):
        return {"base": self.base, "lambs": self.lambs, "scales": self.scales, "offsets": self.offsets}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(*(arrays.pop(name) for name in ("base", "lambs", "scales", "offsets")), arrays)


def usable(store, kind):
    """Goes through the saved fits of a kind as `FitStore.usable` does, each with its gains and then without.

    Args:
      store: fits.FitStore.
      kind: class of quantizers with a method `with_gains`.

    Yields:
      Pairs as `FitStore.usable` does.
    """
    all_gains = []
    for gains, skipped in store.usable(DecoderGains):
        if gains:
            all_gains.append(gains)
        else:
            yield None, skipped
    for fit, skipped in store.usable(kind):
        for gains in all_gains if fit else ():
            if gains.quantizer.base != fit.quantizer.identity():
                continue
            try:
                found = Fit(fit.quantizer.with_gains(gains.quantizer), gains.name), None
            except ValueError as error:
                found = None, f"{gains.name}.npz: {error}"
            yield found
        yield fit, skipped


class _Fitting:
    """The variables of a fit and its step."""

    def __init__(self, run, images):
        import tensorflow as tf

        self._height, self._width = images.shape[1:3]
        self._transforms = run.transforms
        self._units = None
        width = sum(run.transforms.synthesis_widths)
        self._log_scales, self._offsets = (tf.Variable(tf.zeros(width)) for _ in range(2))
        self._optimizer = tf.keras.optimizers.legacy.Adam()
        self._step = tf.function(self._one_step, autograph=False, reduce_retracing=True)

    def step(self, z, images, learning_rate):
        """Follows the gradient on images and on the latents that they are decoded from."""
        import tensorflow as tf

        x = tf.constant(images, tf.float32) / (255 if images.dtype == np.uint8 else 1)
        if self._units is None:  # offsets count in standard deviations of their channels
            inputs = []
            self._transforms.synthesis(tf.constant(z), inputs=inputs)
            self._units = tf.concat([tf.math.reduce_std(one, axis=[0, 1, 2]) for one in inputs], axis=0)
        self._optimizer.learning_rate = learning_rate
        self._step(tf.constant(z), x)

    def _one_step(self, z, x):
        import tensorflow as tf

        variables = [self._log_scales, self._offsets]
        with tf.GradientTape() as tape:
            x_hat = self._transforms.synthesis(z, self._gains())[:, : self._height, : self._width]
            error = tf.reduce_mean(tf.math.squared_difference(x, x_hat))
            error /= self._transforms.config.likelihood_variance
        self._optimizer.apply_gradients(zip(tape.gradient(error, variables), variables))

    def _gains(self):
        import tensorflow as tf

        return Gains(tf.exp(self._log_scales), self._offsets * self._units)

    def gains(self):
        """The gains so far, as arrays."""
        return Gains(*(x.numpy() for x in self._gains()))


def _endless(rng, count):
    """Yields numbers below a count, all of them in random order again and again."""
    while True:
        yield from rng.permutation(count)
