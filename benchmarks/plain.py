"""Plain implementations, written for clarity alone. The results of the fast ones are compared with theirs.

Axis letters: B latent positions, C channels, N max bits, K code points.
"""

import numpy as np
import plain_metrics
import tensorflow as tf
import tensorflow_compression as tfc
from PIL import Image

from vbq.transforms import VAE

# The model.


class PlainVAE(VAE):
    """The layers of tensorflow-compression without changes, with the weights of another model."""

    def __init__(self, model):
        """Takes a vbq.transforms.VAE without a learned prior."""
        tf.Module.__init__(self, name="plain_vae")
        self.config = model.config
        self.prior = None
        self.analysis_layers, self.synthesis_layers = (
            [(plain_convolution(conv), gdn and plain_gdn(gdn)) for conv, gdn in layers]
            for layers in (model.analysis_layers, model.synthesis_layers)
        )


def plain_convolution(conv):
    """tensorflow-compression's convolution with the weights of a `vbq.layers.SignalConv2D`."""
    layer = tfc.SignalConv2D(
        conv.filters,
        conv.kernel_support,
        corr=conv.corr,
        strides_down=conv.strides_down,
        strides_up=conv.strides_up,
        padding="same_zeros",
        use_bias=conv.use_bias,
        # the default, kernel_parameter="rdft", makes the same when the layer is built
        kernel_parameter=tfc.RDFTParameter(conv.kernel_parameter()),
    )
    layer.build([None, None, None, conv.kernel_parameter.shape[2]])
    if conv.use_bias:
        layer.bias_parameter.assign(conv.bias_parameter)
    return layer


def plain_gdn(gdn):
    """tensorflow-compression's GDN with the weights of a `vbq.layers.GDN`."""
    layer = tfc.GDN(inverse=gdn.inverse, alpha_parameter=2, epsilon_parameter=0.5)
    layer.build([None, None, None, gdn.beta_parameter.variable.shape[0]])
    layer.beta_parameter.variable.assign(gdn.beta_parameter.variable)
    layer.gamma_parameter.variable.assign(gdn.gamma_parameter.variable)
    return layer


def plain_variables(plain):
    """The variables of a `PlainVAE`, layer by layer."""
    variables = []
    for conv, gdn in plain.analysis_layers + plain.synthesis_layers:
        variables += [conv.kernel_parameter.real, conv.kernel_parameter.imag]
        variables += [conv.bias_parameter] if conv.use_bias else []
        variables += [gdn.beta_parameter.variable, gdn.gamma_parameter.variable] if gdn else []
    return variables


def same_step(model, x, noise, tolerance=1e-3):
    """Whether a model's loss and gradients equal those of its `PlainVAE`.

    Args:
      model: vbq.transforms.VAE.
      x: float32 [B, H, W, 3] in [0, 1].
      noise: float32 [B, H / stride, W / stride, C].
      tolerance: float, of each gradient, relative to its norm. That of the loss is a thousandth of it.

    Returns:
      bool.
    """
    plain = PlainVAE(model)
    names = model.named_variables
    loss, gradients = _loss_and_gradients(model, list(names.values()), x, noise)
    gradients = dict(zip(names, gradients))
    plain_loss, expected = _loss_and_gradients(plain, plain_variables(plain), x, noise)

    found = []
    for (conv, gdn), (plain_conv, _) in zip(
        model.analysis_layers + model.synthesis_layers, plain.analysis_layers + plain.synthesis_layers
    ):
        kernel = conv.kernel_parameter
        others = [conv.bias_parameter] if conv.use_bias else []
        others += [gdn.beta_parameter.variable, gdn.gamma_parameter.variable] if gdn else []
        of_kernel, *of_others = (
            gradients.pop(next(n for n, v in names.items() if v is variable))
            for variable in (kernel.kernel_rdft, *others)
        )
        found += _as_plain_kernel_gradients(kernel, of_kernel, plain_conv.kernel_parameter) + of_others
    return bool(abs(loss - plain_loss) <= 1e-3 * tolerance * abs(plain_loss)) and all(
        np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) for a, b in zip(found, expected)
    )


def _loss_and_gradients(model, variables, x, noise):
    """The loss, and its gradients with respect to the variables."""
    with tf.GradientTape() as tape:
        loss = model.loss(x, noise)["loss"]
    return loss, tape.gradient(loss, variables)


def _as_plain_kernel_gradients(kernel, gradient, plain_parameter):
    """Turns the gradient of our kernel parameter into those of the plain layer's two kernel parameters.

    Both kernels are linear in their parameters.
    """
    of_values = tf.reshape(tf.matmul(kernel.basis, gradient), kernel.shape)
    with tf.GradientTape() as tape:
        values = plain_parameter()
    return tape.gradient(values, [plain_parameter.real, plain_parameter.imag], of_values)


# The quantizers.


def best_code_points(code_points, mean, std, lamb, lengths):
    """Compares all code points.

    Args:
      code_points: float [C, K].
      mean, std: float [C, B], the posterior.
      lamb: float, nats of distortion that a bit is worth.
      lengths: float [C, K], bits.

    Returns:
      int64 [C, B], the indices of the cheapest code points; and their costs, float64 [C, B], in nats.
    """
    indices, costs = np.empty(mean.shape, np.int64), np.empty(mean.shape)
    for c in range(len(mean)):
        points = code_points[c].astype(np.float64)
        for b in range(0, mean.shape[1], 4096):
            here = c, slice(b, b + 4096)
            distance = (points - mean[here][:, None].astype(np.float64)) / std[here][:, None]
            cost = 0.5 * distance**2 + lamb * lengths[c]
            indices[here] = np.argmin(cost, axis=1)
            costs[here] = cost[np.arange(len(cost)), indices[here]]
    return indices, costs


def bit_lengths(max_bits):
    """The number of bits n of every xi = (i + 1/2) / 2^n in ascending order, int64 [K]."""
    pairs = [((i + 0.5) / 2**n, n) for n in range(max_bits + 1) for i in range(2**n)]
    return np.array([n for _, n in sorted(pairs)])


def smoothed_lengths(counts):
    """-log2 of add-one smoothed frequencies along the last axis."""
    return -np.log2((counts + 1.0) / (counts + 1.0).sum(axis=-1, keepdims=True))


def choosing_lengths(bit_length_counts):
    """The lengths by which the paper's quantizer chooses.

    Args:
      bit_length_counts: int [..., N+1].

    Returns:
      float64 [..., K], for each code point of n bits: n plus the code length of n, in bits.
    """
    max_bits = bit_length_counts.shape[-1] - 1
    lengths = np.arange(max_bits + 1) + smoothed_lengths(bit_length_counts)
    return lengths[..., bit_lengths(max_bits)]


def quantize(quantizer, setting, mean, std):
    """Quantizes a posterior, float32 [..., C], at a setting: latents, float32 [..., C], and their bits."""
    channels = mean.shape[-1]
    mean, std, shape = mean.reshape(-1, channels).T, std.reshape(-1, channels).T, mean.shape
    if hasattr(quantizer, "lambs"):
        number = list(quantizer.lambs).index(setting)
        points = quantizer.code_points
        choosing = choosing_lengths(quantizer.bit_length_counts[number])
        indices, _ = best_code_points(points, mean, std, setting, choosing)
        lengths = smoothed_lengths(quantizer.index_counts[number])
    else:
        points = quantizer.code_points[setting].astype(np.float64)
        counts = quantizer.counts[setting].astype(np.float64)
        indices = np.stack([np.argmin(abs(x[:, None] - row), axis=1) for x, row in zip(mean, points)])
        counts += (counts == 0).any(axis=1, keepdims=True)
        lengths = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    z_hat = np.take_along_axis(points, indices, axis=1).T.reshape(shape)
    return z_hat.astype(np.float32), np.take_along_axis(lengths, indices, axis=1).sum()


# The evaluation.


def same_evaluation(run, fits, results, path, number, chosen, all_metrics=True):
    """Whether the results of one image equal those of plain quantizers, plain layers and plain metrics.

    Plain layers differ from ours by rounding, and so do a few of the reconstruction's 8-bit values. So
    figures may differ by 1e-4 of their value, and those in dB by 1e-3 dB.

    Args:
      run: vbq.runs.Run.
      fits: list of fits.Fit.
      results: list of the arrays of their result files.
      path: str, the image.
      number: int, of the image in the results.
      chosen: list of lists of int, the numbers of the settings to check, for each fit.
      all_metrics: bool. If False, only the MSE is compared; plain metrics of a large image take long.

    Returns:
      bool.
    """
    image = np.asarray(Image.open(path))
    height, width = image.shape[:2]
    model = VAE(run.config)
    model.set_named_weights(run.model.named_weights())
    plain = PlainVAE(model)
    pad = [(0, 0), (0, -height % run.stride), (0, -width % run.stride), (0, 0)]
    x = np.pad(image[None], pad, mode="edge").astype(np.float32) / 255
    mean, logvar = (latents.numpy() for latents in plain.analysis(x))
    same = True
    for fit, arrays, numbers in zip(fits, results, chosen, strict=True):
        for s in numbers:
            z_hat, bits = quantize(fit.quantizer, arrays["settings"][s], mean, np.exp(0.5 * logvar))
            x_hat = plain.synthesis(z_hat).numpy()[0, :height, :width]
            x_hat = np.round(255 * np.clip(x_hat, 0, 1)).astype(np.uint8)
            if all_metrics:
                expected = plain_metrics.metrics(image, x_hat)
            else:
                expected = {"MSE (RGB)": np.mean((x_hat.astype(np.float64) - image) ** 2)}
            expected |= {"B": bits, "BPP": bits / (height * width)}
            same &= all(
                np.isclose(arrays[key][number, s], value, rtol=1e-4, atol=1e-3 if "dB" in key else 1e-4)
                for key, value in expected.items()
            )
    return bool(same)
