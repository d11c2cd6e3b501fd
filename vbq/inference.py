"""A trained model for inference: its transforms as functions of constants, in TensorFlow alone.

The layers of `vbq/transforms.py` are made for training. They need tensorflow-compression and Keras, which
take over a second to import and to set up. Here the same functions are computed from the weights alone: the
analysis transform to the last bit, the synthesis transform up to rounding.
"""

import functools

import numpy as np
import tensorflow as tf

from vbq.convolutions import correlate_down, normalize, upsampling
from vbq.rdft import rdft_basis

# Of `GDNParameter` in tensorflow-compression: v stands for max(v, sqrt(least + OFFSET^2))^2 - OFFSET^2.
OFFSET = 2.0**-18
LEAST = {"beta": 1e-6, "gamma": 0.0}

GDN_NAMES = {"sequential": "gdn", "sequential_1": "igdn"}  # by the prefix of analysis and synthesis


class Transforms:
    """The analysis and synthesis transforms of a `transforms.VAE`, with constant weights.

    Attributes:
      config: ModelConfig.
      synthesis_widths: list of int, the channels that enter each layer of the synthesis transform.
    """

    def __init__(self, config, weights, mixed_precision=False):
        """Takes the weights.

        Args:
          config: ModelConfig.
          weights: dict of arrays of any float dtype, by the names of `VAE.named_variables`; other names are
            ignored.
          mixed_precision: bool, whether convolutions and the matrix products of GDN are computed in bfloat16;
            everything else is float32.

        Raises:
          ValueError: names are missing or shapes do not fit.
        """
        self.config = config
        self._dtype = tf.bfloat16 if mixed_precision else tf.float32
        shapes = weight_shapes(config)
        check_shapes(shapes, weights)
        self._weights = {name: np.array(weights[name], np.float32) for name in shapes}
        for array in self._weights.values():  # kernels are made of them later
            array.flags.writeable = False
        self.synthesis_widths = [channels_in for _, _, channels_in, _ in layer_sizes(config)["sequential_1"]]

    @functools.cached_property
    def _analysis(self):
        """The constants of each layer, see `_layer`."""
        with tf.init_scope():
            return self._layers("sequential")

    @functools.cached_property
    def _synthesis(self):
        """By layer: a function, see `upsampling`, bias, and beta and gamma or None."""
        with tf.init_scope():
            return [
                (upsampling(tf.transpose(kernel, [0, 1, 3, 2]), stride), bias, gdn)
                for kernel, bias, stride, gdn in self._layers("sequential_1")
            ]

    def _layers(self, prefix):
        """Computes the constants of a transform's layers; the caller leaves a trace first."""
        sizes = layer_sizes(self.config)[prefix]
        return [self._layer(prefix, i, *of_layer) for i, of_layer in enumerate(sizes)]

    def _layer(self, prefix, i, size, stride, channels_in, channels_out):
        """The constants of a layer: kernel, bias, stride, and beta and gamma. None where it has none.

        Kernel and gamma have the type of the products.
        """
        name = f"{prefix}/layer_{i}/"
        kernel = tf.matmul(rdft_basis(size, size).astype("float32"), self._weights[name + "kernel_rdft"])
        kernel = tf.reshape(kernel, [size, size, channels_in, channels_out])
        bias, gdn = self._weights.get(name + "bias"), None
        name += f"{GDN_NAMES[prefix]}_{i}/reparam_"
        if name + "beta" in self._weights:
            beta, gamma = (_non_negative(self._weights[name + part], least) for part, least in LEAST.items())
            gdn = beta, tf.cast(gamma, self._dtype)
        kernel = tf.cast(kernel, self._dtype)
        return kernel, None if bias is None else tf.constant(bias), stride, gdn

    def named_weights(self):
        """Returns the weights by name, dict of float32 arrays: the form that all tools exchange."""
        return dict(self._weights)

    def analysis(self, x):
        """Maps images to the posterior of their latents, see `VAE.analysis`."""
        for kernel, bias, stride, gdn in self._analysis:
            x = tf.cast(correlate_down(tf.cast(x, self._dtype), kernel, stride), tf.float32)
            x = x if bias is None else tf.nn.bias_add(x, bias)
            x = normalize(x, *gdn, inverse=False) if gdn else x
        return tf.split(x, 2, axis=-1)

    def synthesis(self, z, gains=None, inputs=None):
        """Maps latents to images, see `VAE.synthesis`.

        Args:
          z: float32 [B, h, w, C].
          gains: two float32 arrays [D], see `gains.Gains`, or None.
          inputs: list, to which what enters each layer is appended; or None.

        Returns:
          float32 [B, h * stride, w * stride, 3].
        """
        by_layer = zip(*(tf.split(x, self.synthesis_widths) for x in gains)) if gains else None
        for up, bias, gdn in self._synthesis:
            if by_layer:
                scale, offset = next(by_layer)
                z = tf.nn.bias_add(z * scale, offset)
            if inputs is not None:
                inputs.append(z)
            z = tf.nn.bias_add(tf.cast(up(tf.cast(z, self._dtype)), tf.float32), bias)
            z = normalize(z, *gdn, inverse=True) if gdn else z
        return z

    def likelihood_gradient(self, z, x, gains=None):
        """See `likelihood_gradient`."""
        return likelihood_gradient(lambda z: self.synthesis(z, gains), self.config, z, x)


def layer_sizes(config):
    """The sizes of the layers of analysis and synthesis, by the prefix of their names in a `VAE`.

    Returns:
      dict of two lists of ints (size of the kernel, stride, channels in, channels out).
    """
    filters, sizes, rates = config.num_filters, config.filter_dims, config.sampling_rates
    up = filters[::-1]
    return {
        "sequential": list(zip(sizes, rates, [3, *filters], [*filters[:-1], 2 * filters[-1]])),
        "sequential_1": list(zip(sizes[::-1], rates[::-1], up, [*up[1:], 3])),
    }


def weight_shapes(config):
    """The shapes of the transforms' weights, dict of tuples, by the names of `VAE.named_variables`."""
    shapes = {}
    for prefix, layers in layer_sizes(config).items():
        for i, (size, _, channels_in, channels_out) in enumerate(layers):
            is_last, name = i == len(layers) - 1, f"{prefix}/layer_{i}/"
            shapes[name + "kernel_rdft"] = size * size, channels_in * channels_out
            if not is_last or prefix == "sequential_1":
                shapes[name + "bias"] = (channels_out,)
            if not is_last:
                gdn = f"{name}{GDN_NAMES[prefix]}_{i}/reparam_"
                shapes[gdn + "beta"], shapes[gdn + "gamma"] = (channels_out,), (channels_out, channels_out)
    return shapes


def check_shapes(shapes, weights):
    """Raises a ValueError if weights, dict of arrays, lack names or have other shapes than dict of tuples."""
    misfits = []
    for name, shape in shapes.items():
        found = tuple(np.shape(weights[name])) if name in weights else "nothing"
        if found != tuple(shape):
            misfits.append(f"{name}: expected shape {tuple(shape)}, found {found}")
    if misfits:
        more = f"; and {len(misfits) - 2} more" if len(misfits) > 2 else ""
        raise ValueError("; ".join(misfits[:2]) + more)


def likelihood_gradient(synthesis, config, z, x):
    """Decodes latents and computes how the likelihood of images depends on them.

    Args:
      synthesis: function from latents to images.
      config: ModelConfig.
      z: float32 [B, h, w, C].
      x: float32 [B, H, W, 3] in [0, 1]; h and w are H / stride and W / stride, rounded up.

    Returns:
      float32 [B, H, W, 3], the synthesis cropped to the images; and float32 [B, h, w, C], the gradient of
      -log p(x | z), in nats, with respect to z.
    """
    with tf.GradientTape() as tape:
        tape.watch(z)
        x_hat = synthesis(z)[:, : tf.shape(x)[1], : tf.shape(x)[2]]
        squared_error = tf.reduce_sum(tf.math.squared_difference(x, x_hat))
        distortion = squared_error / (2 * config.likelihood_variance)
    return x_hat, tape.gradient(distortion, z)


def _non_negative(variable, least):
    """The beta or gamma that a variable stands for."""
    pedestal = tf.constant(OFFSET**2)
    bound = tf.constant((least + OFFSET**2) ** 0.5)
    return tf.math.square(tf.maximum(variable, bound)) - pedestal
