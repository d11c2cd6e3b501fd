"""The convolutions and the normalization of the transforms, in TensorFlow alone."""

import tensorflow as tf

DENSE_UP_TO = 16  # channels of an upsampled image up to which the dense form of upsampling is the faster one


def correlate_down(x, kernel, stride):
    """Correlates with zero padding and keeps every `stride`-th pixel of every `stride`-th row.

    Args:
      x: [B, H, W, high], H and W multiples of `stride`.
      kernel: [k, k, high, low].
      stride: int.

    Returns:
      [B, H / stride, W / stride, low], as `tfc.SignalConv2D(corr=True, strides_down=stride,
      padding="same_zeros")`.
    """

    @tf.custom_gradient
    def down(x, kernel):
        return _strided_correlation(x, kernel, stride), lambda dy: (
            _upsampled_convolution(dy, kernel, stride),
            _kernel_gradient(x, dy, kernel.shape, stride),
        )

    return down(x, kernel)


def convolve_up(y, kernel, stride):
    """Inserts `stride - 1` zeros between pixels and convolves with zero padding.

    It is the adjoint of `correlate_down`.

    Args:
      y: [B, H, W, low].
      kernel: [k, k, high, low].
      stride: int.

    Returns:
      [B, H * stride, W * stride, high], as `tfc.SignalConv2D(corr=False, strides_up=stride,
      padding="same_zeros")`.
    """

    @tf.custom_gradient
    def up(y, kernel):
        return _upsampled_convolution(y, kernel, stride), lambda dx: (
            _strided_correlation(dx, kernel, stride),
            _kernel_gradient(dx, y, kernel.shape, stride),
        )

    return up(y, kernel)


def upsampling(kernel, stride):
    """`convolve_up` with a kernel that stays as it is, for inference.

    The pixels at one place of every `stride` x `stride` block are a correlation of y with a part of the
    kernel: every `stride`-th tap. On a CPU, the correlations with all parts take about two thirds of the time
    of a transposed convolution. The parts are cut here, once.

    Args:
      kernel: [k, k, high, low].
      stride: int.

    Returns:
      Function from y to what `convolve_up(y, kernel, stride)` returns, up to rounding, with its gradient.
    """
    # With a larger stride, some pixels would need a negative padding.
    has_parts = kernel.shape[2] > DENSE_UP_TO and stride <= (kernel.shape[0] + 1) // 2
    parts = _parts(kernel, stride) if has_parts else None

    @tf.custom_gradient
    def up(y):
        x = _interleaved(y, parts) if parts else _upsampled_convolution(y, kernel, stride)
        return x, lambda dx: _strided_correlation(dx, kernel, stride)

    return up


def _parts(kernel, stride):
    """The parts of `upsampling`: by row and column of a block, a list of lists of filter and padding."""
    size, filters = kernel.shape[0], tf.transpose(kernel, [0, 1, 3, 2])
    # Pixel i * stride + place is the sum over d = -before .. after of
    # y[i + d] * kernel[place - d * stride + size // 2].
    centers = [place + size // 2 for place in range(stride)]
    pads = [[(size - 1 - center) // stride, center // stride] for center in centers]
    first = [center + before * stride for center, (before, _) in zip(centers, pads)]
    return [
        [
            (filters[row::-stride, column::-stride], [[0, 0], row_pad, column_pad, [0, 0]])
            for column, column_pad in zip(first, pads)
        ]
        for row, row_pad in zip(first, pads)
    ]


def _interleaved(y, parts):
    """Correlates y with every part of a kernel, and puts the results together to an image."""
    batch, height, width, _ = tf.unstack(tf.shape(y))
    rows = [tf.stack([tf.nn.conv2d(y, part, 1, pad) for part, pad in row], axis=3) for row in parts]
    stride, high = len(parts), rows[0].shape[-1]
    return tf.reshape(tf.stack(rows, axis=2), [batch, height * stride, width * stride, high])


# The three linear maps that `correlate_down`, `convolve_up` and their gradients consist of. Each map has the
# form that makes training fastest on a CPU. The oneDNN kernels of the latter two maps have no explicit
# padding, so that images are padded or cropped for them.


def _strided_correlation(x, kernel, stride):
    """As `correlate_down`, without its gradient."""
    size = kernel.shape[0]
    pad = [size // 2, (size - 1) // 2]
    return tf.nn.conv2d(x, kernel, stride, [[0, 0], pad, pad, [0, 0]])


def _kernel_gradient(x, dy, kernel_shape, stride):
    """The gradient of `sum(dy * _strided_correlation(x, kernel, stride))` with respect to the kernel."""
    size = kernel_shape[0]
    before = size // 2
    after = size - stride - before
    if after < 0:  # the stride exceeds the kernel, which skips the last pixels
        x, after = x[:, :after, :after], 0
    x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=kernel_shape, out_backprop=dy, strides=[1, stride, stride, 1], padding="VALID"
    )


def _upsampled_convolution(y, kernel, stride):
    """As `convolve_up`, without its gradient."""
    if kernel.shape[2] <= DENSE_UP_TO:
        return _dense_upsampled_convolution(y, kernel, stride)
    size, before = kernel.shape[0], kernel.shape[0] // 2
    batch, height, width, _ = tf.unstack(tf.shape(y))
    sides = [(side - 1) * stride + size for side in (height, width)]
    x = tf.nn.conv2d_transpose(y, kernel, [batch, *sides, kernel.shape[2]], stride, padding="VALID")
    after = max(before + stride - size, 0)
    x = tf.pad(x, [[0, 0], [0, after], [0, after], [0, 0]]) if after else x
    return x[:, before : before + height * stride, before : before + width * stride]


def _dense_upsampled_convolution(y, kernel, stride):
    """As `convolve_up`, by a correlation at the low resolution and a rearrangement of channels to pixels.

    The kernel is padded with zeros. For example, 9 x 9 at stride 4 becomes 12 x 12, which is 3 x 3 blocks of
    4 x 4.
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


def normalize(x, beta, gamma, inverse):
    """Generalized divisive normalization, or its approximate inverse, as one matrix product.

    Args:
      x: float32 [B, H, W, C].
      beta: float32 [C], positive.
      gamma: [C, C], non-negative. Its type is that of the matrix product.
      inverse: bool.

    Returns:
      float32 [B, H, W, C], `x / sqrt(beta + gamma x^2)`; if inverse, `x * sqrt(beta + gamma x^2)`.
    """
    pool = tf.matmul(tf.cast(tf.reshape(tf.square(x), [-1, x.shape[-1]]), gamma.dtype), gamma)
    pool = tf.reshape(tf.nn.bias_add(tf.cast(pool, x.dtype), beta), tf.shape(x))
    return x * (tf.sqrt(pool) if inverse else tf.math.rsqrt(pool))
