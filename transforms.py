"""The transforms and the variational autoencoder, in TensorFlow.

Analysis and synthesis transforms of Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (ICLR
2017), in the variational autoencoder of Yang, Bamler and Mandt, "Variational Bayesian quantization" (ICML 2020). The
layers are tensorflow-compression's and give its results; only the way they are computed is another where that is faster.
"""

import numpy as np
import tensorflow as tf
import tensorflow_compression as tfc
from scipy import fftpack

DENSE_UP_TO = 16  # channels of an upsampled image up to which its dense form is the faster
LOG_2PI = float(np.log(2 * np.pi))


def rdft_basis(height, width):
    """Returns the orthonormal basis of the real DFT of a kernel.

    Args:
      height, width: int, sides of the kernel in pixels.

    Returns:
      float64 [height * width, height * width], so that `kernel = basis @ kernel_rdft`: pixels in row-major order, and
      in each axis the coefficients y0, Re y1, Im y1, ..; that of the original's `kernel_rdft` (tensorflow-compression
      1.3, `RDFTParameterizer`).
    """
    def basis_1d(n):
        scale = np.full(n, np.sqrt(2 / n))
        scale[0] = np.sqrt(1 / n)
        if n % 2 == 0:
            scale[-1] = np.sqrt(1 / n)  # like the mean, the Nyquist frequency has no conjugate twin
        return fftpack.rfft(np.eye(n)) * scale
    return np.kron(basis_1d(height), basis_1d(width))


class RDFTKernel(tfc.Parameter):
    """A convolution kernel trained in the real-DFT domain: one variable times a constant orthonormal matrix.

    It spans what `tfc.RDFTParameter` does, but a product of two small matrices is far cheaper than its FFT on every
    read, and the variable has the original's name and shape.
    """

    def __init__(self, initial_value, name="kernel_rdft"):
        """Args: initial_value: float32 [height, width, in, out], the kernel to start from."""
        super().__init__(name=name)
        self.shape = tuple(initial_value.shape)
        height, width, channels_in, channels_out = self.shape
        self.basis = rdft_basis(height, width).astype(np.float32)
        self.frozen = None
        kernel = tf.reshape(initial_value, [height * width, channels_in * channels_out])
        self.kernel_rdft = tf.Variable(tf.matmul(self.basis, kernel, transpose_a=True), name=name)

    def __call__(self, compute_dtype=None):
        """Returns the kernel [height, width, in, out]."""
        kernel = tf.reshape(tf.matmul(self.basis, self.kernel_rdft), self.shape) if self.frozen is None else self.frozen
        return kernel if compute_dtype is None else tf.cast(kernel, compute_dtype)

    def freeze(self):
        """Computes the kernel once; later changes of the variable are without effect."""
        self.frozen = self()

    def get_config(self):
        raise NotImplementedError("This parameter is saved through checkpoints, not through Keras configurations.")


class SignalConv2D(tfc.SignalConv2D):
    """`tfc.SignalConv2D` for its two uses here: `corr=True` downsampling, or `corr=False` upsampling.

    It takes `padding="same_zeros"` and square kernels for granted. Sides of its input are multiples of `strides_down`.
    """

    def call(self, inputs):
        if self.corr:
            outputs = correlate_down(inputs, self.kernel, self.strides_down[0])
        else:
            outputs = convolve_up(inputs, tf.transpose(self.kernel, [0, 1, 3, 2]), self.strides_up[0])
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


def correlate_down(x, kernel, stride):
    """Correlates with zero padding and keeps every `stride`-th pixel of every `stride`-th row.

    Args:
      x: [B, H, W, high], H and W multiples of `stride`.
      kernel: [k, k, high, low].
      stride: int.

    Returns:
      [B, H / stride, W / stride, low], as `tfc.SignalConv2D(corr=True, strides_down=stride, padding="same_zeros")`.
    """
    @tf.custom_gradient
    def down(x, kernel):
        return strided_correlation(x, kernel, stride), lambda dy: (
            upsampled_convolution(dy, kernel, stride), kernel_gradient(x, dy, kernel.shape, stride))
    return down(x, kernel)


def convolve_up(y, kernel, stride):
    """Inserts `stride - 1` zeros between pixels and convolves with zero padding: the adjoint of `correlate_down`.

    Args:
      y: [B, H, W, low].
      kernel: [k, k, high, low].
      stride: int.

    Returns:
      [B, H * stride, W * stride, high], as `tfc.SignalConv2D(corr=False, strides_up=stride, padding="same_zeros")`.
    """
    @tf.custom_gradient
    def up(y, kernel):
        return upsampled_convolution(y, kernel, stride), lambda dx: (
            strided_correlation(dx, kernel, stride), kernel_gradient(dx, y, kernel.shape, stride))
    return up(y, kernel)


# The three linear maps above, each in the form that was fastest, forward and backward, of those that TensorFlow offers on a
# CPU. Its oneDNN kernels for the latter two know no explicit padding, so that images are padded or cropped for them.


def strided_correlation(x, kernel, stride):
    size = kernel.shape[0]
    pad = [size // 2, (size - 1) // 2]
    return tf.nn.conv2d(x, kernel, stride, [[0, 0], pad, pad, [0, 0]])


def kernel_gradient(x, dy, kernel_shape, stride):
    """Returns the gradient of `sum(dy * strided_correlation(x, kernel, stride))` with respect to the kernel."""
    size = kernel_shape[0]
    before = size // 2
    after = size - stride - before  # for a stride beyond the kernel it may be negative: pixels that the kernel skips
    if after < 0:
        x, after = x[:, :after, :after], 0
    x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
    return tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel_shape, out_backprop=dy,
                                           strides=[1, stride, stride, 1], padding="VALID")


def upsampled_convolution(y, kernel, stride):
    if kernel.shape[2] <= DENSE_UP_TO:
        return dense_upsampled_convolution(y, kernel, stride)
    size, before = kernel.shape[0], kernel.shape[0] // 2
    batch, height, width, _ = tf.unstack(tf.shape(y))
    x = tf.nn.conv2d_transpose(y, kernel, [batch, (height - 1) * stride + size, (width - 1) * stride + size, kernel.shape[2]],
                               stride, padding="VALID")
    after = max(before + stride - size, 0)
    x = tf.pad(x, [[0, 0], [0, after], [0, after], [0, 0]]) if after else x
    return x[:, before:before + height * stride, before:before + width * stride]


def dense_upsampled_convolution(y, kernel, stride):
    """As `convolve_up`, by a correlation at the low resolution whose output channels are then rearranged to pixels.

    The kernel grows by some zeros: 9 x 9 at stride 4 becomes 12 x 12, that is 3 x 3 blocks of 4 x 4.
    """
    size, _, high, low = kernel.shape
    # Pixel i * stride + r is the sum over d = first .. last of y[i + d] * kernel[r - d * stride + size // 2].
    first, last = -((size - 1 - size // 2) // stride), (stride - 1 + size // 2) // stride
    taps = last - first + 1
    before = last * stride - size // 2
    pad = [before, taps * stride - size - before]
    blocks = tf.reshape(tf.pad(kernel, [pad, pad, [0, 0], [0, 0]]), [taps, stride, taps, stride, high, low])
    blocks = tf.transpose(tf.reverse(blocks, [0, 2]), [0, 2, 5, 1, 3, 4])
    blocks = tf.reshape(blocks, [taps, taps, low, stride * stride * high])
    x = tf.nn.conv2d(y, blocks, 1, [[0, 0], [-first, last], [-first, last], [0, 0]])
    return tf.nn.depth_to_space(x, stride) if stride > 1 else x


class GDN(tfc.GDN):
    """Ballé's `x / sqrt(beta + gamma x^2)`, or its approximate inverse `x * sqrt(..)`, as one matrix product."""

    def __init__(self, **kwargs):
        super().__init__(alpha_parameter=2, epsilon_parameter=.5, **kwargs)

    def call(self, inputs):
        channels = inputs.shape[-1]
        pool = tf.matmul(tf.reshape(tf.square(inputs), [-1, channels]), self.gamma)
        pool = tf.reshape(tf.nn.bias_add(pool, self.beta), tf.shape(inputs))
        return inputs * (tf.sqrt(pool) if self.inverse else tf.math.rsqrt(pool))


class VAE(tf.Module):
    """A variational autoencoder of images: Gaussian posterior and likelihood, standard normal or learned prior."""

    def __init__(self, num_filters, filter_dims, sampling_rates, learned_prior=False, prior_init_scale=10.,
                 likelihood_variance=.02, mixed_precision=False):
        """Builds the layers, with the initial weights of tensorflow-compression.

        Args:
          num_filters: list of int, channels after each analysis layer; the last are the latents.
          filter_dims: list of int, sides of the layers' kernels in pixels.
          sampling_rates: list of int, strides of the layers.
          learned_prior: bool, whether the prior is a deep factorized density that is trained, or a standard normal.
          prior_init_scale: float, initial scale of that density.
          likelihood_variance: float, variance of the Gaussian likelihood of pixels in [0, 1].
          mixed_precision: bool, whether convolutions compute in bfloat16; all else is float32.
        """
        super().__init__(name="vae")
        self.likelihood_variance = likelihood_variance
        self.num_channels = num_filters[-1]
        self.stride = int(np.prod(sampling_rates))
        dtype = tf.keras.mixed_precision.Policy("mixed_bfloat16" if mixed_precision else "float32")
        depth = len(num_filters)

        self.analysis_layers, channels_in = [], 3
        for i, (filters, size, rate) in enumerate(zip(num_filters, filter_dims, sampling_rates)):
            last = i == depth - 1
            conv = SignalConv2D(2 * filters if last else filters, size, corr=True, strides_down=rate,
                                padding="same_zeros", use_bias=not last, dtype=dtype)
            self.analysis_layers.append(build_layer(conv, channels_in, None if last else GDN()))
            channels_in = filters

        self.synthesis_layers = []
        filters_out = [*num_filters[-2::-1], 3]
        for i, (filters, size, rate) in enumerate(zip(filters_out, filter_dims[::-1], sampling_rates[::-1])):
            conv = SignalConv2D(filters, size, corr=False, strides_up=rate, padding="same_zeros", use_bias=True,
                                dtype=dtype)
            self.synthesis_layers.append(
                build_layer(conv, channels_in, None if i == depth - 1 else GDN(inverse=True)))
            channels_in = filters

        self.prior = tfc.DeepFactorized(batch_shape=[self.num_channels], num_filters=(3, 3, 3),
                                        init_scale=prior_init_scale) if learned_prior else None

    def analysis(self, x):
        """Maps images to the parameters of the posterior of their latents.

        Args:
          x: float32 [B, H, W, 3] in [0, 1], sides multiples of `stride`.

        Returns:
          float32 posterior mean and log-variance, [B, H / stride, W / stride, C] each.
        """
        y = x
        for conv, gdn in self.analysis_layers:
            y = conv(y)
            y = gdn(y) if gdn else y
        return tf.split(tf.cast(y, tf.float32), 2, axis=-1)

    def synthesis(self, z):
        """Maps latents, float32 [B, h, w, C], to images, float32 [B, h * stride, w * stride, 3], neither clipped nor rounded."""
        y = z
        for conv, gdn in self.synthesis_layers:
            y = conv(y)
            y = gdn(y) if gdn else y
        return tf.cast(y, tf.float32)

    def likelihood_gradient(self, z, x):
        """The synthesis, cropped to the images x [B, H, W, 3], and the gradient of -log p(x | z) by z, [B, h, w, C]."""
        with tf.GradientTape() as tape:
            tape.watch(z)
            x_hat = self.synthesis(z)[:, :tf.shape(x)[1], :tf.shape(x)[2]]
            distortion = tf.reduce_sum(tf.math.squared_difference(x, x_hat)) / (2 * self.likelihood_variance)
        return x_hat, tape.gradient(distortion, z)

    def loss(self, x, noise):
        """Computes the negative evidence lower bound at one reparameterized sample.

        Args:
          x: float32 [B, H, W, 3] in [0, 1], sides multiples of `stride`.
          noise: float32 [B, H / stride, W / stride, C], standard normal.

        Returns:
          dict of float32 scalars, means over the batch: `elbo = likelihood - kl` in nats per image, `likelihood`
          log p(x | z), `kl` log q(z | x) - log p(z), `loss = -elbo`, `mse` on pixels in [0, 1] and its `psnr` in dB;
          and `x_hat`, the reconstruction [B, H, W, 3] of the sample.
        """
        mean, logvar = self.analysis(x)
        z = mean + tf.exp(.5 * logvar) * noise
        x_hat = self.synthesis(z)
        squared_error = tf.reduce_sum(tf.math.squared_difference(x, x_hat), axis=[1, 2, 3])
        pixels = tf.cast(tf.size(x[0]), tf.float32)
        likelihood = tf.reduce_mean(-.5 * squared_error / self.likelihood_variance
                                    - .5 * pixels * (np.log(self.likelihood_variance) + LOG_2PI))
        log_posterior = -.5 * (tf.square(noise) + logvar + LOG_2PI)
        log_prior = self.prior.log_prob(z) if self.prior else -.5 * (tf.square(z) + LOG_2PI)
        kl = tf.reduce_mean(tf.reduce_sum(log_posterior - log_prior, axis=[1, 2, 3]))
        mse = tf.reduce_mean(squared_error) / pixels
        psnr = -10 / np.log(10) * tf.math.log(mse)
        return dict(loss=kl - likelihood, elbo=likelihood - kl, likelihood=likelihood, kl=kl, mse=mse, psnr=psnr,
                    x_hat=x_hat)

    @property
    def named_variables(self):
        """dict of the trainable variables by the names that the original TensorFlow 1.15 program gave them."""
        named = {}
        for prefix, layers, gdn_name in (("sequential", self.analysis_layers, "gdn"),
                                         ("sequential_1", self.synthesis_layers, "igdn")):
            for i, (conv, gdn) in enumerate(layers):
                named[f"{prefix}/layer_{i}/kernel_rdft"] = conv.kernel_parameter.kernel_rdft
                if conv.use_bias:
                    named[f"{prefix}/layer_{i}/bias"] = conv.bias_parameter
                if gdn:
                    named[f"{prefix}/layer_{i}/{gdn_name}_{i}/reparam_beta"] = gdn.beta_parameter.variable
                    named[f"{prefix}/layer_{i}/{gdn_name}_{i}/reparam_gamma"] = gdn.gamma_parameter.variable
        if self.prior:
            named |= {f"prior/{v.name.rpartition('/')[-1].removesuffix(':0')}": v
                      for v in self.prior.trainable_variables}
        return named

    def named_weights(self):
        """Returns dict of float32 arrays by name (see `named_variables`): the form that every tool exchanges."""
        return {name: variable.numpy() for name, variable in self.named_variables.items()}

    def set_named_weights(self, weights):
        """Assigns the weights by name.

        Args:
          weights: dict of arrays of any float dtype; other names are ignored.

        Raises:
          ValueError: names that are missing or shapes that do not fit, before anything is assigned.
        """
        variables = self.named_variables
        misfits = [f"{name}: expected shape {tuple(v.shape)}, found "
                   + (str(tuple(np.shape(weights[name]))) if name in weights else "nothing")
                   for name, v in variables.items() if np.shape(weights.get(name)) != tuple(v.shape)]
        if misfits:
            raise ValueError("; ".join(misfits[:2]) + (f"; and {len(misfits) - 2} more" if len(misfits) > 2 else ""))
        for name, variable in variables.items():
            variable.assign(np.asarray(weights[name], np.float32))

    def freeze(self):
        """Computes the kernels once and for all, for inference."""
        for conv, _ in self.analysis_layers + self.synthesis_layers:
            conv.kernel_parameter.freeze()


def build_layer(conv, channels_in, gdn):
    """Returns the two layers with their variables made, `conv` for `channels_in` channels (`gdn` may be None)."""
    kernel = conv.kernel_initializer([*conv.kernel_support, channels_in, conv.filters], tf.float32)
    conv.kernel_parameter = RDFTKernel(kernel)
    conv.build([None, None, None, channels_in])
    if gdn:
        gdn.build([None, None, None, conv.filters])
    return conv, gdn
