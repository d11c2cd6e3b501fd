"""The transforms and the variational autoencoder, in TensorFlow.

Analysis and synthesis transforms of Ballé, Laparra and Simoncelli, "End-to-end optimized image compression"
(ICLR 2017), in the variational autoencoder of Yang, Bamler and Mandt, "Variational Bayesian quantization"
(ICML 2020).
"""

import numpy as np
import tensorflow as tf
import tensorflow_compression as tfc

from vbq.inference import check_shapes, likelihood_gradient
from vbq.layers import GDN, SignalConv2D, build_layer

LOG_2PI = float(np.log(2 * np.pi))


class VAE(tf.Module):
    """A variational autoencoder of images with a Gaussian posterior and a Gaussian likelihood.

    The prior is a standard normal, or a learned density.

    Attributes:
      config: ModelConfig.
      analysis_layers, synthesis_layers: lists of pairs of a SignalConv2D and the GDN after it, which is None
        for the last.
      prior: tfc.DeepFactorized, or None for a standard normal.
    """

    def __init__(self, config, mixed_precision=False):
        """Builds the layers, with the initial weights of tensorflow-compression.

        Args:
          config: ModelConfig.
          mixed_precision: bool, whether convolutions and the matrix products of GDN are computed in bfloat16;
            everything else is float32.
        """
        super().__init__(name="vae")
        self.config = config
        dtype = tf.keras.mixed_precision.Policy("mixed_bfloat16" if mixed_precision else "float32")
        self.analysis_layers = _analysis_layers(config, dtype)
        self.synthesis_layers = _synthesis_layers(config, dtype)
        self.prior = None
        if config.learned_prior:
            self.prior = tfc.DeepFactorized(
                batch_shape=[config.num_channels], num_filters=(3, 3, 3), init_scale=config.prior_init_scale
            )

    def analysis(self, x):
        """Maps images to the parameters of the posterior of their latents.

        Args:
          x: float32 [B, H, W, 3] in [0, 1], sides multiples of the stride.

        Returns:
          float32 posterior mean and log-variance, [B, H / stride, W / stride, C] each.
        """
        return tf.split(_apply(self.analysis_layers, x), 2, axis=-1)

    def synthesis(self, z):
        """Maps latents to images.

        Args:
          z: float32 [B, h, w, C].

        Returns:
          float32 [B, h * stride, w * stride, 3], neither clipped nor rounded.
        """
        return _apply(self.synthesis_layers, z)

    def likelihood_gradient(self, z, x):
        """See `inference.likelihood_gradient`."""
        return likelihood_gradient(self.synthesis, self.config, z, x)

    def loss(self, x, noise):
        """Computes the negative evidence lower bound at one reparameterized sample.

        Args:
          x: float32 [B, H, W, 3] in [0, 1], sides multiples of the stride.
          noise: float32 [B, H / stride, W / stride, C], standard normal.

        Returns:
          dict of float32 scalars, means over the batch: `elbo = likelihood - kl` in nats per image,
          `likelihood` log p(x | z), `kl` log q(z | x) - log p(z), `loss = -elbo`, `mse` on pixels in [0, 1]
          and its `psnr` in dB; and `x_hat`, the reconstruction [B, H, W, 3] of the sample.
        """
        variance = self.config.likelihood_variance
        mean, logvar = self.analysis(x)
        z = mean + tf.exp(0.5 * logvar) * noise
        x_hat = self.synthesis(z)
        squared_error = tf.reduce_sum(tf.math.squared_difference(x, x_hat), axis=[1, 2, 3])
        pixels = tf.cast(tf.size(x[0]), tf.float32)
        likelihood = tf.reduce_mean(
            -0.5 * squared_error / variance - 0.5 * pixels * (np.log(variance) + LOG_2PI)
        )
        log_posterior = -0.5 * (tf.square(noise) + logvar + LOG_2PI)
        log_prior = self.prior.log_prob(z) if self.prior else -0.5 * (tf.square(z) + LOG_2PI)
        kl = tf.reduce_mean(tf.reduce_sum(log_posterior - log_prior, axis=[1, 2, 3]))
        mse = tf.reduce_mean(squared_error) / pixels
        psnr = -10 / np.log(10) * tf.math.log(mse)
        return {
            "loss": kl - likelihood,
            "elbo": likelihood - kl,
            "likelihood": likelihood,
            "kl": kl,
            "mse": mse,
            "psnr": psnr,
            "x_hat": x_hat,
        }

    @property
    def named_variables(self):
        """dict of the trainable variables, by their names in the original program (TensorFlow 1.15)."""
        named = {}
        for prefix, layers, gdn_name in (
            ("sequential", self.analysis_layers, "gdn"),
            ("sequential_1", self.synthesis_layers, "igdn"),
        ):
            for i, (conv, gdn) in enumerate(layers):
                named[f"{prefix}/layer_{i}/kernel_rdft"] = conv.kernel_parameter.kernel_rdft
                if conv.use_bias:
                    named[f"{prefix}/layer_{i}/bias"] = conv.bias_parameter
                if gdn:
                    named[f"{prefix}/layer_{i}/{gdn_name}_{i}/reparam_beta"] = gdn.beta_parameter.variable
                    named[f"{prefix}/layer_{i}/{gdn_name}_{i}/reparam_gamma"] = gdn.gamma_parameter.variable
        if self.prior:
            for variable in self.prior.trainable_variables:
                name = variable.name.rpartition("/")[-1].removesuffix(":0")
                named[f"prior/{name}"] = variable
        return named

    def named_weights(self):
        """Returns the weights by name, dict of float32 arrays: the form that all tools exchange."""
        return {name: variable.numpy() for name, variable in self.named_variables.items()}

    def set_named_weights(self, weights):
        """Assigns the weights by name.

        Args:
          weights: dict of arrays of any float dtype, by the names of `named_variables`; other names are
            ignored.

        Raises:
          ValueError: names are missing or shapes do not fit. Nothing is assigned then.
        """
        variables = self.named_variables
        check_shapes({name: variable.shape for name, variable in variables.items()}, weights)
        for name, variable in variables.items():
            variable.assign(np.asarray(weights[name], np.float32))


def _apply(layers, x):
    """Applies the layers of a transform one after the other; returns float32."""
    for conv, gdn in layers:
        x = conv(x)
        x = gdn(x) if gdn else x
    return tf.cast(x, tf.float32)


def _analysis_layers(config, dtype):
    """The layers from images to the posterior's mean and log-variance, each of `num_channels` channels."""
    layers, channels_in = [], 3
    depth = len(config.num_filters)
    for i, (filters, size, rate) in enumerate(
        zip(config.num_filters, config.filter_dims, config.sampling_rates)
    ):
        last = i == depth - 1
        conv = SignalConv2D(
            2 * filters if last else filters,
            size,
            corr=True,
            strides_down=rate,
            padding="same_zeros",
            use_bias=not last,
            dtype=dtype,
        )
        layers.append(build_layer(conv, channels_in, None if last else GDN(dtype.compute_dtype)))
        channels_in = filters
    return layers


def _synthesis_layers(config, dtype):
    """The layers from latents to images."""
    layers, channels_in = [], config.num_channels
    filters_out = [*config.num_filters[-2::-1], 3]
    depth = len(filters_out)
    for i, (filters, size, rate) in enumerate(
        zip(filters_out, config.filter_dims[::-1], config.sampling_rates[::-1])
    ):
        conv = SignalConv2D(
            filters, size, corr=False, strides_up=rate, padding="same_zeros", use_bias=True, dtype=dtype
        )
        gdn = None if i == depth - 1 else GDN(dtype.compute_dtype, inverse=True)
        layers.append(build_layer(conv, channels_in, gdn))
        channels_in = filters
    return layers
