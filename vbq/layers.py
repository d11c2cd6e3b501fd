"""The layers of the transforms, in TensorFlow.

They are the layers of Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (ICLR 2017), as
tensorflow-compression has them, and compute the same functions up to rounding. Some are computed in another,
faster way.
"""

import tensorflow as tf
import tensorflow_compression as tfc

from vbq.convolutions import convolve_up, correlate_down, normalize
from vbq.rdft import rdft_basis


class RDFTKernel(tfc.Parameter):
    """A convolution kernel trained in the real-DFT domain: one variable times a constant orthonormal matrix.

    It spans the same kernels as `tfc.RDFTParameter`. A product of two small matrices is far cheaper than the
    FFT of that class at every read, and the variable has the original's name and shape.
    """

    def __init__(self, initial_value, name="kernel_rdft"):
        """Makes the variable.

        Args:
          initial_value: float32 [height, width, in, out], the kernel to start from.
          name: str, of the variable.
        """
        super().__init__(name=name)
        self.shape = tuple(initial_value.shape)
        height, width, channels_in, channels_out = self.shape
        self.basis = rdft_basis(height, width).astype("float32")
        kernel = tf.reshape(initial_value, [height * width, channels_in * channels_out])
        self.kernel_rdft = tf.Variable(tf.matmul(self.basis, kernel, transpose_a=True), name=name)

    def __call__(self, compute_dtype=None):
        """Returns the kernel [height, width, in, out]."""
        kernel = tf.reshape(tf.matmul(self.basis, self.kernel_rdft), self.shape)
        return kernel if compute_dtype is None else tf.cast(kernel, compute_dtype)

    def get_config(self):
        raise NotImplementedError(
            "This parameter is saved through checkpoints, not through Keras configurations."
        )


class SignalConv2D(tfc.SignalConv2D):
    """`tfc.SignalConv2D` for two uses: downsampling with `corr=True` and upsampling with `corr=False`.

    It requires `padding="same_zeros"`, square kernels, and inputs whose sides are multiples of
    `strides_down`.
    """

    def call(self, inputs):
        if self.corr:
            outputs = correlate_down(inputs, self.kernel, self.strides_down[0])
        else:
            outputs = convolve_up(inputs, tf.transpose(self.kernel, [0, 1, 3, 2]), self.strides_up[0])
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs


class GDN(tfc.GDN):
    """Generalized divisive normalization, or its approximate inverse, as one matrix product.

    The normalization is `x / sqrt(beta + gamma x^2)`, the approximate inverse `x * sqrt(beta + gamma x^2)`.
    """

    def __init__(self, product_dtype, **kwargs):
        """Makes the layer: float32, except for its matrix product. Other arguments: see `tfc.GDN`."""
        super().__init__(alpha_parameter=2, epsilon_parameter=0.5, **kwargs)
        self.product_dtype = product_dtype

    def call(self, inputs):
        return normalize(inputs, self.beta, tf.cast(self.gamma, self.product_dtype), self.inverse)


def build_layer(conv, channels_in, gdn=None):
    """Makes the variables of a convolution and of the normalization after it.

    Args:
      conv: SignalConv2D.
      channels_in: int, channels of its input.
      gdn: GDN, or None.

    Returns:
      The two layers.
    """
    kernel = conv.kernel_initializer([*conv.kernel_support, channels_in, conv.filters], tf.float32)
    conv.kernel_parameter = RDFTKernel(kernel)
    conv.build([None, None, None, channels_in])
    if gdn:
        gdn.build([None, None, None, conv.filters])
    return conv, gdn
